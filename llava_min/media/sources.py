"""Where pictures and clips come from: paths, URLs, stdin, bytes, PIL images, arrays.

in:  what a user names as a picture or video: a path, file://, data:, http(s)://, - for stdin,
     bytes, a PIL image, an array
out: a PIL image in RGB, or the path or bytes of a video

Limits are checked from headers, before pixels exist. A URL is fetched into memory (media/web.py);
FFmpeg never sees one.
Read media/limits.py first. Read next: image.py, media/video.py.
"""

import io
import os
import struct
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..base.files import path_of, refuse_pointer, regular
from ..errors import MediaError, shown
from . import data_uri, jpeg, limits, png
from .colors import file_of, to_rgb
from .data_uri import decode_data_uri, is_data_uri

# what a user may name as a picture or as a video, and what leads to the bytes of a file
Picture = str | Path | bytes | bytearray | Image.Image | np.ndarray


class FrameList(tuple[Picture, ...]):
    """The frames of one clip, each a picture."""

    def __repr__(self) -> str:
        return f"{len(self)} frames"


class NamedBytes(bytes):
    """Bytes of a file that messages call by a name."""

    name = "the bytes"


class NamedPath(str):
    """A path of a file that messages call by a name."""

    def __new__(cls, path: Path, name: str) -> "NamedPath":
        made = super().__new__(cls, path)
        made.name = name
        return made

    name: str


Video = Picture | FrameList
Readable = str | Path | bytes | bytearray
Result = TypeVar("Result")

