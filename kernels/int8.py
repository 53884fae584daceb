"""Linear layers of eight-bit weights, with one scale for each output.

in:  rows [... K], words (see `repack`), scales [N], bias [N] or None
out: [... N]

    weight[n, k] = q[n, k] * scale[n],  -127 <= q <= 127

A product with one scale for a whole output can be taken in integers, which processors multiply
twice as fast as numbers of 16 bits. For that the rows become bytes too (int8_cpu.py). This is how
many rows are multiplied: prompts, tiles, batches. Few rows wait for the weights to be read, and
half the bytes is what makes them fast. On a GPU the small-M kernel multiplies them as they are.
Where a device has no such product, or a CPU's sums would overflow, the weights of some outputs are
written out at a time and the library multiplies.
Read kernels/int8_cpu.py first. This is the end of the folder.
Agrees with: torch._weight_int8pack_mm, torch._int_mm.

M rows, N outputs, K inputs.
"""

import math

import torch
from torch import Tensor

from . import half, int8_cpu
from .choose import explained as path_on
from .choose import gpu_of, part, path_of, triton_multiplies
from .language import INTERPRETED, begin, blocks, launch, power_of_two, tl, triton
from .norm import wide

# Up to this many rows the small-M kernel, above it products in integers. Not measured.
CROSS_OVER = {"227 KB": 64, "163 KB": 64, "99 KB": 64, "interpreter": 16}
# rows of a block: outputs and inputs of a block, warps, stages. A stage of 32 outputs and 128
# inputs is 4 KB of weights. None is measured.
BLOCKS = {16: (32, 128, 4, 4), 32: (32, 128, 4, 4), 64: (32, 128, 4, 3)}
INTERPRETED_BLOCK = (16, 32, 1, 1)
CPU_FEW = 64  # up to this many rows torch's own operator, where a CPU's sums of bytes overflow
INPUTS = 16  # that operator reads past the end where the inputs are no multiple of it
CHUNK = {"cpu": 2**20}  # weights that are written out at a time: 2 MB in 16 bits
DEVICE_CHUNK = 2**24  # the same elsewhere, and sums of integers that are held at a time
MULTIPLE = 8  # of inputs and outputs, which cuBLAS wants for products of bytes
MOST_PEAK = math.sqrt(3)  # of a row over that of the weights: see `limit_of`


def linear_formula(rows: Tensor, weight: Tensor, scales: Tensor) -> Tensor:
    """The formula: rows [... K] times int8 weights [N K] and scales [N], in float32 at least."""
    exact = weight.to(wide(rows).dtype) * wide(scales)[:, None].to(wide(rows).dtype)
    return (wide(rows) @ exact.T).to(rows.dtype)


