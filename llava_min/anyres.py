"""The geometry of "anyres": how a picture of any size becomes tiles, and how many tokens that
makes.

in:  sizes in pixels (width, height)      out: sizes, grids (rows, columns) and token counts;
integers only A picture is shown to the vision tower twice: whole, squeezed into one square tile,
and in detail, fitted into the best of the allowed grids of tiles. Of the grid's patches the black
border is cut off again ("unpad"), and what exceeds max_tiles tiles is shrunk ("anyres_max_9").
Read before: config.py. Read next: image.py. Agrees with: LLaVA-NeXT llava/mm_utils.py and
llava_arch.py, transformers image_processing_llava_onevision.py (the two differ in one rounding: see
`unpadded`).
"""

import math


def best_grid(
    size: tuple[int, int], grids: tuple[tuple[int, int], ...], tile: int
) -> tuple[int, int]:
    """The grid (rows, columns) that keeps most of the picture's pixels, then wastes least, then
    comes first.

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
    """The size (width, height) that `size` is resized to, ratio kept, so that it fits into
    `canvas`.

    >>> fitted((336, 168), (168, 168))
    (168, 84)
    """
    (width, height), (canvas_width, canvas_height) = size, canvas
    scale_width, scale_height = canvas_width / width, canvas_height / height
    if scale_width < scale_height:
        return canvas_width, min(math.ceil(height * scale_width), canvas_height)
    return min(math.ceil(width * scale_height), canvas_width), canvas_height


def unpadded(size: tuple[int, int], patches: tuple[int, int], rounded: bool) -> tuple[slice, slice]:
    """The rows and columns of a patch grid `patches` (rows, columns) that show the picture, not its
    border.

    `rounded` is transformers' rule: the product is rounded to 7 decimals before it is cut to an
    integer, which keeps 1 in 100,000 sizes from losing a row to floating point; the original code
    does not.
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


def capped(patches: tuple[int, int], per_tile: int, max_tiles: int | None) -> tuple[int, int]:
    """The patch grid shrunk until it holds about max_tiles tiles of per_tile patches; small excess
    stays.

    >>> capped((54, 54), 729, 9), capped((162, 162), 729, 9)
    ((54, 54), (81, 81))
    """
    rows, columns = patches
    if max_tiles is None:
        return patches
    excess = math.sqrt(rows * columns / (max_tiles * per_tile))
    if excess <= 1.1:
        return patches
    return int(rows // excess), int(columns // excess)
