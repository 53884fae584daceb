"""Attention of the newest one to eight tokens of each row over everything in the cache.

in:  query [B T H E], a cache layer whose rows may have different lengths
out: mixed values [B T H E]

The G query heads of one key/value head are folded into the rows of one small matrix, so that every
key is read once. On a CPU this is ten times faster than repeating the keys. A GPU needs some
hundred programs to reach the speed of its memory, and there are only B*K heads. So each row's keys
are cut into splits. Each split yields a maximum, a sum and an unfinished mix, and a second kernel
combines them in a fixed order. (The last program to arrive could do that, and a launch be saved. On
an H100 it waited 1 us for every split: longer than the keys of 32,768 tokens take.) Bytes are the
limit, every key and value read once: 2 E numbers per token and head, 4 E FLOPs G times.
The file has more than 250 lines, as each kind of cache is read in its own way; `decode_kernel` has
more than 60, many of them its arguments.
Read kernels/attention.py first. Read next: kernels/int4_packing.py.
Agrees with: scaled_dot_product_attention; "Flash-Decoding" (2023).

B batch, T new tokens, S longest row, H query heads, K key/value heads, G = H/K, E head dimension.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import int8_cpu
from .attention import LOG2_E, OnlineSoftmax, causal, causal_mask
from .choose import Gpu, gpu_of, path_of, triton_multiplies
from .language import INTERPRETED, begin, blocks, launch, power_of_two, tl, triton
from .norm import wide
from .rope import SCALES, parts, scales_of

# (shared memory, bits of the cache): keys of a block, warps, stages, programs that run at once on a
# multiprocessor. 64 keys of 128 numbers, keys and values, are 32 KB a stage in bfloat16. What is
# measured has its time behind it.
BLOCKS = {
    ("227 KB", 16): (64, 4, 5, 1),  # 0.029 ms, was 0.0326: H100, 8a35520
    ("227 KB", 8): (64, 4, 3, 4),  # 0.0272 ms, was 0.0334: H100, 8a35520
    ("163 KB", 16): (64, 4, 4, 1),
    ("163 KB", 8): (64, 4, 4, 2),
    ("99 KB", 16): (32, 4, 3, 2),
    ("99 KB", 8): (32, 4, 3, 2),
}
INTERPRETED_BLOCK = (16, 4, 1, 6)
AT_ONCE = 4 if INTERPRETED else 64  # splits whose results a program of `combine_kernel` loads


def decode_formula(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
    """The formula: query t of row b sees the row's first lengths[b] + t + 1 keys.

    query [B T H E], key and value [B K S E].
    """
    batch, new, heads, head_dim = query.shape
    kv_heads = key.shape[1]
    folded = query.unflatten(2, (kv_heads, -1)).permute(0, 2, 1, 3, 4)  # B K T G E
    scores = torch.einsum("bktge,bkse->bktgs", wide(folded), wide(key)) / head_dim**0.5
    positions = torch.arange(key.shape[2], device=key.device)
    last = lengths[:, None] + torch.arange(new, device=key.device)  # B T
    visible = positions <= last[:, :, None]  # B T S
    weights = torch.softmax(scores.masked_fill(~visible[:, None, :, None], -torch.inf), dim=-1)
    unused = (positions > last[:, -1:])[:, None, :, None]
    value = wide(value).masked_fill(unused, 0.0)  # what is unused may be NaN
    mixed = torch.einsum("bktgs,bkse->bktge", weights, value)
    return mixed.permute(0, 2, 1, 3, 4).reshape(batch, new, heads, head_dim).to(query.dtype)


def decode_tiled(query: Tensor, key: Tensor, value: Tensor, splits: int) -> Tensor:
    """The G queries [G E] of one key head over all of [S E], split by split and then combined."""
    rows = query * (LOG2_E / query.shape[1] ** 0.5)
    parts = []
    for keys in torch.arange(len(key)).tensor_split(splits):
        parts.append(OnlineSoftmax())
        if len(keys):
            parts[-1].see(rows @ key[keys].T, value[keys])
    seen = [part for part in parts if part.maximum.ndim]  # an empty split has seen nothing
    maximum = torch.stack([part.maximum for part in seen]).amax(0)
    shares = [torch.exp2(part.maximum - maximum) for part in seen]
    total = torch.stack([part.total * share for part, share in zip(seen, shares)]).sum(0)
    mixed = torch.stack([part.mixed * share[:, None] for part, share in zip(seen, shares)]).sum(0)
    return mixed / total[:, None]


@triton.jit
def query_places(
    batch, kv_head, kv_heads, new, row, column, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr
):
    """Where the queries of one key head are in [B T H E]: rows are new tokens times G heads."""
    head = ((batch * new + row // GROUP) * kv_heads + kv_head) * GROUP + row % GROUP
    return head[:, None] * HEAD_DIM + column[None, :]


@triton.jit
def keys_of_a_split(seen, new, splits, block):
    """How many keys each split of a row has, in whole blocks; the last ones may have none."""
    return tl.cdiv(tl.cdiv(tl.maximum(seen + new, 0), block), splits) * block


@triton.jit(
    do_not_specialize=["new", "key_head"],
    do_not_specialize_on_alignment=["lengths", *SCALES],
)
def decode_kernel(
    query,
    keys,
    values,
    key_scales,
    value_scales,
    lengths,
    partial,
    new,
    key_head,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    USED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: the T*G queries of one key head over one split of the keys of one row.

    Its mix, still to be divided, and the running maximum and sum of each query go to partial
    [B K splits USED (E + 4)], USED the power of two that holds T*G; the tensor cores want 16 rows.
    Two of the four numbers stay free: so each state begins at a multiple of 16 bytes.
    A split without keys writes nothing. Lengths are read on the device, so that one CUDA graph
    serves all.
    """
    begin()
    split, kv_head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    splits, kv_heads = tl.num_programs(0), tl.num_programs(1)
    SCALE: tl.constexpr = 1.4426950408889634 / (HEAD_DIM**0.5)
    ROWS: tl.constexpr = USED if USED > 16 else 16
    row, column, offset = tl.arange(0, ROWS), tl.arange(0, HEAD_DIM), tl.arange(0, BLOCK)
    seen = tl.load(lengths + batch)
    each = keys_of_a_split(seen, new, splits, BLOCK)
    stop = tl.minimum((split + 1) * each, seen + new)
    used = row < new * GROUP
    last = seen + row // GROUP  # the last key that a row sees
    place = tl.cast(batch, tl.int64) * kv_heads + kv_head
    source = query_places(batch, kv_head, kv_heads, new, row, column, GROUP, HEAD_DIM)
    queries = tl.load(query + source, mask=used[:, None], other=0.0)
    base = place * key_head
    maximum, total = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for start in range(split * each, stop, BLOCK):
        inside = start + offset < stop
        tile = (base + start) * HEAD_DIM + offset[:, None] * HEAD_DIM + column[None, :]
        key = tl.load(keys + tile, mask=inside[:, None], other=0.0).to(queries.dtype)
        scores = tl.dot(queries, key.T, out_dtype=tl.float32, input_precision="ieee")
        if key_scales is not None:  # a scale belongs to a whole key: it multiplies the score
            scale = tl.load(key_scales + base + start + offset, mask=inside, other=0.0)
            scores *= scale[None, :]
        scores = tl.where(start + offset[None, :] <= last[:, None], scores, -float("inf"))
        raised = tl.maximum(maximum, tl.max(scores, axis=1) * SCALE)
        shrink = tl.exp2(maximum - raised)
        weights = tl.exp2(scores * SCALE - raised[:, None])
        total = total * shrink + tl.sum(weights, axis=1)
        if value_scales is not None:
            scale = tl.load(value_scales + base + start + offset, mask=inside, other=0.0)
            weights *= scale[None, :]
        value = tl.load(values + tile, mask=inside[:, None], other=0.0).to(queries.dtype)
        mixed *= shrink[:, None]
        mixed = tl.dot(
            weights.to(queries.dtype), value, mixed, out_dtype=tl.float32, input_precision="ieee"
        )
        maximum = raised
    partial += place * splits * USED * (HEAD_DIM + 4)
    state = partial + (split * (HEAD_DIM + 4) + HEAD_DIM) * USED + row
    tile = partial + split * (HEAD_DIM + 4) * USED + row[:, None] * HEAD_DIM + column[None, :]
    written = (row < USED) & (split * each < stop)
    tl.store(tile, mixed, mask=written[:, None])
    tl.store(state, maximum, mask=written)
    tl.store(state + USED, total, mask=written)


