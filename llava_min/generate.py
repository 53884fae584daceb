"""The token loop: logits -> id -> text, one event at a time, until something says stop.

in:  the logits of a prefilled prompt, its cache, Options      out: Token events, then one Finished
Read before: sampling.py. This is the end of the walk.
Agrees with: GenerationMixin.generate of transformers for greedy decoding.
"""

if __name__ == "__main__":  # the command; above the imports, so that --help does not wait for torch
    from .__main__ import run

    run()

import time
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from .cache import Cache
from .limits import memory
from .model import Llava
from .options import Options
from .sampling import next_id
from .step import decoding
from .tokenizer import CharacterStream, Tokenizer


@dataclass(frozen=True)
class Token:
    """One more token, and the text that it completes (perhaps none)."""

    id: int
    text: str


@dataclass(frozen=True)
class Finished:
    """The end: why ("stop", "length", "interrupted"), the last text, when the first token stood,
    when the last.
    """

    reason: str
    text: str
    first: float
    last: float


class StopTexts:
    """Text as it streams, held back while it may be the beginning of a stop text.

    >>> stop = StopTexts(("END",))
    >>> stop.feed("an E"), stop.feed("nd EN"), stop.feed("D of it"), stop.found
    ('an ', 'End ', '', True)
    """

    def __init__(self, stops: tuple[str, ...]):
        self.stops, self.held, self.found = stops, "", False

    def feed(self, text: str) -> str:
        """What can be shown now."""
        if self.found:
            return ""
        self.held += text
        at = min((self.held.find(stop) for stop in self.stops if stop in self.held), default=-1)
        if at >= 0:
            self.found = True
            return self.held[:at]
        keep = max(
            (n for stop in self.stops for n in range(1, len(stop)) if self.held.endswith(stop[:n])),
            default=0,
        )
        shown, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return shown

    def finish(self) -> str:
        """What was held back and turned out to be no stop text."""
        return "" if self.found else self.held


def known_ids(model: Llava, tokenizer: Tokenizer | None) -> int:
    """How many ids stand for something: the head's rows may be more than the tokenizer's words."""
    vocabulary = model.config.text.vocab_size
    return min(vocabulary, len(tokenizer)) if tokenizer else vocabulary


class Continuation:
    """One row's answer as it grows: chooses ids, makes text of them, knows when to stop.

    `ids` are the prompt's, then its own too, for the repetition penalty. `reason` is empty while
    there is more to say.
    """

    def __init__(self, model: Llava, tokenizer: Tokenizer | None, ids: list[int], options: Options):
        self.options, self.ids, self.new, self.reason = options, list(ids), [], ""
        self.stream = CharacterStream(tokenizer) if tokenizer else None
        self.stops = StopTexts(options.stop)
        self.known = known_ids(model, tokenizer)
        self.eos = () if options.ignore_eos else model.config.text.eos_ids

    def take(self, logits: Tensor, position: int, likely: int | None = None) -> Token:
        """Choose the token at `position` from logits [V]; likely: see next_id."""
        chosen = next_id(logits, self.ids, position, self.options, self.known, likely)
        self.ids.append(chosen)
        self.new.append(chosen)
        if chosen in self.eos:
            self.reason = "stop"
            return Token(chosen, "")
        text = self.stops.feed(self.stream.feed(chosen)) if self.stream else ""
        if self.stops.found:
            self.reason = "stop"
        elif len(self.new) == self.options.max_tokens:
            self.reason = "length"
        return Token(chosen, text)

    def finish(self) -> str:
        """The text that was still held back."""
        if self.stream is None:
            return ""
        return self.stops.feed(self.stream.finish()) + self.stops.finish()


def generate(model: Llava, tokenizer: Tokenizer | None, logits: Tensor, cache: Cache,
             ids: list[int], options: Options) -> Iterator[Token | Finished]:  # fmt: skip
    """Tokens after a prefilled prompt of one row: logits [V] of its last token, its text's ids.

    Ctrl-C ends the answer with the reason "interrupted"; what stands so far stays.
    """
    row, first, step = Continuation(model, tokenizer, ids, options), 0.0, None
    likely = None
    try:
        while True:
            token = row.take(logits, int(cache.seen[0]), likely and likely[0])
            first = first or time.perf_counter()
            yield token
            if row.reason:
                break
            with memory("continue the answer"):
                step = step or decoding(model, cache, row.known)
                (logits,), likely = step([token.id])
    except KeyboardInterrupt:
        row.reason = "interrupted"
    yield Finished(row.reason, row.finish(), first, time.perf_counter())
