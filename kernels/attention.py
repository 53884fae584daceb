"""Attention over many queries: new rows look at all rows before them, patches at each other.

in:  query [B T H E], a cache layer with keys and values [B K S E] (or plain key, value [B N H E])
out: mixed values [B T H E]

    softmax(query key^T / sqrt(E)) value, where G = H/K query heads share one key/value head

Causal means aligned to the lower right: with S rows seen before, query t sees keys 0 .. S+t.
The formula writes and reads back T*S scores for each head. The tiled loop keeps a tile of them at a
time and never writes one. It costs 4 E FLOPs per score, and with blocks of 128 queries reads each
key once per 128: its limit is arithmetic (matrix products, then exp2), not memory.
The file has more than 250 lines, as the ways to compute one formula are read side by side;
`attention_kernel` has more than 60, many of them its arguments.
Read kernels/rope.py first. Read next: kernels/decode_attention.py.
Agrees with: scaled_dot_product_attention; arXiv 2205.14135.

B batch, T new tokens, S tokens seen before, N patches, H query heads, K key/value heads, E head
dimension.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import attention_cpu
from .choose import gpu_of, path_of, triton_multiplies
from .language import INTERPRETED, begin, blocks, launch, power_of_two, tl, triton
from .norm import wide

# (shared memory, largest head, causal): queries and keys of a block, warps, stages of the pipeline
# of loads. A stage holds one block of keys and values: E = 128 with 128 keys is 64 KB in bfloat16.
# tests/test_aot.py compiles each row and checks registers and memory. The rows of "227 KB" are the
# best of static counts (bench/lease/candidates.py), or measured: then their time is behind them.
BLOCKS = {
    ("227 KB", 64, True): (128, 64, 4, 3),
    ("227 KB", 64, False): (128, 64, 8, 3),  # 0.04 ms, was 0.0553: H100, f94745d
    ("227 KB", 80, False): (128, 64, 4, 3),
    ("227 KB", 128, True): (64, 64, 4, 3),  # 0.939 ms, was 1.13: H100, f94745d
    ("163 KB", 64, True): (128, 64, 8, 3),
    ("163 KB", 64, False): (128, 64, 8, 3),
    ("163 KB", 80, False): (64, 64, 4, 3),
    ("163 KB", 128, True): (128, 64, 8, 3),
    ("99 KB", 64, True): (128, 64, 8, 2),
    ("99 KB", 64, False): (128, 64, 8, 2),
    ("99 KB", 80, False): (64, 32, 4, 2),
    ("99 KB", 128, True): (128, 32, 8, 2),
}
INTERPRETED_BLOCK = (16, 16, 4, 1)
ROWS = 256  # of queries, that plain torch multiplies at a time on any device

SIZES = ["new", "query_row", "query_token", "key_row", "key_head", "key_token"]
LOG2_E = 1.4426950408889634
LOWEST = -1e30  # finite: 2^(-inf - (-1e30)) is 0 for a masked score, where 2^(-inf + inf) is NaN


def attention_formula(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """The formula on query [B T H E], key and value [B K S E] and a mask [T S] of bools.

    A row that is wholly masked is zero.
    """
    groups = query.shape[2] // key.shape[1]
    key, value = (wide(x).repeat_interleave(groups, dim=1) for x in (key, value))
    scores = torch.einsum("bthe,bhse->bhts", wide(query), key) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = torch.softmax(scores, dim=-1).nan_to_num(0.0)
    return torch.einsum("bhts,bhse->bthe", weights, value).to(query.dtype)


def causal_mask(new: int, seen: int, device=None) -> Tensor:
    """[new, seen + new] bool: query t sees keys 0 .. seen + t.

    >>> causal_mask(2, 1).int()
    tensor([[1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    return torch.ones(new, seen + new, dtype=torch.bool, device=device).tril(seen)


class OnlineSoftmax:
    """softmax(scores) @ values of one query, seen tile by tile.

    Only the running maximum, sum and row are kept. Sum and row are relative to the maximum; when it
    rises, both shrink by 2^(old - new). Scores are in units of log2, because the hardware's
    exponential is 2^x.

    >>> whole = (torch.softmax(torch.tensor([1.0, 3.0, 2.0, 5.0]), 0) @ torch.eye(4)).tolist()
    >>> softmax = OnlineSoftmax()
    >>> softmax.see(torch.tensor([1.0, 3.0]) * LOG2_E, torch.eye(4)[:2])
    >>> [round(x, 4) for x in (softmax.mixed / softmax.total).tolist()]
    [0.1192, 0.8808, 0.0, 0.0]
    >>> softmax.see(torch.tensor([2.0, 5.0]) * LOG2_E, torch.eye(4)[2:])
    >>> torch.allclose(softmax.mixed / softmax.total, torch.tensor(whole))
    True
    """

    def __init__(self):
        self.maximum = torch.tensor(LOWEST)
        self.total, self.mixed = torch.zeros(()), torch.zeros(())

    def see(self, scores: Tensor, values: Tensor) -> None:
        """scores [... S] and values [S E] of one tile of keys."""
        maximum = torch.maximum(self.maximum, scores.amax(-1))
        shrink, weights = (
            torch.exp2(self.maximum - maximum),
            torch.exp2(scores - maximum[..., None]),
        )
        self.total = self.total * shrink + weights.sum(-1)
        self.mixed = self.mixed * shrink[..., None] + weights @ values
        self.maximum = maximum


def attention_tiled(query: Tensor, key: Tensor, value: Tensor, block: int = 16) -> Tensor:
    """Causal attention of one head, as the kernel computes it.

    query [T E], key and value [S E], S >= T.
    """
    new, total = len(query), len(key)
    mixed = torch.empty_like(query)
    for first in range(0, new, block):
        rows = query[first : first + block] * (LOG2_E / query.shape[1] ** 0.5)
        # the last key that each row sees
        last = total - new + torch.arange(first, first + len(rows))
        softmax = OnlineSoftmax()
        for start in range(0, int(last[-1]) + 1, block):
            keys = torch.arange(start, min(start + block, total))
            scores = (rows @ key[keys].T).masked_fill(keys > last[:, None], -torch.inf)
            softmax.see(scores, value[keys])
        mixed[first : first + block] = softmax.mixed / softmax.total[:, None]
    return mixed


@triton.jit
def load_rows(
    pointer,
    first,
    count,
    stride,
    FROM: tl.constexpr,
    WIDTH: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Columns FROM .. FROM + WIDTH of rows first .. first + BLOCK.

    They are zero after `count` rows and HEAD_DIM columns. `stride` counts heads: 72 times anything
    is a multiple of 16 bytes, and so loads are wide.
    """
    row, column = tl.arange(0, BLOCK)[:, None], FROM + tl.arange(0, WIDTH)[None, :]
    tile = pointer + tl.cast(first, tl.int64) * stride * HEAD_DIM + row * stride * HEAD_DIM + column
    if MASKED:
        return tl.load(tile, mask=(first + row < count) & (column < HEAD_DIM), other=0.0)
    if FROM + WIDTH > HEAD_DIM:
        return tl.load(tile, mask=column < HEAD_DIM, other=0.0)
    return tl.load(tile)


@triton.jit
def see_block(
    queries,
    key,
    value,
    start,
    stop,
    stride,
    last,
    state,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
):
    """OnlineSoftmax.see for a tile of BLOCK keys from `start` on.

    `state` is the maximum and the total of each row, and both parts of its mix. With MASKED each
    row sees keys up to `last`. A head of 72 numbers is 64 and 8, the second part padded to 16: both
    halves of a product are added.
    """
    query_low, query_high = queries
    maximum, total, low, high = state
    LOW: tl.constexpr = query_low.shape[1]
    HIGH: tl.constexpr = query_high.shape[1]
    tile = load_rows(key, start, stop, stride, 0, LOW, HEAD_DIM, BLOCK, MASKED)
    scores = tl.dot(query_low, tile.T, out_dtype=tl.float32, input_precision="ieee")
    if HEAD_DIM > LOW:
        tile = load_rows(key, start, stop, stride, LOW, HIGH, HEAD_DIM, BLOCK, MASKED)
        scores = tl.dot(query_high, tile.T, scores, out_dtype=tl.float32, input_precision="ieee")
    if MASKED:
        keys = start + tl.arange(0, BLOCK)
        scores = tl.where(keys[None, :] <= last[:, None], scores, -float("inf"))
    SCALE: tl.constexpr = 1.4426950408889634 / (HEAD_DIM**0.5)
    raised = tl.maximum(maximum, tl.max(scores, axis=1) * SCALE)
    shrink = tl.exp2(maximum - raised)
    weights = tl.exp2(scores * SCALE - raised[:, None])  # one fused instruction, then the power
    total = total * shrink + tl.sum(weights, axis=1)
    weights = weights.to(query_low.dtype)
    tile = load_rows(value, start, stop, stride, 0, LOW, HEAD_DIM, BLOCK, MASKED)
    low *= shrink[:, None]
    low = tl.dot(weights, tile, low, out_dtype=tl.float32, input_precision="ieee")
    if HEAD_DIM > LOW:
        tile = load_rows(value, start, stop, stride, LOW, HIGH, HEAD_DIM, BLOCK, MASKED)
        high *= shrink[:, None]
        high = tl.dot(weights, tile, high, out_dtype=tl.float32, input_precision="ieee")
    return raised, total, low, high


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=["lengths"])
def attention_kernel(
    query,
    key,
    value,
    mixed,
    lengths,
    new,
    query_row,
    query_token,
    key_row,
    key_head,
    key_token,
    KV_HEADS: tl.constexpr,
    LOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
    BLOCK_KEY: tl.constexpr,
):
    """One program: BLOCK_QUERY queries of one head over all keys that they see.

    It is causal where there are `lengths`. The heads of a group are neighbours in the grid, so that
    their keys are still in the L2 cache. The last queries, which have most keys to see, start
    first. Strides count heads.
    """
    begin()
    group, groups = tl.program_id(0), tl.num_programs(0)
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK_QUERY
    batch, kv_head = tl.program_id(2) // KV_HEADS, tl.program_id(2) % KV_HEADS
    head = kv_head * groups + group
    query += (tl.cast(batch, tl.int64) * query_row + head) * HEAD_DIM
    place = tl.cast(batch, tl.int64) * key_row + tl.cast(kv_head, tl.int64) * key_head
    key += place * HEAD_DIM
    value += place * HEAD_DIM
    rows = tl.arange(0, BLOCK_QUERY)
    if lengths is not None:
        seen = tl.load(lengths + batch)
        stop = seen + tl.minimum(first + BLOCK_QUERY, new)
        last = seen + first + rows
        # the keys before are seen by every row of the block
        whole = tl.maximum(seen + first + 1, 0) // BLOCK_KEY * BLOCK_KEY
    else:
        stop = new
        last = new - 1 + 0 * rows
        whole = new - new % BLOCK_KEY  # a division would make sm_90 wait for each product
    last = tl.minimum(last, stop - 1)
    query_low = load_rows(query, first, new, query_token, 0, LOW, HEAD_DIM, BLOCK_QUERY, True)
    query_high = load_rows(query, first, new, query_token, LOW, 16, HEAD_DIM, BLOCK_QUERY, True)
    maximum, total = tl.full([BLOCK_QUERY], -1e30, tl.float32), tl.zeros([BLOCK_QUERY], tl.float32)
    low, high = tl.zeros([BLOCK_QUERY, LOW], tl.float32), tl.zeros([BLOCK_QUERY, 16], tl.float32)
    queries, state = (query_low, query_high), (maximum, total, low, high)
    for start in range(0, whole, BLOCK_KEY):
        state = see_block(
            queries, key, value, start, stop, key_token, last, state, HEAD_DIM, BLOCK_KEY, False
        )
    for start in range(whole, stop, BLOCK_KEY):
        state = see_block(
            queries, key, value, start, stop, key_token, last, state, HEAD_DIM, BLOCK_KEY, True
        )
    maximum, total, low, high = state
    scale = 1.0 / tl.where(total != 0.0, total, 1.0)  # a row that saw no key is zero
    width = KV_HEADS * groups * HEAD_DIM
    mixed += (tl.cast(batch, tl.int64) * new + first) * width + head * HEAD_DIM
    inside, column = (first + rows < new)[:, None], tl.arange(0, LOW)[None, :]
    tile = mixed + rows[:, None] * width
    tl.store(tile + column, (low * scale[:, None]).to(mixed.dtype.element_ty), mask=inside)
    if HEAD_DIM > LOW:
        column = LOW + tl.arange(0, 16)[None, :]
        inside = inside & (column < HEAD_DIM)
        tl.store(tile + column, (high * scale[:, None]).to(mixed.dtype.element_ty), mask=inside)


def block_of(query: Tensor, causal: bool) -> tuple[int, int, int, int]:
    """The row of BLOCKS for query [B T H E]: the smallest head that holds E.

    It is of its own direction, causal or not, where there is one.
    """
    gpu, head_dim = gpu_of(query), query.shape[3]
    if gpu is None:
        return INTERPRETED_BLOCK
    rows = [row for row in BLOCKS if row[0] == gpu.part and row[1] >= head_dim]
    return BLOCKS[min(rows, key=lambda row: (row[2] != causal, row[1]))]


def attention_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor | None = None,
    block: tuple[int, int, int, int] | None = None,
) -> Tensor:
    """Attention of query [B T H E] over key and value [B K S E], as one kernel.

    It is causal after `lengths` [B] tokens; without lengths every query sees every key.
    """
    batch, new, heads, head_dim = query.shape
    kv_heads = key.shape[1]
    low = head_dim if head_dim == power_of_two(head_dim) else power_of_two(head_dim) // 2
    assert head_dim <= 128 and 0 <= head_dim - low <= 16, (
        f"head size {head_dim}: 2^n or 2^n + up to 16"
    )
    strides = query.stride()[:2] + key.stride()[:3]
    assert query.stride()[2:] == (head_dim, 1) and key.stride(3) == 1
    assert key.stride() == value.stride() and not any(stride % head_dim for stride in strides)
    assert query.dtype == key.dtype == value.dtype, (query.dtype, key.dtype, value.dtype)
    assert not (INTERPRETED and query.dtype == torch.bfloat16), "it would multiply bit patterns"
    block = block or block_of(query, lengths is not None)
    mixed = query.new_empty(query.shape)
    if mixed.numel():
        grid = (heads // kv_heads, blocks(new, block[0]), batch * kv_heads)
        launch(
            attention_kernel,
            grid,
            query,
            key,
            value,
            mixed,
            lengths,
            new,
            *(stride // head_dim for stride in strides),
            KV_HEADS=kv_heads,
            LOW=low,
            HEAD_DIM=head_dim,
            BLOCK_QUERY=block[0],
            BLOCK_KEY=block[1],
            num_warps=block[2],
            num_stages=block[3],
        )
    return mixed


def prefill(query: Tensor, layer) -> Tensor:
    """Causal attention of new queries [B T H E] over a cache layer that holds their keys."""
    new, seen = query.shape[1], layer.longest
    key, value = layer.keys_and_values(new, query.dtype)
    if triton_multiplies(query):
        return attention_triton(query, key, value, layer.lengths)
    assert min(layer.host_lengths) == seen, "rows of different lengths are prefilled one by one"
    return causal(query, key, value)


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of query [B T H E] over key and value [B K S E] by torch, S >= T."""
    if path_of(query) != "cpu":
        return attention_torch(query, key, value)
    if attention_cpu.pays(query, key.shape[2]):
        return attention_cpu.attention(query, key, value, causal=True)
    return attention_merged(query, key, value)


def attention_torch(query: Tensor, key: Tensor, value: Tensor, size: int = ROWS) -> Tensor:
    """The same on any device, some tokens at a time: about `size` rows of queries.

    The G heads of a group are rows of one product over their shared keys. torch's own sharing
    (enable_gqa) has no fused kernel on a GPU before sm_80: there it repeats the keys, in float32.
    The mask of a block [size S] is made for it, as a part of a larger one may begin where fused
    kernels cannot read it. A mask [T S] would be the largest tensor of a long prompt.
    """
    new, heads = query.shape[1:3]
    kv_heads, stop = key.shape[1:3]
    groups = heads // kv_heads
    folded = query.unflatten(2, (kv_heads, groups)).transpose(1, 2)  # B K T G E
    mixed = torch.empty_like(folded, memory_format=torch.contiguous_format)
    most = max(1, size // groups)
    for first in range(0, new, most):
        some = slice(first, min(first + most, new))
        count, seen = some.stop - first, stop - new + some.stop
        mask = query.new_zeros(count, groups, seen)
        hidden = causal_mask(count, 0, query.device).logical_not()
        mask[:, :, seen - count :].masked_fill_(hidden[:, None], -torch.inf)
        parts = folded[:, :, some].flatten(2, 3), key[:, :, :seen], value[:, :, :seen]
        found = F.scaled_dot_product_attention(*parts, mask.flatten(0, 1))
        mixed[:, :, some] = found.unflatten(2, (count, groups))
    return mixed.transpose(1, 2).flatten(2, 3)


def attention_merged(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same without any mask, in two calls of torch's flash attention, which tells its sum.

    An x86 CPU uses it, and on a GPU our kernel is measured against it. The S - T keys before are
    seen whole, their heads' queries folded into rows, and the T new ones causally. The two results
    add up as the two tiles of OnlineSoftmax do, each with its share of the sum of exponentials.
    """
    flash = torch.ops.aten._scaled_dot_product_flash_attention
    if query.device.type == "cpu":
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    new, seen = query.shape[1], key.shape[2] - query.shape[1]
    query, groups = query.transpose(1, 2), query.shape[2] // key.shape[1]
    own = (x[:, :, seen:].repeat_interleave(groups, dim=1) for x in (key, value))
    mixed, total = flash(query, *own, 0.0, True)[:2]
    if seen:
        folded = query.reshape(query.shape[0], key.shape[1], groups * new, -1)
        before, total_before = flash(folded, key[:, :, :seen], value[:, :, :seen])[:2]
        rise = (total - total_before.reshape(total.shape))[..., None]
        before = wide(before).reshape(mixed.shape) * torch.sigmoid(-rise)
        mixed = (wide(mixed) * torch.sigmoid(rise) + before).to(mixed.dtype)
    return mixed.transpose(1, 2)


def bidirectional(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention without a mask, for the vision tower: three times [B N H E] -> [B N H E]."""
    if triton_multiplies(query):
        return attention_triton(query, key.transpose(1, 2), value.transpose(1, 2))
    if attention_cpu.pays(query, key.shape[1]):
        key, value = key.transpose(1, 2), value.transpose(1, 2)
        return attention_cpu.attention(query, key, value, causal=False)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
