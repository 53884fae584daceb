"""A file of questions -> a file of answers: --batch in.jsonl -o out.jsonl [--resume].

in:  JSON Lines, each {"question" or "prompt" or "messages", "images", "videos", "id", options...}
out: JSON Lines in the same order, each with the number of its "line", its "id" where it has one,
     and what --json prints; a line that cannot be answered has an "error" instead

Each answer is written when it ends. With --resume, an answer stays if its line asks the same
question about the same media with the same settings, wherever that line is now; each answer carries
a digest of these. A line that is half written or was an error is tried again.
Read engine/batch.py first.
"""

from __future__ import annotations  # typing takes a twentieth of --help to import

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..base.files import regular
from ..base.progress import Progress
from ..errors import LlavaMinError, OutputError, PromptError, shown
from . import report
from .arguments import Settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    from ..engine.answers import Answer
    from ..engine.handle import Model

    Request: TypeAlias = dict[str, Any]
    Outcome: TypeAlias = Answer | LlavaMinError

QUESTIONS = ("question", "prompt", "messages")
Key = tuple[str, str | int]  # what tells a line from others: ("line", 7), or ("id", "a")
LONGEST_NAME = 4096  # of a file
SHOWN_ERRORS = 3  # on stderr; all are in the output
BEGINNING = b'{"line": '  # of every line that is written


@dataclass(frozen=True)
class Line:
    """One line of the input: its number from 1, its "id" or None, and the request or its error."""

    number: int
    id: str | int | None
    request: Request | LlavaMinError

    @property
    def key(self) -> Key:
        """What tells its answer from those of other lines."""
        return ("line", self.number) if self.id is None else ("id", self.id)


def read_lines(source: Path) -> list[Line]:
    """All lines that are not blank."""
    lines: list[Line] = []
    first: dict[Key, int] = {}
    for number, text in enumerate(source.read_bytes().split(b"\n"), start=1):
        if text.strip():
            line = parsed(number, text)
            earlier = first.setdefault(line.key, number)
            if earlier != number:
                found = f"that of line {earlier}"
                line = Line(number, None, wrong(number, "an id of its own", found))
            lines.append(line)
    return lines


