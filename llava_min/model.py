"""The page that puts the others together: encode, prefill, decode.

in:  a plan and its visuals (tiles), or the newest ids
out: logits [B V], float32; the cache grows

    encode   tiles -> rows, a few tiles or frames at a time
    reading  a prompt, chunk by chunk, into the cache; prefill is all of it at once
    decode   one more token for every row of a batch
Read decoder.py first. Read next: sampling.py.
Agrees with: LlavaOnevisionForConditionalGeneration of transformers; LlavaQwenForCausalLM of
LLaVA-NeXT.

B rows of a batch, T tokens, W decoder width, V vocabulary.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from . import projector
from .cache import Cache
from .config import LlavaConfig
from .decoder import Decoder
from .errors import PromptError
from .image import Pixels
from .segments import CHUNK, TILES, Clip, Plan, Text, Visual
from .trace import see
from .vision import VisionTower


@dataclass(frozen=True)
class Portion:
    """A portion of a prompt was read: `done` of its `total` tokens so far."""

    done: int
    total: int


class Network(nn.Module):
    """Vision tower, projector, newline, decoder."""

    def __init__(self, config: LlavaConfig):
        super().__init__()
        self.config = config
        self.vision: nn.Module = VisionTower(config.vision)
        self.projector = projector.Projector(config.vision.hidden_size, config.text.hidden_size)
        self.newline = (
            nn.Parameter(torch.empty(config.text.hidden_size)) if config.newline else None
        )
        self.decoder = Decoder(config.text)

    @property
    def device(self) -> torch.device:
        return self.decoder.embedding.weight.device

    def features(self, pixels: Pixels, k: int) -> Iterator[Tensor]:
        """Tiles [B S S 3] -> the tower's features [k N D], k tiles at a time."""
        for start in range(0, len(pixels), k):
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
    def encode(
        self, visual: Visual, pixels: Pixels, k: int = TILES
    ) -> Generator[Tensor, None, None]:
        """The rows [tokens W] of a picture or clip, whose tiles are `pixels`, k tiles at a time.

        After each k tiles comes a piece of no rows, so that other work can come between. A clip's
        rows follow at once, a picture's in one piece at the end.
        """
        if isinstance(visual, Clip):
            for pooled in map(self.pooled, self.features(pixels, k)):
                yield no_rows(pooled)
                yield projector.frames_rows(pooled, self.newline, visual.newlines)
            end = projector.clip_end(self.newline, visual.newlines)
            if end is not None:
                yield end
            return
        parts = []
        for projected in map(self.projector, self.features(pixels, k)):
            parts.append(projected)
            yield no_rows(projected)
        projected = torch.cat(parts)
        parts.clear()  # only the whole is needed from here on
        if visual.grid is None:
            yield projector.single_tile_rows(projected, self.newline)
        else:
            assert self.newline is not None  # families with grids have one
            yield projector.picture_rows(projected, visual.grid, self.newline)

    @torch.inference_mode()
    def rows(self, plan: Plan, visuals: Iterable[Iterator[Tensor]]) -> Iterator[Tensor]:
        """The rows of a prompt in order, in pieces [tokens W] of any length.

        A visual is encoded when it is reached. PromptError where its rows are not those planned.
        """
        remaining = iter(visuals)
        for number, segment in enumerate(plan.segments, start=1):
            if isinstance(segment, Text):
                yield self.decoder.embed(torch.tensor([segment.ids], device=self.device))[0]
            else:
                yield from as_planned(next(remaining, iter(())), segment.tokens, number)
        if next(remaining, None) is not None:
            raise PromptError(UNPLANNED, "visuals", "as many as were planned", "more")

    @torch.inference_mode()
    def reading(
        self,
        plan: Plan,
        visuals: Iterable[Iterator[Tensor]],
        cache: Cache,
        chunk: Callable[[], int] = lambda: CHUNK,
        keep: str = "last",
    ) -> Generator[Portion, None, Tensor]:
        """Run a prompt through the decoder into a cache of one row, `chunk()` tokens at a time.

        `visuals` are what `encode` gives, one for each picture or clip of the plan, in order. After
        each chunk, and after a few tiles, it yields a Portion, so that other work can come between.
        It returns logits [1 V] of the last token, or [T V] of all with keep="all".
        """
        kept: list[Tensor] = []
        done = 0
        for rows in chunks(self.rows(plan, visuals), chunk):
            if len(rows):
                done += len(rows)
                last = None if keep == "all" else int(done == plan.tokens)
                hidden = self.decoder(rows[None], cache, last)
                cache.advance(len(rows))
                kept = [*kept, hidden] if keep == "all" else [hidden.clone()]
                del hidden
            del rows  # while the next tiles are in the tower
            yield Portion(done, plan.tokens)
        return self.decoder.logits(torch.cat(kept, dim=1))[0]

    def prefill(
        self,
        plan: Plan,
        visuals: Iterable[Iterator[Tensor]],
        cache: Cache,
        chunk: int = CHUNK,
        keep: str = "last",
    ) -> Tensor:
        """`reading` to its end: logits [1 V] of the last token, or [T V] of all."""
        return finished(self.reading(plan, visuals, cache, lambda: chunk, keep))

    @torch.inference_mode()
    def decode(self, ids: Tensor, cache: Cache) -> Tensor:
        """One step for every row: ids [B] -> logits [B V]."""
        hidden = self.decoder(self.decoder.embed(ids[:, None]), cache)
        cache.advance(1)
        return self.decoder.logits(hidden)[:, 0]


UNPLANNED = "cannot read the prompt"


def as_planned(pieces: Iterator[Tensor], tokens: int, number: int) -> Iterator[Tensor]:
    """The pieces [n W] of a visual, which must be `tokens` rows together; PromptError otherwise."""
    done = 0
    for piece in pieces:
        done += len(piece)
        if done > tokens:
            break
        yield piece
    if done != tokens:
        where, found = f"the rows of segment {number}", f"{done:,} rows"
        raise PromptError(UNPLANNED, where, f"{tokens:,} rows as planned", found)


def finished(work: Generator[Portion, None, Tensor]) -> Tensor:
    """What a generator returns at its end."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def no_rows(like: Tensor) -> Tensor:
    """A piece [0 W] for rows [.. W]; a view of them would keep them alive."""
    return like.new_empty(0, like.shape[-1])


def chunks(pieces: Iterator[Tensor], size: Callable[[], int]) -> Iterator[Tensor]:
    """Pieces [tokens W] of any length -> the same rows in pieces of `size()`, the last shorter.

    The size is asked for whenever rows come, and may change. A piece of no rows is passed on.
    """
    waiting: list[Tensor] = []
    for piece in pieces:
        if not len(piece):
            yield piece
        while len(piece):
            wanted, there = size(), sum(map(len, waiting))
            waiting.append(piece[: max(0, wanted - there)])
            piece = piece[max(0, wanted - there) :]
            if there + len(waiting[-1]) >= wanted:
                yield torch.cat(waiting)
                waiting = []
    if waiting:
        yield torch.cat(waiting)
