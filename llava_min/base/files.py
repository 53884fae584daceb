"""Plain files, read within limits: JSON of a checkpoint folder.

in:  a path
out: a JSON object, or CheckpointError

Read next: config.py.
"""

import json
import stat
import sys
import urllib.parse
from pathlib import Path

from ..errors import CheckpointError, LlavaMinError, shown

JSON_BYTES = {
    "config.json": 4 << 20,
    "tokenizer.json": 256 << 20,
}  # limits; 64 MB for any other file
LFS = b"version https://git-lfs.github.com/spec/"


def regular(path: Path) -> bool:
    """Whether the path leads to a plain file, and not to a folder, pipe or device."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):  # a name that is too long, or that holds a NUL
        return False


def path_of(text: str) -> str:
    """The path that a text is, or that it names as a file:// URL.

    >>> path_of("a.png"), path_of("file:///my%20pictures/a.png")
    ('a.png', '/my pictures/a.png')
    """
    if not text.startswith("file://"):
        return text
    path = urllib.parse.unquote(urllib.parse.urlsplit(text).path)
    return path.removeprefix("/") if sys.platform == "win32" else path  # /C:/pictures/a.png


def refuse_pointer(start: bytes, error: type[LlavaMinError], what: str, where: str) -> None:
    """An error of this type where a file begins as a Git LFS pointer, which is not the file."""
    if start.startswith(LFS):
        hint = "Fetch the file itself, for example with git lfs pull."
        raise error(what, where, "the file", "a Git LFS pointer to it", hint)


def parse_json(text: bytes) -> object:
    """The value of JSON text, read strictly: UTF-8, no key twice, no NaN.

    ValueError says what is wrong.
    """
    try:
        return json.loads(text.decode(), object_pairs_hook=unique, parse_constant=not_a_number)
    except RecursionError:
        raise ValueError("brackets nested too deeply") from None


def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The object of these pairs; ValueError where a key appears twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{shown(next(k for k in keys if keys.count(k) > 1))} twice")
    return found


def not_a_number(name: str) -> object:
    """ValueError: NaN and infinities are no JSON."""
    raise ValueError(f"the number {name}")


def read_json(path: Path, what: str) -> dict[str, object]:
    """The JSON object in a file, with a limit on its size."""
    name = path.name
    if not path.exists():
        raise CheckpointError(
            f"cannot read the {what}",
            name,
            f"a file in {shown(str(path.parent))}",
            "none",
            "Is this a checkpoint folder?",
        )
    if not regular(path):
        raise CheckpointError(f"cannot read the {what}", name, "a plain file", "something else")
    limit, size = JSON_BYTES.get(name, 64 << 20), path.stat().st_size
    if size > limit:
        raise CheckpointError(f"cannot read the {what}", name, f"at most {limit} bytes", size)
    try:
        text = path.read_bytes()
        refuse_pointer(text, CheckpointError, f"cannot read the {what}", name)
        value = parse_json(text)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read the {what}", name, "JSON", str(error)) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"cannot read the {what}", name, "a JSON object", shown(value))
    return value
