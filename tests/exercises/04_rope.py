"""A solution of exercise 4."""

import torch
from torch import Tensor


def rotate(vectors: Tensor, positions: Tensor, theta: float) -> Tensor:
    width = vectors.shape[1]
    pairs = torch.arange(width // 2, dtype=vectors.dtype)
    angles = positions[:, None] / theta ** (2 * pairs / width)
    first, second = vectors.chunk(2, dim=1)
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=1)