@triton.jit(
    do_not_specialize=["splits", "block", "new"],
    do_not_specialize_on_alignment=["lengths"],
)
def combine_kernel(
    partial,
    lengths,
    mix,
    splits,
    block,
    new,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    USED: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """One program: the mix of one query from the partial results of all splits with keys.

    So many are loaded at once that a long row waits for memory a few times, and never once for
    each split. They are added in a fixed order.
    """
    begin()
    row, kv_head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads, column = tl.num_programs(1), tl.arange(0, HEAD_DIM)
    seen = tl.load(lengths + batch)
    each = keys_of_a_split(seen, new, splits, block)
    filled = tl.cdiv(tl.maximum(seen + new, 0), tl.maximum(each, 1))
    SIZE: tl.constexpr = USED * (HEAD_DIM + 4)
    partial += (tl.cast(batch, tl.int64) * kv_heads + kv_head) * splits * SIZE
    maximum, total, mixed = -1e30, 0.0, tl.zeros([HEAD_DIM], tl.float32)
    for first in range(0, filled, AT_ONCE):
        split = first + tl.arange(0, AT_ONCE)
        inside = split < filled
        state = partial + split * SIZE + USED * HEAD_DIM + row
        tile = partial + split[:, None] * SIZE + row * HEAD_DIM + column[None, :]
        one_maximum = tl.load(state, mask=inside, other=-1e30)
        one_total = tl.load(state + USED, mask=inside, other=0.0)
        one_mixed = tl.load(tile, mask=inside[:, None], other=0.0)
        raised = tl.maximum(maximum, tl.max(one_maximum, axis=0))
        shrink, share = tl.exp2(maximum - raised), tl.exp2(one_maximum - raised)
        total = total * shrink + tl.sum(share * one_total, axis=0)
        mixed = mixed * shrink + tl.sum(share[:, None] * one_mixed, axis=0)
        maximum = raised
    mixed /= tl.where(total != 0.0, total, 1.0)
    target = ((batch * new + row // GROUP) * kv_heads + kv_head) * GROUP + row % GROUP
    tl.store(mix + target * HEAD_DIM + column, mixed.to(mix.dtype.element_ty))


def splits_of(layer, batch: int, gpu: Gpu | None, block: tuple[int, int, int, int]) -> int:
    """How many programs share the keys of one head: as many as run at once.

    In a full cache none is without a block of its own.
    """
    kv_heads, capacity = layer.keys.shape[1:3]
    size, programs = block[0], block[3]
    at_once = programs * (1 if gpu is None else gpu.multiprocessors)
    return max(1, min(at_once // (batch * kv_heads), blocks(capacity, size)))


def decode_triton(query: Tensor, layer, block: tuple[int, int, int, int] | None = None) -> Tensor:
    """Two launches, whose grids depend on shapes only and never on lengths."""
    batch, new, heads, head_dim = query.shape
    kv_heads, gpu = layer.keys.shape[1], gpu_of(query)
    strides = layer.keys.stride()
    assert head_dim == power_of_two(head_dim) and strides[2:] == (head_dim, 1), head_dim
    assert strides == layer.values.stride() and strides[0] == kv_heads * strides[1]
    assert not (INTERPRETED and query.dtype == torch.bfloat16), "it would multiply bit patterns"
    kind = 8 * layer.keys.element_size()
    block = block or (INTERPRETED_BLOCK if gpu is None else BLOCKS[gpu.part, min(kind, 16)])
    splits = splits_of(layer, batch, gpu, block)
    used = power_of_two(new * heads // kv_heads)
    states = batch, kv_heads, splits, used * (head_dim + 4)
    partial = query.new_empty(states, dtype=torch.float32)
    mix = torch.empty_like(query, memory_format=torch.contiguous_format)
    sizes = {"GROUP": heads // kv_heads, "HEAD_DIM": head_dim, "USED": used}
    launch(
        decode_kernel,
        (splits, kv_heads, batch),
        query.contiguous(),
        layer.keys,
        layer.values,
        *scales_of(layer),
        layer.lengths,
        partial,
        new,
        strides[1] // head_dim,
        **sizes,
        BLOCK=block[0],
        num_warps=block[1],
        num_stages=block[2],
    )
    launch(
        combine_kernel,
        (new * heads // kv_heads, kv_heads, batch),
        partial,
        layer.lengths,
        mix,
        splits,
        block[0],
        new,
        **sizes,
        AT_ONCE=AT_ONCE,
        num_warps=4,
    )
    return mix


def decode_torch(query: Tensor, layer) -> Tensor:
    """Newest queries [B T H E] over what each row of a counted layer has seen, and themselves.

    It needs no mask of all keys and no wider copy of them; the formula takes six times as long in
    bfloat16.
    """
    starts, new, kv_heads = layer.host_lengths, query.shape[1], layer.keys.shape[1]
    if layer.key_scales is not None:
        return decode_8bit(query, layer)
    key, value = layer.keys_and_values(new, query.dtype)
    whole, mixed = (query, key, value), []
    if all(start + new == key.shape[2] for start in starts.tolist()):
        parts_of_batch = [whole]
    else:
        parts_of_batch = [
            (query[row, None], key[row, None, :, : start + new], value[row, None, :, : start + new])
            for row, start in enumerate(starts.tolist())
        ]
    for one in parts_of_batch:
        if new > 1:
            mixed.append(causal(*one))
        else:
            folded = one[0].squeeze(1).unflatten(1, (kv_heads, -1))  # B K G E
            mixed.append(F.scaled_dot_product_attention(folded, *one[1:]).reshape(one[0].shape))
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def scores_torch(query: Tensor, keys: Tensor) -> Tensor:
    """query [K R E] times 8-bit keys [K S E] -> [K R S]: a block of keys at a time is made wide."""
    some = parts(keys[None])
    return torch.cat([query @ keys[:, part].to(query.dtype).mT for part in some], -1)


def scores_integers(query: Tensor, keys: Tensor) -> Tensor:
    """The same of int8 keys, which stay bytes: each number of a query is two (int8_cpu.py)."""
    heads, count, _ = query.shape
    flat = query.flatten(0, 1)
    largest = int8_cpu.largest_of(flat)
    rows = int8_cpu.two_bytes(flat, largest).bitwise_xor_(int8_cpu.ZERO).view(torch.int8)
    rows = rows.view(2, heads, count, -1).transpose(0, 1).flatten(1, 2)  # K 2R E
    sums = torch.empty(heads, 2 * count, keys.shape[1], dtype=torch.int32)
    for head in range(heads):
        torch._int_mm(rows[head], keys[head].T, out=sums[head])
    high, low = sums.float().split(count, 1)
    return torch.add(low, high, alpha=256).mul_((largest / int8_cpu.STEPS).view(heads, count, 1))


def decode_8bit(query: Tensor, layer) -> Tensor:
    """The newest queries of each row, [B T H E], over an 8-bit cache, read as it is.

    What is made wide is a block of it at a time, as small as rope.parts makes it; scores [TH S] and
    sums are float32. A scale belongs to a whole key or value, and so multiplies its score or its
    weight.
    """
    new, kv_heads, head_dim = query.shape[1], layer.keys.shape[1], query.shape[3]
    folded = wide(query).unflatten(2, (kv_heads, -1)).transpose(1, 2) / head_dim**0.5  # B K T G E
    folded = folded.flatten(2, 3)
    hidden = causal_mask(new, 0, query.device).logical_not_()[:, None]  # T 1 T
    mixed = torch.zeros_like(folded)
    whole = query.dtype == torch.bfloat16 and layer.keys.dtype == torch.int8
    integers = whole and path_of(query) == "cpu" and int8_cpu.exact()
    score = scores_integers if integers else scores_torch
    for row, start in enumerate(layer.host_lengths.tolist()):
        stop = start + new
        keys, values = (x[row, :, :stop] for x in (layer.keys, layer.values))
        key_scales, value_scales = (
            x[row, :, None, :stop] for x in (layer.key_scales, layer.value_scales)
        )
        scores = score(folded[row], keys) * key_scales
        if new > 1:
            own = scores[:, :, start:].unflatten(1, (new, -1))  # K T G T
            own.masked_fill_(hidden, -torch.inf)
        weights = torch.softmax(scores, -1) * value_scales
        for part in parts(values[None]):
            mixed[row] += weights[:, :, part] @ values[:, part].to(folded.dtype)
    mixed = mixed.unflatten(2, (new, -1)).transpose(1, 2)
    return mixed.to(query.dtype).reshape(query.shape)


def decode_attention(query: Tensor, layer) -> Tensor:
    """Attention of [B T H E] newest queries, T small, over a cache layer that holds their keys."""
    if triton_multiplies(query):
        return decode_triton(query, layer)
    if layer.counted:
        return decode_torch(query, layer)
    key, value = layer.keys_and_values(query.shape[1], query.dtype)
    return decode_formula(query, key, value, layer.lengths)
