"""Plain files, read within limits: JSON of a checkpoint folder.

Read next: config.py.
"""

import json
import stat
from pathlib import Path

from .errors import CheckpointError, shown

JSON_BYTES = {
    "config.json": 4 << 20,
    "tokenizer.json": 256 << 20,
}  # limits; 64 MB for any other file


def regular(path: Path) -> bool:
    """Whether the path leads to a plain file: not to a folder, pipe or device."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def read_json(path: Path, what: str) -> dict:
    """The JSON object in a file, with a limit on its size."""
    name = path.name
    if not path.exists():
        raise CheckpointError(
            f"cannot read the {what}",
            name,
            f"a file in {path.parent}",
            "none",
            "Is this a checkpoint folder?",
        )
    if not regular(path):
        raise CheckpointError(f"cannot read the {what}", name, "a plain file", "something else")
    limit, size = JSON_BYTES.get(name, 64 << 20), path.stat().st_size
    if size > limit:
        raise CheckpointError(f"cannot read the {what}", name, f"at most {limit} bytes", size)
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise CheckpointError(f"cannot read the {what}", name, "JSON", "something else") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"cannot read the {what}", name, "a JSON object", shown(value))
    return value
