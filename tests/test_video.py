"""Frames that are reached by seeking are those of decoding everything, for every kind of file; few
are decoded for them; they are chosen by their times, upright; FFmpeg opens plain videos only.
"""

import io
import logging
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import small
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llava_min import image
from llava_min.errors import MediaError, ParameterError
from llava_min.media import film, video
from llava_min.media.film import Film
from llava_min.media.sources import FrameList
from llava_min.media.timeline import Index
from llava_min.media.video import Choice
from llava_min.request.prepare import one_or_many

av = pytest.importorskip("av")
FRAMES, GROUP = 140, 25
TIMES = np.cumsum(np.random.default_rng(1).uniform(0.02, 0.3, FRAMES)).tolist()
X264 = {"preset": "veryfast", "bf": "2", "sc_threshold": "0"}
KINDS = {
    # file: codec, its options, the times of frames where they vary
    "clip.mp4": ("libx264", X264, None),
    "open.mp4": ("libx264", X264 | {"bf": "3", "x264-params": "open-gop=1"}, None),
    "one_group.mp4": ("libx264", X264 | {"g": "1000"}, None),
    "intra.mp4": ("libx264", X264 | {"g": "1"}, None),
    "refreshed.mkv": ("libx264", X264 | {"bf": "0", "x264-params": "intra-refresh=1"}, None),
    "vfr.mp4": ("libx264", X264, TIMES),
    "vfr.mkv": ("libx264", X264, TIMES),
    "clip.ts": ("libx264", X264, None),
    "clip.flv": ("libx264", X264, None),
    "clip.avi": ("libx264", X264, None),
    "clip.h264": ("libx264", X264, None),
    "clip.webm": ("libvpx", {"lag-in-frames": "10", "auto-alt-ref": "1", "b:v": "200k"}, None),
    "mpeg2.ts": ("mpeg2video", {"bf": "2"}, None),
    "mpeg4.mp4": ("mpeg4", {"bf": "2"}, None),
    "hevc.mp4": ("libx265", {"x265-params": "bframes=4:open-gop=1:keyint=25:log-level=0"}, None),
}


def picture(index: int) -> np.ndarray:
    """A frame that differs from its neighbours, all of it and in a line."""
    frame = np.full((48, 64, 3), (index * 37) % 256, np.uint8)
    frame[index % 48] = 255
    return frame


