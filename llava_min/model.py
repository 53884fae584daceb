"""The page that puts the others together: encode, prefill, decode.

in:  a plan and its visuals (tiles), or the newest ids
out: logits [B V], float32; the cache grows

    encode   tiles -> rows, a few tiles or frames at a time
    prefill  a whole prompt, chunk by chunk, into the cache
    decode   one more token for every row of a batch
Read decoder.py first. Read next: sampling.py.
Agrees with: LlavaOnevisionForConditionalGeneration of transformers; LlavaQwenForCausalLM of
LLaVA-NeXT.

B rows of a batch, T tokens, W decoder width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from . import projector
from .base import heap
from .cache import Cache
from .config import LlavaConfig
from .decoder import Decoder
from .image import Tiles
from .segments import CHUNK, TILES, Plan, Text
from .trace import see
from .vision import VisionTower


class Network(nn.Module):
    """Vision tower, projector, newline, decoder."""

    def __init__(self, config: LlavaConfig):
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision)
        self.projector = projector.Projector(config.vision.hidden_size, config.text.hidden_size)
        self.newline = (
            nn.Parameter(torch.empty(config.text.hidden_size)) if config.newline else None
        )
        self.decoder = Decoder(config.text)

    @property
    def device(self) -> torch.device:
        return self.decoder.embedding.weight.device

    def features(self, pixels: Sequence[np.ndarray], k: int) -> Iterator[Tensor]:
        """Tiles [B S S 3] -> the tower's features [k N D], k tiles at a time."""
        for start in range(0, len(pixels), k):
            if self.device.type == "cpu":
                heap.give_back()
            some = [pixels[index] for index in range(start, min(start + k, len(pixels)))]
            tiles = torch.from_numpy(np.stack(some)).to(self.device)
            yield self.vision(see("tiles", tiles, "B S S 3"))

    def pooled(self, features: Tensor) -> Tensor:
        """Features of some frames -> their projected rows [B N W].

        The family's pool_mode halves them, before or after the projector.
        """
        mode = self.config.pool_mode
        if mode is None:
            return self.projector(features)
        if self.config.pool_before_projector:
            return self.projector(projector.pool(features, mode))
        return projector.pool(self.projector(features), mode)

    @torch.inference_mode()
    def encode(self, visual: Tiles, video: bool, k: int = TILES) -> Iterator[Tensor]:
        """The rows [tokens W] of a picture in one piece, or of a clip k frames at a time."""
        config = self.config
        if video:
            for pooled in map(self.pooled, self.features(visual.pixels, k)):
                yield projector.frames_rows(pooled, self.newline, config.newline_position)
            end = projector.clip_end(self.newline, config.newline_position)
            if end is not None:
                yield end
            return
        projected = torch.cat(list(map(self.projector, self.features(visual.pixels, k))))
        if visual.grid is None:
            yield projector.single_tile_rows(projected, self.newline)
        else:
            yield projector.picture_rows(projected, visual.size, visual.grid, self.newline, config)

    @torch.inference_mode()
    def rows(self, plan: Plan, visuals: list[Iterator[Tensor]]) -> Iterator[Tensor]:
        """The rows of a prompt in order, in pieces [tokens W] of any length.

        A visual is encoded when it is reached.
        """
        remaining = iter(visuals)
        for segment in plan.segments:
            if isinstance(segment, Text):
                yield self.decoder.embed(torch.tensor([segment.ids], device=self.device))[0]
            else:
                yield from next(remaining)

    @torch.inference_mode()
    def prefill(
        self,
        plan: Plan,
        visuals: list[Iterator[Tensor]],
        cache: Cache,
        chunk: int = CHUNK,
        keep: str = "last",
        progress: Callable | None = None,
    ) -> Tensor:
        """Run a prompt through the decoder into a cache of one row, `chunk` tokens at a time.

        `visuals` are what `encode` gives, one for each picture or clip of the plan, in order.
        Returns logits [1 V] of the last token, or [T V] of all with keep="all". progress(done,
        total) is called with counts of tokens.
        """
        kept, done = [], 0
        for rows in chunks(self.rows(plan, visuals), chunk):
            hidden = self.decoder(rows[None], cache)
            cache.advance(rows.shape[0])
            done += len(rows)
            if progress:
                progress(done, plan.tokens)
            kept = [*kept, hidden] if keep == "all" else [hidden[:, -1:].clone()]
            del rows, hidden  # while the next frames are in the tower
        return self.decoder.logits(torch.cat(kept, dim=1))[0]

    @torch.inference_mode()
    def decode(self, ids: Tensor, cache: Cache) -> Tensor:
        """One step for every row: ids [B] -> logits [B V]."""
        hidden = self.decoder(self.decoder.embed(ids[:, None]), cache)
        cache.advance(1)
        return self.decoder.logits(hidden)[:, 0]


def chunks(pieces: Iterator[Tensor], size: int) -> Iterator[Tensor]:
    """Pieces [tokens W] of any length -> the same rows in pieces of `size`, the last shorter."""
    waiting: list[Tensor] = []
    for piece in pieces:
        while len(piece):
            room = size - sum(map(len, waiting))
            waiting.append(piece[:room])
            piece = piece[room:]
            if sum(map(len, waiting)) == size:
                yield torch.cat(waiting)
                waiting = []
    if waiting:
        yield torch.cat(waiting)
