"""Linear layers of eight-bit weights on a CPU that multiplies bytes: products in integers.

in:  rows [M K], weights as `prepack` leaves them, scales [N], the limit of a row's peak
out: [M N]

A row becomes bytes too: it is divided by a step of its own, the largest of its numbers over 127,
and rounded. The sums of products of bytes are exact, and so a row's answer does not depend on the
rows next to it. Rounding to bytes is as fine as the weights' own where the numbers of a row are
alike. It is not where a few are far larger than the rest, as some channels of language models are.
Such a row is rounded to 16 bits, which are two bytes: two rows of the same product, whose results
are added. Few rows are always two, as what they wait for is the weights.
Read kernels/int4.py first. Read next: kernels/int8.py.
Agrees with: torch's onednn.qlinear_pointwise; arXiv 2208.07339 (LLM.int8) on such channels.

M rows, N outputs, K inputs.
"""

import functools
import math

import torch
from torch import Tensor

FEW = 8  # up to this many rows take 16 bits: twice the rows cost next to nothing (bench kernels)
STEPS = 127 * 256  # of 16 bits, from zero to a row's largest number
ZERO = 128  # the byte that stands for zero: oneDNN wants rows without a sign
HALF = 0.5  # of a step, to round by: what becomes an integer is cut off
MIDDLE = torch.tensor([ZERO * 257 + HALF])  # both bytes of zero
PART = 2**18  # numbers that are rounded at a time: they stay in the cache of a core
NO_ZEROS = torch.zeros(0, dtype=torch.int32)  # of weights: theirs are zero
TINY = 1e-30  # by which a row of zeros is divided


def prepack(weight: Tensor) -> Tensor:
    """int8 [N K] -> a copy in oneDNN's order: opaque, for `linear_torch` alone."""
    return torch.ops.onednn.qlinear_prepack(weight, None)


def ordered(words: Tensor, scales: Tensor) -> bool:
    """Whether words are as `prepack` leaves them. In a trace a plain tensor is in their place."""
    traced = torch.compiler.is_exporting() and scales.dtype == torch.float32
    return words.is_mkldnn or (traced and exact())


def product(
    rows: Tensor, words: Tensor, scales: Tensor, dtype: torch.dtype, step: float = 1.0
) -> Tensor:
    """uint8 [M K], which stand for (byte - ZERO) * step, times packed weights -> dtype [M N]."""
    return torch.ops.onednn.qlinear_pointwise(
        rows, step, ZERO, words, scales, NO_ZEROS, None, 1.0, 0, dtype, "none", [], ""
    )


