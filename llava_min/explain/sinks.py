"""Sinks: rows at which words look much, and of which they get next to nothing.

in:  values in the cache, weights [T V] of a map
out: how long the values of each row are, which rows are sinks

A softmax must look somewhere. Heads that need nothing look at a few rows whose values are near
zero: the first token, and in large models some patches that show background. A weight says nothing
there, because what is read is the weight times the value (Kobayashi et al. 2020, "Attention is not
only a weight"). A sink is a patch with at least LOOKS times the weight of an average patch, the
mean over the words, and with values at most SHORT times as long as those of the median patch.
Nothing is taken out of a map for that: sinks are marked.
Read explain/measures.py first. Read next: explain/explanation.py.

K key/value heads, T words, V rows of visuals, S tokens.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ..cache import Cache, Layer
from ..config import TextConfig
from .attention import NUMBERS, vectors
from .measures import Key
from .rows import Rows

LOOKS, SHORT = 5.0, 0.25


def norms(layer: Layer, tokens: int) -> Tensor:
    """How long the values of the first tokens of a row of the cache are: [K S], on the CPU."""
    _, heads, _, head_dim = layer.values.shape
    size = max(NUMBERS // (heads * head_dim), 1)
    found = torch.empty(heads, tokens)  # at once: small pieces would keep freed blocks from joining
    for start in range(0, tokens, size):
        part = slice(start, min(start + size, tokens))
        found[:, part] = vectors(layer.values, layer.value_scales, part).norm(dim=-1)
    return found


def lengths(cache: Cache, text: TextConfig, rows: Rows, keys: Iterable[Key]) -> dict[Key, Tensor]:
    """How long each row's values are over those of the median patch: [V] for each map.

    A map of several heads has the mean over them.
    """
    found = {key: torch.zeros(len(rows.tokens)) for key in keys}
    patches, tokens = torch.from_numpy(rows.patches), torch.from_numpy(rows.tokens)
    for number, layer in enumerate(cache.layers()):
        long = norms(layer, int(tokens[-1]) + 1)[:, tokens]
        long /= long[:, patches].median(1, keepdim=True).values.clamp(min=1e-9)
        for (at, head), lengths in found.items():
            if at is None:
                lengths += long.mean(0) / text.num_layers
            elif at == number:
                group = text.num_heads // text.num_kv_heads
                lengths += long.mean(0) if head is None else long[head // group]
    return found


def sinks(plane: np.ndarray, lengths: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Which patches of a map [T V] are sinks: bool [V].

    >>> weights, short = np.array([[0.9, 0.1, 0.0, 0.0, 0, 0, 0]]), np.array([0.1, 0.1, *[1] * 5])
    >>> sinks(weights, short, np.ones(7, bool)).tolist()[:3]
    [True, False, False]
    """
    looks = plane.astype(np.float32).mean(0)
    equal = looks[patches].mean() if patches.any() else 0.0
    return patches & (looks >= LOOKS * equal) & (looks > 0) & (lengths <= SHORT)
