"""The weights of attention of a few rows, from their queries and the keys in the cache.

in:  queries [1 T H E] as they pass the place "query", a layer of the cache
out: weights [H T C] of C columns at a time

    weights = softmax(query key^T / sqrt(E)), causal

No way of computing attention ever has these numbers whole, so they are made again next to it. A
block of columns is weighed at a time: the first pass over the blocks sums each row's exponentials,
the second divides by the sum. At any length this takes a few million numbers. The keys are those
that the decoder itself looks at: rotated, and multiplied out where they have 8 bits.
Read cache.py, kernels/attention.py first. Read next: explain/measures.py.
Agrees with: kernels/attention.py (weights times values are what passes "mixed", tested);
output_attentions of transformers.

T rows, S tokens seen before, C columns of a block, H query heads, K key/value heads, E head
dimension.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..cache import Cache, Layer
from ..kernels import rope
from ..kernels.norm import wide
from ..trace import observing

NUMBERS = 2**19  # weights of a block, all heads and rows together

Take = Callable[[int, slice, Tensor], None]  # gets layer, columns, weights [H T C]


def vectors(stored: Tensor, scales: Tensor | None, columns: slice) -> Tensor:
    """Keys or values [1 K S E] of a row of the cache, some columns in float32 at least: [K C E]."""
    part = stored[0, :, columns]
    if scales is None:
        return wide(part)
    return rope.dequantise(part, scales[0, :, columns], torch.float32)


def grouped(query: Tensor, heads: int) -> Tensor:
    """Queries [1 T H E] by key/value head and divided by sqrt(E), in float32 at least: [K GT E]."""
    rows = wide(query[0]).transpose(0, 1) * query.shape[-1] ** -0.5
    return rows.reshape(heads, -1, query.shape[-1])


def scores(queries: Tensor, new: int, layer: Layer, columns: slice) -> Tensor:
    """Scores [H T C] of grouped queries, -inf where a column comes after its row."""
    keys = vectors(layer.keys, layer.key_scales, columns)
    found = (queries @ keys.mT).view(-1, new, keys.shape[1])
    if columns.stop > layer.longest + 1:
        rows = torch.arange(new, device=keys.device) + layer.longest
        later = torch.arange(columns.start, columns.stop, device=keys.device) > rows[:, None]
        found.masked_fill_(later, -torch.inf)
    return found


def parts(new: int, heads: int, layer: Layer) -> list[slice]:
    """The columns that `new` rows can see, in blocks."""
    end, size = layer.longest + new, max(NUMBERS // (heads * new), 1)
    return [slice(start, min(start + size, end)) for start in range(0, end, size)]


def total(query: Tensor, layer: Layer) -> Tensor:
    """The logarithm of each row's sum of exponentials: [H T 1]."""
    _, new, heads, _ = query.shape
    queries = grouped(query, layer.keys.shape[1])
    found = torch.full((heads, new), -torch.inf, device=query.device, dtype=queries.dtype)
    for columns in parts(new, heads, layer):
        found = torch.logaddexp(found, scores(queries, new, layer, columns).logsumexp(-1))
    return found[..., None]


def blocks(query: Tensor, layer: Layer, sums: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(columns, weights [H T C]) from the first column to the last.

    query: [1 T H E]; the layer holds their keys after those of the tokens seen before. sums: their
    `total`.
    """
    _, new, heads, _ = query.shape
    queries = grouped(query, layer.keys.shape[1])
    for columns in parts(new, heads, layer):
        yield columns, scores(queries, new, layer, columns).sub_(sums).exp_()


@contextmanager
def weighing(cache: Cache, take: Take, known: dict[int, Tensor]) -> Iterator[None]:
    """Give `take` the weights of all rows that run through the decoder inside a `with` block.

    cache: the one that they run with, of one row. known: the `total` of each layer, which is
    filled for when the same rows run again.
    """
    layers = cache.layers()

    def observer(name: str, layer: int | None, tensor: Tensor) -> Tensor:
        if name == "query":
            assert layer is not None
            if layer not in known:
                known[layer] = total(tensor, layers[layer])
            for columns, weights in blocks(tensor, layers[layer], known[layer]):
                take(layer, columns, weights)
        return tensor

    with observing(observer):
        yield
