"""Pictures whose files end early: all pixels, or a refusal, and never pixels that were made up.

A file may be cut short, or keep its length and be filled with zeros where a download broke off.
"""

import io
import zlib

import numpy as np
import png
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llava_min.errors import MediaError
from llava_min.media import jpeg
from llava_min.media import sources as media
from llava_min.media.png import SIGNATURE, chunks

NOISE, FLAT = small.picture(61, 47), Image.new("RGB", (61, 47), (9, 90, 9))
KINDS = {
    "baseline": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "restarts": ("JPEG", {"restart_marker_blocks": 3}),
    "both": ("JPEG", {"progressive": True, "restart_marker_blocks": 3}),
    "fine": ("JPEG", {"quality": 95, "subsampling": 0}),
    "PNG": ("PNG", {}),
}


def saved(picture: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def outcome(data: bytes) -> np.ndarray | None:
    """The pixels, or None where the file is refused."""
    try:
        return np.asarray(media.open_picture(data))
    except MediaError as error:
        assert error.exit_code == 4
        return None


@pytest.mark.catalogue("IM-TRUNC", "JPEG and PNG cut anywhere, or filled with zeros: whole or not")
@pytest.mark.parametrize("zeros", [0, 2, 7, 3000])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_picture_is_whole_or_refused(kind, zeros):
    """What is let in is bit-equal; and most of it is not let in."""
    format, options = KINDS[kind]
    for picture in (NOISE, NOISE.convert("L"), FLAT):
        data = saved(picture, format, **options)
        whole, taken = outcome(data), 0
        ends = [*range(len(data) - 60, len(data)), *range(10, len(data) - 60, 37)]
        for end in ends:
            got = outcome(data[:end] + bytes(zeros))
            if got is not None:
                taken += 1
                assert np.array_equal(got, whole), (len(data) - end, zeros)
        assert taken < len(ends) / 2 or picture is FLAT


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "PNG"])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_without_its_last_marker_is_read(kind, mode):
    """Whether the marker is missing, is half there, or was overwritten with zeros."""
    data = saved(NOISE.convert(mode), *KINDS[kind][:1], **KINDS[kind][1])
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert data.endswith(b"\xff\xd9")
    for ending in (b"", b"\xff", b"\0\0", bytes(500)):
        assert np.array_equal(outcome(data[:-2] + ending), whole)


def test_a_progressive_jpeg_without_its_last_scans_is_refused():
    """It shows the whole picture, blurred: each scan that is there is whole."""
    data = saved(NOISE, "JPEG", progressive=True)
    scans = [i for i in range(len(data)) if data[i : i + 2] == b"\xff\xda"]
    assert len(scans) > 3
    for scan in scans[1:]:
        tables = data.rfind(b"\xff\xc4", 0, scan)
        assert outcome(data[:scan]) is None and outcome(data[:tables]) is None
    assert outcome(data[: scans[-1]] + b"\xff\xd9") is not None  # its own end says that it is whole


def test_a_png_without_its_last_chunk_is_read():
    data = saved(NOISE, "PNG")
    assert np.array_equal(outcome(data[:-12]), np.asarray(NOISE))
    assert np.array_equal(outcome(data[:-12] + bytes(12)), np.asarray(NOISE))


def test_the_chunks_of_a_png_are_all_of_it():
    data = png.file_of(np.zeros((2, 2, 3), np.uint8), 8, 2)
    found = list(chunks(data))
    assert SIGNATURE + b"".join(chunk for _, chunk in found) == data
    assert found[0][0] == b"IHDR" and found[-1][0] == b"IEND"


def test_a_wrong_checksum_alone_refuses_no_png():
    """Of a chunk whose pixels have the checksum that they were packed with."""
    samples = np.arange(3 * 16 * 16).reshape(16, 16, 3) % 251
    data = png.file_of(samples, 8, 2)
    at = data.index(b"IDAT")
    length = int.from_bytes(data[at - 4 : at], "big")
    crc = at + 4 + length
    assert zlib.crc32(data[at:crc]) == int.from_bytes(data[crc : crc + 4], "big")
    assert np.array_equal(outcome(data[:crc] + b"\1\2\3\4" + data[crc + 4 :]), samples)
    other = data[: at + 30] + bytes([data[at + 30] ^ 64]) + data[at + 31 :]
    assert outcome(other) is None


