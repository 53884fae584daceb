"""The rows of the tables of block sizes, with real shapes at which candidates are compared.

in:  where tensors lie, and how many copies of the inputs      out: calls of the product's functions
The same calls run on a GPU, where they are timed, on tensors without memory, where their kernels
are compiled, and as toys in the interpreter, where a sweep is rehearsed.
Read next: candidates.py.

E head dimension, T new tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llava_min.cache import Layer
from llava_min.kernels import (
    activation,
    attention,
    decode_attention,
    int4,
    int4_packing,
    norm,
    rope,
)

EIGHT = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Where:
    """Where tensors lie, and whether they are toys."""

    device: str
    dtype: torch.dtype
    toy: bool = False

    def normal(self, *shape: int) -> Tensor:
        """Normal random numbers of this shape."""
        return torch.randn(shape, dtype=self.dtype, device=self.device)

    def scaled(self, size: int, toy: int) -> int:
        """A size, or another one for toys."""
        return toy if self.toy else size

    def heads(self, *sizes: int) -> tuple[int, ...]:
        """Query heads, key/value heads, head dimension."""
        return (2, 1, 16) if self.toy else sizes


Calls = list[Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """A row of a table, and a shape at which its candidates are compared."""

    module: str  # of llava_min.kernels: it holds the table
    row: tuple  # without the part: (128, True) of ("227 KB", 128, True)
    shape: str
    make: Callable[[Where, int], Calls]  # calls on so many copies of the inputs
    unit: float = 0  # bytes that a call reads, for the number of copies; 0 is one copy


def steps(heads: int, kv_heads: int, head_dim: int, seen: int, kind: str):
    """One query over a full cache layer."""

    def make(where: Where, copies: int) -> Calls:
        count, (few, shared, width) = where.scaled(seen, 70), where.heads(heads, kv_heads, head_dim)
        query = where.normal(1, 1, few, width)
        layers = [layer(where, shared, count, width, kind) for _ in range(copies)]
        return [lambda at=at: decode_attention.decode_attention(query, at) for at in layers]

    return make


def layer(where: Where, kv_heads: int, seen: int, head_dim: int, kind: str) -> Layer:
    """A cache layer that is full up to its last token, counted on the device alone."""
    shape = 1, kv_heads, seen + 1, head_dim
    keys, values = where.normal(*shape), where.normal(*shape)
    scales = None, None
    if kind in EIGHT:
        keys, values = (x.to(EIGHT[kind]) for x in (keys, values))
        scales = tuple(torch.ones(shape[:3], device=where.device) for _ in range(2))
    lengths = torch.full((1,), seen, dtype=torch.int32, device=where.device)
    return Layer(keys, values, *scales, lengths, np.zeros(0, int))


def prompts(heads: int, kv_heads: int, head_dim: int, new: int, seen: int = 0):
    """New tokens after those seen."""

    def make(where: Where, copies: int) -> Calls:
        fresh, before = where.scaled(new, 20), where.scaled(seen, 33 if seen else 0)
        few, shared, width = where.heads(heads, kv_heads, head_dim)
        query = where.normal(1, fresh, few, width)
        at = layer(where, shared, before + fresh - 1, width, "16")
        at.lengths, at.host_lengths = torch.full_like(at.lengths, before), np.array([before])
        return [lambda: attention.prefill(query, at)] * copies

    return make


def tiles(count: int, patches: int, head_dim: int):
    """Some tiles' patches, which all see each other."""

    def make(where: Where, copies: int) -> Calls:
        sizes = where.scaled(count, 1), where.scaled(patches, 20), 3, where.scaled(16, 2), head_dim
        fused = where.normal(*sizes)
        return [lambda: attention.bidirectional(*fused.unbind(2))] * copies

    return make


def products(count: int, outputs: int, inputs: int):
    """Some rows times four-bit weights."""

    def make(where: Where, copies: int) -> Calls:
        wide, deep = where.scaled(outputs, 80), where.scaled(inputs, 512)
        rows = where.normal(count, deep)
        arrived = torch.zeros(wide, dtype=torch.int32, device=where.device)
        weights = [packed(where, wide, deep) for _ in range(copies)]
        return [lambda w=w: int4.linear(rows, *w, arrived=arrived) for w in weights]

    return make


