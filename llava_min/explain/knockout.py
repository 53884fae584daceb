"""Taking something away: patches, heads, or the way from text to pictures.

in:  what to take away, and for the last the cache that a prompt is read into
out: `with` blocks inside of which the model does without it

What is left is scored as ever, so the difference is what the answer needed. It does not say that
nothing else could have done the same.
Read trace.py, explain/attention.py first. Read next: engine/explaining.py.

T rows, V rows of visuals, H heads, E head dimension.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor

from ..cache import Cache
from ..trace import edit, observing
from .attention import blocks, total, vectors


def without_patches(rows: Sequence[int]) -> AbstractContextManager[None]:
    """Put the mean of all rows of a visual in the place of some, while one prompt is read.

    rows: their numbers among the V rows of all visuals, as in Explanation.rows.
    """
    chosen, passed = np.array(rows), 0

    def change(piece: Tensor) -> Tensor:
        nonlocal passed
        own = chosen[(passed <= chosen) & (chosen < passed + len(piece))] - passed
        passed += len(piece)
        piece[torch.from_numpy(own)] = piece.mean(0)
        return piece

    return edit("visual_rows", None, change)


@contextmanager
def without_heads(heads: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Silence heads (layer, head): their output is zero."""

    def silenced(layer: int) -> AbstractContextManager[None]:
        own = [head for at, head in heads if at == layer]

        def change(mixed: Tensor) -> Tensor:
            mixed[:, :, own] = 0
            return mixed

        return edit("mixed", layer, change)

    with ExitStack() as stack:
        for layer in {layer for layer, _ in heads}:
            stack.enter_context(silenced(layer))
        yield


@contextmanager
def without_looking(cache: Cache, visual: np.ndarray) -> Iterator[None]:
    """Let no row of text look at a row of a visual; the rest of its attention adds up to one.

    cache: the one that the prompt is read into. visual: bool [S], of every token that it will hold.
    """
    layers, seen = cache.layers(), torch.from_numpy(visual).to(cache.keys.device)
    queries: list[Tensor] = []

    def observer(name: str, index: int | None, tensor: Tensor) -> Tensor:
        if name == "query":
            queries[:] = [tensor]
        if name != "mixed":
            return tensor
        assert index is not None
        layer, (query,) = layers[index], queries
        shares = tensor.new_zeros(query.shape[2], query.shape[1], 1)
        mixed = tensor.new_zeros(query.shape[2], query.shape[1], query.shape[3])  # H T E
        for columns, weights in blocks(query, layer, total(query, layer)):
            values = vectors(layer.values, layer.value_scales, columns)
            values = values.repeat_interleave(len(weights) // len(values), dim=0)
            weights = weights.masked_fill(seen[columns], 0)
            shares += weights.sum(-1, keepdim=True)
            mixed += (weights @ values).to(mixed.dtype)
        start = layer.longest
        text = ~seen[start : start + query.shape[1], None, None]
        return torch.where(text, (mixed / shares.clamp(min=1e-30)).transpose(0, 1), tensor)

    with observing(observer):
        yield
