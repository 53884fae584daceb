"""Pictures from everywhere come out upright, on white, in RGB; what is no picture is refused from
its header.
"""

import base64
import http.server
import io
import struct
import threading
import urllib.parse
import zlib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llava_min.errors import MediaError, PromptError
from llava_min.media import data_uri, limits
from llava_min.media import sources as media


def saved(picture: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_lossless_formats_are_the_picture(format):
    picture = small.picture(20, 12).quantize(64).convert("RGB")
    options = {"lossless": True} if format == "WEBP" else {}
    source = picture.quantize(64) if format == "GIF" else picture
    opened = media.open_picture(saved(source, format, **options))
    assert opened.mode == "RGB" and np.array_equal(
        np.asarray(opened), np.asarray(source.convert("RGB"))
    )


@pytest.mark.catalogue("IM-EXIF", "eight orientations are one picture")
def test_eight_orientations_are_one_picture():
    """EXIF says how a phone was held; all eight must come out the same."""
    upright = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3) * 3)
    Op = Image.Transpose
    stored = {
        1: None,
        2: Op.FLIP_LEFT_RIGHT,
        3: Op.ROTATE_180,
        4: Op.FLIP_TOP_BOTTOM,
        5: Op.TRANSPOSE,
        6: Op.ROTATE_90,
        7: Op.TRANSVERSE,
        8: Op.ROTATE_270,
    }
    for orientation, operation in stored.items():
        picture = upright if operation is None else upright.transpose(operation)
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = saved(picture, "PNG", exif=exif)
        assert np.array_equal(np.asarray(media.open_picture(data)), np.asarray(upright)), (
            orientation
        )
        assert media.picture_size(data) == upright.size, orientation


@pytest.mark.catalogue("IM-TRNS", "transparent is white in every mode")
def test_transparent_is_white_in_every_mode():
    """The colour that hides under full transparency must never be seen."""
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    sources = [
        saved(clear, "PNG"),
        saved(Image.new("LA", (4, 4), (10, 0)), "PNG"),
        saved(palette, "PNG", transparency=1),
        saved(Image.new("RGB", (4, 4), (255, 0, 0)), "PNG", transparency=(255, 0, 0)),
        saved(Image.new("L", (4, 4), 9), "PNG", transparency=9),
    ]
    for data in sources:
        assert (np.asarray(media.open_picture(data)) == 255).all()
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert abs(int(np.asarray(media.open_picture(half))[0, 0, 0]) - 127) <= 1


def test_sixteen_bits_are_scaled_not_clipped():
    """40000 of 65535 is 156, where a plain conversion gives 255."""
    values = np.array([[0, 40000, 65535]], dtype=np.uint16)
    opened = media.open_picture(saved(Image.fromarray(values), "PNG"))
    assert np.asarray(opened)[0, :, 0].tolist() == [0, 156, 255]
    floats = Image.fromarray(np.array([[0, 99.6, 200, 255]], dtype=np.float32))
    opened = media.open_picture(saved(floats, "TIFF"))
    assert np.asarray(opened)[0, :, 0].tolist() == [0, 100, 200, 255]