def packed(where: Where, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Random words, and scales that keep results near 1."""
    shape = inputs // int4_packing.BLOCK, outputs
    words = torch.zeros(*shape, 32, dtype=torch.int16, device=where.device)
    if where.device != "meta":
        words.random_(-(2**15), 2**15 - 1)
    return words, torch.full(shape, 0.01, dtype=where.dtype, device=where.device)


def rows_of(operation: Callable[[Tensor, Tensor, Tensor], object], count: int, width: int):
    """A pointwise operation on rows, given twice, and weights."""

    def make(where: Where, copies: int) -> Calls:
        some = where.scaled(count, 3), where.scaled(width, 96)
        given = [
            (where.normal(*some), where.normal(*some), where.normal(some[1])) for _ in range(copies)
        ]
        return [lambda x=x: operation(*x) for x in given]

    return make


def writes(heads: int, kv_heads: int, head_dim: int, new: int):
    """Rotated keys into an empty cache."""

    def make(where: Where, copies: int) -> Calls:
        fresh, (few, shared, width) = where.scaled(new, 5), where.heads(heads, kv_heads, head_dim)
        qkv = where.normal(1, fresh, (few + 2 * shared) * width)
        angles = torch.ones(2, 1, fresh, width, device=where.device)
        at = layer(where, shared, fresh, width, "16")
        at.lengths = torch.zeros_like(at.lengths)
        return [lambda: rope.write(qkv, angles, at)] * copies

    return make


def linear_case(count: int, name: str, outputs: int, inputs: int) -> Case:
    """Some rows through a linear layer of four-bit weights."""
    row = (max(16, 1 << (count - 1).bit_length()),)
    shape = f"{name} {outputs}x{inputs}, {count} rows"
    return Case("int4", row, shape, products(count, outputs, inputs), outputs * inputs / 2)


def decode_case(seen: int, kind: str) -> Case:
    """One new token of the 7B over a cache of 16 bits or 8."""
    size = 2 if kind == "16" else 1
    name = f"7B 28/4x128, {kind if kind in EIGHT else '16 bits'}, {seen} seen"
    unit = 2 * 4 * seen * 128 * size
    return Case("decode_attention", (8 * size,), name, steps(28, 4, 128, seen, kind), unit)


def rows_case(module: str, operation: Callable, count: int, width: int, each: int = 0) -> Case:
    """A pointwise operation that reads `each` bytes of a number; one row needs no copies."""
    shape = f"{operation.__name__}, {count} {'row' if count == 1 else 'rows'} of {width}"
    make = rows_of(operation, count, width)
    return Case(module, ("TILE",), shape, make, each * count * width)


def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor):
    return norm.add_rms_norm(x, y, weight, 1e-6)


def layer_norm(x: Tensor, y: Tensor, weight: Tensor):
    return norm.layer_norm(x, weight, weight, 1e-6)


def swiglu(x: Tensor, y: Tensor, weight: Tensor):
    return activation.swiglu(x)


def gelu(x: Tensor, y: Tensor, weight: Tensor):
    return activation.gelu(x, "gelu_pytorch_tanh")


CASES = (
    decode_case(32768, "16"),
    decode_case(1024, "16"),
    linear_case(1, "7B gate_up", 37888, 3584),
    linear_case(1, "7B down", 3584, 18944),
    linear_case(1, "7B qkv", 4608, 3584),
    Case("attention", (128, True), "7B 28/4x128, 8192 tokens", prompts(28, 4, 128, 8192)),
    Case(
        "attention", (128, True), "7B 28/4x128, 4096 after 28672", prompts(28, 4, 128, 4096, 28672)
    ),
    Case("attention", (80, False), "SigLIP 16x72, 8 tiles of 729", tiles(8, 729, 72)),
    Case("attention", (64, False), "CLIP 16x64, 8 tiles of 577", tiles(8, 577, 64)),
    Case("attention", (64, True), "0.5B 14/2x64, 8192 tokens", prompts(14, 2, 64, 8192)),
    decode_case(32768, "int8"),
    decode_case(32768, "fp8"),
    linear_case(32, "7B gate_up", 37888, 3584),
    linear_case(64, "7B gate_up", 37888, 3584),
    rows_case("norm", add_rms_norm, 8192, 3584, 4),
    rows_case("norm", add_rms_norm, 1, 3584),
    rows_case("norm", layer_norm, 5832, 1152, 4),
    rows_case("activation", swiglu, 8192, 37888, 2),
    rows_case("activation", swiglu, 1, 37888),
    rows_case("activation", gelu, 5832, 4304, 2),
    Case("rope", ("TOKENS",), "7B 28/4x128, 8192 tokens", writes(28, 4, 128, 8192)),
    Case("rope", ("TOKENS",), "7B 28/4x128, 1 token", writes(28, 4, 128, 1)),
)
