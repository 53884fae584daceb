"""What a question got: Answer and Score, and how they are asked for.

in:  events of an answer
out: Answer, or its text in pieces

Read generate.py first. Read next: engine/handle.py.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..generate import Finished, Token


@dataclass(frozen=True)
class Answer:
    """What a question got: times in seconds; `media` says what became of each picture and video."""

    text: str
    token_ids: list[int]
    finish_reason: str
    usage: dict[str, int]
    timings: dict[str, float]
    memory: dict[str, int]
    media: list[dict]


@dataclass(frozen=True)
class Score:
    """How likely the tokens of a given answer are, teacher-forced.

    For each token: the natural logarithm of its probability after those before it, and whether it
    is the most likely one.
    """

    token_ids: list[int]
    log_probabilities: list[float]
    matches: list[bool]


class Asking:
    """Answers from `events`, which yields everything that happens and ends with the Answer."""

    def generate(self, question=None, *, images=(), videos=(), **options) -> Answer:
        """Answer a question about pictures and videos.

        question: text (with <image> and <video> where they go, or without: then they come first),
        messages in OpenAI's style, or token ids with -200 where a visual goes. images: path, URL,
        bytes, PIL, or uint8 [H W 3], each; videos: path, URL, bytes, or uint8 [F H W 3]. options:
        the fields of Options, and prompt_cache: a file to take the beginning of the prompt from, or
        to write the prompt to where there is no such file. Raises LlavaMinError.
        """
        *_, answer = self.events(question, images=images, videos=videos, **options)
        return answer

    def stream(self, question=None, *, images=(), videos=(), **options) -> Iterator[str]:
        """The answer's text in pieces of whole characters, as they come."""
        for event in self.events(question, images=images, videos=videos, **options):
            if isinstance(event, Token | Finished) and event.text:
                yield event.text


@dataclass
class Clock:
    """Seconds spent inside an iterator."""

    seconds: float = 0.0

    def around(self, pieces: Iterator[Tensor]) -> Iterator[Tensor]:
        while True:
            start = time.perf_counter()
            piece = next(pieces, None)
            self.seconds += time.perf_counter() - start
            if piece is None:
                return
            yield piece


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: of the GPU where the model is on one, otherwise of the process.

    0 on Windows, which does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
