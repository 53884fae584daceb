"""Bad pictures and videos, from files and from hostile hosts: each gets one clear line.

Each case has a harmless twin beside it that answers; bad_input.py says what every case asserts.
"""

import io
import os
import struct
import wave
import zlib

import numpy as np
import pytest
import small
from bad_input import Case, ask, check, rows
from PIL import Image

av = pytest.importorskip("av")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random checkpoint, which every case copies."""
    return small.small(tmp_path_factory.mktemp("model") / "model", tied=False)


def saved(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def image(data: bytes, name: str = "picture.png"):
    """A question about a picture file with these bytes."""

    def make(folder):
        (folder / name).write_bytes(data)
        return ask(folder, "--image", folder / name)

    return make


def clip(data: bytes, name: str = "clip.mp4", *more):
    """A question about a video file with these bytes."""

    def make(folder):
        (folder / name).write_bytes(data)
        return ask(folder, "--frames", "4", "--video", folder / name, *more)

    return make


def source(option: str, text: str):
    return lambda folder: ask(folder, option, text)


def special(option: str, kind):
    """A pipe, folder or device where a file is expected."""

    def make(folder):
        path = folder / "odd"
        kind(path)
        return ask(folder, option, path)

    return make


# Pictures ----------------------------------------------------------------------------------------

PICTURE = small.picture(40, 30)
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
SAVED = {format: saved(PICTURE, format) for format in FORMATS}


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG of one bit a pixel that claims a size."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def short(format: str, part: float):
    return image(SAVED[format][: int(part * len(SAVED[format]))], f"picture.{format.lower()}")


good_png = image(SAVED["PNG"])
NO_PICTURE = r"picture\.png.*expected one of PNG"
PICTURES = [
    *rows(
        "IM-GARBAGE",
        4,
        NO_PICTURE,
        good_png,
        {
            "empty": image(b""),
            "a text": image(b"hello"),
            "HTML": image(b"<html>"),
            "SVG": image(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
            "PDF": image(b"%PDF-1.7"),
            "EPS": image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n(x) run\n"),
            "random bytes": image(np.random.default_rng(0).bytes(1000)),
            "zeros": image(b"\0" * 1000),
            "HEIC": (
                image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
                "HEIC is not supported: convert",
            ),
            "PPM": image(b"P6 2 2 255\n" + b"a" * 12),
            "colors in the first bytes": (image(b"\x1b[31mred\n"), r"x1b\[31mred\\n"),
        },
    ),
    *rows(
        "IM-TRUNC",
        4,
        "ends early or is damaged|one of PNG",
        good_png,
        {
            f"{format} at {part:.0%}": short(format, part)
            for format in FORMATS
            for part in (0.05, 0.5, 0.9)
        },
    ),
    *rows(
        "IM-BOMB1",
        4,
        r"picture\.png.*89,478,485 pixels",
        image(png(40, 30, b"\0" * 200)),
        {
            "PNG 50,000 x 50,000": image(png(50_000, 50_000)),
            "BMP": image(bmp(50_000, 50_000)),
            "PNG 70,000 x 1": image(png(70_000, 1)),
            "GIF": image(
                b"GIF89a"
                + struct.pack("<HHBBB", 60000, 60000, 0x80, 0, 0)
                + b"\0" * 6
                + b",\0\0\0\0"
                + struct.pack("<HH", 60000, 60000)
                + b"\0\x02\x02\x44\x01\0;"
            ),
            "PPM": (image(b"P6 50000 50000 255\n"), NO_PICTURE),
        },
    ),
    *rows(
        "IM-BOMB2",
        4,
        "13000 x 13000",
        image(png(40, 30, b"\0" * 200)),
        {
            "20 KB that are 169 million pixels": image(png(13_000, 13_000, b"\0" * 1626 * 13_000)),
        },
    ),
    *rows(
        "IM-SOURCE",
        4,
        "",
        good_png,
        {
            "no such file": (source("--image", "nothing.png"), r"nothing\.png"),
            "a name that is too long": (source("--image", "a" * 5000), "aaa"),
            "a file that cannot be read": (source("--image", "/proc/self/mem"), "/proc/self/mem"),
            "another protocol": (source("--image", "ftp://host/a.png"), "ftp"),
            "file:// of a host": (source("--image", "file://elsewhere/a.png"), "elsewhere"),
            "data: without a comma": (source("--image", "data:image/png"), "comma"),
            "data: that is not base64": (source("--image", "data:image/png;base64,@@"), "base64"),
            "a host with a blank": (source("--image", "http://a b/"), "cannot fetch"),
            "a host without a name": (source("--image", "http:///a.png"), "cannot fetch"),
            "a port out of range": (source("--image", "http://127.0.0.1:99999/"), "cannot fetch"),
            "empty stdin": (lambda folder: [*ask(folder, "--image", "-"), b""], "stdin"),
        },
    ),
    *rows(
        "CK-FIFO",
        4,
        "a plain file",
        good_png,
        {
            "a picture as a pipe": special("--image", os.mkfifo),
            "a picture as a folder": special("--image", os.mkdir),
            "a picture as a device": source("--image", "/dev/zero"),
            "a video as a pipe": special("--video", os.mkfifo),
            "a video as a folder": special("--video", os.mkdir),
            "a video as a device": source("--video", "/dev/zero"),
        },
    ),
]


# Videos ------------------------------------------------------------------------------------------


def filmed(count=8, size=(64, 48), format="mp4", codec="libx264", pix_fmt="yuv420p", **options):
    """The bytes of a clip that grows brighter."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format, options=options.pop("container", {})) as container:
        stream = container.add_stream(codec, rate=10, options={"crf": "20", **options})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        for index in range(count):
            level = 20 + 200 * index // max(1, count - 1)
            frame = av.VideoFrame.from_ndarray(
                np.full((size[1], size[0], 3), level, np.uint8), format="rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def sound() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\0\0" * 800)
    return buffer.getvalue()


