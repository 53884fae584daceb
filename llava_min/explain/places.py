"""Where on its picture a row of the prompt comes from.

in:  a visual of the plan, the number of one of its rows, the configuration
out: Place: the kind of row, the frame, a box in pixels of the source

The base tile is the picture squeezed into a square, or padded or cropped to one. The grid is the
picture fitted into a canvas of tiles and centred there. So a box is found on the tiles first, and
then moved and scaled back to the picture. A patch that saw the border too has a box that ends with
the picture. A tile's side need not be a multiple of the patch size: of 384 pixels, 27 patches of 14
see 378.
Read anyres.py, segments.py first. Read next: explain/rows.py.
Agrees with: image.py, for every mode and size (tested with pictures that show coordinates).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..anyres import fitted
from ..config import LlavaConfig
from ..segments import Clip, Picture, Visual

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Place:
    """What a row shows.

    kind: "base" (a patch of the whole picture in one tile), "grid", "frame" or "newline".
    frame: its number in a clip. box: (left, top, right, bottom) in pixels of the source; None for a
    newline, and for a patch of nothing but border.
    """

    kind: str
    frame: int | None
    box: Box | None


@dataclass(frozen=True)
class Fit:
    """How a picture lies on a canvas, along one axis: canvas = offset + picture * scale."""

    length: int  # of the picture
    offset: float
    scale: float

    def back(self, start: float, stop: float) -> tuple[float, float]:
        """An interval of the canvas on the picture, cut to what there is of it."""
        ends = ((end - self.offset) / self.scale for end in (start, stop))
        first, last = (min(max(end, 0.0), float(self.length)) for end in ends)
        return first, last


def place(visual: Visual, row: int, config: LlavaConfig) -> Place:
    """The place of row number `row` of a visual, counted from 0."""
    assert 0 <= row < visual.tokens, (row, visual.tokens)
    if isinstance(visual, Clip):
        return frame_place(visual, row, config)
    side = config.vision.side
    if row < side * side:
        across = divmod(row, side)
        return Place("base", None, box(across, (1.0, 1.0), tile_fits(visual, config), config))
    if visual.grid is None:
        return Place("newline", None, None)
    rows, columns = visual.grid.shape
    down, right = divmod(row - side * side, columns + 1)
    if right == columns:
        return Place("newline", None, None)
    kept = visual.grid.rows, visual.grid.columns
    high, wide = ((one.stop - one.start) / count for one, count in zip(kept, (rows, columns)))
    first = kept[0].start + down * high, kept[1].start + right * wide
    return Place("grid", None, box(first, (high, wide), grid_fits(visual, config), config))


def frame_place(clip: Clip, row: int, config: LlavaConfig) -> Place:
    """The place of a row of a clip, which covers several patches of its frame if it was pooled."""
    frame, row = divmod(row, clip.frame_tokens)
    width = clip.side + (clip.newlines == "grid")
    down, right = divmod(row, width)
    if frame == len(clip.times) or right == clip.side or down == clip.side:
        return Place("newline", frame if frame < len(clip.times) else None, None)
    size = 2.0 if config.pool_mode in ("average", "max") else config.vision.side / clip.side
    fits = single_fits(clip.size, config.frame_mode, config.tile)
    return Place("frame", frame, box((down * size, right * size), (size, size), fits, config))


def box(
    first: tuple[float, float],
    sizes: tuple[float, float],
    fits: tuple[Fit, Fit],
    config: LlavaConfig,
) -> Box | None:
    """The box of patches from `first` (row, column) on, `sizes` many (rows, columns).

    fits: how the picture lies on the canvas of tiles, (across, down).
    """
    (top, bottom), (left, right) = (
        fit.back(pixel(start, config, math.floor), pixel(start + size, config, before))
        for fit, start, size in zip(reversed(fits), first, sizes)
    )
    return (left, top, right, bottom) if left < right and top < bottom else None


def pixel(patches: float, config: LlavaConfig, which: Callable[[float], int]) -> float:
    """The pixel on the canvas after so many patches of a row of tiles.

    which: the number of the patch in which that lies: math.floor, or `before` where one ends.
    """
    side, patch = config.vision.side, config.vision.patch_size
    number = which(patches)
    tile, inside = divmod(number, side)
    return tile * config.tile + (inside + patches - number) * patch


def before(patches: float) -> int:
    """The number of the patch that ends at `patches`, or around it."""
    return math.ceil(patches) - 1


def tile_fits(picture: Picture, config: LlavaConfig) -> tuple[Fit, Fit]:
    """How a picture lies on its base tile."""
    mode = "square" if picture.mode == "anyres" else picture.mode
    return single_fits(picture.size, mode, config.tile)


def single_fits(size: tuple[int, int], mode: str, tile: int) -> tuple[Fit, Fit]:
    """How a picture lies on one tile, by a mode of image.MODES: (across, down)."""
    if mode == "square":
        across, down = (Fit(length, 0.0, tile / length) for length in size)
    elif mode == "pad":
        side = max(size)
        offsets = [(side - length) // 2 * tile / side for length in size]
        across, down = (Fit(n, offset, tile / side) for n, offset in zip(size, offsets))
    else:
        short = min(size)
        resized = [tile if n == short else int(tile * n / short) for n in size]
        across, down = (Fit(n, -float((r - tile) // 2), r / n) for n, r in zip(size, resized))
    return across, down


def grid_fits(picture: Picture, config: LlavaConfig) -> tuple[Fit, Fit]:
    """How a picture lies on the canvas of its grid: (across, down)."""
    assert picture.grid is not None
    rows, columns = picture.grid.tiles
    canvas = (columns * config.tile, rows * config.tile)
    inner = fitted(picture.size, canvas)
    across, down = (
        Fit(length, float((whole - part) // 2), part / length)
        for length, whole, part in zip(picture.size, canvas, inner)
    )
    return across, down


def spread(weights: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Weights [N], each spread evenly over the pixels of its patch: float32 [H W].

    boxes: [N 4], of patches of one size; a smaller box is what the picture's edge leaves of one,
    and gets no more than its part. A pixel that a box covers in part gets that part. Weights
    whose box is NaN are left out. size: (width, height).

    >>> spread(np.array([1.0]), np.array([[0.5, 0, 2.5, 1]]), (3, 1)).tolist()
    [[0.25, 0.5, 0.25]]
    """
    inside = ~np.isnan(boxes[:, 0])
    weights, boxes = weights[inside], boxes[inside].astype(float)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    whole = np.maximum(areas, np.median(areas)) if len(areas) else areas
    return painted(weights / whole, boxes, size)


def painted(values: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Values [N], each added to the pixels of its box [N 4] in so far as it covers them: [H W]."""
    pixels = np.zeros((size[1], size[0]), np.float32)
    for value, box in zip(values, boxes.astype(float)):
        (left, across), (top, down) = (covers(*ends) for ends in (box[0::2], box[1::2]))
        part = pixels[top : top + len(down), left : left + len(across)]
        part += value * np.outer(down, across)[: part.shape[0], : part.shape[1]]
    return pixels


def covers(start: float, stop: float) -> tuple[int, np.ndarray]:
    """The first pixel of an interval, and how much of each pixel from it on is inside."""
    edges = np.arange(math.floor(start), math.ceil(stop) + 1)
    return int(edges[0]), np.diff(np.clip(edges, start, stop))
