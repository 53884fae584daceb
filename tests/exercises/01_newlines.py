"""A solution of exercise 1."""

from torch import Tensor


def newlines(rows: Tensor, newline: Tensor) -> list[int]:
    return (rows == newline).all(-1).nonzero().flatten().tolist()
