"""The plan of a prompt: text, pictures and clips in order, and how many tokens each takes.

in:  sizes of pictures, times of clips, ids of text
out: Plan(segments, context)

Arithmetic alone, without torch and before a pixel is decoded. A picture's tokens are the patches of
its base tile, then the patches of its grid without the border, with one newline after each row. For
1000 x 500 pixels in tiles of 27 x 27 patches the grid is (2, 3), of whose 54 rows 40 show the
picture: 27 * 27 + 40 * (81 + 1) = 4009 tokens.
Read tokenizer.py first. Read next: cache.py.
Agrees with: the rows that projector.py makes, for every size (tested); transformers' processors.
"""

import math
from dataclasses import dataclass

from .anyres import best_grid, capped, unpadded
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
class Image:
    """A picture of `size` (width, height); `grid` (rows, columns) is None where it is one tile."""

    size: tuple[int, int]
    grid: tuple[int, int] | None
    tokens: int

    @property
    def tiles(self) -> int:
        """Tiles that the tower sees: the whole picture, and those of the grid."""
        return 1 + math.prod(self.grid) if self.grid else 1


@dataclass(frozen=True)
class Video:
    """A clip of frames at `times`, in seconds."""

    times: tuple[float, ...]
    tokens: int


@dataclass(frozen=True)
class Plan:
    """A prompt as segments in order, and the longest sequence that the model knows."""

    segments: tuple[Text | Image | Video, ...]
    context: int

    @property
    def tokens(self) -> int:
        return sum(segment.tokens for segment in self.segments)

    def check_fits(self, max_tokens: int) -> None:
        """PromptError with the arithmetic where prompt and answer exceed the context."""
        if self.tokens + max_tokens <= self.context:
            return
        kinds = (("text", Text), ("pictures", Image), ("video", Video))
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


def image_tokens(size: tuple[int, int], grid: tuple[int, int] | None, config: LlavaConfig) -> int:
    """Rows that a picture becomes: 2929 of them for 640 x 480 pixels in tiles of 384."""
    side = config.vision.side
    if grid is None:
        return side * side + config.newline
    patches = (grid[0] * side, grid[1] * side)
    rows, columns = unpadded(size, patches, rounded=config.unpad_rounded)
    kept = (rows.stop - rows.start, columns.stop - columns.start)
    height, width = capped(kept, side * side, config.max_tiles)
    return side * side + height * (width + 1)


def video_tokens(frames: int, config: LlavaConfig) -> int:
    """Rows that a clip of `frames` frames becomes."""
    side, position = config.vision.side, config.newline_position
    if config.pool_mode is None:
        return frames * side * side
    half = math.ceil(side / 2) if config.pool_mode == "bilinear" else side // 2
    per_frame = half * (half + 1) if position == "grid" else half * half + (position == "frame")
    return frames * per_frame + (position == "one_token")


def picture(size: tuple[int, int], mode: str, config: LlavaConfig) -> Image:
    """The segment of a picture that becomes tiles by `mode`, one of config.image_modes."""
    grid = best_grid(size, config.grids, config.tile) if mode == "anyres" else None
    return Image(size, grid, image_tokens(size, grid, config))


def clip(times: list[float], config: LlavaConfig) -> Video:
    """The segment of a clip sampled at `times`."""
    return Video(tuple(times), video_tokens(len(times), config))


CHUNK, TILES = 2048, 8  # tokens of a prefill and tiles of the tower at a time, at most
