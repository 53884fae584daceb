"""The colors of a picture of any kind: RGB of 8 bits, on white where it is transparent.

in:  a PIL image of any mode, preferably not decoded yet
out: a PIL image in RGB

A PNG may name one color that is transparent: the pixels that hold exactly this value, at the depth
of the file. Pillow keeps the value as it is and scales the pixels, so the depth must be asked
before they are decoded. Numbers wider than 8 bits become levels: 65535 is white, 4095 in a TIFF of
12 bits; of floats and of 32-bit integers, whose white is not written anywhere, the range decides.
Read media/sources.py first.
Agrees with: the PNG specification, 11.3.1.1 (tRNS), where Pillow differs; Pillow's convert for all
else, which takes the high byte of 16-bit colors.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from ..errors import MediaError

WHITE = (255, 255, 255)
LEVELS = {"L;2": 85, "L;4": 17}  # of one step of a grey PNG with so many bits
BITS, COLORS = 258, 262  # tags of a TIFF
ROWS = 64  # of a picture of wide numbers, at a time


def to_rgb(picture: Image.Image, name: str) -> Image.Image:
    """The picture in RGB, on white; MediaError where its numbers could mean several colors."""
    hidden = hidden_pixels(picture, name)
    picture.load()
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        rgb = Image.fromarray(grey_levels(picture, name)).convert("RGB")
    elif hidden is not None:  # "1", "L" or "RGB": Pillow would convert the hidden value too
        grey = [picture.convert("L")] * 3 if picture.mode != "RGB" else picture.split()
        rgb = Image.merge("RGB", grey)
    elif picture.mode in ("LA", "La", "PA", "RGBA", "RGBa", "P") and picture.has_transparency_data:
        layer = picture.convert("LA") if picture.mode == "La" else picture
        layer = layer.convert("RGBA")
        rgb = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    else:
        rgb = picture.convert("RGB")
    if hidden is not None:
        rgb.paste(WHITE, mask=Image.fromarray(hidden))
    return rgb


# The transparent color of a PNG --------------------------------------------------


def hidden_pixels(picture: Image.Image, name: str) -> np.ndarray | None:
    """Which pixels hold the one value that is transparent, bool [H W]; None where there is none."""
    value = picture.info.get("transparency")
    one_band = picture.mode in ("1", "L", "I") or picture.mode.startswith("I;16")
    if value is None or not (one_band or picture.mode == "RGB"):
        return None
    color = value if isinstance(value, tuple) else (value,)
    if len(color) != len(picture.getbands()) or not all(isinstance(v, int) for v in color):
        raise MediaError("cannot read the picture", name, "a color that is transparent", "another")
    raw = stored_as(picture)
    if raw == "RGB;16B":
        low = decoded_as(picture, "RGB;16L")
        high_bytes, low_bytes = ([v >> 8 & 255 for v in color], [v & 255 for v in color])
        return equal(picture, high_bytes) & equal(low, low_bytes)
    if raw is None:
        check_depth(picture, color, name)
    elif picture.mode in ("L", "RGB"):
        step = LEVELS.get(raw, 1)
        color = tuple(step * (v & 255 // step) for v in color)
    return equal(picture, color)


def stored_as(picture: Image.Image) -> str | None:
    """Pillow's word for how a PNG stores its pixels, None once they are decoded."""
    if picture.format != "PNG" or not (tiles := getattr(picture, "tile", None)):
        return None
    return str(tiles[0].args)


def decoded_as(picture: Image.Image, raw: str) -> Image.Image:
    """The picture of the same PNG, its pixels taken for another kind of the same width."""
    other = Image.open(io.BytesIO(file_of(picture)), formats=["PNG"])
    other.tile = [tile._replace(args=raw) for tile in other.tile]
    return other


def file_of(picture: Image.Image) -> bytes:
    """The bytes of the file of a picture that is not decoded yet."""
    assert isinstance(picture, ImageFile) and picture.fp
    file = picture.fp
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    return data


def equal(picture: Image.Image, color: tuple[int, ...] | list[int]) -> np.ndarray:
    """Which pixels have this color, bool [H W]."""
    bands = picture.split() if picture.mode == "RGB" else (picture,)
    found = [np.asarray(band) == value for band, value in zip(bands, color)]
    return np.logical_and.reduce(found)


def check_depth(picture: Image.Image, color: tuple[int, ...], name: str) -> None:
    """MediaError where a picture decoded before hides a color only at a depth that is lost."""
    lost = False
    if picture.mode == "L":
        counts = picture.histogram()
        levels = [step * color[0] for step in LEVELS.values() if color[0] <= WHITE[0] // step]
        lost = any(counts[level] for level in levels) and not counts[color[0]]
    elif picture.mode == "RGB" and max(color) > 255:
        lost = bool(equal(picture, [value >> 8 for value in color]).any())
    if lost:
        raise MediaError(
            "cannot read the picture",
            name,
            "the file, or a picture in RGBA",
            "a decoded PNG whose transparent color has another depth",
        )


# Wide numbers --------------------------------------------------------------------


def grey_levels(picture: Image.Image, name: str) -> np.ndarray:
    """The levels uint8 [H W] of a picture of 16-bit or 32-bit integers or floats."""
    values, tags = np.asarray(picture), getattr(picture, "tag_v2", {})
    inverted = tags.get(COLORS) == 0
    if picture.mode.startswith("I;16"):
        top = 4095 if tags.get(BITS) == (12,) else 65535
        table = np.linspace(0, 255, top + 1).round().astype(np.uint8)
        table = 255 - table if inverted else table
        return by_rows(values, lambda rows: table[rows])
    low, high = float(values.min()), float(values.max())
    if picture.mode == "F":
        kind, ends = "floats", (1, 255)
        known = high <= 1 or high >= 2
    else:
        kind, ends = "integers", (255, 65535)
        known = high <= 255 or tags.get(BITS) != (16,)  # 16 bits with a sign: to 32767 or 65535?
    if not (0 <= low and high <= ends[1] and known and not inverted):
        zero = ", 0 being white" * inverted
        raise MediaError(
            "cannot read the picture",
            name,
            f"{kind} from 0 to {ends[0]} or from 0 to {ends[1]}",
            f"{kind} from {low:g} to {high:g}{zero}",
        )
    scale = 255 / (ends[0] if high <= ends[0] else ends[1])
    return by_rows(values, lambda rows: (rows * scale).round().astype(np.uint8))


def by_rows(values: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """convert(values) of a few rows at a time, uint8 [H W]: it makes wider numbers on the way."""
    levels = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), ROWS):
        levels[row : row + ROWS] = convert(values[row : row + ROWS])
    return levels
