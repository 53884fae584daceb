"""The plan of a prompt: text, pictures and clips in order, and the shape of their rows.

in:  sizes of pictures, times of clips, ids of text
out: Plan(segments, context)

Arithmetic alone, without torch and before a pixel is decoded. A picture's tokens are the patches of
its base tile, then the patches of its grid without the border, with one newline after each row. For
1000 x 500 pixels in tiles of 27 x 27 patches the grid is (2, 3), of whose 54 rows 40 show the
picture: 27 * 27 + 40 * (81 + 1) = 4009 tokens.
model.py refuses rows that differ from what was planned here.
Read tokenizer.py first. Read next: cache.py.
Agrees with: the rows that projector.py makes, for every size (tested); transformers' processors.
"""

import math
from dataclasses import dataclass

from .anyres import Grid
from .config import LlavaConfig
from .errors import PromptError


@dataclass(frozen=True)
class Text:
    """A run of token ids."""

    ids: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Picture:
    """A picture of `size` (width, height) pixels as tiles of side x side patches.

    mode: how it became tiles, one of image.MODES. grid is None where it is one tile; `newline` says
    whether one follows that.
    """

    size: tuple[int, int]
    mode: str
    side: int
    newline: bool
    grid: Grid | None

    @property
    def tiles(self) -> int:
        """Tiles that the tower sees: the whole picture, and those of the grid."""
        return 1 + math.prod(self.grid.tiles) if self.grid else 1

    @property
    def tokens(self) -> int:
        """The base tile's patches, then those of the grid with a newline after each row."""
        base = self.side**2
        if self.grid is None:
            return base + self.newline
        rows, columns = self.grid.shape
        return base + rows * (columns + 1)


@dataclass(frozen=True)
class Clip:
    """A clip: frames of `size` (width, height) pixels, shown at `times` in seconds.

    Each frame is side x side patches after pooling. newlines: where they go, one of
    "grid" (after each row of each frame), "frame", "one_token" (after the clip), "no_token".
    """

    times: tuple[float, ...]
    size: tuple[int, int]
    side: int
    newlines: str

    @property
    def tiles(self) -> int:
        """Tiles that the tower sees: one for each frame."""
        return len(self.times)

    @property
    def frame_tokens(self) -> int:
        """Rows of one frame."""
        ends = {"grid": self.side, "frame": 1}
        return self.side**2 + ends.get(self.newlines, 0)

    @property
    def tokens(self) -> int:
        return len(self.times) * self.frame_tokens + (self.newlines == "one_token")


Visual = Picture | Clip
Segment = Text | Visual


@dataclass(frozen=True)
class Plan:
    """A prompt as segments in order, and the longest sequence that the model knows."""

    segments: tuple[Segment, ...]
    context: int

    @property
    def tokens(self) -> int:
        return sum(segment.tokens for segment in self.segments)

    def check_fits(self, max_tokens: int) -> None:
        """PromptError with the arithmetic where prompt and answer exceed the context."""
        if self.tokens + max_tokens <= self.context:
            return
        kinds = (("text", Text), ("pictures", Picture), ("video", Clip))
        parts = [
            (name, sum(s.tokens for s in self.segments if isinstance(s, kind)))
            for name, kind in kinds
        ]
        sum_of = " + ".join(f"{tokens:,} {name}" for name, tokens in parts if tokens)
        raise PromptError(
            "the prompt is too long",
            "context",
            f"at most {self.context:,} tokens",
            f"{sum_of} + {max_tokens:,} for the answer = {self.tokens + max_tokens:,}",
            "Use fewer --frames, a lower --max-tiles or --max-tokens, or a larger --context.",
        )


def picture(size: tuple[int, int], mode: str, config: LlavaConfig) -> Picture:
    """The segment of a picture that becomes tiles by `mode`, one of config.image_modes."""
    grid = Grid.of(size, config) if mode == "anyres" else None
    return Picture(size, mode, config.vision.side, config.newline, grid)


def clip(times: list[float], size: tuple[int, int], config: LlavaConfig) -> Clip:
    """The segment of a clip of frames of `size` sampled at `times`."""
    side = config.vision.side
    if config.pool_mode is not None:
        side = math.ceil(side / 2) if config.pool_mode == "bilinear" else side // 2
    return Clip(tuple(times), size, side, config.newline_position)


CHUNK, TILES = 2048, 8  # tokens of a prefill and tiles of the tower at a time, at most
