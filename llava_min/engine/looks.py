"""Rows of pictures and clips that the tower saw lately, so that it need not look at them again.

in:  visuals, and how to encode them
out: their rows [tokens W], in pieces

A conversation over HTTP sends its pictures again with each turn, and another question about the
same picture begins with other words. The rows of a visual depend on its tiles alone.
Read engine/rows.py first. Read next: engine/slots.py.
"""

from collections import OrderedDict
from collections.abc import Callable, Generator

import torch
from torch import Tensor

from ..request.visuals import Encodable

Encode = Callable[[Encodable, int], Generator[Tensor, None, None]]  # tiles at a time


class Looks:
    """The rows of visuals in at most `limit` bytes; the least recently used are dropped first."""

    def __init__(self, encode: Encode, limit: int) -> None:
        self.inner, self.limit, self.bytes = encode, limit, 0
        self.rows: OrderedDict[bytes, Tensor] = OrderedDict()  # by digest

    def encode(self, visual: Encodable, k: int) -> Generator[Tensor, None, None]:
        """The rows of a visual: those that are here, or else from the tower, k tiles at a time."""
        found = self.rows.get(visual.digest)
        if found is not None:
            self.rows.move_to_end(visual.digest)
            yield found
            return
        pieces: list[Tensor] = []
        fits = True
        for piece in self.inner(visual, k):
            fits = fits and piece[:1].nbytes * visual.segment.tokens <= self.limit
            if fits:
                pieces.append(piece)
            yield piece
        if fits:
            self.keep(visual.digest, torch.cat(pieces))

    def keep(self, digest: bytes, rows: Tensor) -> None:
        """Add rows, and forget those used longest ago until all fit."""
        if digest not in self.rows:
            self.rows[digest] = rows
            self.bytes += rows.nbytes
        while self.bytes > self.limit:
            self.bytes -= self.rows.popitem(last=False)[1].nbytes
