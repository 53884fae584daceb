"""Attention over many queries on a CPU in bfloat16: two of oneDNN's products and a softmax.

in:  query [B T H E], key and value [B K S E], whether it is causal
out: mixed values [B T H E]

torch's flash attention keeps a tile of scores at a time, as the kernel in attention.py does. A CPU
has caches of megabytes instead: here the scores of a block of queries with all their keys are
written out, in float32, and stay there. What that buys are products large enough for oneDNN, which
takes them several times as fast as flash attention takes its small ones. Scores are products of
numbers of bfloat16 in float32, as they are there: rounded to bfloat16 they would be off by a
hundredth where they are large.
Read kernels/onednn.py first. Read next: kernels/attention.py.
Agrees with: scaled_dot_product_attention.

B batch, T new tokens, S all tokens, H query heads, K key/value heads, G = H/K, E head dimension.
"""

import itertools

import torch
from torch import Tensor

from . import onednn

SCORES = 2**20  # that are held at a time: 4 MB, and 2 MB once they are weights
CAUSAL_ROWS = 512  # of a block that is causal: half of the scores of its own tokens are for nothing
LEAST = 64  # new tokens, below which flash attention is as fast and prepares nothing


def pays(query: Tensor) -> bool:
    """Whether `attention` takes such queries [B T H E], and is faster."""
    return query.shape[1] >= LEAST and onednn.pays(query)


def block_of(groups: int, keys: int, causal: bool) -> int:
    """How many tokens are a block, each of which is `groups` rows of so many scores.

    >>> block_of(7, 1500, True), block_of(1, 729, False), block_of(7, 2**30, True)
    (73, 1438, 9)
    """
    rows = max(SCORES // keys, LEAST)
    return max(1, (min(rows, CAUSAL_ROWS) if causal else rows) // groups)


def block(rows: Tensor, keys: Tensor, values: Tensor, groups: int, causal: bool) -> Tensor:
    """What some queries see: rows [TG E] and keys [S E] in float32, values [S E] -> [TG E].

    T tokens with the G heads of a group; causal: they are the newest T of S.
    """
    scores = onednn.linear(rows, keys, None)
    if causal:
        count = len(rows) // groups
        own = scores.view(count, groups, -1)[:, :, len(keys) - count :]
        own += torch.full((count, count), -torch.inf).triu(1)[:, None]
    weights = torch.softmax(scores, -1, out=scores).to(values.dtype)
    return torch.mm(weights, values)


def attention(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Attention of query [B T H E] over key and value [B K S E]; causal: the newest T of S."""
    (batch, new, heads, head_dim), (kv_heads, stop) = query.shape, key.shape[1:3]
    groups = heads // kv_heads
    mixed, size = torch.empty_like(query), block_of(groups, stop, causal)
    for row, head in itertools.product(range(batch), range(kv_heads)):
        some = slice(head * groups, (head + 1) * groups)
        keys, values = key[row, head].float(), value[row, head]
        for first in range(0, new, size):
            tokens = slice(first, min(first + size, new))
            seen = stop - new + tokens.stop if causal else stop
            rows = query[row, tokens, some].flatten(0, 1).float().mul_(head_dim**-0.5)
            found = block(rows, keys[:seen], values[:seen], groups, causal)
            mixed[row, tokens, some] = found.unflatten(0, (-1, groups))
    return mixed
