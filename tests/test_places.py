"""Where the rows of a picture come from, by pictures whose colours are their coordinates."""

from dataclasses import replace

import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llava_min import image
from llava_min import segments as plans
from llava_min.explain.places import place
from llava_min.families import layouts

TINY = layouts.read_config(small.TINY)
SIDES = st.integers(40, 400)


def config_of(tile: int, anyres_max: int | None = None, pool: str | None = "bilinear"):
    """The toy's configuration with tiles of another side; 14 need not divide it."""
    grids = tuple((rows, columns) for rows in (1, 2, 3) for columns in (1, 2, 3))
    vision = replace(TINY.vision, image_size=tile)
    return replace(TINY, vision=vision, grids=grids, anyres_max=anyres_max, pool_mode=pool)


def coordinates(width: int, height: int) -> Image.Image:
    """A picture whose red says how far to the right a pixel is, and whose green how far down."""
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    blue = np.full_like(across, 255)
    return Image.fromarray(np.stack([across, down, blue], -1).round().astype(np.uint8))


def centre(box, size) -> np.ndarray:
    """The middle of a box, as the colours of `coordinates` say it."""
    left, top, right, bottom = box
    return 255 * np.array([(left + right) / 2 / size[0], (top + bottom) / 2 / size[1]])


def patches_of(tile: np.ndarray, side: int, patch: int) -> np.ndarray:
    """The mean red and green of each patch of a tile: [side side 2]."""
    seen = tile[: side * patch, : side * patch, :2].astype(float)
    return seen.reshape(side, patch, side, patch, 2).mean(axis=(1, 3))


def inside(box, size, margin: float) -> bool:
    """Whether a box keeps clear of the picture's edge, where a patch saw some border."""
    left, top, right, bottom = box
    return min(left, top, size[0] - right, size[1] - bottom) > margin


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.sampled_from(sorted(image.MODES)), st.sampled_from([84, 93]))
def test_a_patch_shows_what_lies_in_its_box(width, height, mode, tile):
    """Base tile and grid: the mean colour of a patch is that of its box's middle."""
    config, size = config_of(tile), (width, height)
    side, patch = config.vision.side, config.vision.patch_size
    pixels = image.MODES[mode](coordinates(width, height), config)
    segment = plans.picture(size, mode, config)
    means = np.stack([patches_of(one, side, patch) for one in pixels])
    if segment.grid:
        rows, columns = segment.grid.tiles
        joined = means[1:].reshape(rows, columns, side, side, 2).swapaxes(1, 2)
        whole = joined.reshape(rows * side, columns * side, 2)
        kept = whole[segment.grid.rows, segment.grid.columns]
    tested = 0
    for row in range(segment.tokens):
        found = place(segment, row, config)
        if found.box is None or not inside(found.box, size, 8 * max(size) / tile):
            continue
        if found.kind == "base":
            shown = means[0][divmod(row, side)]
        else:
            shown = kept[divmod(row - side**2, segment.grid.shape[1] + 1)]
        # a level of rounding, and what a pixel is wide
        assert np.abs(shown - centre(found.box, size)).max() < 1.5 + 255 / min(size)
        tested += 1
    assert tested or min(size) < 100 or min(size) < 0.6 * max(size)


@settings(max_examples=30, deadline=None)
@given(SIDES, SIDES, st.sampled_from(["bilinear", "average"]), st.sampled_from([84, 93, 98]))
def test_a_row_of_a_frame_shows_what_lies_in_its_box(width, height, pool, tile):
    """Pooled frames: the mean of the patches that a row was made of."""
    config, size = config_of(tile, pool=pool), (width, height)
    config = replace(config, newline_position="grid", frame_mode="square")
    side, patch = config.vision.side, config.vision.patch_size
    clip = plans.clip([0.0, 1.0], size, config)
    means = patches_of(image.square_tile(coordinates(width, height), config)[0], side, patch)
    pooled = np.empty((clip.side, clip.side, 2))
    for down in range(clip.side):
        for right in range(clip.side):
            scale = 2 if pool == "average" else side / clip.side
            rows, columns = (np.arange(at * scale, (at + 1) * scale - 1e-9, 0.25).astype(int)
                             for at in (down, right))  # fmt: skip
            pooled[down, right] = means[rows][:, columns].mean(axis=(0, 1))
    for row in range(clip.tokens):
        frame, inner = divmod(row, clip.frame_tokens)
        found, (down, right) = place(clip, row, config), divmod(inner, clip.side + 1)
        assert found.frame == frame
        if right == clip.side:
            assert found.kind == "newline" and found.box is None
            continue
        difference = np.abs(pooled[down, right] - centre(found.box, size)).max()
        assert difference < 2 + 255 / min(size) + 255 * 0.15 * patch / tile


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.sampled_from([1, 2, 4, None]))
def test_the_grid_covers_the_picture_once(width, height, anyres_max):
    """The boxes of a grid's rows lie side by side and cover the picture, but for less than a patch
    at its border; capped grids too.
    """
    config = config_of(84, anyres_max)
    segment = plans.picture((width, height), "anyres", config)
    found = [place(segment, row, config) for row in range(config.vision.side**2, segment.tokens)]
    boxes = [one.box for one in found if one.kind == "grid" and one.box]
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
    rows, columns = segment.grid.tiles
    wide = max(width / (84 * columns), height / (84 * rows)) * config.vision.patch_size
    assert max(width - wide, 0) * max(height - wide, 0) < area < width * height + 1e-6
    rows, columns = segment.grid.shape
    assert [one.kind for one in found].count("newline") == rows
    assert [one.kind for one in found].count("grid") == rows * columns
    for one, other in zip(boxes, boxes[1:]):
        assert other[0] == pytest.approx(one[2]) or other[1] >= one[3] - 1e-6
    assert len(boxes) == rows * columns
    assert boxes[-1][2] >= width - wide and boxes[-1][3] >= height - wide


@pytest.mark.parametrize("newlines", ["grid", "frame", "one_token", "no_token"])
def test_newlines_have_no_box(newlines):
    config = replace(config_of(84), newline_position=newlines)
    clip = plans.clip([0.0, 0.5, 1.0], (90, 60), config)
    kinds = [place(clip, row, config).kind for row in range(clip.tokens)]
    ends = {"grid": 9, "frame": 3, "one_token": 1, "no_token": 0}
    assert kinds.count("newline") == ends[newlines] and kinds.count("frame") == 27
    assert (kinds[-1] == "newline") == (newlines != "no_token")


def test_a_border_has_no_box():
    """In a padded square of a wide picture the first rows of patches show nothing of it."""
    config = config_of(84)
    segment = plans.picture((300, 60), "pad", config)
    boxes = [place(segment, row, config).box for row in range(36)]
    assert boxes[0] is None and boxes[15] is not None and boxes[35] is None
