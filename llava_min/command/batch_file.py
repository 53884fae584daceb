"""A file of questions -> a file of answers: --batch in.jsonl -o out.jsonl [--resume].

in:  JSON Lines, each {"question" or "prompt" or "messages", "images", "videos", "id", options...}
out: JSON Lines in the same order, each with the number of its "line", its "id" where it has one,
     and what --json prints; a line that cannot be answered has an "error" instead

Answers are written as each batch ends. With --resume, answers that are there stay. A line that is
half written or was an error is tried again.
Read engine/batch.py first.
"""

from __future__ import annotations  # typing takes a twentieth of --help to import

import json
import logging
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
    from ..engine.batch import Ready
    from ..engine.handle import Model

    Request: TypeAlias = dict[str, Any]
    Outcome: TypeAlias = Answer | LlavaMinError

log = logging.getLogger("llava_min")
QUESTIONS = ("question", "prompt", "messages")
Key = tuple[str, str | int]  # what tells a line from others: ("line", 7), or ("id", "a")
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


def answered(target: Path) -> dict[Key, bytes]:
    """{key: line} of the answers in an output file.

    An error, or a half-written last line, is no answer.
    """
    kept = {}
    for number, text in enumerate(target.read_bytes().splitlines(keepends=True), start=1):
        try:
            entry = json.loads(text)
            key = key_of(entry)
        except (ValueError, TypeError, KeyError):
            start = BEGINNING[: len(text)]
            if text.endswith(b"\n") or not text.startswith(start):
                where = f"{shown(str(target))}, line {number}"
                raise OutputError("cannot resume", where, "an answer", "none") from None
            continue
        if "error" not in entry and text.endswith(b"\n"):
            kept[key] = text
    return kept


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
        lines, before = read_lines(source), answered(target) if target.exists() else {}
        for key in before.keys() - {line.key for line in lines}:
            where = shown(str(target))
            raise OutputError(
                "cannot resume", where, f"answers to {source} only", f"{key[0]} {key[1]}"
            )
        return cls(lines, target, before)

    def answer(self, model: Model, settings: Settings) -> int:
        """Answer all lines without an answer; the exit code is that of the first line in error."""
        todo = [line for line in self.lines if line.key not in self.before]
        given = {**settings.options, **settings.load}
        progress, start, codes = Progress("answering", settings.quiet), time.time(), []
        try:
            self.write(self.before.values())
            for first in range(0, len(todo), settings.batch_size):
                batch = todo[first : first + settings.batch_size]
                with open(self.target, "ab") as file:
                    for line, outcome in outcomes(model, batch, settings.options):
                        file.write(written(line, outcome, model.name, given))
                        codes += [outcome.exit_code] if isinstance(outcome, LlavaMinError) else []
                progress(first + len(batch), len(todo))
            self.in_order()
        except OSError as error:
            where, found = shown(str(self.target)), error.strerror
            what, expected = "cannot write the answers", "a file that can be written"
            raise OutputError(what, where, expected, found) from None
        if not settings.quiet:
            counts = f"{len(todo) - len(codes)} answered, {len(self.before)} before"
            seconds = f"{len(codes)} in error, {time.time() - start:.1f} s"
            print(f"[{counts}, {seconds}]", file=sys.stderr)
        return codes[0] if codes else 0

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
    model: Model, batch: list[Line], options: dict[str, Any]
) -> Iterator[tuple[Line, Outcome]]:
    """(line, its Answer or what is wrong with it) of a batch, in order.

    Lines that do not fit into memory together are answered in several portions.
    """
    from ..engine import batch as together

    ready: list[tuple[Key, together.Ready]] = []
    found: dict[Key, Outcome] = {}
    for line in batch:
        try:
            if isinstance(line.request, LlavaMinError):
                raise line.request
            request = {**options, **line.request}
            ready.append((line.key, together.ready_for(model, f"line {line.number}", request)))
        except LlavaMinError as error:
            found[line.key] = error
    while ready:
        count = model.rows_that_fit([(p.plan, o.max_tokens) for _, (p, o) in ready])
        if count < len(ready):
            log.info(f"{count} of {len(ready)} lines at a time fit into memory")
        portion, ready = ready[:count], ready[count:]
        found |= answered_apart(model, portion)
    return ((line, found[line.key]) for line in batch)


def answered_apart(model: Model, portion: list[tuple[Key, Ready]]) -> dict[Key, Outcome]:
    """{key: Answer or error} of lines that are ready.

    They are answered together; where that fails, one by one, so that the error falls on its line.
    """
    from ..engine import batch as together

    try:
        answers = together.answers(model, [ready for _, ready in portion])
        return {key: answer for (key, _), answer in zip(portion, answers)}
    except LlavaMinError as error:
        if len(portion) == 1:
            return {portion[0][0]: error}
    apart: dict[Key, Outcome] = {}
    for one in portion:
        apart |= answered_apart(model, [one])
    return apart


def written(line: Line, outcome: Outcome, model: str, options: dict[str, Any]) -> bytes:
    """A line of the output."""
    entry: dict[str, Any] = {"line": line.number}
    entry |= {} if line.id is None else {"id": line.id}
    if isinstance(outcome, LlavaMinError):
        entry["error"] = str(outcome)
    elif isinstance(line.request, dict):
        own = {k: v for k, v in line.request.items() if k not in ("question", "images", "videos")}
        entry |= report.whole(outcome, model, {**options, **own})
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"
