"""Where pictures and clips come from: paths, URLs, stdin, bytes, PIL images, arrays.

in:  what a user names as a picture or video: a path, file://, data:, http(s)://, - for stdin,
     bytes, a PIL image, an array
out: a PIL image in RGB, or the path or bytes of a video

Limits are checked from headers, before pixels exist. A URL is fetched into memory (media/web.py);
FFmpeg never sees one.
Read media/limits.py first. Read next: image.py, media/video.py.
"""

import base64
import binascii
import io
import os
import struct
import sys
import urllib.parse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..base.files import regular
from ..errors import MediaError, shown
from . import limits

# what a user may name as a picture or as a video, and what leads to the bytes of a file
Picture = str | Path | bytes | bytearray | Image.Image | np.ndarray
Video = str | Path | bytes | bytearray | np.ndarray
Readable = str | Path | bytes | bytearray
Result = TypeVar("Result")

DAMAGED = (
    # what Pillow's parsers raise for damaged files
    OSError,
    ValueError,
    TypeError,
    LookupError,
    SyntaxError,
    EOFError,
    ArithmeticError,
    struct.error,
    NotImplementedError,
)
ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
    # what each of its values asks for
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def name_of(source: object) -> str:
    """How messages name a source: a path or URL as given, anything else by its kind."""
    if isinstance(source, (str, Path)):
        text = str(source)
        return (
            "the data: URI" if text.startswith("data:") else "stdin" if text == "-" else shown(text)
        )
    return f"the {type(source).__name__}"


def label_of(source: object) -> str:
    """How answers name a source: a path or URL without quotes, anything else as messages do."""
    text, name = str(source), name_of(source)
    return text if name == shown(text) and text.isprintable() else name


def read_bytes(source: Readable, limit: int) -> bytes:
    """The bytes of a path, URL, data: URI, "-" (stdin), or of bytes.

    MediaError where there are none.
    """
    if isinstance(source, (bytes, bytearray)):
        return bytes(source)
    text = str(source)
    if text == "-":
        return within(sys.stdin.buffer.read(limit + 1), limit, source)
    if text.startswith("data:"):
        return decode_data(text, limit)
    if text.startswith(("http://", "https://")):
        from .web import fetch

        return fetch(text, limit)
    try:
        with open(local_path(source), "rb") as file:
            return within(file.read(limit + 1), limit, source)
    except OSError as error:
        raise MediaError(
            "cannot read the file", name_of(source), "a file that can be read", error.strerror
        ) from None


def within(data: bytes, limit: int, source: Readable) -> bytes:
    """The data; MediaError where it is longer than `limit` bytes."""
    if len(data) > limit:
        raise MediaError("cannot read the file", name_of(source), f"at most {limit} bytes", "more")
    return data


def local_path(source: object) -> Path:
    """The plain file that a path or file:// URL names."""
    if not isinstance(source, str | Path):
        raise MediaError("cannot read the file", name_of(source), "a path, URL or bytes", "neither")
    text = str(source)
    if text.startswith("file://"):
        parsed = urllib.parse.urlsplit(text)
        if parsed.netloc not in ("", "localhost"):
            raise MediaError(
                "cannot read the file",
                shown(text),
                "a local file",
                f"the host {shown(parsed.netloc)}",
            )
        text = urllib.parse.unquote(parsed.path)
    elif "://" in text:
        raise MediaError(
            "cannot read the file",
            shown(text),
            "a path, http(s)://, file:// or data:",
            f"{shown(text.split('://')[0])}://",
        )
    path = Path(text)
    if not regular(path):
        found = "none" if not os.path.exists(path) else "a pipe or device"
        found = "a folder" if os.path.isdir(path) else found
        raise MediaError("cannot read the file", shown(text), "a plain file", found)
    return path