def parsed(number: int, text: bytes) -> Line:
    """A line as a request with the arguments of `generate`."""
    try:
        request = json.loads(text)
        json.dumps(request, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        return Line(number, None, wrong(number, "JSON", shown(text.decode(errors="replace"))))
    if not isinstance(request, dict):
        return Line(number, None, wrong(number, "an object", shown(request)))
    mark, given = request.pop("id", None), [n for n in QUESTIONS if n in request]
    if not isinstance(mark, str | int | None):
        return Line(number, None, wrong(number, "a text or number as id", shown(mark)))
    if len(given) > 1:
        return Line(number, mark, wrong(number, f"one of {', '.join(QUESTIONS)}", "several"))
    for kind in ("images", "videos"):
        sources = request.get(kind, [])
        if not isinstance(sources, str | list) or not all(isinstance(s, str) for s in sources):
            return Line(number, mark, wrong(number, f"a list of texts as {kind}", shown(sources)))
    question = request.pop(given[0]) if given else None
    return Line(number, mark, {"question": question, **request})


def wrong(number: int, expected: str, found: str) -> PromptError:
    return PromptError("cannot read the batch", f"line {number}", expected, found)


def key_of(entry: dict[str, Any]) -> Key:
    """Which line of the input a line of the output answers."""
    return ("id", entry["id"]) if "id" in entry else ("line", entry["line"])


def digest_of(line: Line, settings: Settings) -> str:
    """What an answer depends on, in 16 hex digits: question, media, settings and model.

    Of media that are files here, their sizes and times of change count too.
    """
    import hashlib  # which --help does without

    files = []
    for text in texts_in(line.request):
        with contextlib.suppress(OSError, ValueError):  # no file, or no name of one
            state = os.stat(text)
            files.append([text, state.st_size, state.st_mtime_ns])
    request = line.request if isinstance(line.request, dict) else str(line.request)
    told = [request, files, settings.model, settings.options, settings.load]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def texts_in(value: object) -> Iterator[str]:
    """Every text in a request that may be the name of a file."""
    if isinstance(value, str) and len(value) < LONGEST_NAME:
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts_in(inner)


def answered(target: Path) -> list[dict[str, Any]]:
    """The answers in an output file. An error, or a half-written last line, is no answer."""
    kept = []
    for number, text in enumerate(target.read_bytes().splitlines(keepends=True), start=1):
        try:
            entry = json.loads(text)
            key_of(entry)
        except (ValueError, TypeError, KeyError):
            start = BEGINNING[: len(text)]
            if text.endswith(b"\n") or not text.startswith(start):
                where = f"{shown(str(target))}, line {number}"
                raise OutputError("cannot resume", where, "an answer", "none") from None
            continue
        if "error" not in entry and text.endswith(b"\n"):
            kept.append(entry)
    return kept


def still_right(
    entries: list[dict[str, Any]], lines: list[Line], settings: Settings, where: str
) -> dict[Key, bytes]:
    """{key: line} of the answers that are still those of a line, with its number of today.

    OutputError for an answer to no line of this input at all.
    """
    digests = {line.key: digest_of(line, settings) for line in lines}
    nameless: dict[str, list[Line]] = {}
    for line in lines:
        if line.id is None:
            nameless.setdefault(digests[line.key], []).append(line)
    numbers = {line.key: line.number for line in lines}
    kept: dict[Key, bytes] = {}
    for entry in entries:
        key, digest = key_of(entry), entry.get("digest")
        same = [] if "id" in entry else nameless.get(str(digest), [])
        if same:
            key = same.pop(0).key
        elif key not in digests:
            found = f"{key[0]} {key[1]}"
            raise OutputError("cannot resume", where, f"answers to {settings.batch} only", found)
        elif "id" not in entry or digests[key] != digest:
            continue  # its line asks something else now
        kept[key] = encoded(entry | {"line": numbers[key]})
    return kept


def encoded(entry: dict[str, Any]) -> bytes:
    """A line of the output."""
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


@dataclass
class Work:
    """What is to be done: the lines of the input, and the answers that are there already."""

    lines: list[Line]
    target: Path
    before: dict[Key, bytes]

    @classmethod
    def of(cls, settings: Settings) -> Work:
        """Read both files; PromptError or OutputError before any weight is loaded."""
        assert settings.batch is not None and settings.answers is not None
        source, target = Path(settings.batch), Path(settings.answers)
        if not regular(source):
            raise PromptError("cannot read the batch", shown(str(source)), "a plain file", "none")
        if target.exists() and not (settings.resume and regular(target)):
            what, where = "cannot write the answers", shown(str(target))
            raise OutputError(what, where, "no such file yet", "one", "--resume goes on with it.")
        lines, before = read_lines(source), {}
        if target.exists():
            before = still_right(answered(target), lines, settings, shown(str(target)))
        return cls(lines, target, before)

    def answer(self, model: Model, settings: Settings) -> int:
        """Answer all lines without an answer; the exit code is that of the first line in error."""
        todo = {line.key: line for line in self.lines if line.key not in self.before}
        progress, start = Progress("answering", settings.quiet), time.time()
        codes: dict[int, int] = {}  # by number of the line in error
        done = 0
        try:
            self.write(self.before.values())
            with open(self.target, "ab", buffering=0) as file:
                for key, outcome in outcomes(model, todo, settings):
                    file.write(written(todo[key], outcome, model.name, settings))
                    done += 1
                    if isinstance(outcome, LlavaMinError):
                        codes[todo[key].number] = outcome.exit_code
                        self.tell(todo[key], outcome, len(codes), settings.quiet)
                    progress(done, len(todo))
            self.in_order()
        except OSError as error:
            where, found = shown(str(self.target)), error.strerror
            what, expected = "cannot write the answers", "a file that can be written"
            raise OutputError(what, where, expected, found) from None
        except KeyboardInterrupt:
            if not settings.quiet:
                rest = f"{done} of {len(todo)} answered; --resume goes on with the others"
                print(f"\nllava_min: {rest}", file=sys.stderr)
            raise
        if not settings.quiet:
            counts = f"{len(todo) - len(codes)} answered, {len(self.before)} before"
            seconds = f"{len(codes)} in error, {time.time() - start:.1f} s"
            print(f"[{counts}, {seconds}]", file=sys.stderr)
        return codes[min(codes)] if codes else 0

    def tell(self, line: Line, error: LlavaMinError, count: int, quiet: bool) -> None:
        """Show the first few errors, and where the others are."""
        if not quiet and count <= SHOWN_ERRORS:
            print(f"llava_min: line {line.number}: {error}", file=sys.stderr)
        elif not quiet and count == SHOWN_ERRORS + 1:
            print(f"llava_min: more errors: see {shown(str(self.target))}", file=sys.stderr)

    def write(self, entries: Iterable[bytes]) -> None:
        """Write the output file with these entries, whole or not at all."""
        fresh = self.target.with_name(f"{self.target.name}.{os.getpid()}.part")
        try:
            fresh.write_bytes(b"".join(entries))
            fresh.replace(self.target)
        finally:
            fresh.unlink(missing_ok=True)

    def in_order(self) -> None:
        """Put answers that came late in the place of their line."""
        place = {line.key: index for index, line in enumerate(self.lines)}
        entries = self.target.read_bytes().splitlines(keepends=True)
        self.write(sorted(entries, key=lambda text: place[key_of(json.loads(text))]))


def outcomes(
    model: Model, todo: dict[Key, Line], settings: Settings
) -> Iterator[tuple[Key, Outcome]]:
    """The answer to each line, or what is wrong with it, as they come."""
    from ..engine.batch import answer_each

    requests = {}
    for key, line in todo.items():
        if isinstance(line.request, LlavaMinError):
            yield key, line.request
        else:
            requests[key] = {**settings.options, **line.request}
    yield from answer_each(model, requests, settings.batch_size)


def written(line: Line, outcome: Outcome, model: str, settings: Settings) -> bytes:
    """A line of the output."""
    entry: dict[str, Any] = {"line": line.number}
    entry |= {} if line.id is None else {"id": line.id}
    if isinstance(outcome, LlavaMinError):
        entry["error"] = str(outcome)
    elif isinstance(line.request, dict):
        own = {k: v for k, v in line.request.items() if k not in ("question", "images", "videos")}
        options = {**settings.options, **settings.load, **own}
        entry |= {"digest": digest_of(line, settings), **report.whole(outcome, model, options)}
    return encoded(entry)
