"""A picture file -> RGB -> square tiles of uint8, as the vision tower was trained to see them.

in:  bytes of a file, or a PIL image
out: tiles [B S S 3] uint8

Everything here is Pillow's bicubic on uint8 and integer arithmetic: the tiles are bit-equal to
those of the original code. vision.py normalises them later, on the model's device.
Read anyres.py first. Read next: vision.py.
Agrees with: LlavaOnevisionImageProcessorPil of transformers; process_anyres_image of LLaVA-NeXT.

B tiles, S tile side in pixels.
"""

from typing import Protocol

import numpy as np
from PIL import Image

from .anyres import Grid, fitted
from .config import LlavaConfig


def squeezed(picture: Image.Image, tile: int) -> np.ndarray:
    """The whole picture in one tile, its ratio lost: [S S 3]."""
    return np.array(picture.resize((tile, tile), Image.Resampling.BICUBIC))


def anyres_tiles(picture: Image.Image, config: LlavaConfig) -> np.ndarray:
    """The squeezed picture, then the tiles of its grid in reading order, centred on black."""
    tile, grid = config.tile, Grid.of(picture.size, config).tiles
    canvas_size = (grid[1] * tile, grid[0] * tile)
    inner = picture.resize(fitted(picture.size, canvas_size), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", canvas_size)
    canvas.paste(inner, ((canvas_size[0] - inner.width) // 2, (canvas_size[1] - inner.height) // 2))
    cut = np.asarray(canvas).reshape(grid[0], tile, grid[1], tile, 3).swapaxes(1, 2)
    return np.concatenate([squeezed(picture, tile)[None], cut.reshape(-1, tile, tile, 3)])


def padded_tile(picture: Image.Image, config: LlavaConfig) -> np.ndarray:
    """One tile: the picture centred on a square of the mean colour.

    It is used for several pictures at once.
    """
    side = max(picture.size)
    mean = tuple(int(255 * channel) for channel in config.vision.mean)
    canvas = Image.new("RGB", (side, side), mean)
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return squeezed(canvas, config.tile)[None]


def square_tile(picture: Image.Image, config: LlavaConfig) -> np.ndarray:
    """One tile: the picture squeezed."""
    return squeezed(picture, config.tile)[None]


def cropped_tile(picture: Image.Image, config: LlavaConfig) -> np.ndarray:
    """One tile: the shorter side resized to the tile, then the middle of the longer one."""
    tile, (width, height) = config.tile, picture.size
    short, long = min(width, height), max(width, height)
    longer = int(tile * long / short)
    size = (tile, longer) if width <= height else (longer, tile)
    resized = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - tile) // 2, (size[1] - tile) // 2
    return np.array(resized)[top : top + tile, left : left + tile][None]


MODES = {"anyres": anyres_tiles, "pad": padded_tile, "square": square_tile, "crop": cropped_tile}


class Frames(Protocol):
    """Pictures of one size that are made when they are asked for; `hash` makes none of them."""

    @property
    def hash(self) -> bytes: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> np.ndarray: ...


class FrameTiles:
    """Some frames [H W 3] of a clip as one tile each [S S 3]: Frames themselves."""

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
