"""What the kernel tests share: random rows, the 2x rule, a cache layer, and one-line mistakes to be
caught.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.lease import right_rule
from llava_min import cache


def rows_of(seed: int, shape: tuple[int, ...], dtype=torch.float32, scale: float = 1.0) -> Tensor:
    """Normal numbers of a fixed seed."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(dtype)


def no_worse_than_torch(
    found: Tensor, torch_found: Tensor, exact: Tensor, score: float = 0.0
) -> None:
    """The 2x rule: error against float64 at most twice plain torch's in the same dtype.

    One rounding step of the largest number is added, because on a few numbers torch may be exact by
    luck; for attention also one float32 step of the largest `score`, about 4 times the scale of the
    queries: a score of 80 that is off by one step moves its weight by 1e-5. For a sum that nearly
    cancels, `score` is the sum of magnitudes over the result.
    """
    assert found.shape == exact.shape and found.dtype == torch_found.dtype
    if not exact.numel():
        return
    error = right_rule.largest_gap(found, exact)
    allowed = right_rule.allowed_error(torch_found, exact, found.dtype, score)
    assert error <= allowed, (error, allowed)  # also false for NaN


class Layer(cache.Layer):
    """One layer of a cache of its own."""

    def double(self) -> "Layer":
        """The same numbers in float64, with 8-bit steps multiplied out."""
        keys, values = self.keys.double(), self.values.double()
        if self.key_scales is not None:
            keys, values = keys * self.key_scales[..., None], values * self.value_scales[..., None]
        return Layer(keys, values, None, None, self.lengths, self.host_lengths)


def layer_of(
    seed: int, starts: list[int], new: int, kv_heads: int, head_dim: int, dtype, spare: int = 3
) -> Layer:
    """A layer filled up to starts + new, the second of two; whatever lies around it is NaN."""
    capacity = max(starts) + new + spare
    shape = (2, len(starts), kv_heads, capacity, head_dim)
    keys, values = rows_of(seed, shape, dtype), rows_of(seed + 1, shape, dtype)
    for both in (keys, values):
        both[0] = torch.nan
        for row, start in enumerate(starts):
            both[1, row, :, start + new :] = torch.nan
    lengths = torch.tensor(starts, dtype=torch.int32)
    return Layer(keys[1], values[1], None, None, lengths, np.array(starts))


def mutated(module, folder: Path, right: str, wrong: str):
    """A copy of a kernel module in which one line is wrong; the right line must be there exactly
    once.
    """
    source = Path(module.__file__).read_text()
    assert source.count(right) == 1, (source.count(right), right)
    path = folder / Path(module.__file__).name
    path.write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location(module.__name__ + "_mutant", path)
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    return mutant
