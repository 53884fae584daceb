"""Attention of the newest one to eight tokens of each row over everything in the cache.

in:  query [B T H E], a cache layer whose rows may have different lengths      out: [B T H E]
The G query heads of one key/value head are folded into the rows of one small matrix, so that every
key is read once; on a CPU this is ten times faster than repeating the keys. A GPU needs some
hundred programs to reach the speed of its memory, and there are only B*K heads: so each row's keys
are cut into splits, each split yields a maximum, a sum and an unfinished mix, and a second kernel
combines them in a fixed order. Bytes are the limit, every key and value read once: 2 E numbers per
token and head, 4 E FLOPs G times.
Read next: int4.py. Agrees with: scaled_dot_product_attention; "Flash-Decoding" (2023).

B batch, T new tokens, S longest row, H query heads, K key/value heads, G = H/K, E head dimension.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import LOG2_E, OnlineSoftmax
from .choose import part, triton_for
from .language import INTERPRETED, blocks, launch, power_of_two, tl, triton
from .norm import wide
from .rope import scales_of

# Keys of a block, warps, stages, and programs in all: two for each multiprocessor of an H200 (132),
# and of an RTX 3090 (82). 128 keys of 128 numbers, keys and values, are 64 KB a stage in bfloat16.
BLOCKS = {"163 KB": (64, 4, 4, 264), "99 KB": (32, 4, 3, 164), "interpreter": (16, 4, 1, 6)}
SPLIT = 256  # keys that are worth a program of their own
COMBINED = 16  # splits that the second kernel takes at a time


def decode_reference(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor) -> Tensor:
    """query [B T H E], key and value [B K S E]: row b sees its first lengths[b] + t + 1 keys, query
    t.
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
    total = sum(part.total * share for part, share in zip(seen, shares))
    return sum(part.mixed * share[:, None] for part, share in zip(seen, shares)) / total[:, None]


