"""Bad pictures and videos, from files and from hostile hosts: each gets one clear line.

Each case has a harmless twin beside it that answers; bad_input.py says what every case asserts.
"""

import functools
import io
import os
import shutil
import socketserver
import struct
import threading
import time
import wave
import zlib

import numpy as np
import pytest
import small
from bad_input import RESULTS, Case, ask, check, command, plain_memory, rows
from PIL import Image

import llava_min
from llava_min.media import limits
from llava_min.media import sources as media

av = pytest.importorskip("av")
catalogue = pytest.mark.catalogue


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


def floats(values: list[float]):
    picture = Image.fromarray(np.array([values], np.float32))
    return image(saved(picture, "TIFF"), "picture.tiff")


# two pixels whose tags say that each has 64 bits
DOUBLES = saved(Image.fromarray(np.zeros((1, 4), np.float32)), "TIFF")
DOUBLES = DOUBLES.replace(struct.pack("<HHIH", 258, 3, 1, 32), struct.pack("<HHIH", 258, 3, 1, 64))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
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
        }
        | {
            f"{format}, its second half zeros": image(
                SAVED[format][: len(SAVED[format]) // 2] + bytes(len(SAVED[format]) // 2)
            )
            for format in ("PNG", "JPEG")
        },
    ),
    *rows(
        "IM-MODES",
        4,
        r"picture\.tiff",
        good_png,
        {
            "floats from -9 to 300": (
                floats([-9, 300]),
                "floats from 0 to 1 or from 0 to 255, found floats from -9 to 300",
            ),
            "not a number": (floats([0.5, np.nan]), "floats from nan to nan"),
            "64-bit floats": (
                image(DOUBLES, "picture.tiff"),
                r"a TIFF of up to 4 bands.*found a TIFF of 1 band of 64-bit floats",
            ),
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
            "file:// of half a host": (source("--image", "file://[/a.png"), "a local file"),
            "data: without a comma": (source("--image", "data:image/png"), "comma"),
            "data: that is not base64": (source("--image", "data:image/png;base64,@@"), "base64"),
            "data: with padding inside": (source("--image", "data:;base64,AA=A"), "base64"),
            "a Git LFS pointer": (image(POINTER), r"picture\.png.*a Git LFS pointer"),
            "a clip that is a Git LFS pointer": (clip(POINTER), r"clip\.mp4.*a Git LFS pointer"),
            "a host with a blank": (source("--image", "http://a b/"), "cannot fetch"),
            "half a host": (source("--image", "http://[/a.png"), "an answer, found none that"),
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
            "a video as an empty folder": (special("--video", os.mkdir), "a folder of pictures"),
            "a video as a device": source("--video", "/dev/zero"),
        },
    ),
]


# Videos ------------------------------------------------------------------------------------------


def brighter(count: int, size: tuple[int, int]) -> np.ndarray:
    """Frames of plain grey, each brighter than the one before."""
    levels = [20 + 200 * index // max(1, count - 1) for index in range(count)]
    levels = np.array(levels or [0], np.uint8)[:, None, None, None]
    return np.broadcast_to(levels, (len(levels), size[1], size[0], 3))


def filmed(
    count=8,
    size=(64, 48),
    format="mp4",
    codec="libx264",
    pix_fmt="yuv420p",
    pictures=None,
    **options,
):
    """The bytes of a clip, by default one that grows brighter."""
    pictures = brighter(count, size)[:count] if pictures is None else pictures
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=format) as container:
        stream = container.add_stream(codec, rate=10, options={"crf": "20", **options})
        stream.height, stream.width = pictures.shape[1:3] if len(pictures) else (48, 64)
        stream.pix_fmt = pix_fmt
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def sound() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\0\0" * 800)
    return buffer.getvalue()


