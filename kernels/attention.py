"""Attention over many queries: every new row looks at all rows before it; patches look at each other.

in:  query [B T H E], a cache layer with keys and values [B K S E] (or plain key, value [B N H E])
out: mixed values [B T H E]
    softmax(query key^T / sqrt(E)) value, where G = H/K query heads share one key/value head
Causal means aligned to the lower right: with S rows seen before, query t sees keys 0 .. S+t.
Read next: decode_attention.py. Agrees with: scaled_dot_product_attention; arXiv 2205.14135.

B batch, T new tokens, S tokens seen before, N patches, H query heads, K key/value heads, E head dimension.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .norm import wide


def attention_reference(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """The formula. query [B T H E], key and value [B K S E], mask [T S] bool; a fully masked row is zero."""
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


def prefill(query: Tensor, layer) -> Tensor:
    """Causal attention of [B T H E] new queries over a cache layer that already holds their keys."""
    new, seen = query.shape[1], layer.seen
    key, value = layer.read(seen + new)
    groups = query.shape[2] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    mask = causal_mask(new, seen, query.device) if seen else None
    mixed = F.scaled_dot_product_attention(
        query.transpose(1, 2), key, value, attn_mask=mask, is_causal=mask is None
    )
    return mixed.transpose(1, 2)


def bidirectional(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention without a mask, for the vision tower: three times [B N H E] -> [B N H E]."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