@triton.jit
def split_kernel(
        query, keys, values, key_scales, value_scales, lengths, partial, states, new, key_row,
        key_head,
        GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr,
        BLOCK: tl.constexpr):  # fmt: skip
    """One program: the T*G queries of one key head over one split of the keys of one row.

    Writes the mix, still to be divided, to partial [B K splits ROWS E], and the running maximum and
    sum of each query to states [B K splits 2 ROWS]. Lengths are read on the device, so that one
    CUDA graph serves all.
    """
    split, kv_head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    splits, kv_heads = tl.num_programs(0), tl.num_programs(1)
    row, column, offset = tl.arange(0, ROWS), tl.arange(0, HEAD_DIM), tl.arange(0, BLOCK)
    seen = tl.load(lengths + batch)
    each = tl.cdiv(tl.cdiv(tl.maximum(seen + new, 0), BLOCK), splits) * BLOCK
    stop = tl.minimum((split + 1) * each, seen + new)
    used = row < new * GROUP
    last = seen + row // GROUP  # the last key that a row sees: rows are new tokens times G heads
    heads = kv_heads * GROUP
    source = ((batch * new + row // GROUP) * heads + kv_head * GROUP + row % GROUP) * HEAD_DIM
    queries = tl.load(query + source[:, None] + column[None, :], mask=used[:, None], other=0.0)
    base = tl.cast(batch, tl.int64) * key_row + tl.cast(kv_head, tl.int64) * key_head
    maximum, total = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for start in range(split * each, stop, BLOCK):
        place, inside = base + start, start + offset < stop
        tile = place * HEAD_DIM + offset[:, None] * HEAD_DIM + column[None, :]
        key = tl.load(keys + tile, mask=inside[:, None], other=0.0).to(queries.dtype)
        scores = tl.dot(queries, key.T, out_dtype=tl.float32, input_precision="ieee")
        scores *= 1.4426950408889634 / (HEAD_DIM**0.5)
        if key_scales is not None:  # a scale belongs to a whole key: it multiplies the score
            scale = tl.load(key_scales + place + offset, mask=inside, other=0.0)
            scores *= scale[None, :]
        scores = tl.where(start + offset[None, :] <= last[:, None], scores, -float("inf"))
        raised = tl.maximum(maximum, tl.max(scores, axis=1))
        shrink = tl.exp2(maximum - raised)
        weights = tl.exp2(scores - raised[:, None])
        total = total * shrink + tl.sum(weights, axis=1)
        if value_scales is not None:
            scale = tl.load(value_scales + place + offset, mask=inside, other=0.0)
            weights *= scale[None, :]
        value = tl.load(values + tile, mask=inside[:, None], other=0.0).to(queries.dtype)
        mixed *= shrink[:, None]
        mixed = tl.dot(
            weights.to(queries.dtype), value, mixed, out_dtype=tl.float32, input_precision="ieee"
        )
        maximum = raised
    place = (tl.cast(batch, tl.int64) * kv_heads + kv_head) * splits + split
    tl.store(states + place * 2 * ROWS + row, maximum)
    tl.store(states + place * 2 * ROWS + ROWS + row, total)
    tile = partial + place * ROWS * HEAD_DIM + row[:, None] * HEAD_DIM + column[None, :]
    tl.store(tile, mixed, mask=used[:, None] & (total > 0.0)[:, None])


@triton.jit
def combine_kernel(
        partial, states, combined, new, splits,
        GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr,
        BLOCK: tl.constexpr):  # fmt: skip
    """One program: one head of one new token; its splits are added in order, BLOCK at a time."""
    row, kv_head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads = tl.num_programs(1)
    column, offset = tl.arange(0, HEAD_DIM), tl.arange(0, BLOCK)
    place = (tl.cast(batch, tl.int64) * kv_heads + kv_head) * splits
    states += place * 2 * ROWS + row
    partial += (place * ROWS + row) * HEAD_DIM
    maximum, total, mixed = -1e30, 0.0, tl.zeros([HEAD_DIM], tl.float32)
    for first in range(0, splits, BLOCK):
        split = first + offset
        one_maximum = tl.load(states + split * 2 * ROWS, mask=split < splits, other=-1e30)
        one_total = tl.load(states + split * 2 * ROWS + ROWS, mask=split < splits, other=0.0)
        raised = tl.maximum(maximum, tl.max(one_maximum, axis=0))
        share = tl.where(one_total > 0.0, tl.exp2(one_maximum - raised), 0.0)
        shrink = tl.exp2(maximum - raised)
        total = total * shrink + tl.sum(share * one_total, axis=0)
        tile = partial + split[:, None] * ROWS * HEAD_DIM + column[None, :]
        written = (one_total > 0.0)[:, None]  # an empty split wrote no mix
        one_mixed = tl.load(tile, mask=written, other=0.0)
        mixed = mixed * shrink + tl.sum(share[:, None] * one_mixed, axis=0)
        maximum = raised
    mixed /= tl.where(total > 0.0, total, 1.0)
    target = ((batch * new + row // GROUP) * kv_heads + kv_head) * GROUP + row % GROUP
    tl.store(combined + target * HEAD_DIM + column, mixed.to(combined.dtype.element_ty))


def decode_triton(query: Tensor, layer, block: tuple[int, int, int, int] | None = None) -> Tensor:
    """Two launches, whose grids depend on shapes only and never on lengths."""
    batch, new, heads, head_dim = query.shape
    kv_heads, capacity = layer.keys.shape[1:3]
    group = heads // kv_heads
    assert head_dim == power_of_two(head_dim) and layer.keys.stride()[2:] == (head_dim, 1), head_dim
    assert layer.keys.stride() == layer.values.stride()
    assert not (INTERPRETED and query.dtype == torch.bfloat16), "it would multiply bit patterns"
    size, warps, stages, programs = block or BLOCKS[part(query)]
    most = blocks(capacity, SPLIT if block is None else size)
    splits = max(1, min(programs // (batch * kv_heads), most))
    rows = max(16, power_of_two(new * group))
    partial = query.new_empty(batch, kv_heads, splits, rows, head_dim, dtype=torch.float32)
    states = query.new_empty(batch, kv_heads, splits, 2, rows, dtype=torch.float32)
    combined = torch.empty_like(query, memory_format=torch.contiguous_format)
    sizes = dict(GROUP=group, HEAD_DIM=head_dim, ROWS=rows)
    launch(
        split_kernel, (splits, kv_heads, batch), query.contiguous(), layer.keys, layer.values,
        *scales_of(layer), layer.lengths, partial, states, new, layer.keys.stride(0) // head_dim,
        layer.keys.stride(1) // head_dim, **sizes, BLOCK=size, num_warps=warps,
        num_stages=stages)  # fmt: skip
    launch(
        combine_kernel, (new * group, kv_heads, batch), partial, states, combined, new, splits,
        **sizes, BLOCK=COMBINED, num_warps=4)  # fmt: skip
    return combined


def decode_cpu(query: Tensor, key: Tensor, value: Tensor, starts) -> Tensor:
    """One newest query of each row, [B 1 H E], over its first starts[b] + 1 keys of [B K S E].

    No mask, no wider copy of the keys: the formula takes six times as long in bfloat16.
    """
    folded = query.squeeze(1).unflatten(1, (key.shape[1], -1))  # B K G E
    if all(start + 1 == key.shape[2] for start in starts):
        return F.scaled_dot_product_attention(folded, key, value).reshape(query.shape)
    mixed = []
    for row, start in enumerate(starts):
        one, seen = slice(row, row + 1), slice(start + 1)
        parts = folded[one], key[one, :, seen], value[one, :, seen]
        mixed.append(F.scaled_dot_product_attention(*parts))
    return torch.cat(mixed).reshape(query.shape)


def decode_attention(query: Tensor, layer) -> Tensor:
    """Attention of [B T H E] newest queries, T small, over a cache layer that holds their keys."""
    if triton_for(query):
        return decode_triton(query, layer)
    key, value = layer.read(query.shape[1], query.dtype)
    if query.shape[1] == 1 and query.device.type == "cpu" and layer.starts is not None:
        return decode_cpu(query, key, value, layer.starts)
    return decode_reference(query, key, value, layer.lengths)
