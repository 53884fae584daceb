"""A linear layer in bfloat16 on a CPU, with weights that oneDNN has put into its own order once.

in:  rows [... K], weight [N K], bias [N] or None      out: [... N]
torch's own product reorders the weights in every call, which costs as much as using them when there
is one row: of one Zen 4 core's time over the linears of a 0.5B decoder, 1.6 times as much, 1.03
times with 512 rows.
Read next: int4.py. Agrees with: F.linear; torch._inductor's packed linear.

N outputs, K inputs.
"""

import functools
import time

import torch
import torch.nn.functional as F
from torch import Tensor


def pays(weight: Tensor) -> bool:
    """Whether `reorder` can be used on this weight, and gains anything."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


@functools.cache
def faster(rounds: int = 3) -> bool:
    """Whether this CPU multiplies faster in bfloat16 than in float32: tried, for some
    milliseconds.
    """
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        rows, weight = torch.ones(64, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
        starts = []
        for _ in range(rounds + 1):  # the first one warms up
            starts.append(time.perf_counter())
            F.linear(rows, weight)
        starts.append(time.perf_counter())
        seconds.append(min(end - start for start, end in zip(starts[1:], starts[2:])))
    return seconds[1] < seconds[0]


def reorder(weight: Tensor) -> Tensor:
    """The weight in oneDNN's own order: opaque, for `linear` alone."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows [... K] times a reordered weight (+ bias) -> [... N]."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
