"""A file of questions -> a file of answers: --batch in.jsonl -o out.jsonl [--resume].

in:  JSON Lines, each {"question" or "prompt" or "messages", "images", "videos", "id", options...},
     from a file or, for -, from stdin
out: JSON Lines in the same order, each with the number of its "line", its "id" where it has one,
     and what --json prints; a line that cannot be answered has an "error" instead

Each answer is written when it ends; to stdout, which is -, when those before it have ended too.
With --resume, an answer stays if its line asks the same question about the same media with the same
settings, wherever that line is now; each answer carries a digest of these. Answers to lines that
are gone are left out. A line that is half written or was an error is tried again.
Under torchrun or srun each process answers its share of the lines (command/batch_shares.py).
Read command/batch_shares.py, engine/batch.py first.
"""

from __future__ import annotations  # typing takes a twentieth of --help to import

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..base.files import regular
from ..base.progress import Progress
from ..errors import LlavaMinError, OutputError, ParameterError, shown
from . import report
from .arguments import Settings
from .batch_answers import Answers, Stdout, encoded, still_right
from .batch_lines import STREAM, Key, Line, digest_of, lines_of, read
from .batch_shares import Share, join, left_before, parts_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from ..engine.answers import Answer
    from ..engine.handle import Model
    from .batch_answers import Entry

    Outcome: TypeAlias = Answer | LlavaMinError

SHOWN_ERRORS = 3  # on stderr; all are in the output
log = logging.getLogger("llava_min")


@dataclass
class Work:
    """What is to be done: the lines of the input, and the answers that are there already.

    digests: of each line as its media were when the work began. before: answers that stay. Where
    processes share a batch, `lines` are this one's, and `keys` those of all.
    """

    lines: list[Line]
    digests: dict[Key, str]
    output: Answers | Stdout
    before: dict[Key, bytes]
    keys: list[Key]
    share: Share
    target: Path

    @classmethod
    def of(cls, settings: Settings) -> Work:
        """Read both files; PromptError or OutputError before any weight is loaded."""
        assert settings.batch is not None and settings.answers is not None
        target = Path(settings.answers)
        one_model = settings.load.keys() & {"tensor_parallel", "pipeline_parallel"}
        share = Share() if one_model else Share.of(os.environ)
        if share.count > 1 and STREAM in (settings.batch, settings.answers):
            raise ParameterError(
                f"{str(share).capitalize()} needs --batch and -o with names, not -."
            )
        others = (share.part(target, rank) for rank in range(share.count) if rank != share.rank)
        mine = {target, *parts_of(target)} - set(others)  # theirs may be in the making
        there = settings.answers != STREAM and sorted(path for path in mine if path.exists())
        if there and not (settings.resume and all(map(regular, there))):
            what, where = "cannot write the answers", shown(str(there[0]))
            hint = "--resume goes on with it, or name another."
            raise OutputError(what, where, "no such file yet", "one", hint)
        lines = lines_of(read(settings.batch), settings.batch)
        digests, before = {line.key: digest_of(line, settings) for line in lines}, {}
        if settings.resume:
            before = still_right(left_before(target), lines, digests, shown(settings.batch))
        keys = [line.key for line in lines]
        lines = [line for index, line in enumerate(lines) if share.owns(index)]
        before = {line.key: before[line.key] for line in lines if line.key in before}
        output = Stdout(keys) if settings.answers == STREAM else Answers(keys, share.part(target))
        return cls(lines, digests, output, before, keys, share, target)

    def answer(self, model: Model, settings: Settings) -> int:
        """Answer all lines without an answer; the exit code is that of the first line in error."""
        todo = {line.key: line for line in self.lines if line.key not in self.before}
        progress, start = Progress("answering", settings.quiet), time.time()
        codes: dict[int, int] = {}  # by number of the line in error
        done = 0
        try:
            with said_once(), self.output.begun(self.before.values()):
                for key, outcome in outcomes(model, todo, settings):
                    entry = written(todo[key], self.digests[key], outcome, model.name, settings)
                    self.output.add(key, entry)
                    done += 1
                    if isinstance(outcome, LlavaMinError):
                        codes[todo[key].number] = outcome.exit_code
                        self.tell(todo[key], outcome, len(codes))
                    progress(done, len(todo))
        except KeyboardInterrupt:
            if not settings.quiet:
                count = f"{done} of {len(todo)} answered"
                print(f"\nllava_min: {count}{self.output.others}", file=sys.stderr)
            raise
        if not settings.quiet:
            counts = f"{len(todo) - len(codes)} answered, {len(self.before)} before"
            seconds = f"{len(codes)} in error, {time.time() - start:.1f} s"
            print(f"[{counts}, {seconds}]", file=sys.stderr)
        if self.share.count > 1 or parts_of(self.target):
            missing = join(self.share, self.keys, self.target)
            log.info(f"{self.share}: {self.joined(missing)}")
        return codes[min(codes)] if codes else 0

    def joined(self, missing: list[int]) -> str:
        """What became of the parts."""
        name = shown(str(self.target))
        if not missing:
            return f"{name} has all {len(self.keys)} lines"
        ranks = ", ".join(map(str, missing))
        return f"{name} is made once the parts in its folder of ranks {ranks} are whole too"

    def tell(self, line: Line, error: LlavaMinError, count: int) -> None:
        """Show the first few errors, and where the others are."""
        if count <= SHOWN_ERRORS:
            print(f"llava_min: line {line.number}: {error}", file=sys.stderr)
        elif count == SHOWN_ERRORS + 1:
            print(f"llava_min: more errors: see {self.output.name}", file=sys.stderr)


@contextlib.contextmanager
def said_once() -> Iterator[None]:
    """While this lasts, what is logged of many lines alike is said of the first one only."""
    before: set[str] = set()

    def first(record: logging.LogRecord) -> bool:
        known = record.getMessage() in before
        before.add(record.getMessage())
        return not known

    log.addFilter(first)
    try:
        yield
    finally:
        log.removeFilter(first)


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


def written(line: Line, digest: str, outcome: Outcome, model: str, settings: Settings) -> bytes:
    """A line of the output."""
    entry: Entry = {"line": line.number}
    entry |= {} if line.id is None else {"id": line.id}
    if isinstance(outcome, LlavaMinError):
        entry["error"] = str(outcome)
    elif isinstance(line.request, dict):
        own = {k: v for k, v in line.request.items() if k not in ("question", "images", "videos")}
        options = {**settings.options, **settings.load, **own}
        question = line.request.get("question")
        entry |= {"digest": digest, **report.whole(outcome, model, question, options)}
    return encoded(entry)
