"""Linear layers of four-bit weights on a CPU, by torch's own operator for them.

in:  rows [M K], words uint8 [N K/2], (scale, 0) pairs [K/g N 2]
out: [M N]

Words and pairs are what torch's operator takes, N in whole blocks. The operator is best for few
rows. With many rows it is best to write the weights out once and multiply with them.
Read kernels/int4_packing.py first. Read next: kernels/int4_bytes.py.
Agrees with: torch._weight_int4pack_mm_for_cpu.

M rows, N outputs, K inputs, g group size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Up to this many rows the operator. Of one Zen 4 core's time for 9728 x 896 weights it takes 0.2 ms
# a row, writing the weights out 11 ms, and the product with them 0.09 ms a row.
CROSS_OVER = 96
# Outputs that torch's operator packs together: the low nibbles of a block's bytes are its first
# half. Without these instructions it packs otherwise, and is not used (paths.py).
BLOCKS = {"AVX512": 64, "AVX2": 32}


def block_size() -> int | None:
    """Outputs that this CPU packs together, or None where the operator is not used."""
    return BLOCKS.get(torch.backends.cpu.get_cpu_capability())


def pack(q: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """q [N K] of 0 .. 15 and scales [N K/g] -> words and pairs, N rounded up to whole blocks."""
    size = block_size()
    assert size is not None
    more = (0, 0, 0, -len(q) % size)
    pairs = F.pad(F.pad(scales, more).T[..., None], (0, 1)).contiguous()
    return torch._convert_weight_to_int4pack_for_cpu(F.pad(q, more).int(), 1), pairs


def dequantise_torch(words: Tensor, pairs: Tensor) -> Tensor:
    """Some blocks' words uint8 [n K/2] and their pairs [K/g n 2] -> weights [K n], multiplied out.

    This takes four nibbles at a time and no table: q in the lowest bits of bfloat16's 128 reads
    128 + q.
    """
    size, inputs = block_size(), 2 * words.shape[1]
    assert size is not None
    twos = words.view(-1, inputs, size // 2).view(torch.uint16).int()  # n/block K block/4
    twos |= twos << 8
    halves = torch.stack([twos & 0x000F000F, (twos >> 4) & 0x000F000F], dim=2)
    q = (halves.bitwise_or_(0x43004300)).view(torch.bfloat16).sub_(136).to(pairs.dtype)
    q = q.view(len(twos), len(pairs), -1, size)  # n/block K/g g block
    scales = pairs[:, :, 0].unflatten(1, (-1, 1, size)).transpose(0, 1).contiguous()
    weight = pairs.new_empty(len(pairs), q.shape[2], len(q), size)
    torch.mul(q, scales, out=weight.permute(2, 0, 1, 3))
    return weight.view(inputs, -1)


def linear_torch(rows: Tensor, words: Tensor, pairs: Tensor, step: int) -> Tensor:
    """rows [M K] times `pack`ed weights -> [M N].

    Few rows go to torch's operator. For more, the weights of `step` outputs, whole blocks of them,
    are written out at a time.
    """
    (count, inputs), outputs = rows.shape, words.shape[0]
    if count <= CROSS_OVER:
        group = inputs // pairs.shape[0]
        return torch._weight_int4pack_mm_for_cpu(rows.contiguous(), words, group, pairs)
    product = rows.new_empty(count, outputs)
    for first in range(0, outputs, step):
        some = slice(first, first + step)
        product[:, some] = rows @ dequantise_torch(words[some], pairs[:, some])
    return product
