"""Random clips: containers, codecs, B-frames, groups, rates, gaps, edit lists, ways to lie.

`draw` chooses a recipe by a seed, `write` makes the file, `decoded` is what FFmpeg shows of it.
"""

import os
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

B_FRAMES = {
    # codec: what it may be asked for beside its groups
    "libx264": [
        {"bf": "0"},
        {"bf": "1"},
        {"bf": "3", "b-pyramid": "strict"},
        {"bf": "2", "x264-params": "open-gop=1"},
        {"bf": "0", "x264-params": "intra-refresh=1"},
        {"bf": "4", "refs": "4"},
    ],
    "libx265": [
        {"x265-params": "bframes=0:log-level=none:pools=none:frame-threads=1"},
        {"x265-params": "bframes=4:b-adapt=0:open-gop=1:log-level=none:pools=none:frame-threads=1"},
        {"x265-params": "bframes=2:open-gop=0:log-level=none:pools=none:frame-threads=1"},
    ],
    "mpeg4": [{}, {"bf": "1"}, {"bf": "2"}],
    "mpeg1video": [{}, {"bf": "2"}],
    "mpeg2video": [{}, {"bf": "2"}],
    "libvpx": [{}, {"lag-in-frames": "10", "auto-alt-ref": "1", "b": "200k"}],
    "libvpx-vp9": [{}, {"lag-in-frames": "10", "auto-alt-ref": "1", "b": "200k"}],
}
FAST = {
    "libx264": {"preset": "ultrafast", "sc_threshold": "0"},
    "libx265": {"preset": "ultrafast"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}
PIXELS = {"mjpeg": "yuvj420p", "gif": "bgr8", "apng": "rgba", "qtrle": "argb", "png": "rgba"}
MPEG4_PARTS = ["libx264", "libx264", "libx265", "mpeg4", "mjpeg", "libvpx-vp9"]
CONTAINERS = {
    # FFmpeg's name: its codecs
    "mp4": MPEG4_PARTS,
    "fragments": ["libx264", "libx265", "mpeg4"],
    "mov": ["libx264", "mpeg4", "qtrle", "png"],
    "matroska": [*MPEG4_PARTS, "libvpx", "ffv1"],
    "webm": ["libvpx", "libvpx-vp9"],
    "avi": ["mpeg4", "mjpeg", "libx264", "msmpeg4", "ffv1"],
    "mpegts": ["libx264", "libx265", "mpeg2video"],
    "mpeg": ["mpeg1video", "mpeg2video"],
    "asf": ["wmv1", "wmv2", "msmpeg4"],
    "ogg": ["libvpx"],
    "flv": ["libx264", "flv"],
    "mxf": ["mpeg2video"],
    "ivf": ["libvpx-vp9"],
    "gif": ["gif"],
    "apng": ["apng"],
    "yuv4mpegpipe": ["wrapped_avframe"],
    "h264": ["libx264"],
    "hevc": ["libx265"],
    "mpeg2video": ["mpeg2video"],
}
EDITED = ("mp4", "mov")
STEADY = ("ogg", "mxf", "ivf", "yuv4mpegpipe", "h264", "hevc", "mpeg2video", "mpeg")  # no times
FIXED_RATES = ("mpeg1video", "mpeg2video")  # whose headers know a few only
SIDES = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)]
SIDES += [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


@dataclass
class Recipe:
    """What a clip is made of. times: of its frames, as numbers of ticks of 1 / rate seconds."""

    container: str
    codec: str
    rate: Fraction
    ticks: list[int]
    options: dict[str, str]
    size: tuple[int, int] = (64, 48)
    sides: tuple[int, int, int, int] = (1, 0, 0, 1)  # a, b, c, d of the display matrix
    pieces: list[tuple[float, float]] = field(default_factory=list)  # (seconds, from second)


def draw(seed: int) -> Recipe:
    """A clip of 1 to 50 frames."""
    rng = random.Random(seed)
    container = list(CONTAINERS)[seed % len(CONTAINERS)]
    if rng.random() < 0.5:
        container = rng.choice(["mp4", "mp4", "matroska", "avi", "mpegts"])
    codec = rng.choice(CONTAINERS[container])
    options = {**FAST.get(codec, {}), **rng.choice(B_FRAMES.get(codec, [{}]))}
    options["g"] = str(rng.choice([1, 4, 10, 25, 1000]))
    steady = container in STEADY or codec in FIXED_RATES
    rates = [10, 25, Fraction(30000, 1001), 60] if not steady else [25, 50]
    recipe = Recipe(container, codec, Fraction(rng.choice(rates)), [], options)
    least = {"mpegts": 12, "apng": 2}.get(container, 1)  # fewer are no such file to FFmpeg
    least = 12 if codec == "libx265" else least  # whose encoder sometimes fails on a single frame
    count, tick = rng.choice([least, least + 1, rng.randint(12, 50), rng.randint(20, 50)]), 0
    usual = "steady" if steady else rng.choice(["steady", "steady", "gaps", "any"])
    if container == "avi" and usual == "any":
        usual = "gaps"
    for number in range(count):
        recipe.ticks.append(tick)
        gap = usual == "gaps" and rng.random() < 0.1 and number < count - 8
        held = rng.randint(2, 40) if gap else 1
        tick += rng.randint(1, 9) if usual == "any" else held
    if container in EDITED:
        recipe.sides = rng.choice(SIDES)
        length = tick / recipe.rate
        for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
            begin = rng.uniform(0, 0.8) * float(length)
            if rng.random() < 0.3:
                begin = 0.0
            recipe.pieces.append((rng.uniform(0.1, 1) * (float(length) - begin), begin))
    return recipe


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """A frame [H W 3] unlike its neighbours, and unlike itself turned or mirrored."""
    width, height = size
    frame = np.full((height, width, 3), [number * step % 224 + 16 for step in (53, 91, 29)])
    frame[: height // 2, : width // 3] = 255 - frame[: height // 2, : width // 3]
    return frame.astype(np.uint8)


@contextmanager
def same_priority() -> Iterator[None]:
    """After a `with` block the thread is scheduled as before it.

    SVT-AV1 that root calls makes its caller a real-time thread, and so all that this starts later.
    """
    policy = getattr(os, "sched_getscheduler", lambda pid: None)(0)
    try:
        yield
    finally:
        if policy is not None:
            os.sched_setscheduler(0, policy, os.sched_param(0))


@same_priority()
def write(recipe: Recipe, path: Path) -> Path:
    """Make the clip."""
    base = 1 / recipe.rate
    form, movflags = recipe.container, {}
    if form == "fragments":
        form, movflags = "mp4", {"movflags": "frag_keyframe+empty_moov"}
    with av.open(str(path), "w", format=form, options=movflags) as container:
        stream = container.add_stream(recipe.codec, rate=recipe.rate, options=recipe.options)
        stream.width, stream.height = recipe.size
        stream.pix_fmt = PIXELS.get(recipe.codec, "yuv420p")
        stream.time_base = stream.codec_context.time_base = base
        for number, tick in enumerate(recipe.ticks):
            pixels = picture(number, recipe.size)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if stream.pix_fmt in ("rgba", "argb"):
                alpha = np.full_like(pixels[..., :1], 255 - 50 * (number % 3))
                frame = av.VideoFrame.from_ndarray(np.dstack((pixels, alpha)), format="rgba")
            frame.pts, frame.time_base = tick, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if recipe.container in EDITED:
        path.write_bytes(laid(path.read_bytes(), recipe.sides))
        if recipe.pieces:
            path.write_bytes(edited(path.read_bytes(), recipe.pieces))
    return path


def decoded(path: Path, sides: tuple[int, int, int, int]) -> tuple[list[float], list[np.ndarray]]:
    """(times from the first one on, pictures) by FFmpeg, which decodes everything."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        frames = list(container.decode(stream))
    pictures = [turned(on_white(frame), sides) for frame in frames]
    times = [frame.time for frame in frames]
    if None in times:
        return [], pictures
    return [time - times[0] for time in times], pictures


def on_white(frame: av.VideoFrame) -> np.ndarray:
    """A frame as RGB [H W 3], in whole numbers, transparency on white."""
    if not any(part.is_alpha for part in frame.format.components):
        return frame.to_ndarray(format="rgb24")
    layer = frame.to_ndarray(format="rgba").astype(float)
    alpha = layer[..., 3:] / 255
    return (layer[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def turned(picture: np.ndarray, sides: tuple[int, int, int, int]) -> np.ndarray:
    """Each point where QuickTime's matrix puts it: x' = ax + cy, y' = bx + dy."""
    a, b, c, d = sides
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    x, y = a * columns + c * rows, b * columns + d * rows
    shown = np.zeros((np.ptp(y) + 1, np.ptp(x) + 1, 3), np.uint8)
    shown[y - y.min(), x - x.min()] = picture
    return shown


# Packets ---------------------------------------------------------------------------

Stored = tuple[bytes, bool, int | None, int | None]  # a packet: data, key frame?, pts, dts


def packets(path: Path) -> list[Stored]:
    """The packets of a clip, in the order of decoding."""
    with av.open(str(path)) as container:
        found = container.demux(video=0)
        return [(bytes(p), p.is_keyframe, p.pts, p.dts) for p in found if p.size]


def copied(source: Path, path: Path, stored: list[Stored], base: Fraction, form: str) -> Path:
    """A clip with the codec of another one, and these packets."""
    with av.open(str(source)) as container, av.open(str(path), "w", format=form) as out:
        stream = out.add_stream_from_template(container.streams.video[0])
        for data, is_key, pts, dts in stored:
            packet = av.Packet(data)
            packet.stream, packet.is_keyframe = stream, is_key
            packet.pts, packet.dts, packet.time_base = pts, dts, base
            out.mux(packet)
    return path


def not_coded(number: int) -> bytes:
    """The packet of an MPEG-4 picture that repeats the one before (vop_coded 0), ten a second."""
    bits = f"0101{number % 10:04b}100"
    bits += "1" * (-len(bits) % 8)
    return b"\0\0\1\xb6" + int(bits, 2).to_bytes(len(bits) // 8, "big")


# Boxes of an MP4 -----------------------------------------------------------------


def box(data: bytes, *kinds: bytes) -> tuple[int, int]:
    """(start, end) of a box, by the types on the way to it."""
    start, end = -8, len(data)
    for kind in kinds:
        at = start + 8
        while (length := int.from_bytes(data[at : at + 4], "big")) and data[
            at + 4 : at + 8
        ] != kind:
            at += length
            if at >= end:
                raise KeyError(kind)
        start, end = at, at + length
    return start, end


def laid(data: bytes, sides: tuple[int, int, int, int]) -> bytes:
    """The file with another display matrix."""
    a, b, c, d = (side << 16 for side in sides)
    at = box(data, b"moov", b"trak", b"tkhd")[0] + 48
    return data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :]


def edited(data: bytes, pieces: list[tuple[float, float]]) -> bytes:
    """The file with an edit list that shows these pieces, (seconds, from second) each."""
    at = box(data, b"moov", b"mvhd")[0] + 20
    movie = int.from_bytes(data[at : at + 4], "big")
    at = box(data, b"moov", b"trak", b"mdia", b"mdhd")[0] + 20
    track = int.from_bytes(data[at : at + 4], "big")
    try:
        start, end = box(data, b"moov", b"trak", b"edts")
        first = int.from_bytes(data[start + 28 : start + 32], "big")
    except KeyError:
        start = end = box(data, b"moov", b"trak", b"mdia")[0]
        first = 0
    body = b"".join(
        struct.pack(">IiI", round(seconds * movie), round(begin * track) + first, 1 << 16)
        for seconds, begin in pieces
    )
    listing = struct.pack(">I4sII", 16 + len(body), b"elst", 0, len(pieces)) + body
    edits = struct.pack(">I4s", 8 + len(listing), b"edts") + listing
    out = bytearray(data[:start] + edits + data[end:])
    for kinds in ((b"moov",), (b"moov", b"trak")):
        at, until = box(data, *kinds)
        struct.pack_into(">I", out, at, until - at + len(edits) - (end - start))
    return bytes(out)


def cover_first(data: bytes) -> bytes:
    """The file with its cover, which is stored beside the tracks, in front of them.

    The pictures come before the index in the file, so nothing that is pointed at moves.
    """
    start, end = box(data, b"moov")
    cover = slice(*box(data, b"moov", b"udta"))
    tracks = box(data, b"moov", b"trak")[0]
    assert data.index(b"mdat") < start < tracks < cover.start
    return (
        data[:tracks]
        + data[cover]
        + data[tracks : cover.start]
        + data[cover.stop : end]
        + data[end:]
    )
