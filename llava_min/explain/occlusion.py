"""What changes an answer: the same answer scored with one part of a picture covered after another.

in:  a network, a cache that has read a prompt, the prompt, ids of an answer
out: Occlusion: for each square, how much less likely each word becomes

Attention says where a model read; this says what it needed. A square is covered on the tiles, in
the mean colour of the picture and in grey, and everything from the picture on is read again.
Read explain/forced.py, explain/pictures.py first. Read next: explain/explanation.py.

N squares, T words.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..cache import Cache
from ..config import LlavaConfig
from ..model import Network
from ..request.prepare import Prepared
from ..segments import Picture, Plan, Text
from .forced import before, log_probabilities
from .pictures import GREY, covered
from .places import Box, spread

PARTS, STEPS = 3, 2  # a square is a third of a side; squares begin at each half of that
FILLS = ("mean", "grey")


@dataclass(frozen=True)
class Occlusion:
    """Squares of one picture, and what covering each of them costs.

    boxes: float32 [N 4], (left, top, right, bottom) in pixels of the source. drops: float32 [N T]
    for each of FILLS, log p(word) before - after, in nats.
    """

    visual: int
    size: tuple[int, int]
    boxes: np.ndarray
    drops: dict[str, np.ndarray]

    def map(self, word: int | None = None, fill: str = "mean") -> np.ndarray:
        """How many nats the squares over a pixel cost, on average: float32 [H W].

        word: its number; None is the whole answer.
        """
        drops = self.drops[fill]
        costs = drops.sum(1) if word is None else drops[:, word]
        areas = np.prod(self.boxes[:, 2:] - self.boxes[:, :2], axis=1)  # spread() divides by them
        total = spread(costs * areas, self.boxes, self.size)
        return total / np.maximum(spread(areas, self.boxes, self.size), 1e-9)


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


class Occluder:
    """Reads a prompt again from one of its pictures on; its cache then ends before that picture.

    prompt: read already, into a cache of one row with room for the answer.
    """

    def __init__(
        self, network: Network, cache: Cache, prepared: Prepared, portions: tuple[int, int]
    ):
        self.network, self.cache, self.prepared = network, cache, prepared
        self.k, self.chunk = portions
        self.config: LlavaConfig = network.config

    def score(self, visual: int, pixels: np.ndarray, ids: list[int]) -> np.ndarray:
        """Natural logarithms of the ids' probabilities with other tiles for one visual: [T]."""
        segments, visuals = self.prepared.plan.segments, self.prepared.visuals
        places = [n for n, segment in enumerate(segments) if not isinstance(segment, Text)]
        start = places[visual]
        before_it = sum(segment.tokens for segment in segments[:start])
        self.cache.rewind(int(self.cache.host_lengths[0]) - before_it)
        rest = Plan(segments[start:], self.prepared.plan.context)
        encoded = [
            self.network.encode(v.segment, pixels if number == 0 else v.pixels, self.k)
            for number, v in enumerate(visuals[visual:])
        ]
        logits = self.network.prefill(rest, encoded, self.cache, self.chunk)
        return log_probabilities(before(self.network, logits, self.cache, ids), ids).cpu().numpy()

    def occlusion(self, visual: int, ids: list[int]) -> Occlusion:
        """Every square of a picture in turn, in both colours."""
        one = self.prepared.visuals[visual]
        picture, pixels = one.segment, one.pixels
        assert isinstance(picture, Picture) and isinstance(pixels, np.ndarray)
        whole = self.score(visual, pixels, ids)
        colours = {"mean": pixels[0].mean(axis=(0, 1)), "grey": np.array(GREY)}
        boxes = list(squares(picture.size))
        drops = {
            fill: np.stack([
                whole - self.score(visual, covered(picture, pixels, box, colour, self.config), ids)
                for box in boxes
            ])
            for fill, colour in colours.items()
        }  # fmt: skip
        return Occlusion(visual, picture.size, np.array(boxes, np.float32), drops)