@functools.cache
def exact() -> bool:
    """Whether this CPU's products of bytes are exact, asked once with the worst of numbers.

    Without VNNI, pairs of products are added up in 16 bits, which hold half of what can come.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qlinear_prepack"):
        return False
    words = prepack(torch.full((16, 64), 127, dtype=torch.int8))
    rows = torch.full((2, 64), 255, dtype=torch.uint8)
    return bool((product(rows, words, torch.ones(16), torch.float32) == 127 * 127 * 64).all())


def largest_of(rows: Tensor) -> Tensor:
    """The largest magnitude of each row [M K], float32 [M 1]."""
    return rows.abs().amax(dim=-1, keepdim=True).float().clamp(min=TINY)


def in_bfloat16(largest: Tensor) -> Tensor:
    """A little more than `largest`, so that a step, its part in 127, is a number of bfloat16.

    Products in bfloat16 can then be multiplied by it as they are, which is far faster.

    >>> (in_bfloat16(torch.tensor([5.0])) / 127).item()
    0.03955078125
    """
    bits = (largest / 127).view(torch.int32)
    return ((bits + 0xFFFF) & ~0xFFFF).view(torch.float32) * 127


def part_of(rows: Tensor) -> int:
    """How many rows [M K] are worked on at a time."""
    return max(1, PART // max(1, rows.shape[1]))


def in_steps(rows: Tensor, inverse: Tensor, zero: int) -> Tensor:
    """rows [M K] in steps, counted from `zero`, and half a step more: float32 [M K].

    Three operators that do one thing each are three times as fast as one that does all.
    """
    return rows.to(torch.float32, copy=True).mul_(inverse).add_(zero + HALF)


def one_byte(rows: Tensor, largest: Tensor) -> Tensor:
    """rows [M K] in steps of largest / 127, to the nearest: uint8 [M K].

    >>> one_byte(torch.tensor([[2.0, -1.0, 0.01, 0.0]]), torch.tensor([[2.0]])).tolist()
    [[255, 65, 129, 128]]
    """
    found = torch.empty(rows.shape, dtype=torch.uint8, device=rows.device)
    size = part_of(rows)
    for target, some, inverse in zip(*(t.split(size) for t in (found, rows, 127 / largest))):
        target.copy_(in_steps(some, inverse, ZERO).short())
    return found


def two_bytes(rows: Tensor, largest: Tensor) -> Tensor:
    """rows [M K] in steps of largest / STEPS: the high bytes of all, then the low ones, [2M K].

    >>> two_bytes(torch.tensor([[2.0, -1.0, 0.01, 0.0]]), torch.tensor([[2.0]])).tolist()
    [[255, 65, 129, 128], [128, 0, 35, 128]]
    """
    found = torch.empty(2, *rows.shape, dtype=torch.uint8, device=rows.device)
    size = part_of(rows)
    for high, low, some, inverse in zip(*(t.split(size) for t in (*found, rows, STEPS / largest))):
        both = in_steps(some, inverse, ZERO * 257).int()
        low.copy_(both)  # the lowest byte of each
        high.copy_(both.bitwise_right_shift_(8))
    return found.flatten(0, 1)


def in_bytes(rows: Tensor, largest: Tensor, special: Tensor) -> Tensor:
    """rows [M K] in a byte each, the high one of the m `special` rows, whose low ones follow.

    uint8 [M + m, K].
    """
    if len(special) == len(rows):
        return two_bytes(rows, largest)
    found = one_byte(rows, largest)
    if not len(special):
        return found
    high, low = two_bytes(rows[special], largest[special]).split(len(special))
    found[special] = high
    return torch.cat([found, low])


def bytes_of(steps: Tensor) -> Tensor:
    """Whole steps below 2^16, int32 [M K]: the low bytes of all, then the high ones, uint8 [2M K].

    >>> bytes_of(torch.tensor([[65408, 35]], dtype=torch.int32)).tolist()
    [[128, 35], [255, 0]]
    """
    whole = steps.contiguous().view(torch.uint8).unflatten(1, (-1, 4))
    return whole[..., :2].permute(2, 0, 1).flatten(0, 1)


def one_row(row: Tensor, words: Tensor, scales: Tensor) -> Tensor:
    """A row [1 K] in 16 bits times packed weights -> [1 N], in as few operators as it can be.

    Next to so short a product each of them shows in the time of a token.
    """
    largest = max(float(row.abs().amax()), TINY)
    steps = torch.add(MIDDLE, row, alpha=STEPS / largest).int()
    low, high = product(bytes_of(steps), words, scales, torch.float32, largest / STEPS)
    return torch.add(low, high, alpha=256)[None].to(row.dtype)


def few_rows(rows: Tensor, words: Tensor, scales: Tensor) -> Tensor:
    """The same of several rows [M K], each of which has a step of its own -> [M N]."""
    largest = largest_of(rows)
    steps = torch.addcdiv(MIDDLE, rows, largest, value=STEPS).int()
    low, high = product(bytes_of(steps), words, scales, torch.float32, 1 / STEPS).chunk(2)
    return torch.add(low, high, alpha=256).mul_(largest).to(rows.dtype)


def traced_rows(rows: Tensor, words: Tensor, scales: Tensor) -> Tensor:
    """The same in plain operators, which a compiler joins."""
    largest = largest_of(rows)
    steps = (rows * (STEPS / largest) + (ZERO * 257 + HALF)).int()
    both = torch.cat([steps >> 8, steps & 255]).to(torch.uint8)
    high, low = product(both, words, scales, torch.float32).split(len(rows))
    return (low + 256 * high).mul(largest / STEPS).to(rows.dtype)


def peaked(rows: Tensor, largest: Tensor, limit: Tensor) -> Tensor:
    """The places of rows whose largest number is more than `limit` times their usual one, [m]."""
    wide = None if rows.dtype == torch.bfloat16 else torch.float32  # whose sums are float32
    usual = torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=wide).float()
    return (largest * math.sqrt(rows.shape[1]) > limit * usual).flatten().nonzero().flatten()


def linear_torch(rows: Tensor, words: Tensor, scales: Tensor, limit: Tensor) -> Tensor:
    """rows [M K] times `prepack`ed weights -> [M N], in the dtype of the rows."""
    count = len(rows)
    if not count:
        return rows.new_empty(0, len(scales))
    if count <= FEW:
        few = traced_rows if torch.compiler.is_exporting() else one_row if count == 1 else few_rows
        return few(rows, words, scales)
    dtype = torch.promote_types(rows.dtype, torch.bfloat16)
    largest = torch.cat([largest_of(some) for some in rows.split(part_of(rows))])
    if dtype == torch.bfloat16:
        largest = in_bfloat16(largest)
    special = peaked(rows, largest, limit)
    whole = product(in_bytes(rows, largest, special), words, scales, dtype)
    result = whole[:count].mul_((largest / 127).to(dtype))
    if len(special):
        rest = whole[count:].mul_((largest[special] / STEPS).to(dtype))
        result.index_add_(0, special, rest)
    return result.to(rows.dtype)
