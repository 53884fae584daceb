"""A linear layer on a CPU: oneDNN's product with a weight in oneDNN's own order.

in:  rows [... K], what `reorder` makes of a weight [N K], bias [N] or None
out: [... N]

One row costs what reading the weight costs, and a weight in this order is read fastest: 43 to 67
GB/s on two Zen 5 cores. F.linear in bfloat16, which reorders it in every call, reaches 23 to 29.
With four rows the order gains as much, with 1,500 it gains 3%. In float32 F.linear is not oneDNN's:
it takes three times as long for a row, six for four and twice for 1,000. Weights so small that a
core's cache holds them gain nothing there for one row.
Read kernels/choose.py first. Read next: kernels/attention_sizes.py.
Agrees with: F.linear; torch._inductor's packed linear.

N outputs, K inputs.
"""

import torch
from torch import Tensor

from .choose import path_of
from .paths import LARGE

FEW = 128  # rows, for which a matrix is not copied


def multiplies(tensor: Tensor) -> bool:
    """Whether oneDNN takes products of such numbers, on this road and on this CPU."""
    if path_of(tensor) != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if tensor.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return tensor.dtype == torch.float32


def pays(weight: Tensor) -> bool:
    """Whether `reorder` takes such a weight, and makes its products faster."""
    return multiplies(weight) and (weight.dtype != torch.float32 or weight.numel() >= LARGE)


def reorder(weight: Tensor) -> Tensor:
    """A copy of the weight [N K] in oneDNN's order: opaque, for `linear` alone."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows [... K] times a reordered weight (+ bias) -> [... N]; RuntimeError where K differs."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def matmul(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows [M K] times matrix [K N] -> [M N].

    torch itself takes this from oneDNN in bfloat16 only; for few rows a copy does not pay.
    """
    if rows.dtype == torch.bfloat16 or len(rows) < FEW:
        return torch.mm(rows, matrix)
    return linear(rows, matrix.T.contiguous(), None)