@pytest.mark.parametrize("format", ["WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_other_formats_are_whole_or_refused_where_they_are_cut(format):
    """Of these only AVIF may fail in its decoder; none of them leaves an error of another kind."""
    source = NOISE.quantize(64) if format == "GIF" else NOISE
    data = saved(source, format)
    whole, taken = outcome(data), 0
    for end in [*range(len(data) - 20, len(data)), *range(10, len(data) - 20, 53)]:
        got = outcome(data[:end])
        if got is not None:
            taken += 1
            assert np.array_equal(got, whole)
        outcome(data[:end] + bytes(900))  # has no checksum: pixels of zeros cannot be told
    assert taken < 5


def test_a_picture_that_pillow_has_opened_is_judged_alike():
    data = saved(NOISE, "JPEG")
    whole = np.asarray(Image.open(io.BytesIO(data)))
    assert np.array_equal(outcome(Image.open(io.BytesIO(data[:-2]))), whole)
    assert outcome(Image.open(io.BytesIO(data[: len(data) // 2]))) is None


def ending(last: bytes) -> bytes:
    """A small JPEG without its last marker, whose pixels end so."""
    for seed in range(20_000):
        data = saved(small.picture(8, 8, seed).convert("L"), "JPEG", quality=90)[:-2]
        if data.endswith(last):
            return data
    raise AssertionError(f"no picture ends with {last!r}")


@pytest.mark.parametrize("last", [b"\xff\0", b"\0"])
def test_a_zero_may_be_the_last_byte_of_a_jpeg(last):
    """Of the pixels, or of a 255 that is one; what fills the file is zeros too."""
    data = ending(last)
    whole = np.asarray(Image.open(io.BytesIO(data + b"\xff\xd9")).convert("RGB"))
    assert np.array_equal(outcome(data), whole)
    if last == b"\xff\0":
        assert np.array_equal(outcome(data[:-1]), whole)
        assert np.array_equal(outcome(data + bytes(99)), whole)


FRAMES = [0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF]
BANDS = st.integers(0, 63).flatmap(lambda first: st.tuples(st.just(first), st.integers(first, 63)))
SCANS = st.tuples(st.sets(st.integers(1, 3), min_size=1), BANDS, st.integers(0, 255))
WHOLE = ({1, 2, 3}, (0, 63), 0)


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(FRAMES),
    st.lists(st.one_of(SCANS, st.just(WHOLE)), max_size=6),
    st.booleans(),
    st.binary(max_size=3),
)
def test_a_jpeg_is_whole_when_every_bit_is_in_a_scan(frame, scans, ended, pixels):
    """T.81, B.2: each component, coefficient and bit, by headers alone. Bytes that are stuffed,
    fillers, restarts, markers without a length and tables in between change nothing.
    """
    pixels = pixels.replace(b"\xff", b"\xff\0") + b"\xff\xd0"
    data = b"\xff\xd8\xff\x01\xff\xfe\0\x02\xff\xff"
    data += bytes((frame, 0, 17, 8, 0, 9, 0, 9, 3)) + bytes((1, 17, 0, 2, 17, 0, 3, 17, 0))
    left = {(name, place): True for name in (1, 2, 3) for place in range(64)}
    start = 0
    for names, (first, last), bits in scans:
        pairs = b"".join(bytes((name, 0)) for name in sorted(names))
        body = bytes((len(names),)) + pairs + bytes((first, last, bits))
        data += b"\xff\xda" + (len(body) + 2).to_bytes(2, "big") + body
        start, data = len(data), data + pixels + b"\xff\xc4\0\x03\x11"
        low_bits = bool(bits % 16)
        left |= {(name, place): low_bits for name in names for place in range(first, last + 1)}
    if ended:
        assert jpeg.last_scan(data + b"\xff\xd9") == (None, True)
    else:
        assert jpeg.last_scan(data) == (start, not any(left.values()))


@pytest.mark.parametrize("first, last", [(0, 0), (1, 1), (31, 33), (62, 62), (63, 63)])
@pytest.mark.parametrize("bits, whole", [(0, True), (0xF0, True), (1, False), (8, False)])
def test_a_band_that_no_scan_has_whole_is_missing(first, last, bits, whole):
    """All others are there: before it, after it and of the other component."""
    bands = [(0, first - 1, 0), (last + 1, 63, 0), (first, last, bits)]
    for left_out in (False, True):
        data = b"\xff\xd8\xff\xc2\0\x0e\x08\0\x09\0\x09\x02\x01\x11\0\x02\x11\0"
        data += b"\xff\xda\0\x08\x01\x02\0\0\x3f\0"
        for low, high, bits in bands[: 2 if left_out else 3]:
            if low <= high:
                data += b"\xff\xda\0\x08\x01\x01\0" + bytes((low, high, bits)) + b"pixels"
        assert jpeg.last_scan(data)[1] == (whole and not left_out)


@pytest.mark.parametrize("header", [b"", b"\x03", b"\x03\x01", b"\x01\x01\0\0\x3f"])
def test_the_header_of_a_scan_that_is_cut_is_passed_over(header):
    data = b"\xff\xd8\xff\xda" + (len(header) + 2).to_bytes(2, "big") + header
    assert jpeg.last_scan(data) == (0, False)
    assert jpeg.last_scan(data + b"\xff\xd9") == (None, True)


def test_a_few_missing_bits_are_found():
    """Each of the two opposite endings agrees by chance with what few bits should have been."""
    for seed in range(60):
        data = saved(small.picture(24, 24, seed), "JPEG", quality=80)
        whole = outcome(data)
        for end in range(len(data) - 6, len(data) - 2):
            got = outcome(data[:end])
            assert got is None or np.array_equal(got, whole), (seed, end)
