"""Exercise 1, ten minutes: find the newlines among the rows of a picture.

The decoder reads a picture as a list of rows. The first ones are the whole picture in one tile.
Then come the lines of its grid of patches, and after each line one learned vector, the newline, so
that the list keeps the shape of the picture. Write `newlines`, which finds it again in the list.

Read: llava_min/projector.py, `end_rows` and `picture_rows`.
Check yourself: python examples/exercises/01_newlines.py
"""

import numpy as np
import torch
from torch import Tensor

import llava_min
from llava_min.segments import Picture


def newlines(rows: Tensor, newline: Tensor) -> list[int]:
    """The places in rows [tokens W] at which the vector newline [W] is; the first row is 0."""
    raise NotImplementedError


# The check: you need not read on. ----------------------------------------------------------


def planned(segments) -> list[int]:
    """The same, from the plan of a prompt, which has seen no row."""
    found, first = [], 0
    for segment in segments:
        if isinstance(segment, Picture):
            (lines, columns), start = segment.grid.shape, first + segment.side**2
            found += [start + line * (columns + 1) + columns for line in range(lines)]
        first += segment.tokens
    return found


def test():
    alike = torch.tensor([[1.0, 2.0], [1.0, 3.0], [4.0, 3.0], [1.0, 3.0]])
    found = newlines(alike, torch.tensor([1.0, 3.0]))
    assert found == [1, 3], f"in [1 2] [1 3] [4 3] [1 3], [1 3] is at 1 and 3, not at {found}"
    model = llava_min.load(dtype="float32")
    for width, height in ((300, 200), (90, 260), (84, 84)):
        picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        plan = model.prepare("What is this?", images=[picture]).plan
        rows = model.embed("What is this?", images=[picture])
        found, expected = newlines(rows, model.network.newline), planned(plan.segments)
        about = f"in the rows of a picture of {width} x {height} pixels"
        assert found == expected, f"{about} they are at {expected}, not at {found}"


if __name__ == "__main__":
    from judge import judge

    judge(test)