@triton.jit(do_not_specialize=["M", "N"])
def bytes_kernel(
    rows,
    words,
    scales,
    bias,
    product,
    M,
    N,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program: BLOCK_N outputs of all (up to BLOCK_M) rows, over all inputs.

    The weights are the left side of the product, as in int4.py. A byte is exact in 16 bits.
    """
    begin()
    n, m = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M)
    k = tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    tile = words + n.to(tl.int64)[:, None] * K + k[None, :]
    for start in range(0, K, BLOCK_K):
        inside = start + k < K
        w = tl.load(
            tile + start,
            mask=(n < N)[:, None] & inside[None, :],
            other=0,
            eviction_policy="evict_first",
        )
        x = tl.load(
            rows + m[None, :] * K + (start + k)[:, None],
            mask=(m < M)[None, :] & inside[:, None],
            other=0.0,
        )
        total = tl.dot(w.to(x.dtype), x, total, out_dtype=tl.float32, input_precision="ieee")
    total *= tl.load(scales + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    if bias is not None:
        total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
    target = product + m[None, :] * N + n[:, None]
    tl.store(target, total.to(product.dtype.element_ty), mask=(m < M)[None, :] & (n < N)[:, None])


def linear_triton(
    rows: Tensor,
    words: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    block: tuple[int, int, int, int] | None = None,
) -> Tensor:
    """rows [M K], M small, times int8 words [N K] (+ bias [N]) -> [M N], in one launch."""
    (count, inputs), outputs = rows.shape, len(words)
    assert not (INTERPRETED and rows.dtype == torch.bfloat16), "it would multiply bit patterns"
    block_m = max(16, power_of_two(count))
    if block is None:
        block = INTERPRETED_BLOCK if gpu_of(rows) is None else BLOCKS[block_m]
    size, depth, warps, stages = block
    product = rows.new_empty(count, outputs)
    launch(
        bytes_kernel,
        (blocks(outputs, size),),
        rows.contiguous(),
        words,
        scales,
        bias,
        product,
        count,
        outputs,
        K=inputs,
        BLOCK_M=block_m,
        BLOCK_N=size,
        BLOCK_K=depth,
        num_warps=warps,
        num_stages=stages,
    )
    return product


def linear_integers(rows: Tensor, words: Tensor, scales: Tensor, limit: Tensor) -> Tensor:
    """rows [M K] times int8 words [N K] -> [M N] by torch's product of bytes on a GPU.

    Rows become one byte or two as int8_cpu.py says; how many are two is asked of the device. The
    sums are of 32 bits, which much more than the result would leave in memory: some outputs at a
    time.
    """
    largest = int8_cpu.largest_of(rows)
    found, special = int8_cpu.one_byte(rows, largest), int8_cpu.peaked(rows, largest, limit)
    high, low = int8_cpu.two_bytes(rows[special], largest[special]).chunk(2)
    found[special] = high
    signed = (torch.cat([found, low]) ^ int8_cpu.ZERO).view(torch.int8)
    steps = torch.cat([largest / 127, largest[special] / int8_cpu.STEPS])
    result = rows.new_empty(len(rows), len(words))
    size = max(1, DEVICE_CHUNK // len(signed) // MULTIPLE) * MULTIPLE
    for first in range(0, len(words), size):
        some = slice(first, first + size)
        sums = (torch._int_mm(signed, words[some].T) * steps).mul_(scales[some])
        sums[: len(rows)].index_add_(0, special, sums[len(rows) :])
        result[:, some] = sums[: len(rows)]
    return result


def linear_torch(rows: Tensor, words: Tensor, scales: Tensor, chunk: int | None = None) -> Tensor:
    """rows [M K] times int8 words [N K] -> [M N], about `chunk` weights written out at a time."""
    chunk = chunk or CHUNK.get(rows.device.type, DEVICE_CHUNK)
    step = max(1, chunk // rows.shape[1] // MULTIPLE) * MULTIPLE
    product = rows.new_empty(len(rows), len(words))
    for first in range(0, len(words), step):
        some = slice(first, first + step)
        weight = words[some].to(rows.dtype).mul_(scales[some, None])
        torch.mm(rows, weight.T, out=product[:, some])
    return product


def limit_of(weight: Tensor) -> Tensor:
    """How far a row's largest number may be above its usual one, for one byte to be enough: [].

    Rounding to bytes errs by a share of the largest number. So the error of rows stands to that of
    weights as their peaks do, largest over usual number, and both together are at most twice the
    weights' own while the first peak is at most the square root of 3 of the second.

    >>> limit_of(torch.tensor([[127, -127, 0, 0]], dtype=torch.int8))
    tensor(2.4495)
    """
    size = max(1, CHUNK["cpu"] // weight.shape[1])
    norms = [torch.linalg.vector_norm(some.float(), dim=-1) for some in weight.split(size)]
    return MOST_PEAK * 127 * weight.shape[1] ** 0.5 / torch.cat(norms).median().clamp(min=1)


def repack(weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """(int8 [N K], scales [N]) as `linear` takes them on their device.

    On a CPU whose products of bytes are exact, weights are in oneDNN's order and scales float32.
    """
    if path_of(weight) == "cpu" and scales.dtype != torch.float64 and int8_cpu.exact():
        return int8_cpu.prepack(weight), scales.float()
    return weight, scales


def explained(device: torch.device) -> str:
    """How `linear` multiplies on a device, for people."""
    path, _ = path_on(device)
    if path == "triton":
        return "few rows by a kernel, many as bytes"
    if path == "cpu" and int8_cpu.exact():
        return "rows become bytes, whose products this CPU sums exactly"
    return "rows as they are" + ", as sums of bytes overflow here" * (path == "cpu")


def in_integers(rows: Tensor, words: Tensor) -> bool:
    """Whether many rows [M K] become bytes on a GPU: not while a graph is recorded.

    It cannot ask how many rows are two. Nor can tensors without memory.
    """
    whole = not (words.shape[0] % MULTIPLE or words.shape[1] % MULTIPLE)
    if rows.is_meta or not (whole and triton_multiplies(rows)):
        return False
    return not (rows.is_cuda and torch.cuda.is_current_stream_capturing())


def linear(
    rows: Tensor,
    words: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    limit: Tensor | None = None,
) -> Tensor:
    """rows [... K] times packed weights (+ bias) -> [... N].

    words, scales: what `repack` gives; limit: `limit_of` the weights. Rows that are wider than
    float16 stay so (half.py).
    """
    flat = rows.reshape(-1, rows.shape[-1])
    if int8_cpu.ordered(words, scales):
        assert limit is not None
        product = int8_cpu.linear_torch(flat, words, scales, limit)
    elif triton_multiplies(rows) and len(flat) <= CROSS_OVER[part(rows)]:
        product, bias = linear_triton(flat, words, scales, bias), None
    elif limit is not None and in_integers(flat, words):
        product = linear_integers(flat, words, scales, limit)
    else:
        product = weight_only(flat, words, scales)
    if bias is not None:
        product += bias
    return product.view(*rows.shape[:-1], len(scales))


def weight_only(rows: Tensor, words: Tensor, scales: Tensor) -> Tensor:
    """rows [M K] as they are times int8 words [N K] -> [M N], by plain torch."""
    if rows.dtype != scales.dtype and half.too_narrow(scales.dtype, rows):
        return half.scaled(lambda fitted: linear_torch(fitted, words, scales), rows)
    few = path_of(rows) == "cpu" and len(rows) <= CPU_FEW and words.shape[1] % INPUTS == 0
    if few and rows.dtype != torch.float64:
        return torch._weight_int8pack_mm(rows.contiguous(), words, scales)
    return linear_torch(rows, words, scales)
