"""Tiles bit-equal to transformers' Pillow image processor; the geometry of what is drawn."""

import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_min import image
from llava_min.anyres import Grid
from llava_min.families import layouts

CONFIG = layouts.read_config(small.TINY)


@pytest.fixture(scope="module")
def processor():
    pytest.importorskip("transformers")
    from transformers.models.llava_onevision import (
        image_processing_pil_llava_onevision as processing,
    )

    return processing.LlavaOnevisionImageProcessorPil.from_pretrained(small.TINY)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 99))
def test_tiles_are_bit_equal(processor, width, height, seed):
    if max(width, height) > 50 * min(width, height):
        width = height  # beyond 50:1 the reference crops before it resizes: see the next test
    picture = small.picture(width, height, seed)
    theirs = processor([picture], return_tensors="np", do_normalize=False, do_rescale=False)
    tiles = image.anyres_tiles(picture, CONFIG)
    assert np.array_equal(tiles.transpose(0, 3, 1, 2), theirs["pixel_values"][0])


@pytest.mark.parametrize("size", [(1, 2400), (2400, 1), (3, 700)])
def test_extreme_ratios_are_within_one_level(processor, size):
    picture = small.picture(*size)
    theirs = processor([picture], return_tensors="np", do_normalize=False, do_rescale=False)
    ours = image.anyres_tiles(picture, CONFIG).transpose(0, 3, 1, 2).astype(int)
    assert np.abs(ours - theirs["pixel_values"][0].astype(int)).max() <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 99))
def test_padded_tiles_are_bit_equal(processor, width, height, seed):
    pictures = [small.picture(width, height, seed), small.picture(height, width, seed + 1)]
    theirs = processor([pictures], return_tensors="np", do_normalize=False, do_rescale=False)
    ours = np.stack([image.padded_tile(picture, CONFIG) for picture in pictures])
    assert np.array_equal(ours.transpose(0, 1, 4, 2, 3), theirs["pixel_values"])


def test_normalising_is_bit_equal_for_every_value():
    """A true division by 255: a product with 1/255 would miss 111 of the 256 values by one unit."""
    import torch

    from llava_min import vision

    tiles = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    ours = vision.normalise(tiles, CONFIG.vision, torch.float32)[0, 0].flatten().numpy()
    exact = (np.arange(256) * (1 / 255)).astype(np.float32)
    assert np.array_equal(ours, (exact - np.float32(0.5)) / np.float32(0.5))


def test_grid_tiles_put_the_canvas_together_again():
    """Tiles are cut row by row: a picture that fits its grid exactly comes back whole."""
    picture = small.picture(3 * CONFIG.tile, 2 * CONFIG.tile)
    tiles = image.anyres_tiles(picture, CONFIG)
    assert Grid.of(picture.size, CONFIG).tiles == (2, 3)
    rows = [np.concatenate(tiles[1 + 3 * row : 4 + 3 * row], axis=1) for row in range(2)]
    assert np.array_equal(np.concatenate(rows), np.asarray(picture))


@pytest.mark.parametrize("size", [(10, 30), (30, 10)])
def test_padding_is_grey_and_centred(size):
    from PIL import Image

    tile = image.padded_tile(Image.new("RGB", size, "red"), CONFIG)[0]
    assert (tile[0, 0] == 127).all() and (tile[-1, -1] == 127).all()
    assert (tile[CONFIG.tile // 2, CONFIG.tile // 2] == (255, 0, 0)).all()
