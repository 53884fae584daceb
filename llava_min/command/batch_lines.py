"""The input of --batch: JSON Lines become requests, each with a digest of what it asks.

in:  the name of a file, or - for stdin
out: a Line each, with a request in the arguments of `generate` or with its error; digests

A file of which no line is an object is in another format, and one error says so.
Read base/habits.py first. Read next: command/batch_answers.py.
"""

from __future__ import annotations  # typing takes a twentieth of --help to import

import contextlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..base.files import parse_json, path_of, regular
from ..base.habits import ours
from ..errors import LlavaMinError, PromptError, shown
from .arguments import Settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Request: TypeAlias = dict[str, Any]

Key = tuple[str, str | int]  # what tells a line from others: ("line", 7), or ("id", '"a"')
STREAM = "-"  # stdin or stdout
BOM = b"\xef\xbb\xbf"
LONGEST_NAME = 4096  # of a file


@dataclass(frozen=True)
class Line:
    """One line of the input: its number from 1, its "id" or None, and the request or its error."""

    number: int
    id: str | float | None
    request: Request | LlavaMinError

    @property
    def key(self) -> Key:
        """What tells its answer from those of other lines."""
        return ("line", self.number) if self.id is None else ("id", json.dumps(self.id))


def read(source: str) -> bytes:
    """The bytes of the input; PromptError where there are none to be read."""
    if source == STREAM:
        return sys.stdin.buffer.read()
    what, where, expected = "cannot read the batch", shown(source), "a plain file"
    if not regular(Path(source)):
        raise PromptError(what, where, expected, "none")
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise PromptError(what, where, f"{expected} that can be read", error.strerror) from None


def lines_of(data: bytes, source: str) -> list[Line]:
    """All lines that are not blank; PromptError where none is an object, as in another format."""
    lines: list[Line] = []
    first: dict[Key, int] = {}
    objects = 0
    data = data.removeprefix(BOM)
    for number, text in enumerate(data.split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            line = parsed(number, object_of(text.strip()))
            objects += 1
        except PromptError as error:
            line = Line(number, None, error)
        earlier = first.setdefault(line.key, number)
        if earlier != number:
            found = f"that of line {earlier}"
            line = Line(number, None, wrong("id", "one of its own", found))
        lines.append(line)
    if lines and not objects:
        refuse_format(data, shown(source))
    return lines


def object_of(text: bytes) -> Request:
    """The JSON object in a line; PromptError where it is none, or one that cannot be written."""
    try:
        value = parse_json(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # no half surrogate pairs
    except (json.JSONDecodeError, UnicodeError):
        raise wrong("its text", "JSON", shown(text.decode(errors="replace"))) from None
    except ValueError as error:
        raise wrong("its text", "JSON", str(error)) from None
    if not isinstance(value, dict):
        raise wrong("its text", "an object", shown(value))
    return value


def refuse_format(data: bytes, where: str) -> None:
    """PromptError for a file of which no line is an object, with what it seems to be."""
    found, hint = f"the line {shown(data.splitlines()[0].decode(errors='replace'))}", ""
    with contextlib.suppress(ValueError):
        kind, way = ("array", ".[]") if isinstance(parse_json(data), list) else ("value", ".")
        found = f"one JSON {kind}"
        hint = f"jq -c '{way}' makes lines of it."
    expected = "JSON Lines in UTF-8, an object a line"
    raise PromptError("cannot read the batch", where, expected, found, hint)


def parsed(number: int, request: Request) -> Line:
    """A line as a request with the arguments of `generate`; null is an argument's default."""
    mark = request.pop("id", None)
    if not isinstance(mark, str | int | float | None):
        return Line(number, None, wrong("id", "a text or number", shown(mark)))
    try:
        request = ours((), (), {k: v for k, v in request.items() if v is not None})
    except LlavaMinError as error:
        return Line(number, mark, error)
    for kind in ("images", "videos"):
        sources = request.get(kind, [])
        if not isinstance(sources, str | list) or not all(isinstance(s, str) for s in sources):
            return Line(number, mark, wrong(kind, "a list of texts", shown(sources)))
    return Line(number, mark, request)


def wrong(where: str, expected: str, found: str) -> PromptError:
    """The error of a line that asks nothing."""
    return PromptError("cannot read the line", where, expected, found)


def digest_of(line: Line, settings: Settings) -> str:
    """What an answer depends on, in 16 hex digits: question, media, settings and model.

    Of media, subtitles and checkpoints that are here, sizes and times of change count too.
    """
    import hashlib  # which --help does without

    request = line.request if isinstance(line.request, dict) else str(line.request)
    told = [request, settings.model, settings.options, settings.load]
    files = [state for text in texts_in(told) for state in states(text)]
    return hashlib.sha256(json.dumps([told, files], sort_keys=True).encode()).hexdigest()[:16]


def states(text: str) -> Iterator[tuple[str, int, int]]:
    """(name, bytes, time of change in ns) of a file, or of a folder and what lies in it."""
    with contextlib.suppress(OSError, ValueError):  # no file, or no name of one
        path = path_of(text)
        found = os.stat(path)
        yield text, found.st_size, found.st_mtime_ns
        for entry in sorted(os.listdir(path)) if stat.S_ISDIR(found.st_mode) else ():
            inner = os.stat(os.path.join(path, entry))
            yield entry, inner.st_size, inner.st_mtime_ns


def texts_in(value: object) -> Iterator[str]:
    """Every text in it that may be the name of a file."""
    if isinstance(value, str) and len(value) < LONGEST_NAME:
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts_in(inner)
