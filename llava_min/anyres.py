"""The geometry of "anyres": how a picture of any size becomes tiles, and which of its patches stay.

in:  sizes in pixels (width, height)
out: sizes, grids (rows, columns) and ranges of patches; integers only

The vision tower sees a picture twice. It sees the whole of it, squeezed into one square tile; and
its details, fitted into the best of the allowed grids of tiles. The black border is then cut off
the grid's patches ("unpad"), and what exceeds nine tiles is shrunk ("anyres_max_9").
`Grid` is that geometry for one picture: image.py cuts its tiles by it, segments.py counts its
tokens, projector.py makes its rows.
Read config.py first. Read next: image.py.
Agrees with: LLaVA-NeXT llava/mm_utils.py and llava_arch.py; image_processing_llava_onevision.py of
transformers. The two differ in one rounding: see `unpadded`.
"""

import math
from dataclasses import dataclass

from .config import LlavaConfig


@dataclass(frozen=True)
class Grid:
    """How a picture lies on a grid of tiles.

    tiles: (rows, columns) of the grid. rows, columns: those of its patches that show the picture
    and not its border. shape: (rows, columns) of patches that are left of these, fewer where the
    grid is capped.
    """

    tiles: tuple[int, int]
    rows: slice
    columns: slice
    shape: tuple[int, int]

    @classmethod
    def of(cls, size: tuple[int, int], config: LlavaConfig) -> "Grid":
        """The grid of a picture of `size` (width, height) in pixels."""
        tiles, side = best_grid(size, config.grids, config.tile), config.vision.side
        patches = (tiles[0] * side, tiles[1] * side)
        rows, columns = unpadded(size, patches, rounded=config.unpad_rounded)
        shown = (rows.stop - rows.start, columns.stop - columns.start)
        return cls(tiles, rows, columns, capped(shown, side * side, config.anyres_max))


def best_grid(
    size: tuple[int, int], grids: tuple[tuple[int, int], ...], tile: int
) -> tuple[int, int]:
    """The grid (rows, columns) that keeps most of the picture's pixels.

    Of grids that keep equally many, the one that wastes least wins; then the first in the list.

    >>> best_grid((300, 200), ((1, 1), (1, 2), (2, 1), (2, 2)), tile=84)
    (2, 2)
    """
    width, height = size

    def merit(grid: tuple[int, int]) -> tuple[int, int]:
        rows, columns = grid
        canvas_width, canvas_height = columns * tile, rows * tile
        scale = min(canvas_width / width, canvas_height / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas_width * canvas_height

    return max(grids, key=merit)


def fitted(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """The size (width, height) at which `size` fits into `canvas` with its ratio kept.

    >>> fitted((336, 168), (168, 168))
    (168, 84)
    """
    (width, height), (canvas_width, canvas_height) = size, canvas
    scale_width, scale_height = canvas_width / width, canvas_height / height
    if scale_width < scale_height:
        return canvas_width, min(math.ceil(height * scale_width), canvas_height)
    return min(math.ceil(width * scale_height), canvas_width), canvas_height


def unpadded(size: tuple[int, int], patches: tuple[int, int], rounded: bool) -> tuple[slice, slice]:
    """The rows and columns of a patch grid that show the picture and not its border.

    patches: (rows, columns) of the whole grid. rounded: transformers' rule, by which the product is
    rounded to 7 decimals before it is cut to an integer. That keeps 1 in 100,000 sizes from losing
    a row to floating point. The original code does not round.
    """
    (width, height), (rows, columns) = size, patches

    def whole(length: float) -> int:
        return int(round(length, 7) if rounded else length)

    if width / height > columns / rows:
        kept = whole(height * (columns / width))
        border = (rows - kept) // 2
        return slice(border, rows - border), slice(0, columns)
    kept = whole(width * (rows / height))
    border = (columns - kept) // 2
    return slice(0, rows), slice(border, columns - border)


def capped(patches: tuple[int, int], per_tile: int, anyres_max: int | None) -> tuple[int, int]:
    """The patch grid, shrunk until it holds about anyres_max tiles of per_tile patches.

    A grid whose sides are at most 1.1 times too long stays as it is.

    >>> capped((54, 54), 729, 9), capped((162, 162), 729, 9)
    ((54, 54), (81, 81))
    """
    rows, columns = patches
    if anyres_max is None:
        return patches
    excess = math.sqrt(rows * columns / (anyres_max * per_tile))
    if excess <= 1.1:
        return patches
    return int(rows // excess), int(columns // excess)
