"""Exercise 5, half an hour: four weights in one word of sixteen bits.

A weight of four bits is a number q from 0 to 15. Four of them fit into one int16. The kernel reads
a block of inputs at a time, and wants consecutive inputs in consecutive words. So word j of a block
holds the inputs j, j + block/4, j + 2 block/4 and j + 3 block/4, the first in its lowest four bits.
Write `pack`, and `unpack`, which makes q again.

The last weight of a word sits next to its sign, so some words are negative. Shifting these right
fills them with ones: that is the trap.

Read: kernels/int4_packing.py.
Check yourself: python examples/exercises/05_int4.py
"""

import torch
from torch import Tensor

from llava_min.kernels import int4_packing


def pack(q: Tensor) -> Tensor:
    """One block of weights q int32 [block] of 0 .. 15 -> words int16 [block/4]."""
    raise NotImplementedError


def unpack(words: Tensor) -> Tensor:
    """Words int16 [block/4] -> q int32 [block]."""
    raise NotImplementedError


# The check: you need not read on. ----------------------------------------------------------


def test():
    generator = torch.Generator().manual_seed(0)
    for block in (4, 8, 128):
        q = torch.randint(0, 16, (block,), generator=generator, dtype=torch.int32)
        q[-1] = 15  # in the highest bits
        words = pack(q)
        expected = int4_packing.pack(q[None], block).flatten()
        assert words.dtype == torch.int16, f"words are {words.dtype}, not torch.int16"
        assert words.equal(expected), f"{q.tolist()} are {expected.tolist()}, not {words.tolist()}"
        found = unpack(words)
        assert found.equal(q), f"unpacked, {q.tolist()} become {found.tolist()}"


if __name__ == "__main__":
    from judge import judge

    judge(test)
