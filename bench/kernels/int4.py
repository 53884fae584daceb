"""Linear layers of four-bit weights beside torch's own int4 product and the bfloat16 linear.

in:  a Bench      out: Cases

Read case.py first. Read next: norm.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from llava_min.kernels import int4, int4_packing

from .. import shapes
from .case import Bench, Case, rotating

LINEARS = {  # N, K
    **{f"7B {name}": sizes for name, sizes in shapes.linears_of(shapes.TEXTS["7B"]).items()},
    "0.5B gate_up": shapes.linears_of(shapes.TEXTS["0.5B"])["gate_up"],
}


def int4_case(bench: Bench, name: str, count: int, weights: list | None = None) -> Case:
    """A linear layer of some rows; `weights`: what `int4_weights` made of its shape before."""
    outputs, inputs = (64, 256) if bench.small else LINEARS[name]
    moved = outputs * inputs * (0.5 + 2 / 128)
    weights = weights or int4_weights(bench, name)
    rows = bench.normal(count, inputs)
    calls = {
        "llava_min": lambda w: int4.linear(rows, *w.words, None, w.arrived),
        "linear bf16": lambda w: F.linear(rows, w.weight),
    }
    if weights[0].peer is not None and count <= 256:
        calls["_weight_int4pack_mm"] = lambda w: torch._weight_int4pack_mm(
            rows, w.peer[0], 128, w.peer[1]
        )
    candidates = {
        key: rotating([lambda _, call=call, w=w: call(w) for w in weights])
        for key, call in calls.items()
    }
    flops, ends = 2 * count * outputs * inputs, 2 * count * (outputs + inputs)
    costs = {"": (moved + ends, flops), "linear bf16": (2 * outputs * inputs + ends, flops)}
    shape = f"{name} {outputs}x{inputs}, {count} rows"
    return Case(f"int4 {name}", shape, count, candidates, costs, len(weights))


@dataclass
class Weights:
    """One linear layer [N K]: in 16 bits, as `int4.linear` takes it, and in torch's own packing.

    words: the packed words and the scales. peer: None without a GPU, which that packing needs.
    """

    weight: torch.Tensor
    words: tuple[torch.Tensor, torch.Tensor]
    arrived: torch.Tensor
    peer: tuple[torch.Tensor, torch.Tensor] | None


def int4_weights(bench: Bench, name: str) -> list[Weights]:
    """As many copies of a layer as do not fit into the L2 cache, packed, four times over."""
    outputs, inputs = (64, 256) if bench.small else LINEARS[name]
    found = []
    for _ in range(bench.copies(outputs * inputs * (0.5 + 2 / 128))):
        weight, peer = bench.normal(outputs, inputs), None
        q, scales = int4_packing.quantise(weight)
        words = int4_packing.pack(q)
        if bench.device == "cuda":
            halves = (q[:, ::2] << 4 | q[:, 1::2]).contiguous()  # the even input in the high nibble
            both = torch.stack([scales, torch.zeros_like(scales)], dim=-1).bfloat16()
            peer = torch._convert_weight_to_int4pack(halves, 8), both
        layer = (words, scales.to(bench.dtype))
        found.append(Weights(weight, layer, int4.counter(words), peer))
    return found


def int4_cases(bench: Bench) -> Iterator[Case]:
    for name in LINEARS:
        weights = int4_weights(bench, name)
        for count in (1, 4, 16, 64, 256, 4096) if not bench.small else (1, 40):
            yield int4_case(bench, name, count, weights)
