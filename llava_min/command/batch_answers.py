"""The output of --batch: a file that can be gone on with, or stdout.

in:  answers as lines of bytes, as they come
out: the lines in the order of the input; from an earlier output, the answers that still hold

Read command/batch_lines.py first. Read next: command/batch_shares.py.
"""

from __future__ import annotations  # typing takes a twentieth of --help to import

import contextlib
import json
import logging
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError, shown
from .batch_lines import Key, Line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Entry: TypeAlias = dict[str, Any]  # a line of the output

BEGINNING = b'{"line": '  # of every line that is written
log = logging.getLogger("llava_min")


def key_of(entry: Entry) -> Key:
    """Which line of the input a line of the output answers."""
    return ("id", json.dumps(entry["id"])) if "id" in entry else ("line", entry["line"])


def entries_of(target: Path) -> list[Entry]:
    """The whole lines of an output file, answers and errors; a half-written last one is left out.

    OutputError for what is neither.
    """
    kept = []
    for number, text in enumerate(target.read_bytes().splitlines(keepends=True), start=1):
        try:
            entry = json.loads(text)
            hash(key_of(entry))
        except (ValueError, TypeError, KeyError):
            start = BEGINNING[: len(text)]
            if text.endswith(b"\n") or not text.startswith(start):
                where = f"{shown(str(target))}, line {number}"
                raise OutputError("cannot resume", where, "an answer", "none") from None
            continue
        if text.endswith(b"\n"):
            kept.append(entry)
    return kept


def answered(target: Path) -> list[Entry]:
    """The answers in an output file. An error, or a half-written last line, is no answer."""
    return [entry for entry in entries_of(target) if "error" not in entry]


def still_right(
    entries: list[Entry], lines: list[Line], digests: dict[Key, str], source: str
) -> dict[Key, bytes]:
    """{key: line} of the answers that are still those of a line, with its number of today.

    OutputError for answers to no line of this input, if none of the others is still right either.
    """
    nameless: dict[str, list[Line]] = {}
    for line in lines:
        if line.id is None:
            nameless.setdefault(digests[line.key], []).append(line)
    numbers = {line.key: line.number for line in lines}
    kept: dict[Key, bytes] = {}
    strangers: list[Key] = []
    for entry in entries:
        key, digest = key_of(entry), entry.get("digest")
        same = [] if "id" in entry else nameless.get(str(digest), [])
        if same:
            key = same.pop(0).key
        elif key not in digests:
            strangers.append(key)
            continue
        elif "id" not in entry or digests[key] != digest:
            continue  # its line asks something else now
        kept[key] = encoded(entry | {"line": numbers[key]})
    if strangers and not kept:
        found = f"one to {strangers[0][0]} {strangers[0][1]}"
        raise OutputError("cannot resume", source, "answers to its lines", found)
    if strangers:
        log.info(f"answers to lines that are gone, left out: {len(strangers)}")
    return kept


def encoded(entry: Entry) -> bytes:
    """A line of the output."""
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


@dataclass
class Answers:
    """The output file: answers as they come, and in the order of their lines at the end."""

    keys: list[Key]
    target: Path
    writer: str = ""  # tells files in the making apart, where machines share a folder
    others = "; --resume goes on with the others"

    @property
    def name(self) -> str:
        return shown(str(self.target))

    @contextlib.contextmanager
    def begun(self, before: Iterable[bytes]) -> Iterator[None]:
        """The file, open for more answers; OutputError where it cannot be written."""
        try:
            self.write(before)
            with open(self.target, "ab", buffering=0) as self.file:
                yield
            self.in_order()
        except OSError as error:
            what, expected = "cannot write the answers", "a file that can be written"
            raise OutputError(what, self.name, expected, error.strerror) from None

    def add(self, key: Key, entry: bytes) -> None:
        """Write the answer to a line at once."""
        self.file.write(entry)

    def write(self, entries: Iterable[bytes]) -> None:
        """Write the output file with these entries, whole or not at all."""
        fresh = self.target.with_name(f"{self.target.name}.{self.writer}{os.getpid()}.part")
        try:
            fresh.write_bytes(b"".join(entries))
            fresh.replace(self.target)
        finally:
            fresh.unlink(missing_ok=True)

    def in_order(self) -> None:
        """Put answers that came late in the place of their line."""
        place = {key: index for index, key in enumerate(self.keys)}
        entries = self.target.read_bytes().splitlines(keepends=True)
        self.write(sorted(entries, key=lambda text: place[key_of(json.loads(text))]))


class Stdout:
    """Answers on stdout, each after those of the lines before it."""

    name, others = "stdout", ""

    def __init__(self, keys: list[Key]) -> None:
        self.left, self.held = deque(keys), dict[Key, bytes]()

    @contextlib.contextmanager
    def begun(self, before: Iterable[bytes]) -> Iterator[None]:
        """Nothing is there before."""
        yield

    def add(self, key: Key, entry: bytes) -> None:
        """Print the answer to a line when it is its turn."""
        self.held[key] = entry
        while self.left and self.left[0] in self.held:
            sys.stdout.buffer.write(self.held.pop(self.left.popleft()))
            sys.stdout.buffer.flush()
