"""The token loop: logits -> id -> text, one token at a time, until something says stop.

in:  the logits of a prompt that was read, its Sequence, a step that makes the next logits
out: Tokens

Read sampling.py first. This is the end of the walk. Read next: engine/answers.py.
Agrees with: GenerationMixin.generate of transformers for greedy decoding.

B answers that are written together, V vocabulary.
"""

if __name__ == "__main__":  # the command; above the imports, so that --help does not wait for torch
    from .command.main import run

    run()

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from .options import Options
from .sampling import next_id
from .tokenizer import CharacterStream, Tokenizer

# logits [B V] and, where they are known already, the most likely ids (sampling.greedy)
Logits = tuple[Tensor, list[int] | None]
Step = Callable[[list[int]], Logits]  # the newest id of each answer -> what follows


@dataclass(frozen=True)
class Token:
    """One more token and the text that it completes, which may be empty."""

    id: int
    text: str


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


class Sequence:
    """One answer as it grows: it chooses ids, makes text of them and knows when to stop.

    ids: those of the prompt's text, and then of the answer, for the repetition penalty. position:
    tokens of the whole prompt, after which the answer begins. known: ids from there on have no
    meaning. eos: ids that end an answer.
    """

    def __init__(
        self,
        ids: list[int],
        position: int,
        options: Options,
        known: int,
        eos: tuple[int, ...],
        tokenizer: Tokenizer | None,
    ):
        self.ids, self.position, self.options = list(ids), position, options
        self.known, self.eos = known, () if options.ignore_eos else eos
        self.new: list[int] = []  # the answer's ids
        self.text = ""  # of these, as far as it can be shown
        self.reason = ""  # why it ended: "stop", "length"; "interrupted" if somebody says so
        self.stream = CharacterStream(tokenizer) if tokenizer else None
        self.stops = StopTexts(options.stop)

    def take(self, logits: Tensor, likely: int | None = None) -> Token:
        """Choose the next token from logits [V]; likely: see next_id."""
        position = self.position + len(self.new)
        chosen = next_id(logits, self.ids, position, self.options, self.known, likely)
        self.ids.append(chosen)
        self.new.append(chosen)
        text = ""
        if chosen in self.eos:
            self.reason = "stop"
        elif self.stream:
            text = self.stops.feed(self.stream.feed(chosen))
        if self.stops.found:
            self.reason = "stop"
        elif not self.reason and len(self.new) == self.options.max_tokens:
            self.reason = "length"
        self.text += text
        return Token(chosen, text)

    def finish(self) -> str:
        """The text that was still held back."""
        if self.stream is None:
            return ""
        held = self.stops.feed(self.stream.finish()) + self.stops.finish()
        self.text += held
        return held


def generate(sequence: Sequence, logits: Tensor, step: Step) -> Iterator[Token]:
    """The tokens of an answer, until it has a reason to end.

    logits [1 V]: those of the prompt's last token. step: how this device makes one step after
    another. Many answers at once: engine/slots.py.
    """
    likely = None
    while True:
        yield sequence.take(logits[0], likely[0] if likely else None)
        if sequence.reason:
            return
        logits, likely = step(sequence.new[-1:])
