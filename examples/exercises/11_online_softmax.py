"""Exercise 11, one to two hours: the softmax of a row that is never whole.

Softmax divides by the sum of all exponentials, so it seems that all scores must be there first. The
kernel has no room for them. It sees the keys tile by tile and keeps three things: the largest score
so far, the sum of exponentials relative to it, and the sum of values with these weights. When a
tile raises the largest score, both sums shrink by exp(old - new).

Write `attend`, which takes one tile after another from an iterator and forgets it.

Read: kernels/attention.py, `OnlineSoftmax` (after you have tried); docs/walk/decoder.png.
Check yourself: python examples/exercises/11_online_softmax.py
"""

import weakref
from collections.abc import Iterator

import torch
from torch import Tensor

from llava_min.kernels.attention import attention_formula


def attend(query: Tensor, tiles: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """softmax(query key^T / sqrt(E)) value of query [E] over tiles (key [S E], value [S E])."""
    raise NotImplementedError


# The check: you need not read on. ----------------------------------------------------------


def shown(key: Tensor, value: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The tiles one by one; each must be forgotten before the one after the next is asked for."""
    handed = []
    for first in range(0, len(key), size):
        kept = [old for old in handed[:-1] if old() is not None]
        assert not kept, f"{len(kept) + 1} tiles of keys are kept, where one at a time is enough"
        tile = key[first : first + size].clone(), value[first : first + size].clone()
        handed.append(weakref.ref(tile[0]))
        yield tile
        del tile


def test():
    generator = torch.Generator().manual_seed(0)
    for count, size, scale in ((1, 1, 1), (4, 2, 1), (50, 7, 1), (64, 16, 30), (33, 1, 1000)):
        query = torch.randn(8, generator=generator, dtype=torch.float64) * scale
        key, value = torch.randn(2, count, 8, generator=generator, dtype=torch.float64)
        whole = query[None, None, None], key[None, None], value[None, None], None
        expected = attention_formula(*whole)[0, 0, 0]
        found = attend(query, shown(key, value, size))
        largest = float((key @ query / 8**0.5).abs().max())
        about = f"{count} keys in tiles of {size}, with scores up to {largest:.0f}"
        assert torch.isfinite(found).all(), f"{about}: NaN or infinity"
        gap = float((found - expected).abs().max())
        assert gap < 1e-9, f"{about}: it is off by {gap:.2g}"


if __name__ == "__main__":
    from judge import judge

    judge(test)
