"""Weights that another program quantised are multiplied out on their way from the checkpoint.

in:  quantization_config of config.json; (name, tensor) of a checkpoint, codes and scales among them
out: the same with each quantised matrix as numbers, float32 [N K]

    gptq                (code - zero) * scale; groups along K, or those that g_idx says (act-order)
    awq                 the same, the eight codes of a word in an order of their own
    bitsandbytes        a table of 16 numbers times the largest of a block; or 8 bits and a scale
    compressed-tensors  codes packed along K, or 8 bits as they are, or float8
    fp8                 float8 with a scale for each tensor, output or block

The numbers are those of the format's own formula. Activations stay as they are, also where the
format would quantise them. Peak memory is the model and one matrix.
Read weights/header.py first. Read next: weights/checkpoint.py.
Agrees with: the formats of GPTQModel, AutoAWQ, bitsandbytes, compressed-tensors and transformers.

N outputs, K inputs, G groups.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CheckpointError, shown
from ..families.fields import Fields

Parts = dict[str, Tensor]  # of one matrix, by the ends of their names
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where in a word the codes of eight neighbours are
STATES = ("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4")
ENDS = {
    # method -> the ends of the names of a quantised matrix's parts
    "gptq": ("qweight", "qzeros", "scales", "g_idx"),
    "awq": ("qweight", "qzeros", "scales"),
    "bitsandbytes": (
        "weight",
        "weight.absmax",
        "weight.quant_map",
        "weight.nested_absmax",
        "weight.nested_quant_map",
        *STATES,
        "SCB",
        "weight_format",
    ),
    "compressed-tensors": (
        "weight",
        "weight_packed",
        "weight_scale",
        "weight_zero_point",
        "weight_shape",
        "weight_g_idx",
        "input_scale",
    ),
    "fp8": ("weight", "weight_scale_inv", "weight_scale", "input_scale", "activation_scale"),
}
MARKS = {"qweight", "qzeros", "scales", "weight.absmax", "SCB", *STATES}
MARKS |= {"weight_packed", "weight_scale", "weight_scale_inv"}  # parts that only such a matrix has


@dataclass(frozen=True)
class Foreign:
    """How another program quantised the weights.

    bits: of a code. block: (outputs, inputs) that share a scale, -1 for all of them. offset: what
    is added to the zeros that are stored. ordered: groups are those that g_idx says.
    """

    method: str
    bits: int = 8
    block: tuple[int, int] = (1, -1)
    offset: int = 0
    ordered: bool = False

    @classmethod
    def of(cls, config: Mapping[str, object]) -> "Foreign | None":
        """From config.json; None where nobody, or this project itself, quantised the weights."""
        given = config.get("quantization_config")
        if not isinstance(given, dict) or given.get("quant_method") not in KINDS:
            return None
        fields = Fields(given, "config.json: quantization_config")
        return KINDS[str(given["quant_method"])][0](fields)

    def multiplied_out(
        self, names: Collection[str], tensors: Iterator[tuple[str, Tensor]]
    ) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of a checkpoint with these names: a matrix when all its parts came."""
        wanted: dict[str, set[str]] = {}
        for name in names:
            stem, end = self.split(name)
            wanted.setdefault(stem, set()).add(end)
        held: dict[str, Parts] = {}
        for name, tensor in tensors:
            stem, end = self.split(name)
            if not wanted[stem] & MARKS:
                yield name, tensor
                continue
            parts = held.setdefault(stem, {})
            parts[end] = tensor
            if parts.keys() == wanted[stem]:
                yield f"{stem}.weight", self.matrix(stem, held.pop(stem))

    def split(self, name: str) -> tuple[str, str]:
        """(the name of what a tensor belongs to, the end of its name)."""
        for end in sorted(ENDS[self.method], key=len, reverse=True):
            if name.endswith("." + end):
                return name.removesuffix("." + end), end
        return name, ""

    def matrix(self, stem: str, parts: Parts) -> Tensor:
        """A matrix [N K] of its parts. CheckpointError names what is missing or does not fit."""
        try:
            return KINDS[self.method][1](self, parts)
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


def gptq_fields(fields: Fields) -> Foreign:
    bits = fields.get("bits", int, choices=(4, 8))
    form = fields.get("checkpoint_format", str, "gptq", choices=("gptq", "gptq_v2"))
    ordered = fields.get("desc_act", bool, False)
    return Foreign("gptq", bits, (1, group_of(fields, "group_size")), form == "gptq", ordered)


def group_of(fields: Fields, key: str) -> int:
    """The inputs that share a scale; -1: all."""
    found = fields.values.get(key, -1)
    if type(found) is not int or found == 0 or found < -1:
        raise fields.refused(key, "a number of inputs, or -1", found)
    return found


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


