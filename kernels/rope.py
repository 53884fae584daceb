"""RoPE: turn each query and key by an angle that grows with its position, and store keys and values.

in:  qkv [B T (H+2K)E] of the fused projection, angles [2 B T E/2] float32, one layer of the cache
out: query [B T H E], rotated; keys (rotated) and values stand in the cache at positions lengths .. lengths+T
A pair is (x[i], x[i + E/2]), the "half-split" form of Qwen2 and LLaMA. Angles are float32 at least:
at position 255 a bfloat16 angle is already wrong by half a radian.
Read next: attention.py. Agrees with: apply_rotary_pos_emb of transformers; arXiv 2104.09864.

B batch, T new tokens, H query heads, K key/value heads, E head dimension.
"""

import torch
from torch import Tensor

from .norm import wide


def angles(positions: Tensor, theta: float, head_dim: int, factor: float = 1.0, dtype=torch.float32):
    """Cosine and sine, [2 B T E/2], of every position [B T]; `factor` is linear position scaling.

    >>> angles(torch.tensor([[0, 1]]), theta=10_000.0, head_dim=2)[:, 0, :, 0]
    tensor([[1.0000, 0.5403],
            [0.0000, 0.8415]])
    """
    half = torch.arange(0, head_dim, 2, device=positions.device, dtype=dtype) / head_dim
    inverse_frequency = 1.0 / theta**half
    angle = positions.to(dtype)[..., None] / factor * inverse_frequency
    return torch.stack([angle.cos(), angle.sin()])


def rotate(vectors: Tensor, angles: Tensor) -> Tensor:
    """Rotate every pair of [B T heads E] by its angle.

    >>> quarter_turn = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    >>> rotate(torch.tensor([3.0, 4.0]).reshape(1, 1, 1, 2), quarter_turn).flatten()
    tensor([-4.,  3.])
    """
    cosine, sine = angles[:, :, :, None]
    first, second = wide(vectors).chunk(2, dim=-1)
    turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
    return turned.to(vectors.dtype)


def split(qkv: Tensor, num_heads: int, num_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B T (H+2K)E] -> query [B T H E], key and value [B T K E], as views."""
    heads = qkv.unflatten(-1, (num_heads + 2 * num_kv_heads, -1))
    return heads.split([num_heads, num_kv_heads, num_kv_heads], dim=2)


def write_reference(qkv: Tensor, angles: Tensor, layer) -> Tensor:
    """Rotate, store keys and values behind what the cache layer holds, return the query."""
    num_kv_heads, head_dim = layer.keys.shape[1], layer.keys.shape[3]
    num_heads = qkv.shape[-1] // head_dim - 2 * num_kv_heads
    query, key, value = split(qkv, num_heads, num_kv_heads)
    layer.store(rotate(key, angles), value)
    return rotate(query, angles)


def write(qkv: Tensor, angles: Tensor, layer) -> Tensor:
    """Rotate queries and keys, write keys and values into the cache; returns the query [B T H E]."""
    return write_reference(qkv, angles, layer)
