"""Many questions at once: each takes a row of one cache when one is free, and leaves at its end.

in:  prompts that are ready, each with its options
out: events of each question as they happen, and then its Answer or its error

A round does two things. It runs one portion of one prompt, a few tiles or a chunk; prompts take
turns. Then it makes one step, which is one more token for every answer that is being written. So a
long prompt holds up nobody for longer than a portion, and nobody waits for the longest answer.
A failure, whatever it is, ends the question that caused it and no other.
Where nobody watches, prompts are read first: a step costs much the same for one answer as for all.
A step writes into every row that it covers, also where a prompt is half read. What it wrote there
lies after the row's length and is not counted, and the next chunk writes over it. Rows of different
lengths share the cache without padding, and each attends to its own tokens only. So every answer is
the one that the question gets alone.
Read engine/pace.py, engine/rows.py, engine/looks.py first. Read next: engine/batch.py.
Agrees with: continuous batching as in arXiv 2309.06180 and Orca (OSDI 2022), without pages.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from ..generate import Logits, Step
from ..model import Portion
from ..options import Options
from ..request.prepare import Prepared
from .answers import Answer, Event, Finished, Reply
from .looks import Looks
from .pace import Pace
from .rows import Contents
from .rules import Rule
from .step import decoding, eager

if TYPE_CHECKING:
    from .handle import Model

log = logging.getLogger("llava_min")


class Asked:
    """A question in the slots: it waits, is read, is written, and ends with an answer or an error.

    listen: gets its events in order, the Answer last. portions: of its prompt, while it is read.
    """

    def __init__(self, prepared: Prepared, reply: Reply, listen: Callable[[Event], None]):
        self.prepared, self.reply, self.listen = prepared, reply, listen
        self.portions: Generator[Portion, None, Tensor] | None = None
        self.cached = self.done = 0  # tokens of the prompt that were there, and that were read
        self.answer: Answer | None = None
        self.error: Exception | None = None

    @property
    def ended(self) -> bool:
        return self.answer is not None or self.error is not None

    @property
    def writing(self) -> bool:
        return bool(self.reply.new) and not self.ended


def ignore(event: Event) -> None:
    """Listen to nothing."""


class Slots:
    """`rows` rows of one cache, each with room for `capacity` tokens of prompt and answer.

    questions: that of each row, or None. contents: the tokens in each row, also after its question
    ended. watched: answers go on while prompts are read; otherwise they wait until all are read.
    looks: bytes for rows of pictures and clips that may come again.
    """

    def __init__(
        self, model: "Model", rows: int, capacity: int, watched: bool = True, looks: int = 0
    ):
        self.model, self.capacity, self.watched = model, capacity, watched
        self.cache = model.empty_cache(capacity, rows)
        moved = getattr(model.network.decoder, "moved", None)  # of one in parts: engine/leader.py
        self.contents = Contents(self.cache, moved and partial(moved, self.cache))
        self.looks = Looks(model.encode, looks)
        self.pace = Pace.of(model.network.device.type) if watched else Pace()
        self.step = decoding(model.network, self.cache, model.known_ids)
        self.questions: list[Asked | None] = [None] * rows
        self.waiting: deque[Asked] = deque()
        self.turn = -1  # the row whose prompt was read last

    def submit(
        self,
        prepared: Prepared,
        options: Options,
        began: float,
        listen: Callable[[Event], None] = ignore,
        rules: Iterable[Rule] = (),
    ) -> Asked:
        """Let a question wait for a row; first come, first served. It must fit into one."""
        need = prepared.plan.tokens + options.max_tokens
        assert need <= self.capacity, (need, self.capacity)
        asked = Asked(prepared, self.model.reply(prepared, options, began, rules), listen)
        self.waiting.append(asked)
        return asked

    @property
    def busy(self) -> bool:
        """Whether any question has not ended."""
        return bool(self.waiting) or any(self.questions)

    @property
    def free(self) -> int:
        """Rows that no question has or waits for."""
        return max(0, self.questions.count(None) - len(self.waiting))

    def cancel(self, asked: Asked) -> None:
        """Forget a question that has not ended, wherever it is."""
        if asked in self.waiting:
            self.waiting.remove(asked)
        elif asked in self.questions:
            self.release(self.questions.index(asked), asked.reply.new)

    def round(self) -> list[Asked]:
        """One portion of one prompt, and one token for every answer: the questions that ended."""
        before = [asked for asked in (*self.questions, *self.waiting) if asked is not None]
        while self.can_begin():
            self.begin(self.waiting.popleft())
        self.read()
        if self.watched or not (self.can_begin() or self.being_read()):
            self.write()
        return [asked for asked in before if asked.ended]

    def can_begin(self) -> bool:
        """Whether the next prompt can be begun: unwatched, prompts are read one after another.

        Each then goes on from what the one before it left, if they begin alike.
        """
        free = bool(self.waiting) and None in self.questions
        return free and (self.watched or not self.being_read())

    def being_read(self) -> bool:
        """Whether any prompt is half read."""
        return any(asked is not None and asked.portions is not None for asked in self.questions)

    def begin(self, asked: Asked) -> None:
        """Give a question a row, and start to read what is not there yet of its prompt."""
        free = [row for row, other in enumerate(self.questions) if other is None]
        try:
            row, plan, visuals = self.contents.take(asked.prepared, free)
        except Exception as error:  # whatever it is, it ends its own question alone
            asked.error = error
            return
        asked.cached = asked.prepared.plan.tokens - plan.tokens
        portions = self.model.reading(
            plan,
            visuals,
            self.cache.row(row),
            asked.reply.looking_clock,
            pace=self.pace,
            encode=self.looks.encode,
        )
        asked.portions = asked.reply.reading_clock.around(portions)
        self.questions[row] = asked

    def release(self, row: int, answer: list[int] | None) -> None:
        """Take a row from its question. Its tokens stay, with those of the answer; None: forget."""
        asked, self.questions[row] = self.questions[row], None
        if asked is not None and asked.portions is not None:
            asked.portions.close()
            asked.portions = None
        self.contents.leave(row, answer)

    def read(self) -> None:
        """One portion of the next prompt in turn."""
        count = len(self.questions)
        for row in ((self.turn + 1 + offset) % count for offset in range(count)):
            asked = self.questions[row]
            if asked is not None and asked.portions is not None:
                self.turn = row
                try:
                    self.portion(asked, asked.portions)
                except StopIteration as end:
                    asked.portions = None
                    asked.prepared = asked.reply.prepared = asked.prepared.without_media()
                    self.take(row, end.value[-1], None)
                except Exception as error:  # whatever it is, it ends its own question alone
                    self.fail(row, error)
                return

    def portion(self, asked: Asked, portions: Generator[Portion, None, Tensor]) -> None:
        """One portion of a prompt: a small one where an answer waits for it."""
        writing = any(other is not None and other.writing for other in self.questions)
        self.pace.hurried = self.watched and writing
        start = time.perf_counter()
        portion = next(portions)
        if portion.done > asked.done:
            self.pace.measured(portion.done - asked.done, time.perf_counter() - start)
        asked.done = portion.done
        asked.listen(portion)
        if portion.done == portion.total:
            next(portions)  # ends it, so that the first token waits for no other prompt

    def write(self) -> None:
        """One step for all answers that are being written."""
        places = [
            row for row, asked in enumerate(self.questions) if asked is not None and asked.writing
        ]
        if not places:
            return
        seen = self.cache.host_lengths.copy()
        try:
            start, (logits, likely) = self.stepped(places)
        except Exception as error:  # each row finds out by itself whether it is the cause
            log.warning(f"a step of {len(places)} answers failed: {type(error).__name__}")
            self.cache.count(seen)
            self.write_one_by_one(places)
            return
        for row in places:
            at = row - start
            self.take(row, logits[at], likely[at] if likely else None)

    def stepped(self, places: list[int]) -> tuple[int, Logits]:
        """One step of these rows: (the first row that it covers, what it gave).

        A GPU's step is recorded over the whole cache. Elsewhere it covers the rows from the first
        to the last of these. The other rows among them are counted back.
        """
        whole = self.model.network.device.type == "cuda"
        start, stop = (0, len(self.questions)) if whole else (places[0], places[-1] + 1)
        others = [row for row in range(start, stop) if row not in places]
        ids = [self.newest(row) if row in places else 0 for row in range(start, stop)]
        found = self.step(ids) if whole else self.step_of(start, stop)(ids)
        if others:
            self.cache.host_lengths[others] -= 1
            self.cache.lengths[others] -= 1
        return start, found

    def step_of(self, start: int, stop: int) -> Step:
        """How to make a step of some rows, unrecorded: compiled, where a row is alone."""
        return self.model.step(self.cache.rows(start, stop), eager)

    def newest(self, row: int) -> int:
        """The newest id of an answer."""
        asked = self.questions[row]
        assert asked is not None
        return asked.reply.new[-1]

    def write_one_by_one(self, places: list[int]) -> None:
        """A step of each row, so that one that fails ends its own question alone."""
        for row in places:
            try:
                logits, likely = self.step_of(row, row + 1)([self.newest(row)])
            except Exception as error:
                self.fail(row, error)
            else:
                self.take(row, logits[0], likely[0] if likely else None)

    def take(self, row: int, logits: Tensor, likely: int | None) -> None:
        """One more token of a row's answer, and its end if this was the last one."""
        asked = self.questions[row]
        assert asked is not None
        try:
            asked.listen(asked.reply.take(logits, likely))
        except Exception as error:
            self.fail(row, error)
            return
        if asked.reply.reason:
            asked.listen(Finished(asked.reply.reason, asked.reply.finish()))
            asked.answer = self.model.answer(asked.reply, asked.cached)
            self.release(row, asked.reply.new)
            asked.listen(asked.answer)

    def fail(self, row: int, error: Exception) -> None:
        """End a row's question with an error; what it computed is not used again."""
        asked = self.questions[row]
        assert asked is not None
        asked.error = error
        self.release(row, None)
