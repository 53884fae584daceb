"""What another program's codes and scales stand for: numbers, or codes on our own grid.

in:  (name, tensor) of a checkpoint, codes and scales among them
out: the same with each quantised matrix as numbers, float32 [N K], or as packed codes and scales

The numbers are those of the format's own formula. Peak memory is the model and one matrix. Codes on
our own grid need not be multiplied out (weights/kept.py): then they come as (name.packed,
name.scale), as weights/packed.py describes them.
Read weights/foreign.py first. Read next: weights/checkpoint.py.
Agrees with: the formats of GPTQModel, AutoAWQ, bitsandbytes, compressed-tensors and transformers.

N outputs, K inputs, G groups.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import CheckpointError, shown
from . import names as our_names
from .foreign import MARKS, STATES, Foreign
from .packed import pairs

Parts = dict[str, Tensor]  # of one matrix, by the ends of their names
Grid = tuple[Tensor, Tensor]  # packed codes and scales
Made = TypeVar("Made")
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word the codes of eight neighbours are


def multiplied_out(
    how: Foreign, names: Collection[str], tensors: Iterator[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a checkpoint with these names: a matrix when all its parts came."""
    wanted: dict[str, set[str]] = {}
    for name in names:
        stem, end = how.split(name)
        wanted.setdefault(stem, set()).add(end)
    held: dict[str, Parts] = {}
    for name, tensor in tensors:
        stem, end = how.split(name)
        if not wanted[stem] & MARKS:
            yield name, tensor
            continue
        parts = held.setdefault(stem, {})
        parts[end] = tensor
        if parts.keys() != wanted[stem]:
            continue
        parts = held.pop(stem)
        if how.kept and our_names.ours(f"{stem}.weight")[0].startswith("decoder.blocks."):
            codes, scale = made(how, stem, parts, GRIDS)
            yield f"{stem}.packed", codes
            yield f"{stem}.scale", scale
        else:
            yield f"{stem}.weight", made(how, stem, parts, FORMULAS)


def made(
    how: Foreign, stem: str, parts: Parts, ways: Mapping[str, Callable[[Foreign, Parts], Made]]
) -> Made:
    """What a way makes of a matrix's parts. CheckpointError names what does not fit."""
    try:
        return ways[how.method](how, parts)
    except KeyError as error:
        raise unfit(stem, f"the part {error.args[0]}", "none") from None
    except Misfit as error:
        raise unfit(stem, *error.args) from None


class Misfit(Exception):
    """What was expected of a part, and what was found."""


def unfit(stem: str, expected: str, found: object) -> CheckpointError:
    return CheckpointError("cannot read the quantised weights", shown(stem), expected, str(found))


# What all formats are made of ---------------------------------------------------------


def codes_in(words: Tensor, bits: int) -> Tensor:
    """The codes in words of 32 bits, the lowest first: int32 [R C] -> int32 [R C*32/bits].

    >>> codes_in(torch.tensor([[0x4321]], dtype=torch.int32), 4)[0, :5].tolist()
    [1, 2, 3, 4, 0]
    """
    if words.dtype != torch.int32 or words.ndim != 2:
        raise Misfit("words of 32 bits", f"{words.dtype} {list(words.shape)}")
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words[..., None] >> shifts) & (2**bits - 1)).flatten(1)


def spread(scale: Tensor, shape: tuple[int, int], block: tuple[int, int]) -> Tensor:
    """A number for each block of a matrix [N K] -> one for each weight, float32.

    >>> spread(torch.tensor([[1.0, 2.0]]), (1, 4), (1, 2)).tolist()
    [[1.0, 1.0, 2.0, 2.0]]
    """
    sizes = [length if size == -1 else size for length, size in zip(shape, block)]
    blocks = [math.ceil(length / size) for length, size in zip(shape, sizes)]
    if scale.numel() != math.prod(blocks):
        raise Misfit(f"{blocks[0]} x {blocks[1]} scales or zeros", list(scale.shape))
    scale = scale.float().reshape(blocks)
    for dimension, (size, length) in enumerate(zip(sizes, shape)):
        scale = scale.repeat_interleave(size, dimension).narrow(dimension, 0, length)
    return scale


def by_index(values: Tensor, groups: Tensor) -> Tensor:
    """A number for each group [N G] -> one for each weight [N K], by the group of each input."""
    index = groups.long()
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < values.shape[1]:
        raise Misfit(f"groups from 0 to {values.shape[1] - 1}", int(index.max()))
    return values.float()[:, index]


# The formats ----------------------------------------------------------------------------


def gptq(how: Foreign, parts: Parts) -> Tensor:
    """qweight int32 [K*bits/32 N], qzeros int32 [G N*bits/32], scales [G N], g_idx [K]."""
    codes = codes_in(parts["qweight"].T.contiguous(), how.bits)
    zeros = (codes_in(parts["qzeros"], how.bits) + how.offset) & (2**how.bits - 1)
    if how.ordered:
        zero, scale = (by_index(part.T, parts["g_idx"]) for part in (zeros, parts["scales"]))
        if zero.shape != codes.shape or scale.shape != codes.shape:
            raise Misfit(f"zeros and scales for {list(codes.shape)}", list(scale.shape))
        return (codes - zero) * scale
    shape = codes.shape[0], codes.shape[1]
    return (codes - spread(zeros.T, shape, how.block)) * spread(parts["scales"].T, shape, how.block)


