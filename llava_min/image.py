"""A picture -> square tiles of uint8, as the vision tower was trained to see them.

in:  a PIL image in RGB
out: tiles [B S S 3] uint8

Everything here is Pillow's bicubic on uint8 and integer arithmetic: the tiles are bit-equal to
those of the original code, or within one level where one side is over 50 times the other. vision.py
normalises them later, on the model's device.
Read anyres.py first. Read next: vision.py.
Agrees with: LlavaOnevisionImageProcessorPil of transformers; process_anyres_image of LLaVA-NeXT.

B tiles, S tile side in pixels.
"""

import math
from typing import Protocol

import numpy as np
from PIL import Image

from .anyres import Grid, fitted
from .config import LlavaConfig

# beyond this ratio of sides, or beyond this side of a padded square, a level may differ by one
EXTREME, LARGEST = 50, 16_384
PART = 2**22  # pixels of a padded square that are made at a time


def squeezed(picture: Image.Image, tile: int) -> np.ndarray:
    """The whole picture in one tile, its ratio lost: [S S 3]."""
    return np.array(picture.resize((tile, tile), Image.Resampling.BICUBIC))


def anyres_tiles(picture: Image.Image, config: LlavaConfig) -> np.ndarray:
    """The squeezed picture, then the tiles of its grid in reading order: [1 + tiles S S 3].

    The picture is centred on the grid, with black around it.
    """
    tile, grid = config.tile, Grid.of(picture.size, config).tiles
    canvas_size = (grid[1] * tile, grid[0] * tile)
    inner = picture.resize(fitted(picture.size, canvas_size), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", canvas_size)
    canvas.paste(inner, ((canvas_size[0] - inner.width) // 2, (canvas_size[1] - inner.height) // 2))
    cut = np.asarray(canvas).reshape(grid[0], tile, grid[1], tile, 3).swapaxes(1, 2)
    return np.concatenate([squeezed(picture, tile)[None], cut.reshape(-1, tile, tile, 3)])


def seen_from(old: int, new: int, first: int, last: int) -> tuple[tuple[float, float], int, int]:
    """Which of `old` pixels decide pixels `first` to `last` of `new` ones.

    ((start, end), low, high): the old pixels from `low` to `high` do, and the new ones lie from
    `start` to `end` among them. A filter sees a little more than that.

    >>> seen_from(1000, 100, 50, 60)
    ((21.0, 121.0), 479, 621)
    >>> seen_from(100, 1000, 50, 60), seen_from(9, 9, 0, 9)
    (((3.0, 4.0), 2, 9), ((0.0, 9.0), 0, 9))
    """
    scale = old / new
    start, end, reach = first * old / new, min(last * old / new, old), 2 * max(scale, 1) + 1
    low, high = max(math.floor(start - reach), 0), min(math.ceil(end + reach), old)
    return (start - low, end - low), low, high


def padded_tile(picture: Image.Image, config: LlavaConfig) -> np.ndarray:
    """One tile [1 S S 3]: the picture centred on a square of the mean colour.

    It is used for several pictures at once, and by LLaVA-1.5. The square may be far larger than the
    picture and is never made whole. Pillow resizes rows before columns, so some rows are resized at
    a time; those above and below the picture have one colour before and after.
    """
    tile, side = config.tile, max(picture.size)
    mean = tuple(int(255 * channel) for channel in config.vision.mean)
    left, top = (side - picture.width) // 2, (side - picture.height) // 2
    first, last = 0, tile  # the columns of the tile that are not of one colour
    if side > min(EXTREME * picture.width, LARGEST):
        _, first, last = seen_from(tile, side, left, left + picture.width)
    box, low, high = seen_from(side, tile, first, last)
    canvas = Image.new("RGB", (tile, side), mean)
    rows = max(PART // (high - low), 1)
    for row in range(0, picture.height, rows):
        count = min(rows, picture.height - row)
        part = Image.new("RGB", (high - low, count), mean)
        part.paste(picture, (left - low, -row))
        size, seen = (last - first, count), (box[0], 0, box[1], count)
        canvas.paste(part.resize(size, Image.Resampling.BICUBIC, seen), (first, top + row))
    return squeezed(canvas, tile)[None]


def square_tile(picture: Image.Image, config: LlavaConfig) -> np.ndarray:
    """One tile [1 S S 3]: the picture squeezed."""
    return squeezed(picture, config.tile)[None]


def cropped_tile(picture: Image.Image, config: LlavaConfig) -> np.ndarray:
    """One tile [1 S S 3]: the shorter side resized to the tile, the middle of the longer one."""
    tile, (width, height) = config.tile, picture.size
    short, long = min(width, height), max(width, height)
    longer = int(tile * long / short)
    size = (tile, longer) if width <= height else (longer, tile)
    left, top = (size[0] - tile) // 2, (size[1] - tile) // 2
    if long > EXTREME * short:
        return np.array(resized_part(picture, size, (left, top, left + tile, top + tile)))[None]
    resized = picture.resize(size, Image.Resampling.BICUBIC)
    return np.array(resized)[top : top + tile, left : left + tile][None]


def resized_part(
    picture: Image.Image, size: tuple[int, int], part: tuple[int, int, int, int]
) -> Image.Image:
    """picture.resize(size).crop(part), within one level; what lies outside the part is not made."""
    (left, right), seen_left, seen_right = seen_from(picture.width, size[0], part[0], part[2])
    (top, bottom), seen_top, seen_bottom = seen_from(picture.height, size[1], part[1], part[3])
    seen = picture.crop((seen_left, seen_top, seen_right, seen_bottom))
    shape, box = (part[2] - part[0], part[3] - part[1]), (left, top, right, bottom)
    return seen.resize(shape, Image.Resampling.BICUBIC, box)


MODES = {"anyres": anyres_tiles, "pad": padded_tile, "square": square_tile, "crop": cropped_tile}


class Frames(Protocol):
    """Pictures of one size that are made when they are asked for; `hash` makes none of them."""

    @property
    def hash(self) -> bytes: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...


class FrameTiles:
    """Some frames [H W 3] of a clip, each as one tile [S S 3]; itself it is a Frames too."""

    def __init__(self, frames: Frames, config: LlavaConfig, which: range) -> None:
        self.frames, self.config, self.which = frames, config, which

    @property
    def hash(self) -> bytes:
        """What tells these frames from others, without making them."""
        return self.frames.hash + repr(self.which).encode()

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, index: int) -> np.ndarray:
        frame = Image.fromarray(self.frames[self.which[index]])
        return MODES[self.config.frame_mode](frame, self.config)[0]


Pixels = np.ndarray | FrameTiles  # tiles [B S S 3], at hand or made one by one
