"""RMSNorm and LayerNorm: rows -> rows of unit scale.

in:  rows [... D], weight [D] (and bias [D])
out: [... D], the dtype of the weight; rows are wider where float16 would not hold them (half.py)

Statistics are taken in float32 at least: x = 300 squared overflows float16.
A kernel reads every number once and writes it once (the torch formula goes over the rows four to
six times). So its limit is the memory: 4 bytes per number of a bfloat16 row, 8 with the residual
sum.
Read kernels/choose.py first. Read next: kernels/half.py.
Agrees with: Qwen2RMSNorm of transformers (cast, then weight) and F.layer_norm.

D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .choose import triton_for
from .language import begin, blocks, launch, power_of_two, tl, triton

# 0.0793 ms, was 0.0795: H100, 8a35520
TILE = 2048  # numbers per program: one row of a 7B decoder, several of a narrower one


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is where it is already wider."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def rms_norm_torch(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """rows / sqrt(mean(rows^2) + eps) * weight; the weight is applied after the cast back."""
    values = wide(rows)
    values = values * (values * values).mean(-1, keepdim=True).add_(eps).rsqrt_()
    return weight * values.to(weight.dtype)


def layer_norm_torch(rows: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(rows - mean) / sqrt(variance + eps) * weight + bias."""
    if rows.dtype == weight.dtype:
        return F.layer_norm(rows, rows.shape[-1:], weight, bias, eps)
    normed = F.layer_norm(wide(rows), rows.shape[-1:], wide(weight), wide(bias), eps)
    return normed.to(weight.dtype)


@triton.jit
def load_tile(pointer, first, row, column, inside, WIDTH: tl.constexpr):
    """Rows first + row of a [count, WIDTH] tensor in float32, and zero where not `inside`.

    The first row's place is computed in 64 bits (262,144 rows of 37,888 pass 2^31), the rest in 32.
    """
    tile = pointer + first.to(tl.int64) * WIDTH + row * WIDTH + column
    return tl.load(tile, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_tile(pointer, values, first, row, column, inside, WIDTH: tl.constexpr):
    """Write where `inside`, cast to the dtype of the tensor."""
    tile = pointer + first.to(tl.int64) * WIDTH + row * WIDTH + column
    tl.store(tile, values.to(pointer.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["count"])
def rms_norm_kernel(
    rows,
    update,
    weight,
    total,
    normed,
    count,
    eps,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: ROWS whole rows in registers.

    With `update` it first takes rows + update and keeps that in `total`.
    """
    begin()
    first = tl.program_id(0) * ROWS
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    inside = (first + row < count) & (column < WIDTH)
    values = load_tile(rows, first, row, column, inside, WIDTH)
    if update is not None:
        values += load_tile(update, first, row, column, inside, WIDTH)
        # the next layer sees the rounded sum
        values = values.to(total.dtype.element_ty).to(tl.float32)
        store_tile(total, values, first, row, column, inside, WIDTH)
    scale = tl.rsqrt(tl.sum(values * values, axis=1) / WIDTH + eps)
    values = (values * scale[:, None]).to(normed.dtype.element_ty).to(tl.float32)
    values *= tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    store_tile(normed, values, first, row, column, inside, WIDTH)


@triton.jit(do_not_specialize=["count"])
def layer_norm_kernel(
    rows,
    weight,
    bias,
    normed,
    count,
    eps,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: ROWS whole rows in registers.

    The variance is that of centred values, centred twice.
    """
    begin()
    first = tl.program_id(0) * ROWS
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, BLOCK)[None, :]
    inside = (first + row < count) & (column < WIDTH)
    values = load_tile(rows, first, row, column, inside, WIDTH)
    mean = tl.sum(values, axis=1) / WIDTH
    values = tl.where(inside, values - mean[:, None], 0.0)
    rest = tl.sum(values, axis=1) / WIDTH  # the mean's own rounding, large where the mean is
    values = tl.where(inside, values - rest[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(values * values, axis=1) / WIDTH + eps)
    whole = column < WIDTH
    values *= scale[:, None] * tl.load(weight + column, mask=whole, other=0.0).to(tl.float32)
    values += tl.load(bias + column, mask=whole, other=0.0).to(tl.float32)
    store_tile(normed, values, first, row, column, inside, WIDTH)


def launch_rows(kernel, width: int, count: int, tile: int, *arguments) -> None:
    """Launch a kernel over `count` rows, as many to a program as `tile` numbers hold."""
    block = power_of_two(width)
    rows = max(1, tile // block)
    warps = 8 if rows * block >= 4096 else 4
    launch(
        kernel,
        (blocks(count, rows),),
        *arguments,
        WIDTH=width,
        ROWS=rows,
        BLOCK=block,
        num_warps=warps,
    )


def rms_norm_triton(rows: Tensor, update: Tensor | None, weight: Tensor, eps: float, tile=TILE):
    """(rows + update, or None without an update; its RMSNorm)."""
    flat = rows.reshape(-1, rows.shape[-1]).contiguous()
    added = None if update is None else update.reshape(flat.shape).contiguous()
    total = None if update is None else torch.empty_like(flat)
    normed = torch.empty_like(flat)
    if flat.numel():
        tensors = flat, added, weight, total, normed
        launch_rows(rms_norm_kernel, flat.shape[1], len(flat), tile, *tensors, len(flat), eps)
    return None if total is None else total.view(rows.shape), normed.view(rows.shape)


def layer_norm_triton(rows: Tensor, weight: Tensor, bias: Tensor, eps: float, tile=TILE) -> Tensor:
    """layer_norm_torch as one kernel: [... D] -> [... D]."""
    flat = rows.reshape(-1, rows.shape[-1]).contiguous()
    normed = torch.empty_like(flat)
    if flat.numel():
        tensors = flat, weight, bias, normed
        launch_rows(layer_norm_kernel, flat.shape[1], len(flat), tile, *tensors, len(flat), eps)
    return normed.view(rows.shape)


def rms_norm(rows: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis."""
    if triton_for(rows):
        return rms_norm_triton(rows, None, weight, eps)[1]
    return rms_norm_torch(rows, weight, eps)


def add_rms_norm(rows: Tensor, update: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """One residual step: (rows + update, its RMSNorm)."""
    if triton_for(rows):
        return rms_norm_triton(rows, update, weight, eps)
    rows = rows + update
    return rows, rms_norm_torch(rows, weight, eps)


def layer_norm(rows: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm over the last axis."""
    if triton_for(rows):
        return layer_norm_triton(rows, weight, bias, eps)
    return layer_norm_torch(rows, weight, bias, eps)