DAMAGED = (
    # what Pillow's parsers and decoders raise for damaged files
    OSError,
    ValueError,
    TypeError,
    LookupError,
    SyntaxError,
    EOFError,
    ArithmeticError,
    struct.error,
    RuntimeError,
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
# what finds lost pixels that Pillow makes up
CHECKED = {"JPEG": jpeg.completed, "MPO": jpeg.completed, "PNG": png.checked}
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def name_of(source: object) -> str:
    """How messages name a source: a path or URL as given, anything else by its kind."""
    if isinstance(source, NamedBytes | NamedPath):
        return source.name
    if isinstance(source, (str, Path)):
        text = str(source)
        return data_uri.NAME if is_data_uri(text) else "stdin" if text == "-" else shown(text)
    return f"the {type(source).__name__}"


def label_of(source: object) -> str:
    """How answers name a source: a path or URL without quotes, anything else as messages do."""
    text, name = str(source), name_of(source)
    return text if name == shown(text) and text.isprintable() else name


def read_bytes(source: Readable, limit: int) -> bytes:
    """The bytes of a path, URL, data: URI, "-" (stdin), or of bytes.

    MediaError where there are none.
    """
    data = bytes_of(source, limit)
    refuse_pointer(data[:100], MediaError, "cannot read the file", name_of(source))
    return data


def bytes_of(source: Readable, limit: int) -> bytes:
    """The bytes of a source, whatever they are."""
    if isinstance(source, (bytes, bytearray)):
        return bytes(source)
    text = str(source)
    if text == "-":
        return within(sys.stdin.buffer.read(limit + 1), limit, source)
    if is_data_uri(text):
        return decode_data_uri(text, limit)
    if is_url(text):
        from .web import fetch

        return fetch(text.strip(), limit)
    try:
        with open(local_path(source), "rb") as file:
            size = os.fstat(file.fileno()).st_size  # reading makes room for all that it may read
            return within(file.read(min(size, limit) + 1), limit, source)
    except OSError as error:
        raise MediaError(
            "cannot read the file", name_of(source), "a file that can be read", error.strerror
        ) from None


def is_url(text: str) -> bool:
    """Whether a text is an address on the web; its scheme may be in any case."""
    return text[:64].lstrip().lower().startswith(("http:", "https:"))


def on_disk(source: object) -> bool:
    """Whether a source is said to be a file on this machine, and not bytes from anywhere else."""
    text = str(source)
    in_memory = isinstance(source, bytes | bytearray) or text == "-"
    return not (in_memory or is_data_uri(text) or is_url(text))


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
        host = text.removeprefix("file://").partition("/")[0]
        if host not in ("", "localhost"):
            raise MediaError(
                "cannot read the file", shown(text), "a local file", f"the host {shown(host)}"
            )
        text = path_of(text)
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


def film_path(source: Readable) -> str:
    """The path of a video on this machine, for FFmpeg."""
    path = local_path(source)
    with suppress(OSError), open(path, "rb") as file:
        refuse_pointer(file.read(100), MediaError, "cannot read the file", name_of(source))
    return str(path)


def ignore(line: str) -> None:
    """What becomes of a notice that nobody wants."""


def open_picture(source: Picture, notice: Callable[[str], None] = ignore) -> Image.Image:
    """The picture of any source, upright, on white, in RGB; MediaError names what is wrong.

    `notice` gets a line about what the picture leaves out.
    """
    if isinstance(source, np.ndarray):
        return picture_from_array(source)
    return opened(source, decoded, notice)


def picture_size(source: Picture) -> tuple[int, int]:
    """The size (width, height) of the upright picture, from its header alone."""
    if isinstance(source, np.ndarray):
        return picture_from_array(source).size
    return opened(source, lambda picture, _: upright_size(picture))


def opened(
    source: Readable | Image.Image,
    use: Callable[[Image.Image, str], Result],
    notice: Callable[[str], None] = ignore,
) -> Result:
    """use(picture, its name) of the picture in a file, before it is decoded."""
    name, data = name_of(source), b""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if isinstance(source, Image.Image):
                if getattr(source, "tile", None) and getattr(source, "fp", None) is None:
                    raise MediaError(
                        "cannot read the picture", name, "a file that is open", "a closed one"
                    )
                return use(source, name)
            data = read_bytes(source, limits.IMAGE_BYTES)
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            limits.check_pixels(name, picture.size)
            if getattr(picture, "is_animated", False):
                notice(f"{name}: several pictures in one file; only the first one is looked at")
            return use(picture, name)
        except Image.DecompressionBombError:
            raise MediaError(
                "cannot read the picture",
                name,
                f"at most {limits.PIXELS:,} pixels",
                "more than twice that",
            ) from None
        except UnidentifiedImageError:
            raise unidentified(name, data) from None
        except DAMAGED:
            raise damaged(name) from None


def damaged(name: str) -> MediaError:
    return MediaError(
        "cannot read the picture", name, "a whole file", "one that ends early or is damaged"
    )


def unidentified(name: str, data: bytes) -> MediaError:
    """The error of bytes in which Pillow finds no picture."""
    from . import tiff  # whose part of Pillow only such a file needs

    if tiff.is_tiff(data):
        try:
            return MediaError("cannot read the picture", name, tiff.READ, tiff.described(data))
        except DAMAGED:
            return damaged(name)
    heic = "HEIC is not supported: convert it to JPEG first." if b"ftyphei" in data[:32] else ""
    found = f"a file that begins with {shown(data[:12])}" if data else "nothing"
    return MediaError("cannot read the picture", name, f"one of {', '.join(FORMATS)}", found, heic)


def upright_size(picture: Image.Image) -> tuple[int, int]:
    """(width, height) after turning by the orientation, whose values 5 to 8 swap the two."""
    return picture.size[::-1] if orientation(picture) in (5, 6, 7, 8) else picture.size


def orientation(picture: Image.Image) -> object:
    """How a picture that may not be decoded yet is still to be turned, as EXIF counts.

    Of a TIFF Pillow gives the size as the tag turns it, but not as XMP does.
    """
    if picture.format == "PNG" and getattr(picture, "tile", None):
        data = png.notes_first(file_of(picture))
        picture = Image.open(io.BytesIO(data), formats=["PNG"])
    turn = Image.Image.getexif(picture).get(ORIENTATION)  # a PNG's own method would decode it
    return None if turn == getattr(picture, "tag_v2", {}).get(ORIENTATION) else turn


def decoded(picture: Image.Image, name: str) -> Image.Image:
    """The picture upright, on white, in RGB."""
    turn = None if picture.format == "TIFF" else orientation(picture)  # Pillow turns a TIFF
    if picture.format in CHECKED and getattr(picture, "tile", None):
        data = file_of(picture)
        if (whole := CHECKED[picture.format](data)) is not data:
            picture = Image.open(io.BytesIO(whole), formats=FORMATS)
    picture = to_rgb(picture, name)
    return picture.transpose(UPRIGHT[turn]) if turn in UPRIGHT else picture


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
