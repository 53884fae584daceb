"""The nonlinearities: SwiGLU of the decoder, and the three different GELUs of towers and projector.

in:  rows [... D] (for SwiGLU [... 2I], gate and up one after the other)
out: [... D] (for SwiGLU [... I])

Three GELUs are not a mistake: CLIP was trained with the quick one, SigLIP with the tanh one, the
projector with the exact one. Exchanging them moves logits by 2e-3 to 0.15.
A kernel reads each number once and writes once: 6 bytes per output of a bfloat16 SwiGLU, 4 of a
GELU.
Read kernels/half.py first. Read next: kernels/rope.py.
Agrees with: ACT2FN of transformers.

D width, I width of the gate and of the result.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .choose import triton_for
from .half import too_narrow
from .language import begin, blocks, launch, tl, triton

GELUS = ("quick_gelu", "gelu_pytorch_tanh", "gelu")
TILE = 1024  # numbers per program


def swiglu_torch(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where gate is the first half of the last axis and up the second.

    It is float32 where a product of two numbers of float16 may pass float16's end.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    if too_narrow(gate_up.dtype, gate_up):
        return F.silu(gate.float()) * up
    return F.silu(gate).mul_(up)  # in place: no memory is asked for again


def gelu_torch(rows: Tensor, kind: str) -> Tensor:
    """x sigmoid(1.702 x) for quick_gelu, the tanh form for gelu_pytorch_tanh, x Phi(x) for gelu."""
    if kind == "quick_gelu":
        return rows * torch.sigmoid(1.702 * rows)
    return F.gelu(rows, approximate="tanh" if kind == "gelu_pytorch_tanh" else "none")


@triton.jit
def swiglu_kernel(gate_up, mixed, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One program: BLOCK columns of one row; `up` begins WIDTH after `gate`."""
    begin()
    row = tl.program_id(0).to(tl.int64)  # 262,144 rows of 37,888 numbers pass 2^31
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    gate = tl.load(gate_up + row * 2 * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    gate = (gate * tl.sigmoid(gate)).to(mixed.dtype.element_ty).to(tl.float32)
    tl.store(mixed + row * WIDTH + column, (gate * up).to(mixed.dtype.element_ty), mask=inside)


@triton.jit
def gelu_kernel(rows, bias, mixed, WIDTH: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """One program: BLOCK columns of one row. 0.5 (1 + tanh(y)) is sigmoid(2 y)."""
    begin()
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    x = tl.load(rows + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        x += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    if KIND == "quick_gelu":
        x *= tl.sigmoid(1.702 * x)
    elif KIND == "gelu_pytorch_tanh":
        x *= tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))  # 2 sqrt(2 / pi)
    else:
        x *= 0.5 * (1.0 + tl.erf(0.7071067811865476 * x))
    tl.store(mixed + row * WIDTH + column, x.to(mixed.dtype.element_ty), mask=inside)


def swiglu_triton(gate_up: Tensor, tile: int = TILE) -> Tensor:
    """swiglu_torch as one kernel: [... 2I] -> [... I]."""
    width = gate_up.shape[-1] // 2
    flat = gate_up.reshape(-1, 2 * width).contiguous()
    mixed = flat.new_empty(len(flat), width)
    if mixed.numel():
        launch(
            swiglu_kernel, (len(flat), blocks(width, tile)), flat, mixed, WIDTH=width, BLOCK=tile
        )
    return mixed.view(*gate_up.shape[:-1], width)


def gelu_triton(rows: Tensor, kind: str, bias: Tensor | None = None, tile: int = TILE) -> Tensor:
    """gelu_torch of rows (+ bias) as one kernel: [... D] -> [... D]."""
    flat = rows.reshape(-1, rows.shape[-1]).contiguous()
    count, width = flat.shape
    mixed = torch.empty_like(flat)
    if mixed.numel():
        grid = (count, blocks(width, tile))
        launch(gelu_kernel, grid, flat, bias, mixed, WIDTH=width, KIND=kind, BLOCK=tile)
    return mixed.view(rows.shape)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up: [... 2I] -> [... I]."""
    return swiglu_triton(gate_up) if triton_for(gate_up) else swiglu_torch(gate_up)


def gelu(rows: Tensor, kind: str, bias: Tensor | None = None) -> Tensor:
    """The GELU named `kind`, one of GELUS, of rows (+ bias): [... D] -> [... D]."""
    assert kind in GELUS, kind
    if triton_for(rows):
        return gelu_triton(rows, kind, bias)
    return gelu_torch(rows if bias is None else rows + bias, kind)
