"""Exercise 12, two hours: make decode attention take two queries at once.

A GPU cuts the keys of one head into splits and looks at all of them at once. Each split gives a
part: a maximum, a sum and an unfinished mix; the program that comes last combines the parts. Below
is that for one new token. Two new tokens, or more, could share each key that is read, but the first
of them must not see the key of the second. Write `part` and `combine` for any number of new tokens.

The trap: a split may hold nothing that the first token may see. What is its maximum then, and what
does exp make of it?

Read: kernels/decode_attention.py, `decode_tiled` and `decode_formula`.
Check yourself: python examples/exercises/12_two_queries.py
"""

import random

import torch
from torch import Tensor

from llava_min.kernels.decode_attention import decode_formula

Part = tuple[Tensor, Tensor, Tensor]  # maximum, total, mix


def part_of_one(query: Tensor, key: Tensor, value: Tensor) -> Part:
    """The part of a split with key and value [s E] for one token's queries [G E]."""
    scores = query @ key.T / query.shape[-1] ** 0.5
    maximum = scores.amax(-1)  # G
    weights = torch.exp(scores - maximum[:, None])
    return maximum, weights.sum(-1), weights @ value


def combine_of_one(parts: list[Part]) -> Tensor:
    """The mixed values [G E] from the parts of all splits, in any order."""
    maximums, totals, mixes = map(torch.stack, zip(*parts))
    shares = torch.exp(maximums - maximums.amax(0))
    return (mixes * shares[..., None]).sum(0) / (totals * shares).sum(0)[:, None]


def part(query: Tensor, key: Tensor, value: Tensor, first: int, seen: int) -> Part:
    """The same for query [T G E], where token t sees keys 0 .. seen + t.

    The split's key and value [s E] are those from number `first` on.
    """
    raise NotImplementedError


def combine(parts: list[Part]) -> Tensor:
    """The mixed values [T G E] from the parts of all splits, in any order."""
    raise NotImplementedError


# The check: you need not read on. ----------------------------------------------------------


def test():
    generator, order = torch.Generator().manual_seed(0), random.Random(0)
    cases = ((1, 2, 9, 4, 1), (2, 3, 10, 4, 1), (2, 1, 8, 3, 1), (3, 2, 6, 1, 1), (2, 2, 9, 5, 999))
    for new, group, seen, size, scale in cases:
        query = torch.randn(new, group, 8, generator=generator, dtype=torch.float64) * scale
        key, value = torch.randn(2, seen + new, 8, generator=generator, dtype=torch.float64)
        starts = list(range(0, len(key), size))
        order.shuffle(starts)
        parts = [
            part(query, key[first : first + size], value[first : first + size], first, seen)
            for first in starts
        ]
        found = combine(parts)
        whole = query[None], key[None, None], value[None, None], torch.tensor([seen])
        expected = decode_formula(*whole)[0]
        about = f"{new} tokens after {seen}, {group} queries each, in splits of {size}"
        about += ", with large scores" if scale > 1 else ""
        assert found.shape == expected.shape, f"{about}: the result is {tuple(found.shape)}"
        for token in range(new):
            gap = float((found[token] - expected[token]).abs().max())
            assert gap < 1e-9, f"{about}: token {token} is off by {gap:.2g}"


if __name__ == "__main__":
    from judge import judge

    judge(test)
