"""Linear layers of packed weights under test as Trials.

in:  a Draw, sizes      out: Trial
The formula multiplies rows by weights that are written out in the dtype of the rows.
Read right_cases.py first. Read next: right_shapes.py.

M rows, N outputs, K inputs, g group size.
"""

import torch
from torch import Tensor, nn

from llava_min.kernels import int4, int4_packing
from llava_min.weights.packed import Packed

from .right_cases import Draw
from .right_rule import Trial


def four_bits(
    draw: Draw, count: int, outputs: int, inputs: int, group: int = 128, offsets: bool = False
) -> Trial:
    """int4.linear: few rows by the kernel of few rows, many by writing the weights out."""
    rows, q = draw.normal(count, inputs), draw.integers(16, outputs, inputs).to(torch.uint8)
    scales = draw.normal(inputs // group, outputs).abs_().mul_(0.02).add_(0.001)
    more = draw.normal(inputs // group, outputs, scale=0.02) if offsets else None
    words = int4_packing.pack(q)
    kernel = f"int4 {'few' if count <= 64 else 'many'} rows"
    return product(
        kernel,
        draw,
        rows,
        lambda: int4.linear(rows, words, scales, more),
        [words, scales],
        q.float() - 8,
        scales,
        more,
    )


def layer_of_bits(draw: Draw, count: int, outputs: int, inputs: int, bits: int) -> Trial:
    """A Packed layer of the product, with a bias, of four or eight bits."""
    rows, layer = draw.normal(count, inputs), Packed(inputs, outputs, bits, 128, bias=True)
    codes = draw.integers(2**bits, outputs, inputs).to(torch.uint8)
    scale = draw.normal(outputs, inputs // 128).abs_().mul_(0.32 / 2**bits).add_(0.001)
    stored = codes if bits == 8 else codes[:, 0::2] | codes[:, 1::2] << 4
    layer.packed, layer.scale, layer.bias = (
        nn.Parameter(x, requires_grad=False) for x in (stored, scale, draw.normal(outputs))
    )
    if draw.device == "cpu":  # laid out as on a GPU, not as for a processor
        nibbles, scales = layer.nibbles(stored, scale)
        layer.words, layer.scales = int4_packing.pack(nibbles), scales.T.contiguous()
        layer.arrived = int4.counter(layer.words)
    else:
        layer.ready()
    return product(
        f"Packed {bits} bits",
        draw,
        rows,
        lambda: layer(rows),
        [layer.words],
        codes.float() - 2 ** (bits - 1) - 8 * (bits == 8),
        scale.T,
        None,
        layer.bias,
    )


def product(
    kernel: str,
    draw: Draw,
    rows: Tensor,
    call,
    inputs: list[Tensor],
    steps: Tensor,
    scales: Tensor,
    offsets: Tensor | None = None,
    bias=None,
) -> Trial:
    """A trial of rows [M K] times weights of `steps` [N K], `scales` and `offsets` [K/g N]."""

    def weight(dtype: torch.dtype) -> Tensor:
        found = steps.to(dtype).unflatten(1, (len(scales), -1)) * scales.T[..., None].to(dtype)
        if offsets is not None:
            found = found + offsets.T[..., None].to(dtype)
        return found.flatten(1)

    def formula(double: bool) -> list[Tensor]:
        if double:
            found = rows.double() @ weight(torch.float64).T
        else:
            found = rows @ weight(torch.float32).to(draw.dtype).T
        return [found if bias is None else found + bias.to(found.dtype)]

    most = rows.float().abs() @ weight(torch.float32).abs().T
    score = (most.max() / formula(True)[0].abs().max()).item()
    group = steps.shape[1] // len(scales)
    shape = f"{len(rows)} rows, {steps.shape[0]}x{steps.shape[1]}, group {group}"
    return Trial(
        kernel, draw.dtype, shape, steps.numel(), lambda: [call()], [rows, *inputs], formula, score
    )
