"""Tiles bit-equal to transformers' Pillow image processor; the geometry of what is drawn."""

import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

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


SIDES = st.integers(1, 4), st.integers(210, 1500)


def whole_square(picture: Image.Image, config) -> np.ndarray:
    """The padded tile by the letter: the square is made and then resized."""
    side, mean = max(picture.size), tuple(int(255 * channel) for channel in config.vision.mean)
    canvas = Image.new("RGB", (side, side), mean)
    canvas.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return image.squeezed(canvas, config.tile)


def hard(width: int, height: int, seed: int) -> Image.Image:
    """A picture of noise, or of black and white, where rounding shows most."""
    picture = small.picture(width, height, seed)
    return picture.point(lambda level: 255 * (level > 127)) if seed % 2 else picture


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, 99), st.integers(1, 10**5))
def test_a_square_in_parts_is_the_whole_square(width, height, seed, part):
    """However many rows are resized at a time; beyond 50:1 within one level."""
    picture = hard(width, height, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image, "PART", part)
        ours = image.padded_tile(picture, CONFIG)[0].astype(int)
    theirs = whole_square(picture, CONFIG)
    extreme = max(width, height) > 50 * min(width, height)
    assert np.abs(ours - theirs).max() <= extreme


@pytest.mark.parametrize("limit", [0, 16_384])
@settings(max_examples=40, deadline=None)
@given(*SIDES, st.booleans(), st.integers(0, 99))
def test_extreme_ratios_are_padded_and_cropped_within_one_level(limit, short, long, tall, seed):
    """Against the whole square, and against resizing all and cropping afterwards."""
    picture = hard(*((short, long) if tall else (long, short)), seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image, "LARGEST", limit)
        padded = image.padded_tile(picture, CONFIG)[0].astype(int)
    assert np.abs(padded - whole_square(picture, CONFIG)).max() <= 1
    tile, longer = CONFIG.tile, int(CONFIG.tile * long / short)
    size, start = ((tile, longer) if tall else (longer, tile)), (longer - tile) // 2
    box = (0, start, tile, start + tile) if tall else (start, 0, start + tile, tile)
    whole = np.asarray(picture.resize(size, Image.Resampling.BICUBIC).crop(box)).astype(int)
    assert np.abs(image.cropped_tile(picture, CONFIG)[0] - whole).max() <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 99))
def test_cropped_tiles_are_bit_equal(width, height, seed):
    """To those of CLIP's processor, as LLaVA-1.5 and LLaVA-NeXT-Video use it."""
    transformers = pytest.importorskip("transformers")
    if max(width, height) > 50 * min(width, height):
        width = height
    theirs = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": CONFIG.tile}, crop_size={"height": CONFIG.tile, "width": CONFIG.tile}
    )
    picture = hard(width, height, seed)
    found = theirs(picture, do_normalize=False, do_rescale=False, return_tensors="np")
    ours = image.cropped_tile(picture, CONFIG)
    assert np.array_equal(ours.transpose(0, 3, 1, 2), found["pixel_values"])


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
    tile = image.padded_tile(Image.new("RGB", size, "red"), CONFIG)[0]
    assert (tile[0, 0] == 127).all() and (tile[-1, -1] == 127).all()
    assert (tile[CONFIG.tile // 2, CONFIG.tile // 2] == (255, 0, 0)).all()
