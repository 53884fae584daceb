"""Linear layers of four-bit weights on any device, by operators that every one has.

in:  rows [M K], words int8 [N K/2], scales [K/g N]
out: [M N]

A byte holds the weights of inputs j and j + K/2, each minus 8, so that two shifts make a number
with its sign of the lower one, and one shift of the upper. Then come a conversion to 16 bits and a
product with the scales. The weights of some outputs are written out at a time and multiplied with
at once: they never leave a processor's cache.
Read kernels/int4_cpu.py first. Read next: kernels/int4.py.

M rows, N outputs, K inputs, g group size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = {"cpu": 2**20}  # weights that are written out at a time: 2 MB in 16 bits
DEVICE_CHUNK = 2**22  # the same on other devices, where each operator costs a launch; not measured


def pack(q: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """q [N K] of 0 .. 15 and scales [N K/g] -> words and scales.

    >>> pack(torch.tensor([[0, 9, 8, 15]]), torch.ones(1, 1))[0].tolist()
    [[8, 113]]
    """
    low, high = (q ^ 8).to(torch.uint8).chunk(2, dim=1)
    return (low | high << 4).view(torch.int8), scales.T.contiguous()


def dequantise_torch(words: Tensor, scales: Tensor, inputs: int) -> Tensor:
    """Some outputs' words int8 [n K/2] and scales [K/g n] -> weights [n K]."""
    weight = scales.new_empty(len(words), inputs)
    weight[:, : inputs // 2] = words << 4 >> 4
    weight[:, inputs // 2 :] = words >> 4
    weight.view(len(words), len(scales), -1).mul_(scales.T[..., None])
    return weight


def linear_torch(rows: Tensor, words: Tensor, scales: Tensor, chunk: int | None = None) -> Tensor:
    """rows [M K] times packed weights -> [M N], about `chunk` weights at a time."""
    inputs, outputs = rows.shape[1], len(words)
    step = max(1, (chunk or CHUNK.get(rows.device.type, DEVICE_CHUNK)) // inputs)
    product = rows.new_empty(len(rows), outputs)
    for first in range(0, outputs, step):
        some = slice(first, first + step)
        product[:, some] = F.linear(rows, dequantise_torch(words[some], scales[:, some], inputs))
    return product
