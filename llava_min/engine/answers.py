"""What a question got: Answer and Score, and the one place where an Answer is made.

in:  a prompt that is ready, its logits
out: events, the last of which is the Answer; or the answer's text in pieces

Read generate.py first. Read next: engine/handle.py.
"""

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..base.habits import accepting
from ..generate import Sequence, Token
from ..model import Portion
from ..options import Options
from ..request.prepare import Pictures, Prepared, Question, Videos
from ..request.visuals import Entry
from ..tokenizer import Tokenizer
from .rules import Rule

Piece = TypeVar("Piece")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Answer:
    """What a question got; `media` says what became of each picture and video."""

    text: str
    token_ids: list[int]
    finish_reason: str  # "stop", "length" or "interrupted"
    usage: dict[str, int]  # tokens, by what they were
    timings: dict[str, float]  # seconds, and tokens a second
    memory: dict[str, int]  # bytes
    media: list[Entry]


@dataclass(frozen=True)
class Score:
    """How likely the tokens of a given answer are, teacher-forced.

    For each token: the natural logarithm of its probability after those before it, and whether it
    is the most likely one.
    """

    token_ids: list[int]
    log_probabilities: list[float]
    matches: list[bool]


@dataclass(frozen=True)
class Finished:
    """The end of an answer: "stop", "length" or "interrupted", and its last text."""

    reason: str
    text: str


Event = Prepared | Portion | Token | Finished | Answer


class Asking:
    """Answers from `events`, which yields everything that happens and ends with the Answer."""

    events: Callable[..., Iterator[Event]]

    @accepting("self", "question", "images", "videos")
    def generate(
        self,
        question: Question = None,
        *,
        images: Pictures = (),
        videos: Videos = (),
        **options: object,
    ) -> Answer:
        """Answer a question about pictures and videos.

        question: text (with <image> and <video> where they go, or without: then they come first),
        messages in OpenAI's style, or token ids with -200 where a visual goes. images: path, URL,
        bytes, PIL, or uint8 [H W 3], each; videos: path, URL, bytes, or uint8 [F H W 3]. options:
        the fields of Options, and prompt_cache: a file to take the beginning of the prompt from, or
        to write the prompt to where there is no such file. Raises LlavaMinError.
        """
        *_, answer = self.events(question, images=images, videos=videos, **options)
        assert isinstance(answer, Answer)
        return answer

    @accepting("self", "question", "images", "videos")
    def stream(
        self,
        question: Question = None,
        *,
        images: Pictures = (),
        videos: Videos = (),
        **options: object,
    ) -> Iterator[str]:
        """The answer's text in pieces of whole characters, as they come."""
        for event in self.events(question, images=images, videos=videos, **options):
            if isinstance(event, Token | Finished) and event.text:
                yield event.text


class Clock:
    """Seconds spent inside an iterator, and not in what its user does between two pieces."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, pieces: Generator[Piece, None, Result]) -> Generator[Piece, None, Result]:
        """The same pieces, and in the end the same result."""
        while True:
            start = time.perf_counter()
            try:
                piece = next(pieces)
            except StopIteration as end:
                return end.value
            finally:
                self.seconds += time.perf_counter() - start
            yield piece


class Reply(Sequence):
    """A Sequence with a clock: an answer on its way, from the question to the Answer.

    began: when it was asked, time.perf_counter(). rules: see engine/rules.py. looking_clock,
    reading_clock: the seconds in the vision tower, and in the whole prompt. first, last: when the
    first and the last token were known.
    """

    def __init__(
        self,
        prepared: Prepared,
        options: Options,
        known: int,
        eos: tuple[int, ...],
        tokenizer: Tokenizer | None,
        began: float,
        rules: Iterable[Rule] = (),
    ):
        super().__init__(prepared.ids, prepared.plan.tokens, options, known, eos, tokenizer)
        self.prepared, self.began, self.rules = prepared, began, list(rules)
        self.looking_clock, self.reading_clock = Clock(), Clock()
        self.first = self.last = 0.0

    def take(self, logits: Tensor, likely: int | None = None) -> Token:
        """The next token from logits [V], see Sequence, and the time at which it was known."""
        for rule in self.rules:
            ruled = rule(logits, self.new)
            logits, likely = ruled, (likely if ruled is logits else None)
        token = super().take(logits, likely)
        self.last = time.perf_counter()
        self.first = self.first or self.last
        return token

    def answer(
        self,
        load_seconds: float,
        peak: int,
        cached: int | None = None,
        more: Mapping[str, int] | None = None,
    ) -> Answer:
        """The Answer, once there is a reason for its end and `finish` was called.

        peak: bytes. cached: tokens of the prompt that were there already, where that was possible.
        more: other counts, for its usage.
        """
        count, writing = len(self.new), self.last - self.first
        timings = {
            "load_s": load_seconds,
            "preprocess_s": self.prepared.seconds,
            "vision_s": self.looking_clock.seconds,
            "prefill_s": self.reading_clock.seconds - self.looking_clock.seconds,
            "ttft_s": self.first - self.began if count else 0.0,
            "decode_s": writing,
            "tokens_per_s": (count - 1) / writing if count > 1 else 0.0,
        }
        usage = {
            "prompt_tokens": self.prepared.plan.tokens,
            "completion_tokens": count,
            "image_tokens": self.prepared.visual_tokens,
        }
        if cached is not None:
            usage["cached_tokens"] = cached
        usage |= more or {}
        return Answer(
            text=self.text,
            token_ids=self.new,
            finish_reason=self.reason,
            usage=usage,
            timings={name: round(seconds, 4) for name, seconds in timings.items()},
            memory={"peak_bytes": peak},
            media=self.prepared.media,
        )


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: of the GPU where the model is on one, otherwise of the process.

    0 where the system does not tell, as Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ModuleNotFoundError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
