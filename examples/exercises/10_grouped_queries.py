"""Exercise 10, one hour: grouped queries, without copying a key.

The decoder has fewer heads for keys and values than for queries: G = H/K queries in a row share one
key head, which makes the cache G times smaller. The simplest code repeats each key G times, and the
memory that the cache has saved is needed after all. Write `attend` for one new token so that keys
and values are read where they are: the G queries of a head become the rows of one small matrix.

The check watches every operation, and refuses one that makes a copy of keys or values.

Read: kernels/decode_attention.py, `decode_formula`.
Check yourself: python examples/exercises/10_grouped_queries.py
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llava_min.kernels.decode_attention import decode_formula


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of one token's query [H E] over key and value [K S E] -> mixed values [H E]."""
    raise NotImplementedError


# The check: you need not read on. ----------------------------------------------------------


class Largest(TorchDispatchMode):
    """The most numbers that an operation has written to memory of its own."""

    numbers = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        known = {one.untyped_storage().data_ptr() for one in args if isinstance(one, Tensor)}
        for one in found if isinstance(found, tuple | list) else [found]:
            if isinstance(one, Tensor) and one.untyped_storage().data_ptr() not in known:
                stored = one.untyped_storage().nbytes() // one.element_size()
                self.numbers = max(self.numbers, stored)
        return found


def test():
    generator = torch.Generator().manual_seed(0)
    for heads, kv_heads, seen in ((4, 4, 5), (4, 2, 9), (6, 2, 700), (8, 1, 300)):
        query, key, value = (
            torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in ((heads, 32), (kv_heads, seen, 32), (kv_heads, seen, 32))
        )
        lengths = torch.tensor([seen - 1])
        expected = decode_formula(query[None, None], key[None], value[None], lengths)[0, 0]
        with Largest() as watched:
            found = attend(query, key, value)
        about = f"with {heads} query heads, {kv_heads} key heads and {seen} tokens"
        assert found.shape == expected.shape, f"{about} the result is {tuple(found.shape)}"
        gap = float((found - expected).abs().max())
        assert gap < 1e-9, f"{about} it is off by {gap:.2g}"
        copied = f"{about} an operation made {watched.numbers} numbers; the keys are {key.numel()}"
        assert seen < 100 or watched.numbers < key.numel(), copied


if __name__ == "__main__":
    from judge import judge

    judge(test)
