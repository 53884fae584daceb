"""From blocks of weights to what is kept of them: shares, marks, planes.

in:  weights [H T C] of a layer, block by block
out: shares [L H T kinds], marks for heads and layers, planes [T V] of chosen heads and means

The rows run through the decoder twice. The first time only sums are taken. They say which heads and
layers are worth keeping, and the second time those are kept, as many as fit into a fixed number of
bytes.
Read explain/attention.py first. Read next: explain/sinks.py.

L layers, H heads, T words, C columns of a block, V rows of visuals.
"""

import numpy as np
import torch
from torch import Tensor

from ..config import TextConfig
from .rows import KINDS, PATCHES, Rows

KEPT = 28 * 2**20  # bytes of planes
LEAST = 4  # planes: the mean of all, which takes two while it is summed, best layer, best head
Key = tuple[int | None, int | None]  # (layer, head); None is the mean of all


class Shares:
    """How much of each head's attention goes to which kind of token, and how well it is aimed."""

    def __init__(self, text: TextConfig, words: int, kinds: np.ndarray):
        layers, heads = text.num_layers, text.num_heads
        self.shares = torch.zeros(layers, heads, words, len(KINDS))
        # sum of -w log w over patches: of each head, and of the mean of all
        self.spread = torch.zeros(layers, heads + 1, words)
        self.kinds = torch.from_numpy(kinds)
        self.patches = torch.from_numpy(np.isin(kinds, PATCHES))

    def take(self, layer: int, columns: slice, weights: Tensor) -> None:
        """Add a block of weights [H T C]."""
        weights = weights.float().cpu()
        self.shares[layer].index_add_(-1, self.kinds[columns], weights)
        on_patches = weights[..., self.patches[columns]]
        self.spread[layer, :-1] += torch.special.entr(on_patches).sum(-1)
        self.spread[layer, -1] += torch.special.entr(on_patches.mean(0)).sum(-1)

    def marks(self) -> Tensor:
        """How well each head is aimed at a place, and last the mean of a layer's heads: [L H + 1].

        A mark is from 0 to 1, the mean over the words of share x (1 - entropy): the share of
        patches, and their entropy, where 1 is that of equal weights. Heads that are aimed at
        different places have a mean that is aimed at none.
        """
        share = self.shares[..., PATCHES].sum(-1)
        share = torch.cat([share, share.mean(1, keepdim=True)], dim=1)
        inside = share.clamp(min=1e-9)
        entropy = self.spread / inside + inside.log()  # of weights / share
        largest = np.log(max(int(self.patches.sum()), 2))
        return (share * (1 - entropy / largest)).mean(-1)


class Planes:
    """Weights of all words on all rows of visuals, of chosen heads and means: float16 [T V]."""

    def __init__(self, text: TextConfig, words: int, rows: Rows, wanted: list[Key]):
        self.text, self.tokens = text, torch.from_numpy(rows.tokens)
        shape = (words, len(rows.tokens))
        self.mean = torch.zeros(shape)
        self.planes = {key: torch.zeros(shape, dtype=torch.float16) for key in wanted[1:]}

    def take(self, layer: int, columns: slice, weights: Tensor) -> None:
        """Keep what is wanted of a block of weights [H T C]."""
        ends = torch.tensor([columns.start, columns.stop])
        first, last = torch.searchsorted(self.tokens, ends).tolist()
        inside = (self.tokens[first:last] - columns.start).to(weights.device)
        found = weights[..., inside].float().cpu()
        mean = found.mean(0)
        self.mean[:, first:last] += mean / self.text.num_layers
        for (at, head), plane in self.planes.items():
            if at == layer:
                plane[:, first:last] = mean if head is None else found[head]

    def arrays(self) -> dict[Key, np.ndarray]:
        """All planes by (layer, head), in the order in which they were wanted."""
        whole = {(None, None): self.mean.half()} | self.planes
        return {key: plane.numpy() for key, plane in whole.items()}


def words_that_fit(words: int, rows: int) -> int:
    """How many words the least planes have room for, where each has so many rows."""
    return max(1, min(words, KEPT // (2 * LEAST * max(rows, 1))))


def suggested(marks: Tensor) -> tuple[int, None]:
    """The layer whose mean is aimed best, by marks [L H + 1]."""
    return int(marks[:, -1].argmax()), None


def wanted(marks: Tensor, words: int, rows: int) -> list[Key]:
    """The planes to keep, the most useful first: as many as fit.

    These are the mean of all, the layer whose mean is aimed best, the best head, the other layers
    from the last one on, and the other heads from the best one on.
    """
    heads = marks[:, :-1]
    order = heads.flatten().argsort(descending=True).tolist()
    best: list[Key] = [divmod(number, heads.shape[1]) for number in order]
    layers: list[Key] = [(layer, None) for layer in reversed(range(len(marks)))]
    first = suggested(marks)
    layers.remove(first)
    whole = [(None, None), first, best[0], *layers, *best[1:]]
    return whole[: max(KEPT // (2 * words * max(rows, 1)) - 1, LEAST - 1)]
