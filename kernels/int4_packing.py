"""Weights of four bits in words: how they are rounded, packed, and written out again.

in:  weights [N K], or their steps q uint8 [N K] of 0 .. 15
out: words int16 [K/128 N 32] (four weights in each), scales [K/g N]

    weight[n, k] = (q[n, k] - 8) * scale[k/g, n],  0 <= q <= 15

weights/quantize.py quantises a checkpoint; `quantise` here is for tests and benchmarks. Without
Triton they are packed otherwise: int4_cpu.py, int4_bytes.py.
Read kernels/decode_attention.py first. Read next: kernels/int4_cpu.py.

N outputs, K inputs, g group size.
"""

import torch
from torch import Tensor

from .choose import triton_for
from .language import INTERPRETED, begin, blocks, launch, tl, triton
from .norm import wide

BLOCK = 128  # inputs whose weights are packed together: 32 words of four
GROUPS = (128, 64, 32)


def quantise(weight: Tensor, group: int = 128) -> tuple[Tensor, Tensor]:
    """Round weight [N K] to q uint8 [N K] and scales [K/g N] float32.

    >>> q, scales = quantise(torch.linspace(-8, 7, 16).repeat(1, 8), group=128)
    >>> q[0, :16].tolist(), scales.tolist()
    ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], [[1.0]])
    """
    grouped = wide(weight).unflatten(1, (-1, group))  # N K/g g
    scales = torch.maximum(grouped.amax(-1) / 7, grouped.amin(-1) / -8).clamp(min=1e-30)
    steps = grouped / scales[..., None]
    q = (torch.floor(steps + 0.5) + 8).clamp(0, 15).to(torch.uint8).flatten(1)
    return q, scales.T.contiguous()


def pack(q: Tensor, block: int = BLOCK) -> Tensor:
    """q [N K] of 0 .. 15 -> words int16 [K/block N block/4].

    Word j holds the inputs j, j + block/4, ... So each of the four planes of nibbles is a run of
    consecutive inputs, and rows load without a gather. The words of one block of inputs lie
    together for all outputs, so that a tile is one run of memory.

    >>> [f"{word:04x}" for word in pack(torch.arange(8)[None], block=8).flatten().tolist()]
    ['6420', '7531']
    """
    if q.shape[1] % block:
        raise ValueError(
            f"cannot pack weights: inputs: expected a multiple of {block}, found {q.shape[1]}"
        )
    planes = q.to(torch.int32).unflatten(1, (-1, 4, block // 4))  # N K/block 4 block/4
    words = sum(planes[:, :, plane] << 4 * plane for plane in range(4))
    return words.to(torch.int16).transpose(0, 1).contiguous()


def unpack(words: Tensor) -> Tensor:
    """words int16 [K/block N block/4] -> q uint8 [N K].

    >>> unpack(pack(torch.arange(8)[None], block=8)).tolist()
    [[0, 1, 2, 3, 4, 5, 6, 7]]
    """
    planes = [(words.to(torch.int32) >> 4 * plane & 15).to(torch.uint8) for plane in range(4)]
    return torch.stack(planes, dim=2).permute(1, 0, 2, 3).flatten(1)


def dequantise_formula(words: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The weights [N K], multiplied out."""
    q = unpack(words).to(scales.dtype).unflatten(1, (len(scales), -1)) - 8  # N K/g g
    return (q * scales.T[..., None]).flatten(1).to(dtype)


@triton.jit(do_not_specialize=["N", "first", "count"])
def dequantise_kernel(
    words,
    scales,
    weight,
    N,
    first,
    count,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: the weights of BLOCK_N outputs and 128 inputs, written out to [count K].

    `count` is how many outputs there are from `first` on.
    """
    begin()
    row, block = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.program_id(1)
    n, word, inside = first + row, tl.arange(0, 32), row < count
    tile = words + tl.cast(block, tl.int64) * N * 32 + n[:, None] * 32 + word[None, :]
    packed = tl.load(tile, mask=inside[:, None], other=0).to(tl.uint16, bitcast=True)
    for plane in tl.static_range(4):
        place = tl.cast(block * (128 // GROUP) + plane * 32 // GROUP, tl.int64) * N + n
        values = ((packed >> 4 * plane) & 15).to(tl.float32) - 8.0
        values *= tl.load(scales + place, mask=inside, other=0.0).to(tl.float32)[:, None]
        target = weight + row.to(tl.int64)[:, None] * K + block * 128 + plane * 32 + word[None, :]
        tl.store(target, values.to(weight.dtype.element_ty), mask=inside[:, None])


def dequantise(words: Tensor, scales: Tensor, dtype: torch.dtype, first: int, last: int) -> Tensor:
    """The weights [last - first, K] of outputs first .. last, multiplied out."""
    if not triton_for(scales):
        return dequantise_formula(words[:, first:last], scales[:, first:last], dtype)
    inputs, outputs = len(words) * BLOCK, words.shape[1]
    weight = torch.empty(last - first, inputs, dtype=dtype, device=words.device)
    size = 16 if INTERPRETED else 64
    launch(
        dequantise_kernel,
        (blocks(last - first, size), len(words)),
        words,
        scales,
        weight,
        outputs,
        first,
        last - first,
        K=inputs,
        GROUP=inputs // len(scales),
        BLOCK_N=size,
    )
    return weight