def awq_fields(fields: Fields) -> Foreign:
    name = "bits" if "bits" in fields.values else "w_bit"
    bits = fields.get(name, int, 4, choices=(4,))
    fields.get("version", str, "gemm", choices=("gemm", "GEMM"))
    key = "group_size" if "group_size" in fields.values else "q_group_size"
    return Foreign("awq", bits, (1, group_of(fields, key)))


def awq(how: Foreign, parts: Parts) -> Tensor:
    """qweight int32 [K N/8], qzeros int32 [G N/8], scales [G N]."""

    def in_order(words: Tensor) -> Tensor:
        return codes_in(words, 4).unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1).T

    codes = in_order(parts["qweight"])
    shape = codes.shape[0], codes.shape[1]
    zeros = spread(in_order(parts["qzeros"]), shape, how.block) if "qzeros" in parts else 8
    return (codes - zeros) * spread(parts["scales"].T, shape, how.block)


def bitsandbytes_fields(fields: Fields) -> Foreign:
    return Foreign("bitsandbytes")


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
        pairs = parts["weight"].flatten()
        codes = torch.stack([pairs >> 4, pairs & 15], dim=-1).flatten()[: math.prod(shape)]
        values = parts["weight.quant_map"].float()[codes.long()]
        return (values * largest.repeat_interleave(size)[: len(values)]).reshape(shape)
    except (ValueError, TypeError, IndexError, RuntimeError):
        raise Misfit("a state of bitsandbytes that fits its parts", "another") from None


def compressed_fields(fields: Fields) -> Foreign:
    """Of compressed-tensors: all groups of layers must be quantised alike."""
    forms = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
    fields.get("format", str, choices=forms)
    for key in ("sparsity_config", "kv_cache_scheme"):
        if fields.values.get(key):
            raise fields.refused(key, "none", fields.values[key])
    groups = fields.section("config_groups")
    found = [weights_of(groups.section(name)) for name in groups.values]
    if not found or any(other != found[0] for other in found):
        raise fields.refused("config_groups", "one way for all layers", sorted(groups.values))
    return found[0]


def weights_of(group: Fields) -> Foreign:
    """How one group of layers has its weights."""
    given = group.section("weights")
    bits = given.get("num_bits", int, choices=(4, 8))
    strategy = given.get("strategy", str, choices=("tensor", "channel", "group", "block"))
    block = {"tensor": (-1, -1), "channel": (1, -1)}.get(strategy)
    if strategy == "group":
        block = 1, group_of(given, "group_size")
    elif strategy == "block":
        block = pair_of(given, "block_structure")
    assert block is not None
    ordered = given.values.get("actorder") not in (None, False, "static", "weight")
    return Foreign("compressed-tensors", bits, block, 0, ordered)


def pair_of(fields: Fields, key: str) -> tuple[int, int]:
    """The (outputs, inputs) of a block."""
    found = fields.values.get(key)
    if not isinstance(found, list) or len(found) != 2 or not all(type(x) is int for x in found):
        raise fields.refused(key, "two numbers", found)
    return found[0], found[1]


def compressed(how: Foreign, parts: Parts) -> Tensor:
    """weight_packed int32 [N K*bits/32], or weight int8 or float8 [N K]; weight_scale [N G].

    A zero point, where there is one, is packed along the outputs.
    """
    if "weight_packed" in parts:
        rows, columns = (int(length) for length in parts["weight_shape"].flatten().tolist())
        found = codes_in(parts["weight_packed"], how.bits)
        if found.shape[0] != rows or found.shape[1] < columns:
            raise Misfit(f"codes for [{rows}, {columns}]", list(found.shape))
        weight = (found[:, :columns] - 2 ** (how.bits - 1)).float()
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


def fp8_fields(fields: Fields) -> Foreign:
    fields.get("fmt", str, "e4m3", choices=("e4m3",))
    if fields.values.get("weight_block_size") is None:
        return Foreign("fp8", 8, (-1, -1))
    return Foreign("fp8", 8, pair_of(fields, "weight_block_size"))


def fp8(how: Foreign, parts: Parts) -> Tensor:
    """weight float8 [N K], and a scale for each block, output or tensor."""
    weight = parts["weight"].float()
    shape = weight.shape[0], weight.shape[1]
    scale = parts["weight_scale_inv"] if "weight_scale_inv" in parts else parts["weight_scale"]
    block = how.block
    if scale.numel() == shape[0] and scale.numel() > 1 and block == (-1, -1):
        block = 1, -1
    return weight * spread(scale, shape, block)


KINDS: dict[str, tuple[Callable[[Fields], Foreign], Callable[[Foreign, Parts], Tensor]]] = {
    # quant_method -> how its configuration is read, and its formula
    "gptq": (gptq_fields, gptq),
    "awq": (awq_fields, awq),
    "bitsandbytes": (bitsandbytes_fields, bitsandbytes),
    "compressed-tensors": (compressed_fields, compressed),
    "fp8": (fp8_fields, fp8),
}
