"""Exercise 6, half an hour: add a place for newlines.

Families differ in where they put the newline among the rows of a clip: after each line of a frame,
after each frame, or after the clip. Invent one that nobody has published: a newline *before* each
line of each frame. Two places in the project would have to know of it. `frames_rows` makes the
rows. `frame_tokens` counts them before a pixel is decoded, from the size alone. Write both; they
must agree, or the project refuses the prompt.

Read: llava_min/projector.py, `end_rows` and `frames_rows`; llava_min/segments.py, `Clip`.
Check yourself: python examples/exercises/06_line_start.py
"""

import torch
from torch import Tensor

from llava_min.projector import frames_rows as after_each_line


def frames_rows(pooled: Tensor, newline: Tensor) -> Tensor:
    """Rows [tokens W] of frames [B N W] of N = P x P patches, in order; newline [W]."""
    raise NotImplementedError


def frame_tokens(side: int) -> int:
    """How many rows one frame of side x side patches has."""
    raise NotImplementedError


# The check: you need not read on. ----------------------------------------------------------


def test():
    generator = torch.Generator().manual_seed(0)
    for frames, side in ((1, 1), (1, 3), (2, 4), (5, 2)):
        about = f"{frames} frames of {side} x {side} patches"
        pooled = torch.randn(frames, side * side, 7, generator=generator)
        newline = torch.randn(7, generator=generator)
        rows = frames_rows(pooled, newline)
        assert rows.ndim == 2, f"{about} give a tensor with {rows.ndim} axes, not rows [tokens W]"
        planned = frames * frame_tokens(side)
        assert len(rows) == planned, f"{about} are {len(rows)} rows, and {planned} were planned"
        mirrored = after_each_line(pooled.flip(0, 1), newline, "grid").flip(0)
        assert rows.shape == mirrored.shape, f"{about} are {len(mirrored)} rows, not {len(rows)}"
        wrong = [row for row in range(len(rows)) if not rows[row].equal(mirrored[row])]
        assert not wrong, f"{about}: rows {wrong} are not what they should be"


if __name__ == "__main__":
    from judge import judge

    judge(test)
