"""Linear layers of packed weights under test as Trials.

in:  a Draw, sizes      out: Trial
The formula multiplies rows by weights that are written out in the dtype of the rows.
Read right_cases.py first. Read next: right_shapes.py.

M rows, N outputs, K inputs, g group size.
"""

import torch
from torch import Tensor, nn

from llava_min.kernels import int4, int4_packing, int8
from llava_min.weights.packed import Four

from .right_cases import Draw
from .right_rule import Trial


def four_bits(draw: Draw, count: int, outputs: int, inputs: int, group: int = 128) -> Trial:
    """int4.linear: few rows by the kernel of few rows, many by writing the weights out."""
    rows, q = draw.normal(count, inputs), draw.integers(16, outputs, inputs).to(torch.uint8)
    scales = draw.normal(inputs // group, outputs).abs_().mul_(0.02).add_(0.001)
    words = int4_packing.pack(q)
    kernel = f"int4 {'few' if count <= 64 else 'many'} rows"
    return product(
        kernel,
        draw,
        rows,
        lambda: int4.linear(rows, words, scales),
        [words, scales],
        q.float() - 8,
        scales,
    )


def layer_of_four(draw: Draw, count: int, outputs: int, inputs: int) -> Trial:
    """A layer of four bits of the product, with a bias."""
    rows, layer = draw.normal(count, inputs), Four(inputs, outputs, 128, bias=True)
    codes = draw.integers(16, outputs, inputs).to(torch.uint8)
    scale = draw.normal(outputs, inputs // 128).abs_().mul_(0.02).add_(0.001)
    stored = codes[:, 0::2] | codes[:, 1::2] << 4
    layer.packed, layer.scale, layer.bias = (
        nn.Parameter(x, requires_grad=False) for x in (stored, scale, draw.normal(outputs))
    )
    if draw.device == "cpu":  # laid out as on a GPU, not as for a processor
        layer.words, layer.scales = int4_packing.pack(codes), scale.T.contiguous()
        layer.arrived = int4.counter(layer.words)
    else:
        layer.ready()
    call, steps = (lambda: layer(rows)), codes.float() - 8
    return product("Four", draw, rows, call, [layer.words], steps, scale.T, layer.bias)


def eight_bits(draw: Draw, count: int, outputs: int, inputs: int, integers: bool = False) -> Trial:
    """int8.linear: few rows by the small-M kernel, many by products of the library.

    Or as `integers`, which are exact: rows of whole numbers, whose largest is 127.
    """
    rows = draw.normal(count, inputs)
    if integers:
        rows = (draw.integers(255, count, inputs) - 127).to(draw.dtype)
        rows[:, 0] = 127
    words = (draw.integers(255, outputs, inputs) - 127).to(torch.int8)
    scales = draw.normal(outputs).abs_().mul_(0.001).add_(0.0001)
    bias, limit = draw.normal(outputs), torch.tensor(1e9, device=words.device)
    trial = product(
        f"int8 {'integers' if integers else 'few' if count <= 64 else 'many'}",
        draw,
        rows,
        lambda: int8.linear(rows, words, scales, bias, limit if integers else None),
        [words, scales],
        words.float(),
        scales[None],
        bias,
    )
    trial.launches = count <= min(int8.CROSS_OVER.values())
    return trial


def product(
    kernel: str,
    draw: Draw,
    rows: Tensor,
    call,
    inputs: list[Tensor],
    steps: Tensor,
    scales: Tensor,
    bias=None,
) -> Trial:
    """A trial of rows [M K] times weights of `steps` [N K] and `scales` [K/g N]."""

    def weight(dtype: torch.dtype) -> Tensor:
        found = steps.to(dtype).unflatten(1, (len(scales), -1)) * scales.T[..., None].to(dtype)
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