@pytest.mark.catalogue("IM-ANIM", "the first picture, and a notice")
def test_an_animation_gives_its_first_frame_and_a_notice():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    notices = []
    data = saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    opened = media.open_picture(data, notices.append)
    assert np.asarray(opened)[0, 0].tolist() == [255, 0, 0] and "only the first one" in notices[0]


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, with hardly any data behind it."""
    chunk = lambda kind, body: (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    )
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(50_000, 50_000), (13_000, 13_000), (70_000, 1)])
def test_too_many_pixels_are_refused_from_the_header(size):
    with pytest.raises(MediaError, match=r"expected (1 to|at most) 89,478,485 pixels"):
        media.open_picture(png_header(*size))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"<html>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"%PDF-1.7",
        b"\0" * 100,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
)
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(MediaError, match="expected one of PNG"):
        media.open_picture(data)


def test_heic_is_named_with_a_way_out():
    with pytest.raises(MediaError, match="HEIC is not supported: convert"):
        media.open_picture(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_picture_cut_short_is_refused_or_whole(format):
    """Never another exception, and never half a picture taken for a whole one without its data."""
    data = saved(small.picture(40, 40), format)
    refused = 0
    for end in range(0, len(data), max(1, len(data) // 20)):
        try:
            media.open_picture(data[:end])
        except MediaError:
            refused += 1
    assert refused >= 18
    assert media.open_picture(data).size == (40, 40)


@pytest.mark.parametrize("host", ["", "localhost"])
def test_a_file_url_names_a_file_of_this_machine(tmp_path, host):
    path = tmp_path / "a b.png"
    small.picture(20, 12).save(path)
    url = f"file://{host}{urllib.parse.quote(str(path))}"
    assert media.picture_size(url) == (20, 12)
    assert media.film_path(url) == str(path)
    for other in ("elsewhere", "local", "localhost.example"):
        with pytest.raises(MediaError, match=f"expected a local file, found the host .{other}"):
            media.film_path(f"file://{other}{path}")


@pytest.mark.parametrize("scheme", ["ftp", "rtmp", "concat", "s3"])
def test_another_scheme_is_named(scheme):
    for look in (media.picture_size, media.film_path):
        with pytest.raises(MediaError, match=f"or data:, found '?{scheme}'?://"):
            look(f"{scheme}://host/a.png")


@pytest.mark.parametrize(
    "source, name, on_disk",
    [
        ("a picture.png", "a picture.png", True),
        (Path("folder/a.png"), "folder/a.png", True),
        ("file:///a.png", "file:///a.png", True),
        ("two\nlines", r"'two\nlines'", True),
        ("-", "stdin", False),
        (" https://host/a.png", " https://host/a.png", False),
        ("data:,a", "the data: URI", False),
        (b"bytes", "the bytes", False),
        (bytearray(b"bytes"), "the bytearray", False),
        (Image.new("L", (1, 1)), "the Image", True),
    ],
)
def test_sources_are_called_by_their_names(source, name, on_disk):
    """And a path is told from what comes from anywhere else."""
    assert media.label_of(source) == name
    if not isinstance(source, Image.Image):
        assert media.on_disk(source) == on_disk


def test_a_source_has_at_most_its_limit_of_bytes(tmp_path, monkeypatch):
    """From wherever it comes: so many are taken, and one more is refused."""
    (tmp_path / "file").write_bytes(b"12345")
    for source in (str(tmp_path / "file"), "-", "data:,12345", "data:;base64,MTIzNDU="):
        for limit in (4, 5, 6):
            monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"12345")))
            if limit < 5:
                with pytest.raises(MediaError, match="expected at most 4 bytes, found more"):
                    media.read_bytes(source, limit)
            else:
                assert media.read_bytes(source, limit) == b"12345"


@pytest.mark.parametrize("held", [1, 5, 6, 7, 500])
def test_no_more_of_stdin_is_read_than_shows_that_it_is_too_long(monkeypatch, held):
    stream = io.BytesIO(bytes(held))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stream))
    with nullcontext() if held <= 5 else pytest.raises(MediaError):
        assert media.read_bytes("-", 5) == bytes(held)
    assert stream.tell() == min(held, 6)


def test_arrays_must_be_pictures():
    array = np.asarray(small.picture(5, 6))
    assert np.array_equal(np.asarray(media.open_picture(array)), array)
    for small_one in (array[:1], array[:, :1], array[:1, :1]):
        assert np.array_equal(np.asarray(media.open_picture(small_one)), small_one)
    for wrong in (array.astype(float), array[..., 0], array[:0], np.zeros((2, 2, 4), np.uint8)):
        with pytest.raises(MediaError, match="ndarray"):
            media.open_picture(wrong)


def test_data_uris(monkeypatch):
    picture = small.picture(6, 6)
    uri = "data:image/png;base64," + base64.b64encode(saved(picture, "PNG")).decode()
    assert np.array_equal(np.asarray(media.open_picture(uri)), np.asarray(picture))
    monkeypatch.setattr(limits, "IMAGE_BYTES", 20)
    for wrong in ("data:image/png;base64,@@@@", "data:nothing", uri):
        with pytest.raises(MediaError, match="the data: URI"):
            media.open_picture(wrong)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=90), st.data())
def test_a_data_uri_may_be_written_in_many_ways(data, draw):
    """Cases, blanks, parameters, padding, percent-encoding and a fragment: the bytes stay."""
    text = base64.b64encode(data).decode()
    if draw.draw(st.booleans()):
        text = text.rstrip("=")
    for place in draw.draw(st.lists(st.integers(0, len(text)), max_size=5)):
        text = text[:place] + draw.draw(st.sampled_from("\n\r\t\f ")) + text[place:]
    every = draw.draw(st.integers(1, 9))
    escaped = (f"%{ord(c):02x}" if i % every == 0 else c for i, c in enumerate(text))
    text = "".join(escaped) if draw.draw(st.booleans()) else text
    scheme = draw.draw(st.sampled_from(["data:", "DATA:", " Data:", "\ndata:"]))
    kind = draw.draw(
        st.sampled_from(["", "image/png", "image/png;charset=utf-8;a=b", " image/png "])
    )
    form = draw.draw(st.sampled_from([";base64", ";BASE64", "; base64", ";Base64 "]))
    fragment = draw.draw(st.sampled_from(["", "#", "#top"]))
    uri = f"{scheme}{kind}{form},{text}{fragment}"
    assert media.name_of(uri) == "the data: URI"
    assert media.read_bytes(uri, 100) == data
    plain = "".join(f"%{byte:02X}" for byte in data)
    assert media.read_bytes(f"{scheme}{kind},{plain}{fragment}", 100) == data


@settings(max_examples=200, deadline=None)
@given(st.text("%0Aa\u00e9", max_size=30), st.integers(3, 9))
def test_escapes_are_undone_across_the_ends_of_pieces(text, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_uri, "PIECE", piece)
        assert data_uri.unquoted(text) == urllib.parse.unquote_to_bytes(text)


@pytest.mark.parametrize(
    "text", ["@@@@", "A", "AAAAA", "AA=A", "AA=", "A===", "=", "AA==AA==", "AA-_", "ä"]
)
def test_what_is_no_base64_is_refused(text):
    with pytest.raises(MediaError, match="the data: URI: expected base64"):
        media.read_bytes(f"data:image/png;base64,{text}", 100)


def test_a_clip_and_a_message_take_the_same_uris():
    """A clip in a wrapped data: URI, and a message whose part holds base64 alone."""
    from llava_min.media import video
    from llava_min.request import messages

    clip = (small.TINY / "samples" / "clip.mp4").read_bytes()
    wrapped = "DATA:video/mp4;BASE64," + base64.encodebytes(clip).decode()
    choice = video.Choice(frames=2)
    frames = [video.sample_clip(source, choice)[1] for source in (wrapped, clip)]
    assert np.array_equal(*frames)
    picture = small.picture(9, 7)
    text = base64.encodebytes(saved(picture, "PNG")).decode()
    for given_as in (text, f"data:image/png;base64,{text}"):
        parts = [{"type": "image", "base64": given_as}, {"type": "text", "text": "What?"}]
        _, (found,), _ = messages.from_messages([{"role": "user", "content": parts}])
        assert np.array_equal(np.asarray(media.open_picture(found)), np.asarray(picture))
    for wrong in ({"type": "image", "base64": 7}, {"type": "video", "base64": 7.5}):
        with pytest.raises(PromptError):
            messages.from_messages([{"role": "user", "content": [wrong]}])


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def test_a_git_lfs_pointer_is_named_as_one(tmp_path):
    """A picture, a clip, weights or a configuration of a clone without git lfs."""
    from llava_min.base.files import read_json
    from llava_min.errors import CheckpointError
    from llava_min.media import video
    from llava_min.weights.header import read_header

    (tmp_path / "file").write_bytes(POINTER)
    ways = [
        (MediaError, lambda: media.open_picture(tmp_path / "file")),
        (MediaError, lambda: media.open_picture(POINTER)),
        (MediaError, lambda: media.picture_size(str(tmp_path / "file"))),
        (MediaError, lambda: video.sample_clip(tmp_path / "file", video.Choice())),
        (MediaError, lambda: video.sample_clip(POINTER, video.Choice())),
        (CheckpointError, lambda: read_json(tmp_path / "file", "configuration")),
        (CheckpointError, lambda: read_header(tmp_path / "file")),
    ]
    for error, way in ways:
        with pytest.raises(error, match="a Git LFS pointer to it.*git lfs pull"):
            way()


# The one network access --------------------------------------------------------------------------


class Hostile(http.server.BaseHTTPRequestHandler):
    picture = saved(small.picture(10, 10), "PNG")
    requests: list[str] = []

    def do_GET(self):
        Hostile.requests.append(self.path)
        if self.path == "/picture":
            self.reply(200, self.picture)
        elif self.path == "/redirect":
            self.reply(302, b"", Location="/picture")
        elif self.path == "/loop":
            self.reply(302, b"", Location="/loop")
        elif self.path == "/to-file":
            self.reply(302, b"", Location="file:///etc/passwd")
        elif self.path == "/lies":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(self.picture)
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(1000):
                    self.wfile.write(b"x" * 65536)
            except OSError:
                pass
        else:
            self.reply(404, b"nothing")

    def reply(self, code, body, **headers):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_a_url_is_fetched_through_redirects(server):
    expected = np.asarray(small.picture(10, 10))
    for path in ("/picture", "/redirect"):
        assert np.array_equal(np.asarray(media.open_picture(server + path)), expected)


@pytest.mark.parametrize(
    "path, found",
    [
        ("/loop", "redirect"),
        ("/to-file", "redirect"),
        ("/lies", "expected"),
        ("/endless", "at most 1000000 bytes"),
        ("/missing", "404"),
    ],
)
def test_hostile_answers_are_refused(server, path, found, monkeypatch):
    monkeypatch.setattr(limits, "IMAGE_BYTES", 1_000_000)
    with pytest.raises(MediaError, match=found):
        media.open_picture(server + path)


def test_a_host_that_is_not_there():
    with pytest.raises(MediaError, match="cannot fetch"):
        media.open_picture("http://127.0.0.1:9/picture.png")
