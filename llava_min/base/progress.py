"""Progress of long work, as a bar on a terminal."""

import sys


class Progress:
    """A bar on a terminal for work of more than half a second; silent elsewhere."""

    def __init__(self, what: str, quiet: bool) -> None:
        self.what, self.quiet = what, quiet or not sys.stderr.isatty()
        self.start: float | None = None

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` units of work are done; the last call wipes the bar."""
        import time

        now = time.monotonic()
        start = self.start or now
        self.start = None if done == total else start
        if self.quiet or not done or now - start < 0.5:
            return
        left = (now - start) / done * (total - done)
        filled = 24 * done // total
        end = "\r\033[K" if done == total else ""
        print(
            f"\r{self.what} [{'=' * filled:24}] {done}/{total}, {left:.0f} s left {end}",
            end="",
            file=sys.stderr,
            flush=True,
        )
