"""Exercise 2, fifteen minutes: which tokens top-p keeps.

Before a token is drawn, the unlikely ones are put aside, because there are so many of them that
together they would be drawn often. Top-p keeps the fewest tokens that together have at least the
probability top_p, the most likely ones first. Write `kept`.

Read: llava_min/sampling.py, `candidates`.
Check yourself: python examples/exercises/02_top_p.py
"""

import torch
from torch import Tensor

from llava_min.options import Sampling
from llava_min.sampling import candidates


def kept(probabilities: Tensor, top_p: float) -> list[int]:
    """The ids that are kept of probabilities [V], the most likely first."""
    raise NotImplementedError


# The check: you need not read on. ----------------------------------------------------------


def test():
    by_hand = torch.tensor([0.125, 0.5, 0.25, 0.125], dtype=torch.float64)
    for top_p, expected in ((0.5, [1]), (0.51, [1, 2]), (0.75, [1, 2]), (0.01, [1])):
        found = kept(by_hand, top_p)
        about = f"of 1/8, 1/2, 1/4, 1/8, top_p {top_p} keeps {expected}"
        assert found == expected, f"{about}, not {found}"
    generator = torch.Generator().manual_seed(0)
    for number in range(200):
        size = 1 + number % 40
        logits = 3 * torch.randn(size, generator=generator, dtype=torch.float64)
        top_p = float(torch.rand(1, generator=generator)) * 0.98 + 0.01
        expected = candidates(logits, Sampling(temperature=1.0, top_p=top_p))[0].tolist()
        found = kept(torch.softmax(logits, 0), top_p)
        about = f"of {size} tokens with top_p {top_p:.3f} it keeps {expected}"
        assert found == expected, f"{about}, not {found}"


if __name__ == "__main__":
    from judge import judge

    judge(test)
