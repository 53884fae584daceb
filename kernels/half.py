"""A linear layer in float16 whose rows, or whose products, may be larger than float16 holds.

in:  rows [... K] in float16 or float32, weight [N K] and bias [N] or None
out: [... N], in float32 where the weight is float16 and torch multiplies

float16 ends at 65,504. Qwen2's SwiGLU passes that, and so do sums of the residual stream in SigLIP
and Qwen2. Both were trained in bfloat16, which ends at 3e38. So what multiplies rows of that kind
divides each row by its largest number before it is rounded to float16, and multiplies its product,
made wide, by it again. A sum of K weights that each are at most one stays far below the end. The
residual stream is then float32 from the first such product on.
A Triton kernel keeps to the dtype of its rows: there float16 is the user's own choice.
Read kernels/norm.py first. Read next: kernels/activation.py.

N outputs, K inputs.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .choose import triton_for

TINY = 2**-14  # below it numbers of float16 have fewer bits; a row of zeros is divided by it


def too_narrow(dtype: torch.dtype, rows: Tensor) -> bool:
    """Whether products of `rows` with weights of `dtype` are scaled: float16 by plain torch."""
    return dtype == torch.float16 and not triton_for(rows)


def scaled(product: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """product(rows), which is linear, in float32: in float16 it sees rows of 1 at most.

    >>> scaled(lambda rows: rows @ torch.tensor([[2.0], [0.5]]).half(), torch.tensor([[1e6, 4.0]]))
    tensor([[2000000.]])
    """
    largest = torch.linalg.vector_norm(rows, torch.inf, -1, keepdim=True).clamp(min=TINY)
    return product((rows / largest).half()).float() * largest


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows [... K] times weight [N K] (+ bias [N]) -> [... N], with the range of float32."""
    if not too_narrow(weight.dtype, rows):
        return F.linear(rows, weight, bias)
    found = scaled(lambda fitted: F.linear(fitted, weight), rows)
    return found if bias is None else found.add_(bias)