def cover() -> bytes:
    """Sound with a picture on its sleeve."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        music = container.add_stream("aac", rate=8000)
        sleeve = container.add_stream("mjpeg", rate=1)
        sleeve.width, sleeve.height, sleeve.pix_fmt = 32, 24, "yuvj420p"
        sleeve.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        picture = av.VideoFrame.from_ndarray(np.zeros((24, 32, 3), np.uint8), format="rgb24")
        for stream, frame in ((music, silence), (sleeve, picture)):
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return buffer.getvalue()


def moving_webp() -> bytes:
    buffer = io.BytesIO()
    pictures = [Image.fromarray(picture) for picture in brighter(4, (32, 24))]
    pictures[0].save(buffer, "WEBP", save_all=True, append_images=pictures[1:])
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
        r"clip\..*expected a video",
        good_clip,
        {
            "a wav": clip(sound(), "clip.wav"),
            "a picture attached to sound": (
                clip(cover(), "clip.m4a"),
                r"clip\.m4a.*no video, only an attached picture",
            ),
        },
    ),
    *rows(
        "VD-KIND",
        4,
        r"clip\..*expected a video \(MP4, .*, WebM, AVI, MPEG, .*\)",
        good_clip,
        {
            "a moving WebP": clip(moving_webp(), "clip.webp"),
            "a NUT": clip(filmed(format="nut"), "clip.nut"),
        },
    ),
    *rows(
        "VD-CODEC",
        4,
        r"clip\.mp4.*a codec that is known",
        good_clip,
        {
            "an unknown one": clip(MP4.replace(b"avc1", b"zzzz")),
        },
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


# Hosts -------------------------------------------------------------------------------------------

DONE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(SAVED["PNG"]), SAVED["PNG"])


def answered(head: str, body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {head}\r\n\r\n".replace("\n", "\r\n").replace("\r\r", "\r").encode() + body


ANSWERS = {
    # path: what the host sends; a list is sent piece by piece, a twentieth of a second apart
    "picture": DONE,
    "redirect": answered("302 Found\nLocation: /picture"),
    "loop": answered("302 Found\nLocation: /loop"),
    "chain": answered("302 Found\nLocation: /chain?more"),
    "to-file": answered("302 Found\nLocation: file:///etc/passwd"),
    "to-ftp": answered("302 Found\nLocation: ftp://127.0.0.1/a.png"),
    "to-data": answered("302 Found\nLocation: data:image/png;base64,AAAA"),
    "to-nowhere": answered("302 Found"),
    "to-a-wrong-host": answered("302 Found\nLocation: http://[x/"),
    "missing": answered("404 Not Found\nContent-Length: 0"),
    "broken": answered("500 Oops\nContent-Length: 0"),
    "empty": answered("204 No Content"),
    "page": answered("200 OK\nContent-Type: image/png", b"<html>no picture</html>"),
    "nothing": b"",
    "no-http": b"hello\r\n\r\n",
    "short": answered("200 OK\nContent-Length: 100000", SAVED["PNG"]),
    "huge-length": answered("200 OK\nContent-Length: 99999999999", SAVED["PNG"]),
    "wrong-chunks": answered("200 OK\nTransfer-Encoding: chunked", b"zz\r\nabc"),
    "cut-chunks": answered("200 OK\nTransfer-Encoding: chunked", b"400\r\nabc"),
    "long-header": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    "many-headers": b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 1000 + b"\r\n",
    "endless": [answered("200 OK"), *[b"x" * (1 << 20)] * 200],
    "slow-headers": [b"HTTP/1.1 200 OK\r\n", *[b"X", b": a\r\n"] * 2000],
    "slow-body": [answered("200 OK\nContent-Length: 9000"), *[b"x"] * 9000],
    "silent": [b""] * 2000,
}


class Hostile(socketserver.StreamRequestHandler):
    """A host that answers by path, without manners."""

    requests: list[str] = []

    def handle(self):
        path = self.rfile.readline().split(b" ")[1].decode()
        Hostile.requests.append(path)
        pieces = ANSWERS[path.strip("/").split("?")[0]]
        try:
            for piece in [pieces] if isinstance(pieces, bytes) else pieces:
                self.wfile.write(piece)
                time.sleep(0.05 if len(piece) < 100 and isinstance(pieces, list) else 0)
        except OSError:
            pass  # the other side has had enough


@functools.cache
def host() -> str:
    """The address of the hostile host, which runs until the tests end."""
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Hostile)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


def fetched(path: str, option: str = "--image"):
    return lambda folder: ask(folder, option, f"{host()}/{path}")


def hosts(named: dict[str, str]) -> dict:
    """Each path of the server as a case whose message names the URL and then the given words."""
    url = r"127\.0\.0\.1:\d+"
    return {path: (fetched(path), f"{url}/{path}.*{words}") for path, words in named.items()}


def impatient():
    limits.FETCH_SECONDS, limits.IMAGE_BYTES = 0.5, 1_000_000


HOSTS = [
    *rows(
        "NET-HOST",
        4,
        "",
        fetched("redirect"),
        hosts(
            {
                "loop": "redirect",
                "chain": "redirect",
                "to-file": "redirect",
                "to-ftp": "",
                "to-data": "",
                "to-nowhere": "redirect",
                "to-a-wrong-host": "",
                "missing": "404",
                "broken": "500",
                "empty": "one of PNG",
                "page": "one of PNG",
                "nothing": "",
                "no-http": "",
                "short": "100000 bytes",
                "huge-length": "99999999999 bytes",
                "wrong-chunks": "",
                "cut-chunks": "",
                "long-header": "",
                "many-headers": "",
            }
        ),
    ),
    *rows(
        "NET-SLOW",
        4,
        "",
        fetched("picture"),
        hosts(
            {
                "slow-headers": "within 0.5 seconds",
                "slow-body": "within 0.5 seconds",
                "silent": "within 0.5 seconds",
                "endless": "at most 1000000 bytes",
            }
        ),
        before=impatient,
    ),
    *rows(
        "VD-URL",
        4,
        "cannot read the video",
        good_clip,
        {
            "a playlist behind a URL": fetched("page", "--video"),
        },
    ),
]


def test_a_playlist_sends_no_request(model, tmp_path):
    """FFmpeg would follow the addresses in it; here nobody is asked."""
    for number, text in enumerate(
        (PLAYLIST.format(f"{host()}/spy"), f"ffconcat version 1.0\nfile {host()}/spy\n")
    ):
        case = Case(
            "VD-PLAYLIST",
            "",
            4,
            "cannot read the video",
            playlist(f"clip{number}.m3u8", text),
            good_clip,
        )
        (tmp_path / str(number)).mkdir()
        check(case, tmp_path / str(number), model)
        RESULTS.pop(("VD-PLAYLIST", ""))
    assert "/spy" not in Hostile.requests


@pytest.mark.parametrize("case", [*PICTURES, *VIDEOS, *HOSTS], ids=str)
def test_bad_media(case: Case, model, tmp_path):
    check(case, tmp_path, model)


# What must be answered ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(model):
    return llava_min.load(model, device="cpu")


@catalogue("IM-TINY", "pictures of 1 x 1 to 5 x 4000")
def test_pictures_of_any_shape_are_answered(loaded):
    """As many rows as the plan says, whatever the ratio."""
    sides = (1, 2, 3, 4, 336, 337, 4000)
    for short_side in (1, 2, 5):
        for side in sides:
            for size in ((short_side, side), (side, short_side)):
                prepared = loaded.prepare("What?", [Image.new("RGB", size)])
                visual = prepared.visuals[0]
                rows = sum(map(len, loaded.network.encode(visual.segment, visual.pixels)))
                assert rows == visual.segment.tokens, size
    assert loaded.generate("What?", images=[Image.new("RGB", (1, 4000))], max_tokens=1).token_ids


@catalogue("IM-MODES", "grey in CMYK, YCbCr, LAB, 1, L, LA, P, PA, I;16, I, F within 2 levels")
def test_every_mode_comes_out_in_rgb():
    ramp = Image.fromarray(np.arange(0, 256, 5, dtype=np.uint8)[None].repeat(4, axis=0))
    values = np.asarray(ramp)
    pictures = {
        "1": ramp.point(lambda level: 255 * (level > 127), "1"),
        "L": ramp,
        "P": ramp.convert("P"),
        "LA": ramp.convert("LA"),
        "PA": ramp.convert("PA"),
        "CMYK": ramp.convert("CMYK"),
        "YCbCr": ramp.convert("YCbCr"),
        "RGBX": ramp.convert("RGBX"),
        "I;16": Image.fromarray(values.astype(np.uint16) * 257),
        "I": Image.fromarray(values.astype(np.int32) * 257),
        "F": Image.fromarray(values.astype(np.float32)),
    }
    for mode, picture in pictures.items():
        assert picture.mode == mode
        expected = np.where(values > 127, 255, 0) if mode == "1" else values
        sources = [picture]
        if mode not in ("PA", "RGBX"):
            sources.append(saved(picture, "TIFF"))
        for source in sources:
            got = np.asarray(media.open_picture(source)).astype(int)
            assert np.abs(got - expected[..., None]).max() <= 2, mode
    grey = media.open_picture(saved(Image.new("LAB", (2, 2), (200, 128, 128)), "TIFF"))
    assert np.ptp(np.asarray(grey), axis=2).max() <= 2


def frames_of(loaded, data, count: int = 3) -> np.ndarray:
    """The tiles of a clip as the model sees them, [F S S 3]."""
    visual = loaded.prepare("What?", videos=[data], frames=count).visuals[0]
    return np.stack([np.asarray(tile) for tile in visual.pixels]).astype(int)


ONE, W = 1 << 16, 1 << 30  # in an MP4's matrix: 16 bits behind the point, 30 in the last column
TURNED = {90: (0, ONE, -ONE, 0), 180: (-ONE, 0, 0, -ONE), 270: (0, -ONE, ONE, 0)}  # clockwise


@catalogue("VD-ROT", "clips that a phone turned by 90, 180 and 270 degrees come out upright")
@pytest.mark.parametrize("degrees", TURNED)
def test_turned_clips_come_out_upright(loaded, degrees):
    """The matrix is written by hand into the track's header, apart from any library's sign."""
    pictures = np.zeros((3, 48, 64, 3), np.uint8)
    pictures[:, :24], pictures[:, 24:, 32:] = (200, 0, 0), (0, 0, 200)
    plain = filmed(pictures=pictures)
    at = plain.index(b"tkhd") + 4 + 4 + 20 + 16
    a, b, c, d = TURNED[degrees]
    assert plain[at : at + 36] == struct.pack(">9i", ONE, 0, 0, 0, ONE, 0, 0, 0, W)
    matrix = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, W)
    turned = plain[:at] + matrix + plain[at + 36 :]
    upright = filmed(pictures=np.rot90(pictures, -degrees // 90, axes=(1, 2)))
    assert np.abs(frames_of(loaded, turned) - frames_of(loaded, upright)).mean() < 3
    assert np.abs(frames_of(loaded, turned) - frames_of(loaded, plain)).mean() > 30
    size = loaded.prepare("What?", videos=[turned], frames=3).media[0]["size"]
    assert size == ([64, 48] if degrees == 180 else [48, 64])


@catalogue("VD-HDR", "10 bits, and HDR by its tags: the levels of the 8 bit clip, no tone mapping")
def test_ten_bits_and_hdr_come_out_sane(loaded):
    expected = frames_of(loaded, filmed(), 8)
    quiet = "log-level=none:pools=none"
    hdr = f"{quiet}:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"
    for parameters in (quiet, hdr):
        options = {"codec": "libx265", "pix_fmt": "yuv420p10le", "x265-params": parameters}
        got = frames_of(loaded, filmed(**options), 8)
        assert np.abs(got - expected).max() <= 6  # two lossy encoders at low quality
        assert np.ptp(got, axis=3).max() <= 4 and (np.diff(got.mean((1, 2, 3))) > 0).all()


@catalogue(
    "VD-BOMB", "24 frames of 4096 x 2304, or 3,000 of 16 x 16: sampled, a few frames at a time"
)
@pytest.mark.parametrize("count, size", [(24, (4096, 2304)), (3000, (16, 16))])
def test_large_and_long_clips_take_little_memory(model, tmp_path, count, size):
    """A few decoded frames for each of FFmpeg's threads, where all of them would be 680 MB."""
    (tmp_path / "clip.mp4").write_bytes(filmed(count, size, preset="ultrafast", tune="zerolatency"))
    shutil.copytree(model, tmp_path / "model")
    ended = command(ask(tmp_path, "--video", tmp_path / "clip.mp4", "--frames", "24"))
    assert ended.code == 0, ended
    assert ended.memory - plain_memory() < (300 + 16 * min(16, os.cpu_count())) << 20
