"""A linear layer in bfloat16 on a CPU: for one row, for several and for many.

in:  rows [... K], weight [N K] or what `reorder` makes of it, bias [N] or None
out: [... N]

One row costs what reading the weights costs. torch's own product reads them as fast as the memory
gives them. oneDNN, which F.linear prefers, does not. Of the 33 GB/s of two Zen 5 cores it reaches
24 where it has put the weights into its own order once, and 17 where it does so in every call. With
four rows that order is the fastest of the three, by 1.7 times; with 1,500 it gains 3%.
Read next: kernels/int4.py.
Agrees with: F.linear; torch._inductor's packed linear.

N outputs, K inputs.
"""

import functools
import time
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor


def pays(numbers: Tensor) -> bool:
    """Whether `linear` can be used on such weights or rows and makes them faster."""
    return (
        numbers.device.type == "cpu"
        and numbers.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


@functools.cache
def faster(rounds: int = 3) -> bool:
    """Whether this CPU multiplies faster in bfloat16 than in float32.

    It tries both for some milliseconds.
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
    """rows [... K] times a weight, reordered or not (+ bias) -> [... N]; see `products_for`."""
    if weight.is_mkldnn:
        return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return F.linear(rows, weight, bias)


@contextmanager
def products_for(rows: Tensor):
    """While layers are applied to rows [... K], choose whose product F.linear uses.

    A single row, in bfloat16 on a CPU, is multiplied by torch's own product. One switch serves many
    layers; it takes as long as a small product.
    """
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = before and not (rows.numel() == rows.shape[-1] and pays(rows))
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before
