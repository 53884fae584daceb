"""A picture or frame as the model saw it: put together from its tiles, in the source's ratio.

in:  a visual of the plan, its tiles [B S S 3], the number of a frame
out: a PIL picture; tiles or frames with a part covered

The source itself is not needed. What a model did not see, as the sides of a cropped picture, is
grey.
Read image.py, explain/places.py first. Read next: explain/explanation.py.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..config import LlavaConfig
from ..image import Frames, Pixels
from ..segments import Clip, Picture, Visual
from .places import Box, Fit, grid_fits, single_fits, tile_fits

GREY = (128, 128, 128)
FILLS = ("mean", "grey")  # with what a part is covered: the picture's own mean colour, or GREY
Fits = tuple[Fit, Fit]  # how a picture lies on a canvas: across, down


def canvas_of(visual: Visual, pixels: Pixels, frame: int, config: LlavaConfig) -> np.ndarray:
    """What shows most of a visual: its grid of tiles as one, or its one tile, [H W 3]."""
    if isinstance(visual, Clip):
        return pixels[frame]
    if visual.grid is None:
        return pixels[0]
    rows, columns = visual.grid.tiles
    tiles = np.stack([pixels[1 + number] for number in range(rows * columns)])
    cut = tiles.reshape(rows, columns, *tiles.shape[1:]).swapaxes(1, 2)
    return cut.reshape(rows * tiles.shape[1], columns * tiles.shape[2], 3)


def fits_of(visual: Visual, config: LlavaConfig) -> Fits:
    """How a visual's picture lies on canvas_of it."""
    if isinstance(visual, Clip):
        return single_fits(visual.size, config.frame_mode, config.tile)
    return grid_fits(visual, config) if visual.grid else tile_fits(visual, config)


def as_seen(
    visual: Visual, pixels: Pixels, config: LlavaConfig, longest: int, frame: int = 0
) -> Image.Image:
    """The picture, or a frame of the clip, with sides of at most `longest` pixels."""
    canvas = Image.fromarray(canvas_of(visual, pixels, frame, config))
    fits = fits_of(visual, config)
    (left, right), (top, bottom) = (
        (fit.offset, fit.offset + fit.length * fit.scale) for fit in fits
    )
    scale = min(longest, max(max(visual.size), right - left, bottom - top)) / max(visual.size)
    size = [max(round(side * scale), 1) for side in visual.size]
    return canvas.transform(
        (size[0], size[1]),
        Image.Transform.EXTENT,
        (left, top, right, bottom),
        Image.Resampling.BICUBIC,
        fillcolor=GREY,
    )


def colour(fill: str, pixels: np.ndarray) -> np.ndarray:
    """One of FILLS for pixels [H W 3]: their mean, or grey."""
    return pixels.mean(axis=(0, 1)) if fill == "mean" else np.array(GREY)


def covered(
    picture: Picture, pixels: np.ndarray, box: Box, fill: str, config: LlavaConfig
) -> np.ndarray:
    """The tiles of a picture with a box of its source filled with one colour: [B S S 3]."""
    filled, pixels, tile = colour(fill, pixels[0]), pixels.copy(), config.tile
    cover(pixels[0], box, tile_fits(picture, config), (0, 0), filled)
    if picture.grid is not None:
        for number in range(1, len(pixels)):
            row, column = divmod(number - 1, picture.grid.tiles[1])
            corner = (column * tile, row * tile)
            cover(pixels[number], box, grid_fits(picture, config), corner, filled)
    return pixels


def cover(
    tile: np.ndarray, box: Box, fits: Fits, corner: tuple[int, int], colour: np.ndarray
) -> None:
    """Fill what a tile [S S 3] shows of a box; corner: where the tile lies on its canvas."""
    spans = []
    for fit, start, low, high in zip(fits, corner, box[:2], box[2:]):
        ends = (round(fit.offset + end * fit.scale) - start for end in (low, high))
        spans.append(slice(*(min(max(end, 0), len(tile)) for end in ends)))
    tile[spans[1], spans[0]] = colour


@dataclass(frozen=True)
class CoveredFrames:
    """Frames [H W 3] of a clip, some of them with a box filled with one colour: image.Frames."""

    frames: Frames
    which: range
    box: Box
    fill: str

    @property
    def hash(self) -> bytes:
        """What tells these frames from others."""
        return self.frames.hash + repr((self.which, self.box, self.fill)).encode()

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> np.ndarray:
        frame = self.frames[index]
        if index in self.which:
            filled, frame = colour(self.fill, frame), frame.copy()
            left, top, right, bottom = map(round, self.box)
            frame[top:bottom, left:right] = filled
        return frame
