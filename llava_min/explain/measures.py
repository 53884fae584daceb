"""From blocks of weights to what is kept of them: shares, the best head, planes.

in:  weights [H T C] of a layer, block by block
out: shares [L H T kinds], a mark for each head, planes [T V] of chosen heads and means

The rows run through the decoder twice. The first time only sums are taken. They say which heads are
worth keeping, and the second time those are kept, as many as fit into a fixed number of bytes.
Read explain/attention.py first. Read next: explain/explanation.py.

L layers, H heads, T words, C columns of a block, V rows of visuals.
"""

import numpy as np
import torch
from torch import Tensor

from ..config import TextConfig
from .rows import KINDS, PATCHES, Rows

KEPT = 28 * 2**20  # bytes of planes
LEAST = 4  # planes: the mean of all, which takes two while it is summed, last layer, best head
Key = tuple[int | None, int | None]  # (layer, head); None is the mean of all


class Shares:
    """How much of each head's attention goes to which kind of token, and how well it is aimed."""

    def __init__(self, text: TextConfig, words: int, kinds: np.ndarray):
        shape = (text.num_layers, text.num_heads, words)
        self.shares = torch.zeros(*shape, len(KINDS))
        self.spread = torch.zeros(shape)  # sum of -w log w over patches
        self.kinds = torch.from_numpy(kinds)
        self.patches = torch.from_numpy(np.isin(kinds, PATCHES))

    def take(self, layer: int, columns: slice, weights: Tensor) -> None:
        """Add a block of weights [H T C]."""
        weights = weights.float().cpu()
        self.shares[layer].index_add_(-1, self.kinds[columns], weights)
        on_patches = weights[..., self.patches[columns]]
        self.spread[layer] += torch.special.entr(on_patches).sum(-1)

    def marks(self) -> Tensor:
        """How well each head is aimed at a place, 0 to 1: [L H], the mean over the words.

        It is share x (1 - entropy): the share of patches, and their entropy, where 1 is that of
        equal weights.
        """
        share = self.shares[..., PATCHES].sum(-1)
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


def wanted(marks: Tensor, words: int, rows: int) -> list[Key]:
    """The planes to keep, the most useful first: as many as fit.

    These are the mean of all, the last layer, the best head, each layer, and the other heads from
    the best one on.
    """
    layers, heads = marks.shape
    best = [divmod(number, heads) for number in marks.flatten().argsort(descending=True).tolist()]
    order: list[Key] = [(None, None), (layers - 1, None), best[0]]
    order += [(layer, None) for layer in range(layers - 1)] + best[1:]
    return order[: max(KEPT // (2 * words * max(rows, 1)) - 1, LEAST - 1)]
