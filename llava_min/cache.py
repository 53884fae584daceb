"""The keys and values of all tokens seen so far: the decoder's memory.

in:  the shape of a decoder, keys and values of new tokens [B T K E]
out: keys and values of all tokens [B K S E]

Cache.empty(...) allocates keys and values [L B K S E] once. Layers write new tokens after those
seen. A layer never moves the position: the caller does, with `advance` and `rewind`.
With 8 bits a number, each key and each value has a float32 scale of its own: 2E + 8 bytes for each
token, layer and head, where bfloat16 takes 4E. A GPU's decoding kernel reads the 8 bits as they
are. Plain torch decodes from blocks of them multiplied out, and reads a prompt with one layer
multiplied out at a time.
Read segments.py first. Read next: decoder.py.

L layers, B rows of the batch, K key/value heads, T new tokens, S capacity in tokens, E head
dimension.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .config import TextConfig
from .kernels import rope

Stored = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # keys, values, and their scales


@dataclass
class Layer:
    """One layer's view: keys and values [B K S E], and how many tokens each row has seen."""

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None  # [B K S] float32 where keys and values have 8 bits
    value_scales: Tensor | None
    lengths: Tensor  # int32 [B], on the device
    host_lengths: np.ndarray  # int64 [B], the same on the host; empty where only the device counts
    index: int = 0  # which layer of the decoder it is

    @property
    def counted(self) -> bool:
        """Whether Python tracks the lengths; in a recorded step only the tensor is valid."""
        return len(self.host_lengths) > 0

    @property
    def longest(self) -> int:
        """The longest row's length."""
        return max(self.host_lengths.tolist())

    def append(self, tensor: Tensor, row: int, vectors: Tensor) -> None:
        """Write vectors [K T ...] after what a row of a tensor [B K S ...] has seen."""
        new = vectors.shape[1]
        if self.counted:
            tensor[row].narrow(1, self.host_lengths[row], new).copy_(vectors)
        else:
            places = self.lengths[row] + torch.arange(new, device=self.lengths.device)
            tensor[row, :, places] = vectors

    def store(self, key: Tensor, value: Tensor) -> None:
        """Write keys, already rotated, and values [B T K E] after what each row has seen."""
        stored = [(self.keys, key), (self.values, value)]
        if self.key_scales is not None and self.value_scales is not None:
            key, key_scales = rope.quantise(key, self.keys.dtype)
            value, value_scales = rope.quantise(value, self.values.dtype)
            stored = [(self.keys, key), (self.values, value)]
            stored += [(self.key_scales, key_scales), (self.value_scales, value_scales)]
        if key.shape[1] == 1 and len(key) > 1:  # a token of each row: all in one operator
            rows, newest = torch.arange(len(key), device=key.device), self.lengths.long()
            for tensor, vectors in stored:
                tensor[rows, :, newest] = vectors[:, 0]
            return
        for row in range(len(key)):
            for tensor, vectors in stored:
                self.append(tensor, row, vectors[row].transpose(0, 1))

    def keys_and_values(self, new: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values [B K S E] of all tokens seen and the `new` tokens after them.

        8 bits are multiplied out to `dtype`. Where only the device counts, S is the capacity.
        """
        stop = self.longest + new if self.counted else self.keys.shape[2]
        keys, values = self.keys.narrow(2, 0, stop), self.values.narrow(2, 0, stop)
        if self.key_scales is None or self.value_scales is None:
            return keys, values
        keys = rope.dequantise_cache(keys, self.key_scales[:, :, :stop], dtype)
        return keys, rope.dequantise_cache(values, self.value_scales[:, :, :stop], dtype)


@dataclass
class Cache:
    """Keys and values of every layer, allocated once for `capacity` tokens a row."""

    keys: Tensor  # [L B K S E]
    values: Tensor  # [L B K S E]
    key_scales: Tensor | None  # [L B K S] float32 where keys and values have 8 bits
    value_scales: Tensor | None
    lengths: Tensor  # int32 [B], on the device
    host_lengths: np.ndarray  # int64 [B], the same on the host; empty where only the device counts

    @classmethod
    def empty(
        cls,
        config: TextConfig,
        batch: int = 1,
        capacity: int = 0,
        dtype: torch.dtype = torch.float32,
        kv_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> "Cache":
        """A cache with room for `capacity` tokens in each of `batch` rows.

        It is in `dtype`, or in 8 bits: `kv_dtype` torch.int8 or torch.float8_e4m3fn.
        """
        shape = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
        keys, values = (torch.empty(shape, dtype=kv_dtype or dtype, device=device) for _ in "kv")
        key_scales = value_scales = None
        if kv_dtype in rope.LARGEST:
            key_scales, value_scales = (torch.empty(shape[:4], device=device) for _ in "kv")
        return cls(
            keys,
            values,
            key_scales,
            value_scales,
            lengths=torch.zeros(batch, dtype=torch.int32, device=device),
            host_lengths=np.zeros(batch, dtype=np.int64),
        )

    def stored(self, view: Callable[[Tensor], Tensor]) -> Stored:
        """`view` of keys, values and, with 8 bits, their scales."""
        scales = self.key_scales, self.value_scales
        key_scales, value_scales = (None if one is None else view(one) for one in scales)
        return view(self.keys), view(self.values), key_scales, value_scales

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def layers(self) -> list[Layer]:
        """A view for each layer, in order."""
        none = [None] * len(self.keys)
        scales = self.key_scales, self.value_scales
        key_scales, value_scales = (none if one is None else one.unbind() for one in scales)
        views = zip(self.keys.unbind(), self.values.unbind(), key_scales, value_scales)
        counted = self.lengths, self.host_lengths
        return [Layer(*view, *counted, index) for index, view in enumerate(views)]

    def row(self, index: int) -> "Cache":
        """One row as a cache of its own."""
        return self.rows(index, index + 1)

    def rows(self, start: int, stop: int) -> "Cache":
        """Some rows as a cache of their own.

        Memory and lengths are shared, so that advancing it counts here too.
        """
        part = slice(start, stop)
        stored = self.stored(lambda tensor: tensor[:, part])
        return Cache(*stored, self.lengths[part], self.host_lengths[part])

    def on_device(self) -> "Cache":
        """The same memory and lengths, counted on the device alone."""
        stored = self.stored(lambda tensor: tensor)
        return Cache(*stored, self.lengths, np.empty(0, dtype=np.int64))

    def advance(self, count: int) -> None:
        """Count `count` more tokens as seen in every row, after all layers have written them."""
        self.lengths += count
        if len(self.host_lengths):
            longest = int(self.host_lengths.max()) + count
            assert longest <= self.capacity, (longest, self.capacity)
            self.host_lengths += count

    def rewind(self, count: int) -> None:
        """Forget the newest `count` tokens of every row."""
        assert 0 <= count <= self.host_lengths.min(), (count, self.host_lengths)
        self.lengths -= count
        self.host_lengths -= count

    def count(self, lengths: np.ndarray) -> None:
        """Count so many tokens as seen in each row [B], as before a step that failed half way."""
        self.host_lengths[:] = lengths
        self.lengths.copy_(torch.from_numpy(lengths))

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` tokens a row, keeping what is there."""

        def wider(old: Tensor) -> Tensor:
            new = old.new_empty(*old.shape[:3], capacity, *old.shape[4:])
            new[:, :, :, : old.shape[3]] = old
            return new

        if capacity > self.capacity:
            self.keys, self.values, self.key_scales, self.value_scales = self.stored(wider)

    def tensors(self) -> dict[str, Tensor]:
        """What has been seen, by name, for saving.

        Keys and values are [L B K seen E], with 8 bits their scales [L B K seen], and lengths.
        """
        count = int(self.host_lengths.max())
        seen = self.stored(lambda tensor: tensor[:, :, :, :count])
        names = ("keys", "values", "key_scales", "value_scales")
        return {n: t for n, t in zip(names, seen) if t is not None} | {"lengths": self.lengths}