MP4, MKV, TS = (filmed(format=format) for format in ("mp4", "matroska", "mpegts"))
good_clip = clip(MP4)
PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"


def playlist(name: str, text: str):
    """A file that names another one, which lies beside it."""

    def make(folder):
        (folder / "secret.mp4").write_bytes(MP4)
        (folder / name).write_text(text)
        return ask(folder, "--video", folder / name)

    return make


VIDEOS = [
    *rows(
        "VD-EMPTY",
        4,
        r"clip\.mp4",
        good_clip,
        {
            "empty": clip(b""),
            "a text": clip(b"hello"),
            "random": clip(np.random.default_rng(1).bytes(5000)),
            "cut before the index": clip(MP4[: len(MP4) // 2]),
            "eight bytes": clip(MP4[:8]),
            "no frames": clip(filmed(0)),
        },
    ),
    *rows(
        "VD-AUDIO",
        4,
        r"clip\.wav.*expected a video",
        good_clip,
        {"a wav": clip(sound(), "clip.wav")},
    ),
    *rows(
        "VD-PLAYLIST",
        4,
        "cannot read the video",
        good_clip,
        {
            name: playlist(name, text)
            for name, text in {
                "clip.m3u8": PLAYLIST.format("secret.mp4"),
                "hls.mp4": PLAYLIST.format("secret.mp4"),
                "clip.ffconcat": "ffconcat version 1.0\nfile secret.mp4\n",
                "concat.mp4": "ffconcat version 1.0\nfile secret.mp4\n",
                "clip.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 9 RTP/AVP 96\n",
                "clip.mpd": "<MPD><Period><BaseURL>secret.mp4</BaseURL></Period></MPD>",
            }.items()
        },
    ),
    *rows(
        "VD-URL",
        4,
        "cannot read the file",
        good_clip,
        {
            text: source("--video", text)
            for text in (
                "rtmp://127.0.0.1/x",
                "concat:a|b",
                "subfile,,start,0,end,9,,:x",
                "pipe:0",
                "async:x",
                "tcp://127.0.0.1:9",
                "crypto:x",
                "hls+http://127.0.0.1:9/a",
            )
        },
    ),
    *rows(
        "VD-BOMB",
        4,
        r"35,000,000 pixels",
        good_clip,
        {
            "a frame of 64 million pixels": clip(
                filmed(1, (8000, 8000), codec="mjpeg", pix_fmt="yuvj420p")
            ),
        },
    ),
]


@pytest.mark.parametrize("case", [*PICTURES, *VIDEOS], ids=str)
def test_bad_media(case: Case, model, tmp_path):
    check(case, tmp_path, model)