def gptq_grid(how: Foreign, parts: Parts) -> Grid:
    """The same as codes on our grid; the zeros must be in the middle, as "sym" says."""
    codes = codes_in(parts["qweight"].T.contiguous(), how.bits)
    zeros = (codes_in(parts["qzeros"], how.bits) + how.offset) & 15
    if not (zeros == 8).all():
        raise Misfit("zeros of 8, as sym says", "others")
    return on_grid(how, codes, parts["scales"].T)


def awq(how: Foreign, parts: Parts) -> Tensor:
    """qweight int32 [K N/8], qzeros int32 [G N/8], scales [G N]."""

    def in_order(words: Tensor) -> Tensor:
        return codes_in(words, 4).unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1).T

    codes = in_order(parts["qweight"])
    shape = codes.shape[0], codes.shape[1]
    zeros = spread(in_order(parts["qzeros"]), shape, how.block) if "qzeros" in parts else 8
    return (codes - zeros) * spread(parts["scales"].T, shape, how.block)


def bitsandbytes(how: Foreign, parts: Parts) -> Tensor:
    """weight uint8 of two codes each with a state in JSON; or int8 [N K] with SCB [N]."""
    if "SCB" in parts:
        form = int(parts.get("weight_format", torch.zeros(())))
        if form != 0:
            raise Misfit("weights in rows", f"the format {form}")
        return parts["weight"].float() * (parts["SCB"].float() / 127)[:, None]
    state = next((parts[name] for name in STATES if name in parts), None)
    if state is None:
        raise KeyError(STATES[0])
    try:
        said = json.loads(bytes(state.tolist()))
        shape, size = tuple(said["shape"]), int(said["blocksize"])
        largest = parts["weight.absmax"].float()
        if "weight.nested_absmax" in parts:
            inner = int(said["nested_blocksize"])
            wide = parts["weight.nested_absmax"].float().repeat_interleave(inner)
            table = parts["weight.nested_quant_map"].float()
            largest = table[parts["weight.absmax"].long()] * wide[: len(largest)]
            largest = largest + float(said["nested_offset"])
        bytes_ = parts["weight"].flatten()
        codes = torch.stack([bytes_ >> 4, bytes_ & 15], dim=1).flatten()[: math.prod(shape)]
        values = parts["weight.quant_map"].float()[codes.long()]
        return (values * largest.repeat_interleave(size)[: len(values)]).reshape(shape)
    except (ValueError, TypeError, IndexError, RuntimeError):
        raise Misfit("a state of bitsandbytes that fits its parts", "another") from None


def compressed(how: Foreign, parts: Parts) -> Tensor:
    """weight_packed int32 [N K*bits/32], or weight int8 or float8 [N K]; weight_scale [N G].

    A zero point, where there is one, is packed along the outputs.
    """
    if "weight_packed" in parts:
        weight = (compressed_codes(how, parts) - 2 ** (how.bits - 1)).float()
    else:
        weight = parts["weight"].float()
    shape, scale = (weight.shape[0], weight.shape[1]), parts["weight_scale"]
    zero = parts.get("weight_zero_point")
    if zero is not None and zero.dtype == torch.int32:
        zero = codes_in(zero.T.contiguous(), how.bits).T[: shape[0]] - 2 ** (how.bits - 1)
    if how.ordered:
        index = parts["weight_g_idx"]
        scale, zero = by_index(scale, index), None if zero is None else by_index(zero, index)
    else:
        scale = spread(scale, shape, how.block)
        zero = None if zero is None else spread(zero, shape, how.block)
    return (weight if zero is None else weight - zero) * scale


def compressed_codes(how: Foreign, parts: Parts) -> Tensor:
    """The codes of weight_packed, int32 [N K]."""
    rows, columns = (int(length) for length in parts["weight_shape"].flatten().tolist())
    found = codes_in(parts["weight_packed"], how.bits)
    if found.shape[0] != rows or found.shape[1] < columns:
        raise Misfit(f"codes for [{rows}, {columns}]", list(found.shape))
    return found[:, :columns]


def compressed_grid(how: Foreign, parts: Parts) -> Grid:
    """The same as codes on our grid."""
    return on_grid(how, compressed_codes(how, parts), parts["weight_scale"])


def on_grid(how: Foreign, codes: Tensor, scale: Tensor) -> Grid:
    """Codes [N K] and scales [N G] as weights/packed.py has them."""
    groups = codes.shape[1] // how.block[1]
    if scale.shape != (codes.shape[0], groups):
        raise Misfit(f"{codes.shape[0]} x {groups} scales", list(scale.shape))
    return pairs(codes.to(torch.uint8)), scale


def fp8(how: Foreign, parts: Parts) -> Tensor:
    """weight float8 [N K], and a scale for each block, output or tensor."""
    weight = parts["weight"].float()
    shape = weight.shape[0], weight.shape[1]
    scale = parts["weight_scale_inv"] if "weight_scale_inv" in parts else parts["weight_scale"]
    block = how.block
    if scale.numel() == shape[0] and block == (-1, -1):
        block = 1, -1
    return weight * spread(scale, shape, block)


FORMULAS: dict[str, Callable[[Foreign, Parts], Tensor]] = {
    "gptq": gptq,
    "awq": awq,
    "bitsandbytes": bitsandbytes,
    "compressed-tensors": compressed,
    "fp8": fp8,
}
GRIDS: dict[str, Callable[[Foreign, Parts], Grid]] = {
    # where the codes may be those of our own grid
    "gptq": gptq_grid,
    "compressed-tensors": compressed_grid,
}
