"""Attention over many queries on a CPU: two of oneDNN's products, and a softmax between them.

in:  query [B T H E], key and value [B K S E], whether it is causal
out: mixed values [B T H E]

torch's flash attention keeps a tile of scores at a time, as the kernel in attention.py does. A CPU
has caches of megabytes instead: here the scores of a block of queries with all their keys are
written out, in float32, and stay there. What that buys are products large enough for oneDNN, which
takes them several times as fast as flash attention takes its small ones. Scores are products of
numbers of bfloat16 in float32, as they are there: rounded to bfloat16 they would be off by a
hundredth where they are large.
Read kernels/attention_sizes.py first. Read next: kernels/attention.py.
Agrees with: scaled_dot_product_attention.

B batch, T new tokens, S all tokens, H query heads, K key/value heads, G = H/K, E head dimension.
"""

import itertools

import torch
from torch import Tensor

from . import onednn
from .attention_sizes import LEAST, blocks_of, stepped


def pays(query: Tensor, keys: int) -> bool:
    """Whether `attention` takes queries [B T H E] over so many keys, and is faster."""
    return query.shape[1] * keys >= LEAST and onednn.multiplies(query)


def block(rows: Tensor, keys: Tensor, values: Tensor, groups: int, seen: int) -> Tensor:
    """What some queries see: rows [TG E], keys [S E] in float32, values [S E] -> [TG E].

    T tokens with the G heads of a group, and `seen` keys before the first one's own; all keys are
    seen by all where these are S.
    """
    scores = onednn.linear(rows, keys, None)
    if seen < len(keys):
        count, own = len(rows) // groups, len(keys) - seen
        later = torch.full((count, own), -torch.inf).triu(1)
        scores.view(count, groups, -1)[:, :, seen:] += later[:, None]
    weights = torch.softmax(scores, -1, out=scores).to(values.dtype)
    return onednn.matmul(weights, values)


def padded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of [S E] in a dtype, with zeros up to a number of rows that is `stepped`."""
    found = tensor.new_zeros(stepped(len(tensor)), tensor.shape[1], dtype=dtype)
    found[: len(tensor)] = tensor
    return found


def attention(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Attention of query [B T H E] over key and value [B K S E]; causal: the newest T of S."""
    (batch, new, heads, head_dim), (kv_heads, stop) = query.shape, key.shape[1:3]
    groups, mixed = heads // kv_heads, torch.empty_like(query)
    for row, head in itertools.product(range(batch), range(kv_heads)):
        some = slice(head * groups, (head + 1) * groups)
        keys, values = key[row, head], value[row, head]
        if causal:
            keys, values = padded(keys, torch.float32), padded(values, values.dtype)
        else:  # with keys that are not contiguous oneDNN is ten thousand times slower
            keys = keys.float().contiguous()
        for tokens, seen, used in blocks_of(groups, new, stop, causal):
            rows = query[row, tokens, some].flatten(0, 1).float() * head_dim**-0.5
            found = block(rows, keys[:used], values[:used], groups, seen)
            mixed[row, tokens, some] = found.unflatten(0, (-1, groups))
    return mixed