def decode_data(uri: str, limit: int) -> bytes:
    """The bytes of a data: URI."""
    header, comma, body = uri.partition(",")
    if not comma:
        raise MediaError(
            "cannot read the picture", "the data: URI", "a comma before the data", "none"
        )
    if len(body) > 2 * limit:
        raise MediaError(
            "cannot read the picture", "the data: URI", f"at most {limit} bytes", "more"
        )
    if not header.endswith(";base64"):
        return within(urllib.parse.unquote_to_bytes(body), limit, uri)
    try:
        return within(
            base64.b64decode(urllib.parse.unquote_to_bytes(body), validate=True), limit, uri
        )
    except binascii.Error:
        raise MediaError(
            "cannot read the picture", "the data: URI", "base64", "something else"
        ) from None


def ignore(line: str) -> None:
    """What becomes of a notice that nobody wants."""


def open_picture(source: Picture, notice: Callable[[str], None] = ignore) -> Image.Image:
    """The picture of any source, upright, on white, in RGB; MediaError names what is wrong.

    `notice` gets a line about what the picture leaves out.
    """
    if isinstance(source, np.ndarray):
        return picture_from_array(source)
    if isinstance(source, Image.Image):
        return to_rgb(source)
    return opened(source, to_rgb, notice)


def picture_size(source: Picture) -> tuple[int, int]:
    """The size (width, height) of the upright picture, from its header alone."""
    if isinstance(source, np.ndarray):
        return picture_from_array(source).size
    return upright_size(source) if isinstance(source, Image.Image) else opened(source, upright_size)


def opened(
    source: Readable,
    use: Callable[[Image.Image], Result],
    notice: Callable[[str], None] = ignore,
) -> Result:
    """use(picture) of the picture in a file, before it is decoded."""
    name, data = name_of(source), read_bytes(source, limits.IMAGE_BYTES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            limits.check_pixels(name, picture.size)
            if getattr(picture, "is_animated", False):
                notice(f"{name}: several pictures in one file; only the first one is looked at")
            return use(picture)
        except Image.DecompressionBombError:
            raise MediaError(
                "cannot read the picture",
                name,
                f"at most {limits.PIXELS:,} pixels",
                "more than twice that",
            ) from None
        except UnidentifiedImageError:
            heic = (
                "HEIC is not supported: convert it to JPEG first."
                if b"ftyphei" in data[:32]
                else ""
            )
            raise MediaError(
                "cannot read the picture", name, f"one of {', '.join(FORMATS)}", kind_of(data), heic
            ) from None
        except DAMAGED:
            raise MediaError(
                "cannot read the picture", name, "a whole file", "one that ends early or is damaged"
            ) from None


def kind_of(data: bytes) -> str:
    """A word for bytes that are no picture."""
    return "nothing" if not data else f"a file that begins with {shown(data[:12])}"


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """(width, height) after turning by the EXIF orientation, whose values 5 to 8 swap the two.

    Pillow says the size of a turned TIFF itself.
    """
    exif = Image.Image.getexif(picture)  # a PNG's own method would decode it to look after it
    turned = picture.format != "TIFF" and exif.get(ORIENTATION) in (5, 6, 7, 8)
    return picture.size[::-1] if turned else picture.size


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB: upright by its EXIF orientation, transparency on white.

    16 bits are scaled to 8.
    """
    picture.load()  # which turns a TIFF
    turn = picture.getexif().get(ORIENTATION)
    picture = picture.transpose(UPRIGHT[turn]) if turn in UPRIGHT else picture
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        values = np.asarray(picture, dtype=np.float64)
        top = 65535.0 if picture.mode != "F" else 255.0
        picture = Image.fromarray((values / top * 255).round().clip(0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return picture.convert("RGB")


def picture_from_array(array: np.ndarray) -> Image.Image:
    """A picture from uint8 [H W 3]."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise MediaError(
            "cannot read the picture",
            "the ndarray",
            "uint8 [height, width, 3]",
            f"{array.dtype} {list(array.shape)}",
        )
    return Image.fromarray(array)
