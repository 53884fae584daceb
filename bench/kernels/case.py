"""One shape of one operation: who computes it, what it must move and compute, how it is timed.

in:  candidates by name, bytes and FLOPs by formula
out: measure.Rows

Read ../shapes.py, ../measure.py first. Read next: attention.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from llava_min.cache import Layer
from llava_min.kernels import rope

from .. import measure, shapes

KINDS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}  # of a cache of 8 bits
FAMILIES = ("7B", "0.5B", "Vicuna 7B")
HEADS = {family: shapes.heads_of(shapes.TEXTS[family]) for family in FAMILIES}  # H, K, E
L2 = 60_000_000  # bytes of the second-level cache of an H200, where no GPU can be asked
Candidate = Callable[[int], object]  # call number -> what one call computes


@dataclass
class Bench:
    """Where the tensors live, and which peers there are.

    small: every shape is shrunk so that a dry run ends; nothing of it is a result. compiled: with
    the peers that torch.compile makes, which takes seconds for each.
    """

    device: str
    dtype: torch.dtype
    small: bool
    compiled: bool = True

    def normal(self, *shape: int) -> torch.Tensor:
        """Normal random numbers of this shape."""
        return torch.randn(shape, dtype=self.dtype, device=self.device)

    @property
    def l2(self) -> int:
        """Bytes of the second-level cache."""
        if self.device != "cuda":
            return L2
        return torch.cuda.get_device_properties(0).L2_cache_size or L2

    def copies(self, size: float) -> int:
        """How many inputs of `size` bytes to go through in turn.

        They are four times what the L2 cache holds: none is still there when its turn comes again.
        """
        return 2 if self.small else max(2, math.ceil(4 * self.l2 / size))

    def layer(self, kv_heads: int, seen: int, head_dim: int, kind: str = "") -> Layer:
        """A cache layer that is full up to its last token, in 16 bits, int8 or fp8 with scales."""
        keys, values = self.normal(2, 1, kv_heads, seen + 1, head_dim)
        lengths = torch.tensor([seen], dtype=torch.int32, device=self.device)
        scales = None, None
        if kind:
            (keys, values), scales = zip(*(rope.quantise(x, KINDS[kind]) for x in (keys, values)))
        return Layer(keys, values, *scales, lengths, np.array([seen]))

    def prompt_layer(self, kv_heads: int, new: int, head_dim: int, seen: int = 0) -> Layer:
        """A layer that has seen `seen` tokens, with room for `new` ones that stand there."""
        layer = self.layer(kv_heads, seen + new - 1, head_dim)
        layer.host_lengths, layer.lengths = np.array([seen]), torch.full_like(layer.lengths, seen)
        return layer


@dataclass
class Case:
    """One shape: candidates by name, and what they must move and compute.

    costs: name -> (bytes, flops), "" for all that are not named. Call number i takes the i-th of
    `copies` inputs, in turn.
    """

    section: str
    shape: str
    size: float
    candidates: dict[str, Candidate]
    costs: dict[str, tuple[float, float]]
    copies: int = 1


def measured(case: Case, limits: dict[str, float], rounds: int) -> list[measure.Row]:
    """The rows of a case, each of which says what one call took.

    A candidate is timed in rounds through all copies of its inputs.
    """

    def through_all(call: Candidate) -> Candidate:
        return lambda number: [call(number * case.copies + copy) for copy in range(case.copies)]

    rows = measure.rows_of(
        case.section,
        case.shape,
        case.size,
        {name: through_all(call) for name, call in case.candidates.items()},
        {name: tuple(case.copies * x for x in cost) for name, cost in case.costs.items()},
        limits,
        rounds,
    )
    one = 1 / case.copies
    return [
        replace(
            row,
            p20_ms=row.p20_ms * one,
            p50_ms=row.p50_ms * one,
            p80_ms=row.p80_ms * one,
            bytes=row.bytes * one,
            flops=row.flops * one,
        )
        for row in rows
    ]


def rotating(calls: list[Candidate]) -> Candidate:
    """One of some calls after the other."""
    return lambda number: calls[number % len(calls)](number)
