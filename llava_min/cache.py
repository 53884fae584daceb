"""The keys and values of all tokens seen so far: the decoder's memory.

Cache.empty(...) allocates [L B K S E] twice, once; layers write behind what is seen, the loop
advances. A layer never moves the position: `advance` and `rewind` are the caller's.
Read before: tokenizer.py. Read next: decoder.py.

L layers, B rows of the batch, K key/value heads, S capacity in tokens, E head dimension.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .config import TextConfig


@dataclass
class Layer:
    """One layer's view: keys and values [B K S E], and how many tokens each row has seen."""

    keys: Tensor
    values: Tensor
    lengths: Tensor  # int32 [B], on the device
    starts: np.ndarray  # the same numbers, on the host

    @property
    def seen(self) -> int:
        """The longest row's length."""
        return int(self.starts.max())

    def store(self, key: Tensor, value: Tensor) -> None:
        """Write [B T K E] behind each row's `starts`; keys come rotated."""
        for row, start in enumerate(self.starts.tolist()):
            new = slice(start, start + key.shape[1])
            self.keys[row, :, new] = key[row].transpose(0, 1)
            self.values[row, :, new] = value[row].transpose(0, 1)

    def read(self, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` keys and values of every row, [B K count E]."""
        return self.keys[:, :, :count], self.values[:, :, :count]


class Cache:
    """Keys and values of every layer, allocated once for `capacity` tokens a row."""

    def __init__(self, keys: Tensor, values: Tensor, lengths: Tensor, seen: np.ndarray):
        self.keys, self.values, self.lengths, self.seen = keys, values, lengths, seen

    @classmethod
    def empty(cls, config: TextConfig, batch: int = 1, capacity: int = 0, dtype=torch.float32,
              kv_dtype=None, device="cpu") -> "Cache":  # fmt: skip
        """Room for `capacity` tokens in each of `batch` rows, stored as `kv_dtype` (by default
        `dtype`).
        """
        shape = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
        keys, values = (
            torch.empty(shape, dtype=kv_dtype or dtype, device=device) for _ in range(2)
        )
        return cls(
            keys,
            values,
            torch.zeros(batch, dtype=torch.int32, device=device),
            np.zeros(batch, dtype=np.int64),
        )

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def layer(self, index: int) -> Layer:
        return Layer(self.keys[index], self.values[index], self.lengths, self.seen)

    def row(self, index: int) -> "Cache":
        """One row as a cache of its own; memory and lengths are shared, so that advancing it counts
        here too.
        """
        one = slice(index, index + 1)
        return Cache(self.keys[:, one], self.values[:, one], self.lengths[one], self.seen[one])

    def advance(self, count: int) -> None:
        """Count `count` more tokens as seen in every row, after all layers have written them."""
        assert self.capacity >= self.seen.max() + count, (self.capacity, self.seen, count)
        self.lengths += count
        self.seen += count

    def rewind(self, count: int) -> None:
        """Forget the newest `count` tokens of every row."""
        assert 0 <= count <= self.seen.min(), (count, self.seen)
        self.lengths -= count
        self.seen -= count

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` tokens a row, keeping what is there."""
        if capacity <= self.capacity:
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(*old.shape[:3], capacity, old.shape[4])
            new[:, :, :, : old.shape[3]] = old
            setattr(self, name, new)

    def tensors(self) -> dict[str, Tensor]:
        """What has been seen, by name, for saving: keys and values [L B K seen E] and lengths."""
        count = int(self.seen.max())
        return {"keys": self.keys[:, :, :, :count], "values": self.values[:, :, :, :count],
                "lengths": self.lengths}  # fmt: skip
