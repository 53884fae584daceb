"""Whatever a clip is made of, its frames and their times are those of decoding everything: random
clips, and those of phones, old encoders, recorders and editors that random ones do not reach.
"""

import random
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

av = pytest.importorskip("av")

import clips  # noqa: E402 (needs av)
from clips import Recipe  # noqa: E402

from llava_min.errors import MediaError  # noqa: E402
from llava_min.media import film, video  # noqa: E402
from llava_min.media.film import Film  # noqa: E402
from llava_min.media.stream import Key  # noqa: E402
from llava_min.media.timeline import Index, Survey, indexed_keys  # noqa: E402

TEN = Fraction(10)
LOST = 1 << 16  # a frame that is not there, in levels


def far(found: np.ndarray, wanted: np.ndarray) -> int:
    """The largest difference of two frames in levels."""
    if found.shape != wanted.shape:
        return LOST
    return int(np.abs(found.astype(int) - wanted).max())


def agree(path: Path, times: list[float], pictures: list[np.ndarray], seed: int = 0) -> Film:
    """Assert that a clip has these frames at these times, in whatever order they are asked for."""
    opened = Film(str(path), path.name)
    assert list(opened) == pytest.approx(times, abs=2e-3)
    rng, count = random.Random(seed), len(pictures)
    few = [sorted(rng.choices(range(count), k=k)) for k in (1, 2, 5)]
    for numbers in (*few, range(count), [0], [count - 1]):
        found = opened.pictures(numbers)
        levels = [far(frame, pictures[n]) for frame, n in zip(found, numbers, strict=True)]
        assert max(levels) <= 1, dict(zip(numbers, levels))  # 1: where white shows through
    return opened


def expected_times(recipe: Recipe, decoded: list[float]) -> list[float]:
    """FFmpeg's, where a file stores times; an AVI and raw streams store no more than the order.

    FFmpeg goes back where two pieces of an edit list meet.
    """
    if recipe.container == "avi" or not decoded:
        return [float(tick / recipe.rate) for tick in recipe.ticks]
    return np.maximum.accumulate(decoded).tolist()


def check_random(seed: int, folder: Path) -> None:
    recipe = clips.draw(seed)
    path = clips.write(recipe, folder / "clip")
    times, pictures = clips.decoded(path, recipe.sides)
    if not pictures:
        with pytest.raises(MediaError, match="expected frames, found none"):
            Film(str(path), "")
        return
    opened = agree(path, expected_times(recipe, times), pictures, seed)
    last = opened[len(opened) - 1]
    assert last < opened.seconds <= last + 41 / recipe.rate, recipe


@pytest.mark.parametrize("seed", range(80))
def test_random_clips_are_as_decoding_everything(seed, tmp_path):
    check_random(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1400))
def test_more_random_clips_are_as_decoding_everything(seed, tmp_path):
    check_random(seed, tmp_path)


# Edit lists ------------------------------------------------------------------------

