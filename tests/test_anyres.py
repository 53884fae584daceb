"""The geometry against transformers' functions, over every size; integers, so equality is exact."""

import math

import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_min import anyres
from llava_min import segments as plans
from llava_min.families import layouts

TILE, SIDE = 384, 27
GRIDS = tuple((r, c) for r in range(1, 7) for c in range(1, 7))
side = st.integers(1, 2400)
ONEVISION = layouts.parse_config(
    {
        **small.hf_config(),
        "image_grid_pinpoints": [[TILE * r, TILE * c] for r, c in GRIDS],
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": TILE,
            "patch_size": 14,
        },
    }
)
# (width, height) -> tokens: counted by transformers 5.23, equal to the outputs of the original code
KNOWN = {
    (336, 336): 1485,
    (384, 384): 1485,
    (300, 200): 1261,
    (200, 300): 1269,
    (640, 480): 2929,
    (480, 640): 2943,
    (1024, 899): 6551,
    (500, 1500): 4725,
    (2000, 700): 7168,
    (1153, 767): 5211,
    (1920, 1080): 7269,
    (101, 997): 1539,
    (2304, 2304): 7371,
}


@pytest.mark.parametrize("size", KNOWN, ids=str)
def test_known_token_counts(size):
    assert plans.picture(size, "anyres", ONEVISION).tokens == KNOWN[size]


@settings(max_examples=300, deadline=None)
@given(side, side)
def test_best_grid_is_transformers(width, height):
    processing = pytest.importorskip("transformers.image_processing_utils")
    pinpoints = [[TILE * r, TILE * c] for r, c in GRIDS]
    best = processing.select_best_resolution((height, width), pinpoints)
    assert anyres.best_grid((width, height), GRIDS, TILE) == (best[0] // TILE, best[1] // TILE)


@settings(max_examples=300, deadline=None)
@given(side, side, st.lists(st.tuples(*[st.integers(1, 12)] * 2), min_size=1, max_size=9))
def test_best_grid_of_any_list_is_transformers(width, height, grids):
    """Long grids and square ones of one area too, whose sides add up to other sums."""
    processing = pytest.importorskip("transformers.image_processing_utils")
    best = processing.select_best_resolution((height, width), [[24 * r, 24 * c] for r, c in grids])
    assert anyres.best_grid((width, height), grids, 24) == (best[0] // 24, best[1] // 24)


@settings(max_examples=300, deadline=None)
@given(side, side)
def test_unpadded_keeps_what_transformers_keeps(width, height):
    modeling = pytest.importorskip("transformers.models.llava_onevision.modeling_llava_onevision")
    import torch

    rows, columns = anyres.best_grid((width, height), GRIDS, TILE)
    patches = (rows * SIDE, columns * SIDE)
    numbers = torch.arange(patches[0] * patches[1]).reshape(1, *patches)
    kept = modeling.unpad_image(numbers, (height, width))
    assert torch.equal(
        numbers[(slice(None), *anyres.unpadded((width, height), patches, True))], kept
    )


@settings(max_examples=300, deadline=None)
@given(side, side, st.booleans())
def test_unpadded_is_symmetric_and_not_empty(width, height, rounded):
    """The same border on both sides, so that the picture's centre stays the centre."""
    rows, columns = anyres.best_grid((width, height), GRIDS, TILE)
    kept_rows, kept_columns = anyres.unpadded(
        (width, height), (rows * SIDE, columns * SIDE), rounded
    )
    assert kept_rows.start == rows * SIDE - kept_rows.stop
    assert kept_columns.start == columns * SIDE - kept_columns.stop
    assert kept_rows.stop > kept_rows.start and kept_columns.stop > kept_columns.start


def test_the_two_roundings_differ_where_it_is_known():
    """196 x 1323: the original keeps 108 columns' worth of 15, transformers 17."""
    size, grid = (196, 1323), anyres.best_grid((196, 1323), GRIDS, TILE)
    patches = (grid[0] * SIDE, grid[1] * SIDE)
    widths = [anyres.unpadded(size, patches, rounded)[1] for rounded in (False, True)]
    assert [w.stop - w.start for w in widths] == [15, 17]


@settings(max_examples=300, deadline=None)
@given(side, side)
def test_fitted_touches_the_canvas_and_stays_inside(width, height):
    canvas = (768, 384)
    new = anyres.fitted((width, height), canvas)
    assert (
        new[0] <= canvas[0] and new[1] <= canvas[1] and (new[0] == canvas[0] or new[1] == canvas[1])
    )
    assert min(new) >= 1


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200))
def test_cap_limits_the_patches(rows, columns):
    """At most 1.21 times the cap, since a small excess stays; nothing is ever enlarged."""
    height, width = anyres.capped((rows, columns), 729, 9)
    assert height <= rows and width <= columns
    assert height * width <= math.ceil(1.21 * 9 * 729)
    assert anyres.capped((rows, columns), 729, None) == (rows, columns)


def test_a_side_that_is_1_1_times_too_long_stays():
    assert anyres.capped((11, 11), 100, 1) == (11, 11)
    assert anyres.capped((11, 12), 100, 1) == (9, 10)