def write(path, kind="clip.mp4", frames=FRAMES, rotation=None, times=None, format=None):
    """A clip of `frames` frames at 25 a second, a key frame every GROUP."""
    codec, options, kind_times = KINDS[kind]
    times = times or kind_times
    with av.open(path, "w", format=format) as container:
        stream = container.add_stream(codec, rate=25, options={"g": str(GROUP), **options})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
            if times:
                frame.pts, frame.time_base = round(1000 * times[index]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def everything(path) -> tuple[list[np.ndarray], list[float]]:
    """All frames and their times, decoded from the start and counted: what must be met."""
    with av.open(path) as container:
        frames = list(container.decode(container.streams.video[0]))
        return [film.upright(frame, film.matrix_of(frame)) for frame in frames], [
            frame.time for frame in frames
        ]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("clips"), {}

    def clip(kind):
        if kind not in made:
            path = write(str(folder / kind), kind)
            made[kind] = (path, *everything(path))
        return made[kind]

    return clip


SELECTIONS = [
    [0],
    [FRAMES - 1],
    [5, 6, 7, 70, 70, 71, 130],
    [24, 25, 26],
    [49, 50, 100, 101],
    list(range(FRAMES)),
    video.sample_indices(FRAMES, 8),
]


@pytest.mark.catalogue("VD-VFR", "MP4 and MKV, each frame at its time")
@pytest.mark.catalogue("VD-NOMETA", "ts, flv, avi, raw h264: the frames that were written")
@pytest.mark.parametrize("kind", KINDS)
def test_seeking_gives_the_frames_of_decoding_everything(clips, kind):
    """Groups open and closed, frames shown out of the order of decoding, no times, no seeking."""
    path, pictures, times = clips(kind)
    opened = Film(path, kind)
    assert len(opened) == len(pictures) == FRAMES
    untimed = opened.stream.is_avi or opened.stream.is_raw
    expected = [n / 25 if untimed else t - times[0] for n, t in enumerate(times)]
    assert list(opened) == pytest.approx(expected, abs=1e-6)
    for numbers in SELECTIONS:
        found = list(opened.pictures(numbers))
        assert len(found) == len(numbers)
        assert all(np.array_equal(frame, pictures[n]) for frame, n in zip(found, numbers)), numbers


@pytest.mark.parametrize("kind", ["clip.mp4", "open.mp4", "vfr.mp4", "vfr.mkv", "clip.flv"])
def test_a_film_lasts_up_to_the_end_of_its_last_frame(clips, kind):
    """Of the one that is shown last, which is often not the one that is stored last."""
    path = clips(kind)[0]
    with av.open(path) as container:
        frames = list(container.decode(container.streams.video[0]))
    last = max(frames, key=lambda frame: frame.time)
    length = last.duration * last.time_base if last.duration else last.time - frames[-2].time
    assert Film(path, kind).seconds == pytest.approx(last.time - frames[0].time + length, abs=1e-5)
    assert film.matrix_of(last) == (1, 0, 0, 1)


@pytest.mark.parametrize("stamps, last, expected", [
    ([5], 0, 0.04), ([5], 30, 0.3), ([5, 15], 0, 0.2), ([5, 15, 45], 0, 0.7), ([5, 15], 7, 0.17)
])  # fmt: skip
def test_a_last_frame_of_unknown_length_is_as_long_as_the_one_before(stamps, last, expected):
    """In hundredths of a second; a single one is as long as its rate says."""
    whole = object.__new__(film.Film)
    whole.first, whole.stream = stamps[0], SimpleNamespace(unit=0.01, rate=25)

    class Times:
        def __len__(self):
            return len(stamps)

        def stamp(self, number):
            return stamps[number]

        def duration(self):
            return last

    whole.timeline = Times()
    assert whole.seconds == pytest.approx(expected)
    assert [whole[n] for n in range(len(whole))] == [(one - 5) / 100 for one in stamps]
    for number in (-1, len(stamps)):
        with pytest.raises(IndexError):
            whole[number]


def test_only_an_mp4_is_read_by_its_index(clips, tmp_path):
    """However short it is; and a frame has a number from 0 to the last."""
    one = write(str(tmp_path / "one.mp4"), frames=1)
    for path in (one, clips("clip.mp4")[0]):
        assert isinstance(Film(path, "").timeline, Index)
    for kind in ("vfr.mkv", "clip.flv", "clip.ts", "clip.avi"):
        assert not isinstance(Film(clips(kind)[0], "").timeline, Index)
    opened, clip = Film(one, ""), video.sample_clip(one, Choice(4))
    assert len(opened) == len(clip) == 1 and opened[0] == 0 and clip[0].shape == (48, 64, 3)
    for number in (-1, 1):
        for sequence in (opened, clip):
            with pytest.raises(IndexError):
                sequence[number]


@pytest.mark.parametrize("kind", ["clip.mp4", "open.mp4", "vfr.mkv", "clip.ts", "hevc.mp4"])
def test_few_frames_are_decoded(clips, kind):
    """From a key frame on and no further; the key frame of several frames once; and a group more
    for frames that are shown before their own key frame.
    """
    opened = Film(clips(kind)[0], kind)
    assert opened.decoded == 0
    for numbers in ([0], [30], [55, 60, 70], [10, 110]):
        before = opened.decoded
        list(opened.pictures(numbers))
        last = {n // GROUP: n % GROUP for n in numbers}
        assert 0 < opened.decoded - before <= sum(n + 6 for n in last.values()), numbers


@pytest.mark.parametrize("kind", ["open.mp4", "hevc.mp4", "mpeg2.ts"])
def test_leading_frames_are_reached_at_once(clips, kind):
    """From the key frame before, and without trying their own."""
    opened = Film(clips(kind)[0], kind)
    timeline = opened.timeline
    keys = [timeline.key(timeline.packet(number)) for number in range(FRAMES)]
    leading = [n for n, key in enumerate(keys) if key and timeline.stamp(n) < key.stamp]
    assert leading
    for number in leading[:3]:
        before, group = opened.decoded, number - opened.entrance(number).number
        list(opened.pictures([number]))
        assert 0 < opened.decoded - before <= group + 8


def test_frames_that_none_refers_to_are_left_out(clips):
    opened = Film(clips("clip.mp4")[0], "")
    list(opened.pictures([GROUP - 2]))
    assert opened.decoded < GROUP - 2


@pytest.mark.parametrize("kind", ["clip.mp4", "vfr.mkv", "clip.flv"])
def test_without_seeking_it_begins_again(clips, kind):
    class NoSeeking:
        def __init__(self, container):
            self.container = container

        def __getattr__(self, name):
            return getattr(self.container, name)

        def seek(self, *args, **named):
            raise av.error.PermissionError(1, "no seeking")

    path, pictures, _ = clips(kind)
    opened = Film(path, kind)
    stream, inner = opened.stream, opened.stream.open
    stream.open = lambda: (inner(), setattr(stream, "container", NoSeeking(stream.container)))
    stream.open()
    for frame, number in zip(opened.pictures([3, 60, 120]), [3, 60, 120], strict=True):
        assert np.array_equal(frame, pictures[number])


def test_a_trimmed_clip_begins_where_it_says(clips, tmp_path):
    """An edit list hides the first frames: they are decoded, as others refer to them, not shown."""
    path, whole = str(tmp_path / "trimmed.mp4"), clips("clip.mp4")[0]
    with av.open(whole) as source, av.open(path, "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.size:
                packet.pts, packet.dts = packet.pts - 10 * 512, packet.dts - 10 * 512
                packet.stream = copy
                target.mux(packet)
    pictures, _ = everything(path)
    assert len(pictures) < FRAMES
    opened = Film(path, "")
    assert len(opened) == len(pictures)
    for numbers in ([0], [14, 15], [3, 40, 90]):
        found = list(opened.pictures(numbers))
        assert all(np.array_equal(frame, pictures[n]) for frame, n in zip(found, numbers))


@pytest.mark.catalogue("VD-CORRUPT", "damage costs frames, each said, and no more")
@pytest.mark.parametrize("kind", ["clip.mp4", "clip.ts"])
def test_damage_costs_frames_and_no_more(clips, tmp_path, kind, caplog):
    """As many frames as were chosen, those of whole groups untouched, and a line for each other."""
    path, pictures, _ = clips(kind)
    data = bytearray(open(path, "rb").read())
    middle = len(data) // 2
    data[middle - 400 : middle + 400] = bytes(800)
    (tmp_path / kind).write_bytes(data)
    with caplog.at_level(logging.WARNING):
        clip = video.sample_clip(str(tmp_path / kind), Choice(FRAMES))
        found = list(clip)
    same = [np.array_equal(frame, pictures[n]) for n, frame in enumerate(found)]
    assert FRAMES - 5 <= len(found) <= FRAMES and all(same[:GROUP]) and not all(same)
    said = [record.getMessage() for record in caplog.records if "damaged" in record.message]
    times = [f"the frame at {time:.2f} s is damaged" for time in clip.times]
    worse = [any(time in one for one in said) for time in times]
    assert any(worse) == (len(found) == FRAMES) and len(said) == sum(worse)
    assert not any(intact and told for intact, told in zip(same, worse))
    for number, frame in enumerate(found):
        near = found[max(number - GROUP, 0) : number] + found[number + 1 : number + GROUP]
        assert not worse[number] or any(np.array_equal(frame, other) for other in near)
    whole = film.Film(str(tmp_path / kind), kind)
    assert len(list(whole.pictures(range(len(whole))))) == len(whole)
    assert whole.decoded <= 2 * FRAMES  # each group once again at most


@pytest.mark.catalogue("VD-HALF", "a film cut short gives what is there")
def test_a_film_cut_short_gives_what_is_there(clips, tmp_path):
    path, pictures, _ = clips("vfr.mkv")
    data = open(path, "rb").read()
    found = list(video.sample_clip(data[: len(data) // 2], Choice(4)))
    assert len(found) == 4 and np.array_equal(found[0], pictures[0])


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_phones_hold_clips_upright(tmp_path, degrees):
    path = write(str(tmp_path / "clip.mp4"), frames=30, rotation=degrees)
    plain, _ = everything(write(str(tmp_path / "plain.mp4"), frames=30))
    clip = video.sample_clip(path, Choice(3))
    assert clip.size == ((64, 48) if degrees == 180 else (48, 64))
    turned = np.rot90(plain[29], degrees // 90)
    assert np.array_equal(clip[2], turned)


@pytest.mark.parametrize("kind", ["clip.mp4", "open.mp4", "intra.mp4", "vfr.mkv", "clip.h264"])
def test_the_group_before_is_that_of_the_packet_before(clips, kind):
    """The first group has none before it: it is itself, or the start of the file."""
    timeline = Film(clips(kind)[0], kind).timeline
    for packet in range(60):
        own = timeline.key(packet)
        assert own.number <= packet
        before = timeline.key(packet, before=True)
        if own.number:
            assert before == timeline.key(own.number - 1) and before.number < own.number
        else:
            assert before in (own, None)


def test_bytes_and_paths_are_the_same_clip(clips):
    path = clips("clip.mp4")[0]
    by_path = video.sample_clip(path, Choice(4))
    by_bytes = video.sample_clip(open(path, "rb").read(), Choice(4))
    assert all(map(np.array_equal, by_path, by_bytes)) and by_path.times == by_bytes.times


def test_pictures_are_made_when_asked_for(clips, monkeypatch):
    """Reading ahead would hold hours of video in memory. In order each is made once."""
    made, path = [], clips("clip.mp4")[0]
    upright = film.upright
    monkeypatch.setattr(film, "upright", lambda *given: made.append(1) or upright(*given))
    clip = video.sample_clip(path, Choice(20))
    assert len(clip.times) == 20 and not made
    assert clip.size == (64, 48) and len(made) == 1
    config = small.random_model(small.hf_config()).config
    tiles = image.FrameTiles(clip, config, range(20))
    first = [tiles[index] for index in range(5)]
    assert len(made) == 5
    list(tiles)
    assert len(made) == 25 and np.array_equal(tiles[2], first[2])


@given(st.lists(st.integers(0, 5), max_size=12))
def test_any_frame_may_be_asked_for(order):
    """Decoding begins again only where the frame is neither the newest nor the one after it."""
    begun = []

    def pictures(first):
        begun.append(first)
        return (np.full((1, 1, 3), number, np.uint8) for number in range(first, 6))

    clip = video.SampledClip(range(6), 6.0, pictures, [])
    for number in order:
        assert (clip[number] == number).all()
    steps = zip([-1, *order], order, strict=False)
    assert begun == [0, *(number for last, number in steps if number not in (last, last + 1))]


def test_a_folder_of_pictures_is_a_clip(tmp_path):
    """In the order of the numbers in their names, a second apart, of any format and size."""
    for number in range(12):
        name = f"frame{number}." + ("png" if number % 2 else "BMP")
        Image.new("RGB", (8 + number, 6), (number, 0, 0)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    clip = video.sample_clip(tmp_path, Choice(12))
    assert [int(frame[0, 0, 0]) for frame in clip] == list(range(12))
    assert clip.times == tuple(range(12)) and clip.seconds == 12
    near = video.sample_clip(str(tmp_path), Choice(at=(10.4, 2)))
    assert [int(frame[0, 0, 0]) for frame in near] == [2, 10]
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match="folder of pictures"):
        video.sample_clip(tmp_path / "empty", Choice(4))


def test_arrays_are_taken_as_they_are():
    frames = small.frames(5)
    clip = video.sample_clip(frames, Choice(2))
    assert np.array_equal(list(clip), frames) and clip.times == (0, 1, 2, 3, 4)
    assert clip.seconds == 0  # nobody knows
    for wrong in (frames[..., :2], frames.astype(int), frames[:0]):
        with pytest.raises(MediaError, match="ndarray"):
            video.sample_clip(wrong, Choice(2))
    with pytest.raises(MediaError, match=r"ndarray.*videos=\[\[frame, frame\]\]"):
        video.sample_clip(frames[0], Choice(2))
    with pytest.raises(ParameterError, match="chosen already"):
        video.sample_clip(frames, Choice(fps=1))


def test_a_list_of_pictures_is_one_clip(tmp_path):
    """Of any kind and size, in their order; what they hold and no path makes the hash."""
    frames = small.frames(4)
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for frame, path in zip(frames, paths):
        Image.fromarray(frame).save(path)
    mixed = [Image.fromarray(frames[0]), frames[1], str(paths[2]), paths[3].read_bytes()]
    hashes = set()
    for pictures in (list(frames), mixed, paths):
        (source,) = one_or_many([pictures])
        clip = video.sample_clip(source, Choice(2))
        assert np.array_equal(list(clip), frames) and clip.times == (0, 1, 2, 3)
        assert clip.seconds == 0
        hashes.add(clip.hash)
    reverse = video.sample_clip(FrameList(frames[::-1]), Choice(2))
    assert reverse.hash not in hashes and np.array_equal(list(reverse), frames[::-1])
    with pytest.raises(ParameterError, match="list of frames, which are chosen already"):
        video.sample_clip(FrameList(frames), Choice(at=(1.0,)))
    with pytest.raises(MediaError, match="the list of frames: expected frames, found none"):
        video.sample_clip(FrameList(), Choice(2))
    for wrong in (mixed[0], frames[0]):
        with pytest.raises(MediaError, match=r"videos=\[\[frame, frame\]\]"):
            video.sample_clip(wrong, Choice(2))


# Which frames ------------------------------------------------------------------


@given(st.integers(1, 500), st.integers(1, 64))
def test_sampled_indices(total, frames):
    """All of few, otherwise as many as asked, first and last among them, evenly spread."""
    indices = video.sample_indices(total, frames)
    assert len(indices) == min(total, frames) and indices == sorted(set(indices))
    assert indices[0] == 0 and indices[-1] == total - 1 or frames == 1
    assert max(np.diff(indices), default=0) - min(np.diff(indices), default=0) <= 1


@given(st.integers(8, 100_000))
def test_the_families_own_rules(total):
    """linspace of the tutorials; arange of the card of LLaVA-NeXT-Video-7B-hf."""
    ends = np.linspace(0, total - 1, 8, dtype=int).tolist()
    assert video.sample_indices(total, 8) == ends
    card = np.arange(0, total, total / 8).astype(int).tolist()
    assert video.sample_indices(total, 8, ends=False) == card


ascending = st.lists(st.floats(0.001, 3), min_size=1, max_size=60).map(
    lambda steps: [round(t - steps[0], 6) for t in np.cumsum(steps)]
)


@given(ascending, st.floats(0, 1), st.floats(0.05, 8))
def test_times_get_their_nearest_frames(times, part, fps):
    """Of all frames none is nearer; as many as there are seconds, none twice."""
    time = part * times[-1]
    found = video.nearest(times, time)
    assert abs(times[found] - time) <= min(abs(t - time) for t in times) + 1e-5
    numbers = video.chosen(times, times[-1], Choice(fps=fps), "")
    wanted = np.arange(int(times[-1] * fps + 1e-6) + 1) / fps
    assert numbers == sorted({video.nearest(times, t) for t in wanted})
    evenly = video.chosen(times, times[-1], Choice(2), "")
    assert video.chosen(times, times[-1], Choice(2, fps=fps), "") in (numbers, evenly)


@pytest.mark.parametrize("rate, fps", [(30, 1), (24, 2), (25, 5), (30, 30)])
def test_frames_a_second_as_llava_video_takes_them(rate, fps):
    """Where the file's rate is a multiple, every rate/fps-th frame."""
    times = [number / rate for number in range(200)]
    assert video.chosen(times, 200 / rate, Choice(fps=fps), "") == list(range(0, 200, rate // fps))


@given(ascending, st.floats(0, 1), st.floats(0, 1), st.integers(1, 9))
def test_a_span_is_a_clip_of_its_own(times, one, other, frames):
    start, end = sorted((one * times[-1], other * times[-1]))
    inside = [number for number, time in enumerate(times) if start <= time <= end]
    choice = Choice(frames, start=start, end=end)
    if inside:
        expected = [inside[n] for n in video.sample_indices(len(inside), frames)]
        assert video.chosen(times, times[-1], choice, "") == expected
    else:
        with pytest.raises(ParameterError, match="within the"):
            video.chosen(times, times[-1], choice, "")


@pytest.mark.parametrize("times, seconds", [([0.0], 0.04), ([0.0, 0.4], 0.5), ([0.0, 2.0], 1.5)])
def test_times_up_to_the_end_are_inside(times, seconds):
    """The end of the last frame, or the last frame where a film says that it ends before; a short
    film has frames though nobody asks for a time.
    """
    end = max(seconds, times[-1])
    assert video.chosen(times, seconds, Choice(at=(0.0, end)), "") == [0, len(times) - 1]
    assert video.chosen(times, seconds, Choice(2), "") == list(range(len(times)))
    with pytest.raises(ParameterError, match="at must be times within"):
        video.chosen(times, seconds, Choice(at=(0.0, end + 1e-3)), "")
    assert video.chosen(times, seconds, Choice(fps=0.01, frames=1), "") == [0]
    assert video.chosen(times, seconds, Choice(fps=100.0, frames=1), "") == [0]


@pytest.mark.parametrize("shape", [(1, 1, 1, 3), (1, 48, 60, 3), (2, 1, 5, 3)])
def test_an_array_of_any_size_is_a_clip(shape):
    """Of which nobody knows how long it lasts."""
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    for source in (array, one_or_many([list(array)])[0]):
        clip = video.sample_clip(source, Choice())
        assert clip.times == tuple(range(len(array))) and clip.seconds == 0
        assert clip.size == (shape[2], shape[1])
        assert all(np.array_equal(one, own) for one, own in zip(clip, array, strict=True))
    for wrong in (array[:0], array[:, :0], array[..., :2], array[0], array[None], array / 1.0):
        with pytest.raises(MediaError, match="ndarray"):
            video.sample_clip(wrong, Choice())


def test_times_outside_are_refused(clips):
    path = clips("clip.mp4")[0]
    assert video.sample_clip(path, Choice(at=(5.59, 0))).times == (0, 5.56)
    for choice in (Choice(at=(5.7,)), Choice(4, start=6), Choice(4, start=2, end=1)):
        with pytest.raises(ParameterError, match="within the 5.56 s of"):
            video.sample_clip(path, choice)


# What is refused ---------------------------------------------------------------


@pytest.mark.parametrize(
    "content, name",
    [
        (b"", "clip.mp4"),
        (b"hello world", "clip.mp4"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", "clip.m3u8"),
        (b"ffconcat version 1.0\nfile secret.mp4\n", "clip.mp4"),
        (b"v=0\no=- 0 0 IN IP4 127.0.0.1\n", "clip.sdp"),
    ],
)
def test_what_is_no_video_is_refused(tmp_path, content, name):
    """Playlists among them: they name other files and hosts, and FFmpeg would follow."""
    write(str(tmp_path / "secret.mp4"), frames=3)
    (tmp_path / name).write_bytes(content)
    for source in (str(tmp_path / name), content):
        with pytest.raises(MediaError, match="cannot read the video"):
            video.sample_clip(source, Choice(4))


@pytest.mark.parametrize(
    "source", ["rtmp://127.0.0.1/x", "concat:a|b", "subfile,,start,0,end,9,,:x", "pipe:0"]
)
def test_protocols_never_reach_ffmpeg(source):
    with pytest.raises(MediaError, match="cannot read the file"):
        video.sample_clip(source, Choice(4))


def test_sound_without_pictures_is_refused():
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 1024), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="audio only"):
        video.sample_clip(buffer.getvalue(), Choice(4))
