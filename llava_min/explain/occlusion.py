"""What changes an answer: it is scored with one part of a picture or clip covered after another.

in:  a network, a cache that has read a prompt, the prompt, ids of an answer
out: Occlusion: for each part, how much less likely each word becomes

Attention says where a model read; this says what it needed. Of a picture, squares are covered on
its tiles. Of a clip, whole frames are covered, and then squares of the frames that cost most. They
are covered in the mean colour of the picture or frame and in grey, and everything from the picture
or clip on is read again.
Read explain/forced.py, explain/pictures.py first. Read next: explain/explanation.py.

N parts, T words.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..cache import Cache
from ..config import LlavaConfig
from ..image import FrameTiles, Pixels
from ..model import Network
from ..request.prepare import Prepared
from ..segments import Clip, Picture, Plan, Text
from .forced import before, log_probabilities
from .pictures import FILLS, CoveredFrames, covered
from .places import Box, painted

PARTS, STEPS = 3, 2  # a square is a third of a side; squares begin at each half of that
MOST = 25  # runs of frames of a clip
Part = tuple[range, Box]  # frames of a clip, and what is covered of each


@dataclass(frozen=True)
class Occlusion:
    """Parts of one picture or clip, and what covering each of them costs.

    boxes: float32 [N 4], (left, top, right, bottom) in pixels of the source. frames: int32 [N 2],
    of a clip the first covered frame and the one after the last; (0, 1) for a picture. drops:
    float32 [N T] for each of FILLS, log p(word) before - after, in nats.
    """

    visual: int
    size: tuple[int, int]
    boxes: np.ndarray
    frames: np.ndarray
    drops: dict[str, np.ndarray]

    def costs(self, word: int | None = None, fill: str = "mean") -> np.ndarray:
        """How many nats each part costs: float32 [N]; word: its number, None is the answer."""
        drops = self.drops[fill]
        return drops.sum(1) if word is None else drops[:, word]

    def map(self, word: int | None = None, fill: str = "mean", frame: int = 0) -> np.ndarray:
        """How many nats the parts over a pixel cost, on average: float32 [H W].

        word: its number; None is the whole answer. frame: of a clip.
        """
        inside = (self.frames[:, 0] <= frame) & (frame < self.frames[:, 1])
        boxes, costs = self.boxes[inside], self.costs(word, fill)[inside]
        covered = painted(np.ones(len(boxes)), boxes, self.size)
        return painted(costs, boxes, self.size) / np.maximum(covered, 1e-9)


def squares(size: tuple[int, int]) -> Iterator[Box]:
    """The squares that cover a picture of `size` (width, height): 25 of a third of each side.

    >>> len(list(squares((300, 200)))), next(squares((300, 200)))
    (25, (0.0, 0.0, 100.0, 66.66666666666667))
    """
    width, height = (side / PARTS for side in size)
    for down in range((PARTS - 1) * STEPS + 1):
        for across in range((PARTS - 1) * STEPS + 1):
            left, top = across * width / STEPS, down * height / STEPS
            yield left, top, left + width, top + height


def runs(frames: int) -> list[range]:
    """The frames of a clip one by one; where they are many, in runs of one length.

    >>> len(runs(8)), runs(60)[:2], runs(60)[-1]
    (8, [range(0, 3), range(3, 6)], range(57, 60))
    """
    length = math.ceil(frames / MOST)
    return [range(start, min(start + length, frames)) for start in range(0, frames, length)]


class Occluder:
    """Reads a prompt again from one of its pictures or clips on, with a part of that covered.

    prepared: the prompt, read already into a cache of one row with room for the answer.
    """

    def __init__(
        self, network: Network, cache: Cache, prepared: Prepared, portions: tuple[int, int]
    ):
        self.network, self.cache, self.prepared = network, cache, prepared
        self.k, self.chunk = portions
        self.config: LlavaConfig = network.config

    def score(self, visual: int, pixels: Pixels, ids: list[int]) -> np.ndarray:
        """Natural logarithms of the ids' probabilities with other tiles for one visual: [T]."""
        visuals = self.prepared.visuals
        rest = self.rewind(visual)
        encoded = [
            self.network.encode(v.segment, pixels if number == 0 else v.pixels, self.k)
            for number, v in enumerate(visuals[visual:])
        ]
        logits = self.network.prefill(rest, encoded, self.cache, self.chunk)
        return log_probabilities(before(self.network, logits, self.cache, ids), ids).cpu().numpy()

    def rewind(self, visual: int) -> Plan:
        """Forget everything from a visual on; what is to be read then."""
        segments = self.prepared.plan.segments
        start = [n for n, one in enumerate(segments) if not isinstance(one, Text)][visual]
        before_it = sum(segment.tokens for segment in segments[:start])
        self.cache.rewind(int(self.cache.host_lengths[0]) - before_it)
        return Plan(segments[start:], self.prepared.plan.context)

    def all(self, ids: list[int]) -> list[Occlusion]:
        """The occlusions of all visuals; the cache then ends before the first one.

        They come from the last visual to the first, so that what is before one is as it was read.
        """
        found: list[Occlusion] = []
        for visual in reversed(range(len(self.prepared.visuals))):
            found = [*self.occlusions(visual, ids), *found]
            self.rewind(visual)
        return found

    def occlusions(self, visual: int, ids: list[int]) -> Iterator[Occlusion]:
        """Of a picture its squares; of a clip its frames, then squares of those that cost most.

        A frame that is a visual of its own is covered whole.
        """
        one = self.prepared.visuals[visual]
        segment, pixels, size = one.segment, one.pixels, one.segment.size
        whole = self.score(visual, pixels, ids)
        if isinstance(pixels, FrameTiles):
            all_of_it: Box = (0.0, 0.0, float(size[0]), float(size[1]))
            frames = [(run, all_of_it) for run in runs(len(pixels))]
            found = self.occlusion(visual, frames, partial(hidden, pixels), whole, ids)
            yield found
            if isinstance(segment, Clip):
                worst = frames[int(found.costs().argmax())][0]
                parts = [(worst, box) for box in squares(size)]
                yield self.occlusion(visual, parts, partial(hidden, pixels), whole, ids)
        else:
            assert isinstance(segment, Picture)
            parts = [(range(1), box) for box in squares(size)]
            cover = lambda part, fill: covered(segment, pixels, part[1], fill, self.config)
            yield self.occlusion(visual, parts, cover, whole, ids)

    def occlusion(
        self,
        visual: int,
        parts: list[Part],
        cover: Callable[[Part, str], Pixels],
        whole: np.ndarray,
        ids: list[int],
    ) -> Occlusion:
        """Every part of a visual in turn, in both colours.

        cover: makes the tiles with a part covered. whole: the score without.
        """
        drops = {
            fill: np.stack([whole - self.score(visual, cover(part, fill), ids) for part in parts])
            for fill in FILLS
        }
        boxes = np.array([box for _, box in parts], np.float32)
        frames = np.array([(run.start, run.stop) for run, _ in parts], np.int32)
        return Occlusion(visual, self.prepared.visuals[visual].segment.size, boxes, frames, drops)


def hidden(pixels: FrameTiles, part: Part, fill: str) -> FrameTiles:
    """The tiles of frames with a part covered."""
    run, box = part
    some = range(pixels.which[run.start], pixels.which[run.stop - 1] + 1)
    return FrameTiles(CoveredFrames(pixels.frames, some, box, fill), pixels.config, pixels.which)
