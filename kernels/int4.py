"""Linear layers of four-bit weights, with one scale for every 128 (or 64, or 32) of them.

in:  rows [... K], words int16 [K/128 N 32] (four weights in each), scales [K/g N]
out: [... N]

The layouts part in `repack`, by the path of the device: Triton gets the int16 words above, a CPU
with the instructions for it the uint8 words of int4_cpu.py, any other device the int8 words of
int4_bytes.py. `linear` tells them apart by their dtype.
Reading 4.25 bits in place of 16 is what makes one token fast. The small-M kernel reads each weight
once, multiplies the integers as they are, and applies the scale to the float32 sums of a group.
That is three orders of magnitude more exact than rounding scaled weights to bfloat16. With many
rows arithmetic is the limit, and it is best to write the weights out once and call the library's
product.
`linear_kernel` has more than 60 lines, many of them its arguments.
Read kernels/int4_packing.py, kernels/int4_bytes.py first. Read next: kernels/int8_cpu.py.
Agrees with: torch._weight_int4pack_mm; arXiv 2408.11743 (Marlin).

M rows, N outputs, K inputs, g group size.
"""

import torch
from torch import Tensor

from . import half, int4_bytes, int4_cpu
from .choose import gpu_of, part, path_of, triton_multiplies
from .int4_packing import BLOCK, dequantise, dequantise_formula, pack
from .language import INTERPRETED, begin, blocks, launch, power_of_two, tl, triton
from .norm import wide

# Up to this many rows the small-M kernel, above it dequantise and the library. On an H100 64 rows
# take 0.7 of what the library takes in bfloat16.
CROSS_OVER = {"227 KB": 64, "163 KB": 64, "99 KB": 64, "interpreter": 16}
# (shared memory, rows of a block): outputs of a block, warps, stages, programs that run at once on
# a multiprocessor. A stage of 128 outputs is 8 KB of weights; to keep an H200's memory busy 24 KB
# must be under way for each multiprocessor. What is measured has its time behind it.
BLOCKS = {
    ("227 KB", 16): (64, 4, 3, 2),  # 0.0313 ms, was 0.033: H100, f94745d
    ("227 KB", 32): (64, 4, 3, 1),  # 0.0483 ms, was 0.0513: H100, 8a35520
    ("227 KB", 64): (64, 4, 3, 1),  # 0.0739 ms, was 0.0849: H100, f94745d
    ("163 KB", 16): (128, 4, 4, 2),
    ("163 KB", 32): (128, 4, 4, 2),
    ("163 KB", 64): (128, 8, 4, 2),
    ("99 KB", 16): (128, 4, 4, 2),
    ("99 KB", 32): (128, 4, 4, 2),
    ("99 KB", 64): (128, 8, 4, 2),
}
INTERPRETED_BLOCK = (16, 4, 1, 6)
MOST_SHARES = 16  # of the inputs: each writes its sums once, and the last to arrive reads them all
CHUNK = 2**26  # weights that the large-M path writes out at a time: 128 MB in bfloat16
CPU_CHUNK = 2**20  # the same on a CPU: they stay in the second-level cache


def linear_formula(rows: Tensor, words: Tensor, scales: Tensor) -> Tensor:
    """The formula: rows [... K] times the weights, in float32 at least."""
    weight = dequantise_formula(words, wide(scales), wide(rows).dtype)
    return (wide(rows) @ weight.T).to(rows.dtype)


