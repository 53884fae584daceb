"""RMSNorm and LayerNorm: rows -> rows of unit scale.

in:  rows [... D], weight [D] (and bias [D])      out: [... D], the dtype of `rows`
Statistics are taken in float32 at least: x = 300 squared overflows float16.
Read next: activation.py. Agrees with: Qwen2RMSNorm of transformers (cast, then weight) and F.layer_norm.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is already wider."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def rms_norm_reference(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """rows / sqrt(mean(rows^2) + eps) * weight; the weight is applied after the cast back."""
    values = wide(rows)
    values = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + eps)
    return weight * values.to(rows.dtype)


def layer_norm_reference(rows: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(rows - mean) / sqrt(variance + eps) * weight + bias."""
    return F.layer_norm(rows, rows.shape[-1:], weight, bias, eps)


def rms_norm(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis."""
    return rms_norm_reference(rows, weight, eps)


def add_rms_norm(rows: Tensor, update: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """One residual step: (rows + update, its RMSNorm)."""
    rows = rows + update
    return rows, rms_norm_reference(rows, weight, eps)


def layer_norm(rows: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis."""
    return layer_norm_reference(rows, weight, bias, eps)