PIECES = {
    "the end cut off": [(1.2, 0)],
    "the beginning cut off": [(2.5, 0.5)],
    "one piece twice": [(1, 0), (1, 0)],
    "one piece twice, inside a group": [(0.4, 0.3), (0.4, 0.3)],
    "the end first": [(0.8, 2.2), (1.5, 0.5)],
    "four pieces": [(0.5, 2.2), (0.52, 0.3), (0.33, 1.21), (0.2, 2.8)],
}
CODECS = {
    "libx264": {"bf": "2", "preset": "veryfast", "sc_threshold": "0"},
    "libx265": {
        "x265-params": "bframes=3:log-level=none:pools=none:frame-threads=1",
        "preset": "ultrafast",
    },
    "mpeg4": {"bf": "2"},
    "libvpx-vp9": {"deadline": "realtime", "lag-in-frames": "10", "auto-alt-ref": "1"},
    "mjpeg": {},
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_edit_lists(codec, pieces, tmp_path, caplog):
    """Cut ends, pieces in another order, pieces twice; none of their pictures is called damaged."""
    options = {"g": "25", **CODECS[codec]}
    recipe = Recipe("mp4", codec, Fraction(25), list(range(75)), options, pieces=pieces)
    path = clips.write(recipe, tmp_path / "clip.mp4")
    times, pictures = clips.decoded(path, recipe.sides)
    agree(path, np.maximum.accumulate(times).tolist(), pictures)
    assert "damaged" not in caplog.text


def test_an_av1_in_pieces(tmp_path):
    """Its decoder is told just once, before the first packet, which frames may be left out."""
    pieces, options = [(1, 0.3), (1, 0.3)], {"preset": "12", "g": "20"}
    recipe = Recipe("mp4", "libsvtav1", Fraction(25), list(range(60)), options, pieces=pieces)
    path = clips.write(recipe, tmp_path / "clip.mp4")
    agree(path, *clips.decoded(path, recipe.sides))


def test_an_mp4_is_read_by_its_index(tmp_path):
    """Its packets are not all read; of one with an edit list that hides something they are."""
    recipe = Recipe("mp4", "libx264", Fraction(25), list(range(75)), {"g": "25", "bf": "2"})
    assert isinstance(Film(str(clips.write(recipe, tmp_path / "a.mp4")), "").timeline, Index)
    recipe.pieces = [(1.2, 0)]
    assert not isinstance(Film(str(clips.write(recipe, tmp_path / "b.mp4")), "").timeline, Index)


@pytest.mark.parametrize(
    "changes, keys",
    [
        ({}, [0, 2]),
        ({"size": 39}, None),  # the last packet ends with the file, and not after it
        ({"frames": 3}, None),
        ({"frames": 5}, None),
        ({"count": 0, "frames": 0}, None),
        ({"is_mp4": False}, None),
        ({"is_discard": 3}, None),
        ({"timestamp": {1: 7}}, None),
        ({"timestamp": {1: 6}}, None),
        ({"timestamp": {1: 8}}, [0, 2]),
        ({"is_keyframe": (1, 2)}, None),
        ({"is_keyframe": (0, 1, 3)}, [0, 1, 3]),
    ],
    ids=str,
)
def test_an_index_that_says_all_names_its_key_frames(changes, keys):
    """Times that rise from a key frame on, of as many frames as the file has; none is hidden."""
    key_frames, times = changes.get("is_keyframe", (0, 2)), changes.get("timestamp", {})
    entries = [
        SimpleNamespace(
            timestamp=times.get(number, 7 + 10 * number),
            pos=10 * number,
            size=10,
            is_keyframe=number in key_frames,
            is_discard=number == changes.get("is_discard"),
        )
        for number in range(changes.get("count", 4))
    ]
    stream = SimpleNamespace(
        video=SimpleNamespace(index_entries=entries, frames=changes.get("frames", 4)),
        container=SimpleNamespace(size=changes.get("size", 40)),
        is_mp4=changes.get("is_mp4", True),
    )
    assert indexed_keys(stream) == keys


# Packets without a picture ---------------------------------------------------------


def shown(path: Path, times: list[float], pictures: list[np.ndarray], caplog) -> Film:
    """Assert that each frame is the one that is shown at its time; none is called damaged."""
    opened = Film(str(path), path.name)
    for numbers in (range(len(opened)), range(1, len(opened), 3), [len(opened) // 2]):
        for number, frame in zip(numbers, opened.pictures(numbers), strict=True):
            last = max(n for n, time in enumerate(times) if time <= opened[number] + 1e-3)
            assert far(frame, pictures[last]) <= 1, number
    assert opened[len(opened) - 1] == pytest.approx(times[-1], abs=2e-3)
    assert "damaged" not in caplog.text
    return opened


@pytest.mark.parametrize("form", ["avi", "mp4", "matroska"])
@pytest.mark.parametrize("b_frames", ["0", "2"])
def test_pictures_that_are_not_coded(form, b_frames, tmp_path, caplog):
    """MPEG-4 says so where nothing changed: the picture before still stands."""
    options = {"g": "10", "bf": b_frames}
    source = clips.write(Recipe("avi", "mpeg4", TEN, list(range(30)), options), tmp_path / "clip")
    stored = clips.packets(source)
    gap = next(n for n in range(12, 30) if stored[n][1])  # in front of a key frame
    packets = []
    for data, is_key, pts, dts in stored:
        later = 10 if dts >= gap else 0
        packets.append((data, is_key, pts + later, dts + later))
    for number in range(gap, gap + 10):
        packets.insert(number, (clips.not_coded(number), False, number + (b_frames != "0"), number))
    path = clips.copied(source, tmp_path / "holes", packets, 1 / TEN, form)
    times, pictures = clips.decoded(path, (1, 0, 0, 1))
    opened = shown(path, times, pictures, caplog)
    assert opened.seconds == pytest.approx(4.0, abs=0.11)


@pytest.mark.parametrize("codec, options", [("mjpeg", {}), ("mpeg4", {}), ("mpeg4", {"bf": "2"})])
def test_a_picture_that_stands_long_in_an_avi(codec, options, tmp_path, caplog):
    """FFmpeg writes empty chunks, which are no packets."""
    ticks = [*range(10), *range(100, 120)]
    recipe = Recipe("avi", codec, TEN, ticks, {"g": "5", **options})
    path = clips.write(recipe, tmp_path / "clip.avi")
    times, pictures = clips.decoded(path, (1, 0, 0, 1))
    opened = shown(path, times, pictures, caplog)
    assert list(opened) == pytest.approx([tick / 10 for tick in ticks])
    assert opened.seconds == pytest.approx(12)
    clip = video.sample_clip(str(path), video.Choice(at=(10.5,)))
    assert clip.times == (10.5,) and far(clip[0], pictures[15]) <= 1


def test_packed_b_frames(tmp_path):
    """DivX packs a B-frame with the frame after it; a packet that is not coded fills its place."""
    recipe = Recipe("avi", "mpeg4", TEN, list(range(31)), {"g": "11", "bf": "1"})
    source = clips.write(recipe, tmp_path / "clip.avi")
    _, pictures = clips.decoded(source, recipe.sides)
    data = [(packet, is_key) for packet, is_key, _, _ in clips.packets(source)]
    kinds = [packet[packet.index(b"\0\0\1\xb6") + 4] >> 6 for packet, _ in data]
    packed, number = [], 0
    while number < len(data):
        packet, is_key = data[number]
        if kinds[number + 1 : number + 2] == [2]:
            packed += [(packet + data[number + 1][0], is_key), (clips.not_coded(0), False)]
            number += 1
        else:
            packed.append((packet, is_key))
        number += 1
    first = packed[0][0]
    at = first.index(b"\0\0\1\xb6")
    packed[0] = (first[:at] + b"\0\0\1\xb2DivX503b1393p\0" + first[at:], True)
    stored = [(packet, is_key, n, n) for n, (packet, is_key) in enumerate(packed)]
    path = clips.copied(source, tmp_path / "packed.avi", stored, 1 / TEN, "avi")
    assert len(packed) == 31 and 2 in kinds
    agree(path, [n / 10 for n in range(31)], pictures)


# Recordings ------------------------------------------------------------------------

RECORDED = [
    ("matroska", "libx264", {"bf": "2"}),
    ("mpegts", "libx264", {"bf": "2", "x264-params": "open-gop=1"}),
    ("mpegts", "mpeg2video", {"bf": "2"}),
    (
        "mpegts",
        "libx265",
        {"x265-params": "bframes=3:open-gop=1:keyint=10:log-level=none:pools=none:frame-threads=1"},
    ),
]


@pytest.mark.parametrize("cut", [3, 10, 13, 20])
@pytest.mark.parametrize("form, codec, options", RECORDED)
def test_recordings_that_begin_inside_a_group(form, codec, options, cut, tmp_path):
    """What cannot be decoded before the first whole picture is no frame, for FFmpeg neither."""
    recipe = Recipe(form, codec, Fraction(25), list(range(50)), {"g": "10", **options})
    source = clips.write(recipe, tmp_path / "clip")
    base = {"matroska": Fraction(1, 1000), "mpegts": Fraction(1, 90000)}[form]
    path = clips.copied(source, tmp_path / "cut", clips.packets(source)[cut:], base, form)
    times, pictures = clips.decoded(path, recipe.sides)
    agree(path, times, pictures)


def test_pictures_that_are_refreshed_part_by_part(tmp_path):
    """H.264 calls the first part a key frame; decoding from there alone gives wrong pictures."""
    options = {"preset": "ultrafast", "bf": "0", "x264-params": "intra-refresh=1", "g": "4"}
    recipe = Recipe("mov", "libx264", Fraction(30000, 1001), list(range(22)), options)
    path = clips.write(recipe, tmp_path / "clip.mov")
    times, pictures = clips.decoded(path, recipe.sides)
    opened = agree(path, times, pictures)
    for number in range(22):
        assert far(next(opened.pictures([number])), pictures[number]) == 0, number


def test_recordings_that_are_joined(tmp_path):
    """The second one's times begin again; they follow the first one's."""
    options = {"g": "10", "bf": "2", "preset": "veryfast"}
    recipe = Recipe("mpegts", "libx264", Fraction(25), list(range(40)), options)
    one = clips.write(recipe, tmp_path / "one.ts").read_bytes()
    (tmp_path / "two.ts").write_bytes(2 * one)
    _, pictures = clips.decoded(tmp_path / "two.ts", recipe.sides)
    opened = agree(tmp_path / "two.ts", [n / 25 for n in range(80)], pictures)
    assert opened.seconds == pytest.approx(3.2)


def test_a_clip_of_any_rate_lasts_as_long_as_it_is_shown(tmp_path):
    """Thirty frames a second, then one: no rate says how long it is; --at reaches its end."""
    ticks = [*range(60), *range(60, 1860, 30)]
    recipe = Recipe("matroska", "libx264", Fraction(30), ticks, {"preset": "veryfast"})
    path = str(clips.write(recipe, tmp_path / "clip.mkv"))
    clip = video.sample_clip(path, video.Choice(at=(61,)))
    assert clip.times[0] == pytest.approx(61) and 61 <= clip.seconds <= 62.1
    with pytest.raises(video.ParameterError, match="within the 61.00 s"):
        video.sample_clip(path, video.Choice(at=(63,)))


# Which stream ----------------------------------------------------------------------


def test_the_cover_of_a_clip_is_not_the_clip(tmp_path):
    """Also where the cover comes before the video."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream(codec, rate=25) for codec in ("mjpeg", "libx264")]
        for stream, pixels, size in zip(streams, ("yuvj420p", "yuv420p"), ((32, 32), (64, 48))):
            stream.pix_fmt, (stream.width, stream.height) = pixels, size
        streams[0].disposition = av.stream.Disposition.attached_pic
        for stream, count in zip(streams, (1, 25)):
            for number in range(count):
                picture = clips.picture(number, (stream.width, stream.height))
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    path.write_bytes(clips.cover_first(path.read_bytes()))
    with av.open(str(path)) as container:
        assert container.streams.video[0].width == 32
    times, pictures = clips.decoded(path, (1, 0, 0, 1))
    assert len(agree(path, times, pictures)) == 25


# How pictures lie ------------------------------------------------------------------


@pytest.mark.parametrize("sides", clips.SIDES, ids=str)
def test_turned_and_mirrored_clips(sides, tmp_path):
    recipe = Recipe("mp4", "libx264", TEN, list(range(3)), {"preset": "veryfast"}, sides=sides)
    path = clips.write(recipe, tmp_path / "clip.mp4")
    times, pictures = clips.decoded(path, sides)
    agree(path, times, pictures)
    assert len({frame.tobytes() for frame in all_ways(pictures[0])}) == 8


def all_ways(picture: np.ndarray) -> list[np.ndarray]:
    return [clips.turned(picture, sides) for sides in clips.SIDES]


@given(
    st.sampled_from([(a, 0, 0, d) for a in (1, -1) for d in (1, -1)]
                    + [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]),
    st.tuples(*[st.integers(-20_000, 20_000)] * 4),
)  # fmt: skip
def test_a_clip_lies_the_nearest_of_eight_ways(sides, more):
    """Also where it is turned by a little more, or stretched; a side is 2**16."""
    picture = np.arange(6).reshape(2, 3)
    turned = (2**16 * side + by for side, by in zip(sides, more))
    assert np.array_equal(film.displayed(picture, *turned), film.displayed(picture, *sides))
    ways = [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1)]
    shown = [film.displayed(picture, *way).tolist() for way in ways]
    assert shown == [
        [[0, 1, 2], [3, 4, 5]], [[2, 1, 0], [5, 4, 3]],
        [[3, 4, 5], [0, 1, 2]], [[5, 4, 3], [2, 1, 0]],
    ]  # fmt: skip


@pytest.mark.parametrize("matrix", [(0, 0, 0, 0), (1, 1, -1, 1), (1, 1, 1, 1)])
def test_a_clip_that_lies_between_two_ways_keeps_its_sides(matrix):
    """As one does whose matrix says nothing."""
    picture = np.arange(6).reshape(2, 3)
    assert np.array_equal(film.displayed(picture, *matrix), picture)


def test_what_shows_through_is_white(tmp_path):
    """As of pictures; the color that is stored below is not looked at."""
    recipe = Recipe("mov", "qtrle", TEN, list(range(3)), {})
    path = clips.write(recipe, tmp_path / "clip.mov")
    with av.open(str(path)) as container:
        frames = [film.upright(frame, (1, 0, 0, 1)) for frame in container.decode(video=0)]
    stored = clips.picture(2, recipe.size).astype(float)
    assert far(frames[2], (stored * 155 + 255 * 100) / 255) <= 1
    agree(path, *clips.decoded(path, recipe.sides))


# Times that are missing or go back ---------------------------------------------------


class Scripted:
    """A stream of key frames that say these times, in thousandths, at 25 frames a second."""

    unit, rate = Fraction(1, 1000), Fraction(25)

    def __init__(self, times, durations, is_mp4=False, is_avi=False):
        self.is_mp4, self.is_avi = is_mp4, is_avi
        self.video = SimpleNamespace(codec_context=SimpleNamespace(has_b_frames=is_avi))
        self.said = [
            SimpleNamespace(
                pts=None if is_avi else time,  # an AVI says when a chunk comes and no more
                dts=time,
                duration=duration,
                is_keyframe=True,
                is_discard=False,
                pos=50 + number,
            )
            for number, (time, duration) in enumerate(zip(times, durations, strict=True))
        ]

    def packets(self):
        return enumerate(self.said)

    def begins(self, packet):
        return True

    def key(self, number, packet):
        return Key(number, None, (packet.pts, packet.pos, None), packet.pts)

    def stamp(self, packet):
        return packet.pts

    def decode(self, number, packet):
        yield from [(number, packet)] if packet else []


@pytest.mark.parametrize(
    "times, shown, form",
    [
        ([0, 40, 80], [0, 40, 80], {}),
        ([0, 40, 80, 0, 40, 80], [0, 40, 80, 120, 160, 200], {}),
        ([0, 40, 40, 80], [0, 40, 41, 80], {}),
        ([0, 40, 1, 80], [0, 40, 41, 80], {}),
        ([0, 40, 40, 41], [0, 40, 41, 81], {}),
        ([0, 40, 0, 40], [0, 40, 80, 120], {}),
        ([0, 40, 30, 35, 80], [0, 40, 41, 81, 126], {}),
        ([40, 0, 80], [40, 80, 160], {}),
        ([40, 30, 80], [40, 41, 80], {}),
        ([0, 40, 80, 0, 40], [0, 40, 80, 81, 82], {"is_mp4": True}),
        ([None, None, None], [0, 40, 80], {}),
        ([0, 40, None, 40, 80], [0, 40, 80, 120, 160], {}),
        ([0, 400, None, None], [0, 400, 440, 480], {}),
        ([7, 47, 127], [7, 47, 127], {"is_avi": True}),
        ([7, 47, 7, 47], [7, 47, 87, 127], {"is_avi": True}),
        ([7, 47, 40, 87], [7, 47, 48, 87], {"is_avi": True}),
    ],
)
@pytest.mark.parametrize("duration", [0, 40])
def test_times_that_are_missing_or_go_back(times, shown, form, duration):
    """Less than a frame back, once, is a slip; else it and all later ones follow the last one.

    A frame lasts as long as its packet says, or as the rate does.
    """
    survey = Survey(Scripted(times, [duration] * len(times), **form))
    assert survey.stamps.tolist() == shown
    assert list(survey.held) == list(survey.frames) == list(range(len(times)))


def test_what_the_packets_say_is_not_decoded(monkeypatch):
    monkeypatch.setattr(Scripted, "decode", None)
    assert Survey(Scripted([0, 40, 80], [40] * 3)).stamps.tolist() == [0, 40, 80]


def test_a_frame_after_a_time_that_is_missing_waits_for_the_one_before():
    survey = Survey(Scripted([0, 40, None, None], [40, 10, 300, 5]))
    assert survey.stamps.tolist() == [0, 40, 50, 350] and survey.duration() == 5
