"""python -m llava_min: the command."""

from .command.main import main, run

__all__ = ["main", "run"]

if __name__ == "__main__":
    run()
