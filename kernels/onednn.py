"""A linear layer in bfloat16 on a CPU: oneDNN's product with a weight in oneDNN's own order.

in:  rows [... K], what `reorder` makes of a weight [N K], bias [N] or None
out: [... N]

One row costs what reading the weight costs, and a weight in this order is read fastest: 43 to 67
GB/s on two Zen 5 cores. F.linear, which reorders it in every call, reaches 23 to 29. With four rows
the order gains as much, with 1,500 it gains 3%.
Read kernels/choose.py first. Read next: kernels/int4.py.
Agrees with: F.linear; torch._inductor's packed linear.

N outputs, K inputs.
"""

import torch
from torch import Tensor

from .choose import path_of


def pays(weight: Tensor) -> bool:
    """Whether `reorder` takes such a weight, and makes its products faster."""
    return (
        path_of(weight) == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def reorder(weight: Tensor) -> Tensor:
    """A copy of the weight [N K] in oneDNN's order: opaque, for `linear` alone."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows [... K] times a reordered weight (+ bias) -> [... N]; RuntimeError where K differs."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
