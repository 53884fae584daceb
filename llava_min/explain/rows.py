"""What each token of a prompt is: the first one, text, or a row of a visual with its place.

in:  a plan, the configuration
out: Rows: the tokens that belong to visuals, as arrays; kinds of all tokens

A plan of 100,000 rows has as many places, so they are kept as numbers.
Read explain/places.py first. Read next: explain/attention.py.

V rows of all visuals, S tokens of the prompt.
"""

from dataclasses import dataclass

import numpy as np

from ..config import LlavaConfig
from ..segments import Plan, Text
from .places import Box, Place, place

KINDS = ("first", "text", "base", "grid", "frame", "newline")
PATCHES = [KINDS.index(kind) for kind in ("base", "grid", "frame")]  # kinds that show something


@dataclass(frozen=True)
class Rows:
    """The rows of a prompt's visuals, in order.

    tokens: int64 [V], the place of each in the sequence. visuals: int32 [V], which visual. kinds:
    uint8 [V], a number of KINDS. frames: int32 [V], -1 where there is none. boxes: float32 [V 4],
    (left, top, right, bottom) in pixels of the source, NaN where there is none.
    """

    tokens: np.ndarray
    visuals: np.ndarray
    kinds: np.ndarray
    frames: np.ndarray
    boxes: np.ndarray

    @classmethod
    def of(cls, plan: Plan, config: LlavaConfig) -> "Rows":
        """The rows of a plan."""
        count = sum(s.tokens for s in plan.segments if not isinstance(s, Text))
        rows = cls(
            np.empty(count, np.int64),
            np.empty(count, np.int32),
            np.empty(count, np.uint8),
            np.full(count, -1, np.int32),
            np.full((count, 4), np.nan, np.float32),
        )
        row = token = visual = 0
        for segment in plan.segments:
            if not isinstance(segment, Text):
                for number in range(segment.tokens):
                    rows.fill(row + number, token + number, visual, place(segment, number, config))
                row, visual = row + segment.tokens, visual + 1
            token += segment.tokens
        return rows

    def fill(self, row: int, token: int, visual: int, place: Place) -> None:
        """Write what one row is."""
        self.tokens[row], self.visuals[row] = token, visual
        self.kinds[row] = KINDS.index(place.kind)
        if place.frame is not None:
            self.frames[row] = place.frame
        if place.box is not None:
            self.boxes[row] = place.box

    @property
    def patches(self) -> np.ndarray:
        """Which rows show something: bool [V]."""
        return np.isin(self.kinds, PATCHES)

    def inside(self, box: Box, visual: int = 0, frame: int | None = None) -> list[int]:
        """The numbers of the patches whose middle lies in a box of a source, in its pixels."""
        left, top, right, bottom = box
        x, y = (self.boxes[:, side::2].mean(1) for side in (0, 1))  # NaN is in no box
        found = (left <= x) & (x <= right) & (top <= y) & (y <= bottom) & (self.visuals == visual)
        if frame is not None:
            found &= self.frames == frame
        return np.flatnonzero(found).tolist()

    def all_kinds(self, tokens: int) -> np.ndarray:
        """The kind of every token of a sequence that begins with the prompt: int64 [tokens]."""
        kinds = np.full(tokens, KINDS.index("text"))
        kinds[0] = KINDS.index("first")
        kinds[self.tokens] = self.kinds
        return kinds
