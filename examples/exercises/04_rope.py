"""Exercise 4, half an hour: RoPE, by which a score depends on distance only.

Attention compares a query with keys and would not know where they are. So each is rotated by an
angle that grows with its position. A vector of E numbers is E/2 pairs (x[i], x[i + E/2]), and pair
i turns by position / theta^(2i/E) radians:

    a, b  ->  a cos - b sin,  a sin + b cos

Write `rotate`. The check compares it with the project's, and then moves a query and a key along
together: their product must stay what it was.

Read: kernels/rope.py, `angles` and `rotate`.
Check yourself: python examples/exercises/04_rope.py
"""

import torch
from torch import Tensor

from llava_min.kernels import rope


def rotate(vectors: Tensor, positions: Tensor, theta: float) -> Tensor:
    """vectors [T E], each turned by the angles of its position; positions [T].

    Angles have the dtype of the vectors.
    """
    raise NotImplementedError


# The check: you need not read on. ----------------------------------------------------------


def test():
    quarter = rotate(torch.tensor([[3.0, 4.0]]), torch.tensor([torch.pi / 2]), 10_000.0)
    turned = [round(number, 3) for number in quarter.flatten().tolist()]
    assert turned == [-4.0, 3.0], f"a quarter of a turn makes [-4, 3] of [3, 4], not {turned}"
    generator, far = torch.Generator().manual_seed(0), torch.tensor([0, 1, 5, 700])
    for width in (2, 8, 64):
        vectors = torch.randn(4, width, generator=generator, dtype=torch.float64)
        before, angles = vectors.clone(), rope.angles(far[None], 1e4, width, dtype=torch.float64)
        expected = rope.rotate(vectors[None, :, None], angles)[0, :, 0]
        found = rotate(vectors, far, 1e4)
        for position, one, other in zip(far.tolist(), found, expected):
            gap = float((one - other).abs().max())
            about = f"a vector of {width} numbers at position {position}"
            assert gap < 1e-9, f"{about} is off by {gap:.2g} (are the halves the pairs?)"
        assert vectors.equal(before), "the vectors that it was given have changed"
        query, key = vectors[0].expand(2, -1), vectors[1].expand(2, -1)
        scores = (rotate(query, far[:2] + 9, 1e4) * rotate(key, far[:2] + 4, 1e4)).sum(-1)
        assert scores[0].isclose(scores[1]), "two places further on, the same two score otherwise"


if __name__ == "__main__":
    from judge import judge

    judge(test)