def linear_tiled(rows: Tensor, words: Tensor, scales: Tensor) -> Tensor:
    """rows [M K] times the weights, plane by plane, as the small-M kernel computes it."""
    total = rows.new_zeros(words.shape[1], len(rows))  # N M: weights on the left
    group = len(words) * BLOCK // len(scales)
    for k in range(0, len(words) * BLOCK, group):
        partial = torch.zeros_like(total)
        for start in range(k, k + group, 32):
            nibbles = words[start // BLOCK].to(torch.int32) >> start % BLOCK // 32 * 4 & 15  # N 32
            partial += (nibbles - 8).to(rows.dtype) @ rows[:, start : start + 32].T
        total += partial * scales[k // group, :, None]
    return total.T


# An and with an or in one instruction, as 0xEA is the table of (a & b) | c: compilers make two.
LOP3 = "{ .reg .b32 t; lop3.b32 t, $2, 0x000F000F, %s, 0xEA; mov.b32 {$0, $1}, t; }"
ASM_HALF, ASM_BFLOAT = tl.constexpr(LOP3 % "0x64006400"), tl.constexpr(LOP3 % "0x43004300")


@triton.jit
def joined_halves(pairs):
    """uint32 [N 16] -> uint16 [N 32], at no cost: a pair of 16-bit numbers is one register."""
    low, high = (pairs & 0xFFFF).to(tl.uint16), (pairs >> 16).to(tl.uint16)
    return tl.reshape(tl.join(low, high), [pairs.shape[0], 32])


@triton.jit
def nibbles(pairs, PLANE: tl.constexpr, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """Pairs of words, uint32 [N 16] -> the integers q - 8 of one plane, [N 32] in DTYPE.

    This takes two weights at a time and no conversion: q in the lowest bits of 1024 (float16) or of
    128 (bfloat16) reads 1024 + q or 128 + q, exactly. ASM: one instruction for the and with the or.
    """
    pairs = pairs >> 4 * PLANE
    if DTYPE == tl.float32:
        return joined_halves(pairs & 0x000F000F).to(DTYPE) - 8.0
    MIDDLE: tl.constexpr = 1032.0 if DTYPE == tl.float16 else 136.0
    if ASM:
        CODE: tl.constexpr = ASM_HALF if DTYPE == tl.float16 else ASM_BFLOAT
        low, high = tl.inline_asm_elementwise(
            CODE, "=h,=h,r", [pairs], (tl.uint16, tl.uint16), True, 1
        )
        words = tl.reshape(tl.join(low, high), [pairs.shape[0], 32])
    else:
        MAGIC: tl.constexpr = 0x64006400 if DTYPE == tl.float16 else 0x43004300
        words = joined_halves((pairs & 0x000F000F) | MAGIC)
    return words.to(DTYPE, bitcast=True) - MIDDLE


@triton.jit(do_not_specialize=["M", "N"])
def linear_kernel(
    rows,
    words,
    scales,
    bias,
    partial,
    arrived,
    product,
    M,
    N,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ASM: tl.constexpr,
):
    """One program: BLOCK_N outputs of all (up to BLOCK_M) rows over its share of the inputs.

    The weights are the left side of the product: the tensor cores of sm_90 can take that side from
    registers, so unpacked weights never pass through shared memory. With `arrived` [N/BLOCK_N] the
    shares' sums go to partial [splits M N]. The last program to arrive then adds them up, always in
    the same order, and sets its counter back to zero.
    """
    begin()
    block_n, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    n, pair = block_n * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, 16)
    m, word = tl.arange(0, BLOCK_M), tl.arange(0, 32)
    DTYPE: tl.constexpr = rows.dtype.element_ty
    each: tl.constexpr = K // 128
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for block in range(split * each // splits, (split + 1) * each // splits):
        tile = words + tl.cast(block, tl.int64) * N * 16 + n[:, None] * 16 + pair[None, :]
        pairs = tl.load(tile, mask=(n < N)[:, None], other=0, eviction_policy="evict_first")
        pairs = pairs.to(tl.uint32, bitcast=True)
        for group in tl.static_range(128 // GROUP):
            group_total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for plane in tl.static_range(group * GROUP // 32, (group + 1) * GROUP // 32):
                k = block * 128 + plane * 32 + word
                x = tl.load(rows + m[None, :] * K + k[:, None], mask=(m < M)[None, :], other=0.0)
                q = nibbles(pairs, plane, DTYPE, ASM)
                group_total = tl.dot(
                    q, x, group_total, out_dtype=tl.float32, input_precision="ieee"
                )
            place = tl.cast(block * (128 // GROUP) + group, tl.int64) * N + n
            scale = tl.load(scales + place, mask=n < N, other=0.0).to(tl.float32)
            total += group_total * scale[:, None]
    inside = (m < M)[None, :] & (n < N)[:, None]
    target, last = m[None, :] * N + n[:, None], True
    if arrived is not None:
        tl.store(partial + split * M * N + target, total, mask=inside)
        tl.debug_barrier()  # all of this program has been written before it is counted
        last = tl.atomic_add(arrived + block_n, 1, sem="acq_rel") == splits - 1
    if last:
        if arrived is not None:
            tl.store(arrived + block_n, 0)
            total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            # one by one: waiting for eight at once takes registers, and half the programs fit
            for share in range(splits):  # .cg: from the cache that all multiprocessors have
                sums = partial + share * M * N + target
                total += tl.load(sums, mask=inside, other=0.0, cache_modifier=".cg")
        if bias is not None:
            total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
        tl.store(product + target, total.to(product.dtype.element_ty), mask=inside)


def shares(tiles: int, slots: int, most: int) -> int:
    """The fewest shares of the inputs that keep the GPU busy to the end, at most `most`.

    Each of `tiles` blocks of outputs is one program for each share. Busy means that these fill nine
    tenths of `slots`, the programs that run at once, up to the last.

    >>> shares(296, 528, 28)  # a 7B's gate_up on an H200: one share would leave half of it waiting
    5
    """

    def busy(count: int) -> float:
        return tiles * count / (blocks(tiles * count, slots) * slots)

    counts = range(1, max(1, min(most, MOST_SHARES)) + 1)
    return next((count for count in counts if busy(count) >= 0.9), max(counts, key=busy))


def linear_small(
    rows: Tensor,
    words: Tensor,
    scales: Tensor,
    block: tuple[int, int, int, int] | None = None,
    bias: Tensor | None = None,
    arrived: Tensor | None = None,
) -> Tensor:
    """rows [M K], M small (+ bias [N]) -> [M N], in one launch.

    `arrived`, int32 zeros of at least N / 16, counts programs; without it they are made here.
    """
    count, inputs, outputs = *rows.shape, words.shape[1]
    assert not (INTERPRETED and rows.dtype == torch.bfloat16), "it would multiply bit patterns"
    block_m, gpu = max(16, power_of_two(count)), gpu_of(rows)
    if block is None:
        block = INTERPRETED_BLOCK if gpu is None else BLOCKS[gpu.part, block_m]
    size, warps, stages, programs = block
    tiles, slots = blocks(outputs, size), programs * (1 if gpu is None else gpu.multiprocessors)
    splits, partial = shares(tiles, slots, len(words)), None
    if splits == 1:
        arrived = None
    else:
        partial = rows.new_empty(splits, count, outputs, dtype=torch.float32)
        arrived = rows.new_zeros(tiles, dtype=torch.int32) if arrived is None else arrived
    product = rows.new_empty(count, outputs)
    launch(
        linear_kernel,
        (tiles, splits),
        rows.contiguous(),
        words.view(torch.int32),
        scales,
        bias,
        partial,
        arrived,
        product,
        count,
        outputs,
        K=inputs,
        GROUP=inputs // len(scales),
        BLOCK_M=block_m,
        BLOCK_N=size,
        ASM=not INTERPRETED,
        num_warps=warps,
        num_stages=stages,
    )
    return product


def linear_large(rows: Tensor, words: Tensor, scales: Tensor, chunk: int = CHUNK) -> Tensor:
    """rows [M K], M large -> [M N]: some outputs' weights are written out at a time.

    They begin at multiples of 64, as fast products want addresses that are multiples of 16 bytes.
    """
    inputs, outputs = len(words) * BLOCK, words.shape[1]
    product = rows.new_empty(len(rows), outputs)
    step = outputs_in(chunk, inputs)
    for first in range(0, outputs, step):
        last = min(first + step, outputs)
        weight = dequantise(words, scales, rows.dtype, first, last)
        torch.mm(rows, weight.T, out=product[:, first:last])
    return product


def repack(q: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """(q [N K], scales [N K/g]) as `linear` takes them on their device: words and scales [K/g N].

    A CPU with the instructions for it gets words uint8 [N K/2], N rounded up to whole blocks, and
    (scale, 0) pairs [K/g N 2].
    """
    path = path_of(q)
    if path == "triton":
        return pack(q), scales.T.contiguous()
    if path == "cpu" and scales.dtype != torch.float64:
        return int4_cpu.pack(q, scales)
    return int4_bytes.pack(q, scales)


def joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One weight of several that `repack` made; all but the last have whole blocks of outputs."""
    words, scales = zip(*parts)
    return torch.cat(words, 1 if words[0].dtype == torch.int16 else 0), torch.cat(scales, 1)


def counter(words: Tensor) -> Tensor | None:
    """Zeros with which the programs of a layer are counted (`linear_small`).

    None where torch multiplies.
    """
    counted = words.dtype == torch.int16
    return words.new_zeros(words.shape[1], dtype=torch.int32) if counted else None


def outputs_in(chunk: int, inputs: int) -> int:
    """How many outputs, in whole blocks, have about `chunk` weights together."""
    return max(1, chunk // inputs // 64) * 64


def linear(
    rows: Tensor,
    words: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    arrived: Tensor | None = None,
) -> Tensor:
    """rows [... K] times packed weights (+ bias) -> [... N].

    words: what `repack` gives, or on any device int16. `arrived`: see linear_small. Rows that are
    wider than scales of float16 give float32 (half.py).
    """
    if rows.dtype != scales.dtype and half.too_narrow(scales.dtype, rows):
        found = half.scaled(lambda fitted: linear(fitted, words, scales), rows)
        return found if bias is None else found.add_(bias)
    flat = rows.reshape(-1, rows.shape[-1])
    if words.dtype == torch.uint8:
        step = outputs_in(CPU_CHUNK, flat.shape[1])
        product = int4_cpu.linear_torch(flat, words, scales, step)
    elif words.dtype == torch.int8:
        product = int4_bytes.linear_torch(flat, words, scales)
    elif triton_multiplies(rows) and len(flat) <= CROSS_OVER[part(rows)]:
        product, bias = linear_small(flat, words, scales, None, bias, arrived), None
    else:
        product = linear_large(flat, words, scales)
    if bias is not None:
        product += bias
    return product.view(*rows.shape[:-1], product.shape[-1])
