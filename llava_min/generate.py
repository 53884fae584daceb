"""The token loop: logits -> id -> text, one event at a time, until something says stop.

in:  the logits of a prefilled prompt, its cache, Options
out: Token events, then one Finished

Read sampling.py first. This is the end of the walk. Read next: engine/handle.py.
Agrees with: GenerationMixin.generate of transformers for greedy decoding.

B rows of a batch, V vocabulary.
"""

if __name__ == "__main__":  # the command; above the imports, so that --help does not wait for torch
    from .command.main import run

    run()

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from .base.memory import memory
from .cache import Cache
from .model import Network
from .options import Options
from .sampling import next_id
from .tokenizer import CharacterStream, Tokenizer

Chosen = tuple[Tensor, list[int] | None]  # logits [B V] and, where it is known, `greedy` of them
# from (model, cache, how many ids have a meaning): the newest id of each row -> Chosen
Stepping = Callable[[Network, Cache, int], Callable[[list[int]], Chosen]]


@dataclass(frozen=True)
class Token:
    """One more token and the text that it completes, which may be empty."""

    id: int
    text: str


@dataclass(frozen=True)
class Finished:
    """The end of an answer: why it ended, its last text, and two times.

    reason: "stop", "length" or "interrupted". first, last: the seconds at which the first and the
    last token were known.
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


def known_ids(model: Network, tokenizer: Tokenizer | None) -> int:
    """How many ids have a meaning: a head may have more rows than the tokenizer has tokens."""
    vocabulary = model.config.text.vocab_size
    return min(vocabulary, len(tokenizer)) if tokenizer else vocabulary


class Continuation:
    """One row's answer as it grows: it chooses ids, makes text of them and knows when to stop.

    `ids` are the prompt's and then its own, for the repetition penalty. `reason` is empty until
    the answer ends.
    """

    def __init__(
        self, model: Network, tokenizer: Tokenizer | None, ids: list[int], options: Options
    ):
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


def generate(
    model: Network,
    tokenizer: Tokenizer | None,
    logits: Tensor,
    cache: Cache,
    ids: list[int],
    options: Options,
    stepping: Stepping,
) -> Iterator[Token | Finished]:
    """Tokens after a prefilled prompt of one row: logits [V] of its last token, its text's ids.

    stepping: how this device makes one step after another. It is called when a second token is
    wanted.

    Ctrl-C ends the answer with the reason "interrupted"; the text so far stays.
    """
    row, first, step = Continuation(model, tokenizer, ids, options), 0.0, None
    likely = None
    try:
        while True:
            token = row.take(logits, int(cache.host_lengths[0]), likely and likely[0])
            first = first or time.perf_counter()
            yield token
            if row.reason:
                break
            with memory("continue the answer"):
                step = step or stepping(model, cache, row.known)
                (logits,), likely = step([token.id])
    except KeyboardInterrupt:
        row.reason = "interrupted"
    yield Finished(row.reason, row.finish(), first, time.perf_counter())
