"""Colors of pictures of every kind, depth and form: by the specification, or by transformers.

PNG is compared with a decoder written by the letter of the specification (support/png.py), since
transformers takes transparent pixels as they are and clips 16-bit grey. Opaque pictures of 8 bits
are compared with transformers' load_image, of every format.
"""

import io
import struct

import numpy as np
import png
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffTags

from llava_min.errors import MediaError
from llava_min.media import sources as media
from llava_min.media import tiff as tiffs

Op = Image.Transpose
TURNS = {1: None, 3: Op.ROTATE_180, 6: Op.ROTATE_270, 8: Op.ROTATE_90, 5: Op.TRANSPOSE}


def saved(picture: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def shown(source) -> np.ndarray:
    return np.asarray(media.open_picture(source)).astype(int)


def note(turn: int, form: str) -> bytes:
    """A chunk that says how a PNG is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = turn
    raw = exif.tobytes()
    if form == "eXIf":
        return png.chunk(b"eXIf", raw[6:])
    if form == "raw":
        text = f"\nexif\n{len(raw)}\n{raw.hex()}"
        return png.chunk(b"tEXt", b"Raw profile type exif\0" + text.encode())
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{turn}"/></x:xmpmeta>'
    return png.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp.encode())


@st.composite
def pngs(draw):
    """(a PNG of any kind, how it is to be turned)."""
    color = draw(st.sampled_from(sorted(png.DEPTHS)))
    depth = draw(st.sampled_from(png.DEPTHS[color]))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    few = rng.integers(0, 2**depth, (3, png.CHANNELS[color]))  # so that equal pixels are common
    samples = few[rng.integers(0, 3, (height, width))]
    if depth == 16:  # the same high bytes, other low ones
        samples ^= rng.integers(0, 2, samples.shape) << rng.integers(0, 16)
    front = b""
    if color == 3:
        front = png.chunk(b"PLTE", rng.integers(0, 256, 3 * 2**depth, np.uint8).tobytes())
    if color in (0, 2, 3) and draw(st.booleans()):
        values = samples[0, 0].astype(">u2").tobytes()
        alphas = rng.integers(0, 256, rng.integers(1, 2**depth + 1), np.uint8).tobytes()
        front += png.chunk(b"tRNS", alphas if color == 3 else values)
    turn = draw(st.sampled_from(sorted(TURNS)))
    chunk = note(turn, draw(st.sampled_from(["eXIf", "XMP", "raw"])))
    late = draw(st.booleans())
    data = png.file_of(
        samples,
        depth,
        color,
        front=front + (b"" if late else chunk),
        after=chunk if late else b"",
        interlaced=draw(st.booleans()),
        filters=draw(st.lists(st.integers(0, 4), min_size=1, max_size=5)),
    )
    assert np.array_equal(png.samples_of(data)[0], samples)
    return data, turn


@settings(max_examples=300, deadline=None)
@given(pngs())
def test_a_png_shows_what_the_specification_says(drawn):
    """At every depth: exactly the stored value is transparent, and the orientation counts wherever
    it stands. Colors of 16 bits are their high byte, as in transformers: within one level.
    """
    data, turn = drawn
    samples, depth, color, _ = png.samples_of(data)
    wanted = Image.fromarray(png.on_white(data).round().astype(np.uint8))
    wanted = wanted if TURNS[turn] is None else wanted.transpose(TURNS[turn])
    got, wanted = shown(data), np.asarray(wanted).astype(int)
    assert media.picture_size(data) == got.shape[1::-1] and got.shape == wanted.shape
    opened = Image.open(io.BytesIO(data))
    assert media.picture_size(opened) == got.shape[1::-1]
    assert np.array_equal(shown(opened), got)
    tolerance = (color in (2, 4, 6) and depth == 16) + (color >= 3)
    assert np.abs(got - wanted).max() <= tolerance
    assert np.array_equal((got == 255).all(-1), (wanted == 255).all(-1)) or color >= 3


@pytest.mark.catalogue("IM-TRNS", "exactly the stored value is transparent, at every depth")
@pytest.mark.parametrize("color, depth", [(c, d) for c in (0, 2) for d in png.DEPTHS[c]])
def test_exactly_the_stored_value_is_transparent(color, depth):
    """Its neighbours are not, not even those that are the same in 8 bits."""
    top = 2**depth - 1
    values = sorted({0, 1, top // 2, min(top // 2 + 1, top), top})
    samples = np.array(values)[None, :, None].repeat(png.CHANNELS[color], axis=2)
    for index, value in enumerate(values):
        hidden = png.chunk(b"tRNS", struct.pack(">H", value) * png.CHANNELS[color])
        white = (shown(png.file_of(samples, depth, color, front=hidden))[0] == 255).all(-1)
        opaque = np.floor(samples[0, :, 0] * 255 / top) == 255
        assert white[index] and np.array_equal(np.delete(white, index), np.delete(opaque, index))


def test_a_decoded_png_whose_depth_is_lost_is_refused():
    """Grey of 2 bits is decoded as 0, 85, 170, 255, and then 1 may be any of them or none."""
    samples = np.array([[[1], [2]]])
    data = png.file_of(samples, 2, 0, front=png.chunk(b"tRNS", b"\0\1"))
    assert shown(data)[0, :, 0].tolist() == [255, 170]
    assert shown(Image.open(io.BytesIO(data)))[0, :, 0].tolist() == [255, 170]
    decoded = Image.open(io.BytesIO(data))
    decoded.load()
    with pytest.raises(MediaError, match="transparent color has another depth"):
        media.open_picture(decoded)
    eight = Image.open(io.BytesIO(png.file_of(samples, 8, 0, front=png.chunk(b"tRNS", b"\0\1"))))
    eight.load()
    assert shown(eight)[0, :, 0].tolist() == [255, 2]


def decoded_png(samples: list[int], depth: int, color: int, hidden: int) -> Image.Image:
    """A PNG of one row of grey or of red that Pillow has decoded; this grey or red is hidden."""
    channels = png.CHANNELS[color]
    values = np.array(samples)[None, :, None] * ([1, 0, 0][:channels])
    hides = struct.pack(">H", hidden) + bytes(2 * (channels - 1))
    data = png.file_of(values, depth, color, front=png.chunk(b"tRNS", hides))
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


@pytest.mark.parametrize("depth, value", [(2, 1), (2, 3), (4, 1), (4, 15), (16, 257), (16, 65535)])
def test_a_color_that_only_the_depth_tells_is_refused(depth, value):
    """Where the picture holds what it becomes in 8 bits; without that nothing is hidden."""
    color = 2 if depth == 16 else 0
    with pytest.raises(MediaError, match="transparent color has another depth"):
        media.open_picture(decoded_png([0, value], depth, color, value))
    assert shown(decoded_png([0, 0], depth, color, value)).max() == 0


@pytest.mark.parametrize("color, value", [(0, 16), (0, 200), (0, 255), (2, 1), (2, 255)])
def test_a_color_of_8_bits_is_hidden_after_decoding_too(color, value):
    assert shown(decoded_png([value, 0], 8, color, value))[0].min(-1).tolist() == [255, 0]


ALPHAS = [0, 1, 128, 254, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa", "P"])
def test_every_form_of_alpha_is_laid_on_white(mode):
    """Straight or premultiplied, in the pixels or in a palette of RGBA."""
    colors = np.array([[200, 200, 200, alpha] for alpha in ALPHAS], np.uint8)
    straight = Image.fromarray(colors[None])
    if mode == "P":
        picture = Image.new("P", (len(ALPHAS), 1))
        picture.putdata(range(len(ALPHAS)))
        picture.putpalette(colors.flatten().tolist(), "RGBA")
    elif mode == "La":
        picture = straight.convert("LA").convert("La")
    else:
        picture = straight.convert(mode)
    assert picture.mode == mode
    alpha = np.array(ALPHAS) / 255
    wanted = 200 * alpha + 255 * (1 - alpha)
    assert np.abs(shown(picture)[0] - wanted[:, None]).max() <= 1.5


def test_a_transparent_color_of_another_kind_is_refused():
    picture = small.picture(4, 4)
    picture.info["transparency"] = b"\0\1"
    with pytest.raises(MediaError, match="a color that is transparent"):
        media.open_picture(picture)


def test_a_picture_whose_file_is_closed_is_refused(tmp_path):
    small.picture(4, 4).save(tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        pass
    with pytest.raises(MediaError, match="a file that is open, found a closed one"):
        media.open_picture(picture)


# TIFF --------------------------------------------------------------------------------------------


def tiff(bits, numbers, colors, data, order="<", extra=(), compression=1) -> bytes:
    """A TIFF of 4 x 4 pixels in one strip; `bits` of each band."""
    bands = len(bits)
    tags = [(256, "I", [4]), (257, "I", [4]), (258, "H", bits), (259, "H", [compression]),
            (262, "H", [colors]), (273, "I", [0]), (277, "H", [bands]), (278, "I", [4]),
            (279, "I", [len(data)]), (339, "H", [numbers] * bands)]  # fmt: skip
    tags[9:9] = [(338, "H", list(extra))] if extra else []
    end, tail, rows = 14 + 12 * len(tags), b"", b""
    for tag, kind, values in tags:
        if tag == 273:
            values = [end + sum(len(v) * 2 for _, _, v in tags if len(v) > 2)]
        raw = struct.pack(order + kind * len(values), *values)
        if len(raw) > 4:
            raw, tail = struct.pack(order + "I", end + len(tail)), tail + raw
        rows += struct.pack(order + "HHI", tag, 3 if kind == "H" else 4, len(values))
        rows += raw.ljust(4, b"\0")
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(order + "IH", 8, len(tags)) + rows + b"\0\0\0\0" + tail + data


def test_tags_are_those_of_the_standard():
    names = ("ImageWidth", "BitsPerSample", "Compression", "PhotometricInterpretation",
             "SamplesPerPixel", "SampleFormat")  # fmt: skip
    numbers = {tag.name: tag.value for tag in (TiffTags.lookup(n) for n in range(1000))}
    assert [numbers[name] for name in names] == [
        tiffs.WIDTH, tiffs.BITS, tiffs.COMPRESSION, tiffs.COLORS, tiffs.BANDS, tiffs.NUMBERS
    ]  # fmt: skip


def test_every_number_of_16_and_12_bits_has_its_level():
    """The nearest of 256, over more rows than are converted at a time."""
    numbers = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    levels = np.floor(numbers / 257 + 0.5)
    assert np.array_equal(shown(Image.fromarray(numbers))[..., 0], levels)
    for value in range(0, 4096, 5):
        data = tiff([12], 1, 1, bytes.fromhex(f"{value:03x}" * 2) * 8)
        assert (shown(data) == int(value * 255 / 4095 + 0.5)).all(), value


def sixteen(value, kind: str) -> bytes:
    return np.full(16, value, kind).tobytes()


@pytest.mark.catalogue("IM-MODES", "a TIFF whose numbers have one meaning comes out in its colors")
@pytest.mark.parametrize(
    "data, level",
    {
        "floats to 1": (tiff([32], 3, 1, sixteen(0.5, "<f4")), 128),
        "floats to 1, big-endian": (tiff([32], 3, 1, sixteen(0.25, ">f4"), ">"), 64),
        "floats to 255": (tiff([32], 3, 1, sixteen(99.6, "<f4")), 100),
        "16 bits": (tiff([16], 1, 1, sixteen(40000, "<u2")), 156),
        "16 bits, big-endian": (tiff([16], 1, 1, sixteen(40000, ">u2"), ">"), 156),
        "16 bits, 0 is white": (tiff([16], 1, 0, sixteen(40000, "<u2")), 99),
        "8 bits, 0 is white": (tiff([8], 1, 0, sixteen(40, "u1")), 215),
        "12 bits": (tiff([12], 1, 1, bytes.fromhex("800800") * 8), 128),
        "integers to 255": (tiff([32], 2, 1, sixteen(200, "<i4")), 200),
        "integers to 65535": (tiff([32], 2, 1, sixteen(40000, "<i4")), 156),
        "no more than 1": (tiff([32], 3, 1, sixteen(1, "<f4")), 255),
        "no less than 2": (tiff([32], 3, 1, sixteen(2, "<f4")), 2),
        "no more than 255": (tiff([32], 3, 1, sixteen(255, "<f4")), 255),
        "floats of 0": (tiff([32], 3, 1, sixteen(0, "<f4")), 0),
        "an integer of 255": (tiff([32], 2, 1, sixteen(255, "<i4")), 255),
        "an integer of 256": (tiff([32], 2, 1, sixteen(256, "<i4")), 1),
        "an integer of 65535": (tiff([32], 2, 1, sixteen(65535, "<i4")), 255),
        "signed 16 bits to 255": (tiff([16], 2, 1, sixteen(255, "<i2")), 255),
        "5 bands": (tiff([8] * 5, 1, 2, bytes((9, 9, 9, 7, 7)) * 16, extra=(0, 0)), 9),
    }.values(),
)
def test_a_tiff_comes_out_in_its_colors(data, level):
    assert (shown(data) == level).all()


@pytest.mark.catalogue("IM-MODES", "a TIFF of other numbers or bands is refused by name")
@pytest.mark.parametrize(
    "data, found",
    {
        "floats below 0": (tiff([32], 3, 1, sixteen(-0.5, "<f4")), "floats from -0.5 to -0.5"),
        "floats above 255": (tiff([32], 3, 1, sixteen(300, "<f4")), "floats from 300 to 300"),
        "floats just above 1": (tiff([32], 3, 1, sixteen(1.5, "<f4")), "floats from 1.5 to 1.5"),
        "not numbers": (tiff([32], 3, 1, sixteen(np.nan, "<f4")), "floats from nan to nan"),
        "floats, 0 is white": (tiff([32], 3, 0, sixteen(0.5, "<f4")), "0 being white"),
        "signed 16 bits": (tiff([16], 2, 1, sixteen(9000, "<i2")), "integers from 9000 to 9000"),
        "floats just above 255": (tiff([32], 3, 1, sixteen(255.5, "<f4")), "from 0 to 255, found"),
        "signed 16 bits from 256": (tiff([16], 2, 1, sixteen(256, "<i2")), "from 0 to 65535"),
        "just above 65535": (
            tiff([32], 2, 1, sixteen(65536, "<i4")),
            "0 to 255 or from 0 to 65535",
        ),
        "32 bits": (tiff([32], 2, 1, sixteen(70000, "<i4")), "integers from 70000 to 70000"),
        "below 0": (tiff([32], 2, 1, sixteen(-5, "<i4")), "integers from -5 to -5"),
        "6 bands of 16 bits": (
            tiff([16] * 6, 1, 2, sixteen(9, "<u2") * 6, extra=(0, 0, 0)),
            "a TIFF of 6 bands of 16-bit integers",
        ),
        "colors in floats": (
            tiff([32] * 3, 3, 2, sixteen(0.5, "<f4") * 3),
            "a TIFF of 3 bands of 32-bit floats",
        ),
        "half floats": (tiff([16], 3, 1, sixteen(0.5, "<f2")), "1 band of 16-bit floats"),
        "doubles": (tiff([64], 3, 1, sixteen(0.5, "<f8")), "1 band of 64-bit floats"),
        "40 bands": (tiff([8] * 40, 1, 1, bytes(640), extra=[0] * 39), "40 bands of 8-bit"),
        "compression": (tiff([8], 1, 1, bytes(16), compression=34712), "compression kind 34712"),
    }.values(),
)
def test_a_tiff_that_could_mean_several_things_is_refused_by_name(data, found):
    with pytest.raises(MediaError, match="cannot read the picture") as caught:
        media.open_picture(data)
    assert found in str(caught.value) and "one of PNG" not in str(caught.value)


SHORT = struct.pack("<4sIHHHIIi", b"II*\0", 8, 1, 256, 4, 1, 4, 0)
LONG = struct.pack("<4sHHQQHHQQq", b"II+\0", 8, 0, 16, 1, 256, 4, 1, 4, 0)


@pytest.mark.filterwarnings("ignore")  # of Pillow: that there is no more
@pytest.mark.parametrize("data", [SHORT, LONG], ids=["TIFF", "BigTIFF"])
def test_a_tiff_that_says_no_more_than_its_width_is_described(data):
    """By what TIFF 6.0 gives in place of the tags that are missing."""
    expected = "a TIFF of 1 band of 1-bit integers (colors of kind 0, compression raw)"
    assert tiffs.described(data) == expected
    assert tiffs.first((7, 8)) == tiffs.first(7) == 7 and tiffs.first(()) == tiffs.first("a") == 0
    with pytest.raises(ValueError, match="no tags"):
        tiffs.described(data.replace(struct.pack("<H", 256), struct.pack("<H", 257)))


# Every other format, as transformers -------------------------------------------------------------

FORMS = {
    "PNG": ("1", "L", "P", "RGB"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": ("1", "L", "P", "RGB", "CMYK", "YCbCr"),
    "WEBP": ("RGB",),
    "GIF": ("L", "P"),
    "BMP": ("1", "L", "P", "RGB"),
}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_opaque_pictures_are_those_of_transformers(data):
    """Of every format and mode, compressed or not, turned by EXIF or not: bit for bit."""
    load_image = pytest.importorskip("transformers.image_utils").load_image
    format = data.draw(st.sampled_from(sorted(FORMS)))
    mode = data.draw(st.sampled_from(FORMS[format]))
    size = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    picture = small.picture(*size, data.draw(st.integers(0, 9))).convert(mode)
    options = {
        "JPEG": st.fixed_dictionaries(
            {"quality": st.integers(5, 100), "progressive": st.booleans()}
        ),
        "TIFF": st.sampled_from([{}, {"compression": "tiff_lzw"}, {"compression": "packbits"}]),
        "WEBP": st.fixed_dictionaries({"lossless": st.booleans()}),
    }.get(format, st.just({}))
    chosen = dict(data.draw(options))
    if mode == "YCbCr":
        chosen = {}
    if format in ("PNG", "JPEG", "TIFF", "WEBP") and data.draw(st.booleans()):
        chosen["exif"] = Image.Exif()
        chosen["exif"][0x0112] = data.draw(st.integers(1, 8))
    file = saved(picture, format, **chosen)
    theirs = np.asarray(load_image(Image.open(io.BytesIO(file))))
    assert np.array_equal(shown(file), theirs)
    assert media.picture_size(file) == theirs.shape[1::-1]


@pytest.mark.parametrize("turn", [3, 6])
def test_the_orientation_of_xmp_counts_in_a_tiff_too(turn):
    """Pillow gives the size of a TIFF as its tag turns it, but not as XMP does."""
    xmp = f'<x tiff:Orientation="{turn}"/>'.encode()
    data = saved(small.picture(20, 12), "TIFF", tiffinfo={700: xmp})
    assert media.picture_size(data) == media.open_picture(data).size
    assert media.picture_size(data) == ((12, 20) if turn == 6 else (20, 12))
