"""Frames that are sampled are the frames that were written, at their times, upright; FFmpeg opens
plain videos only.
"""

import io
from fractions import Fraction

import numpy as np
import pytest
import small
from hypothesis import given
from hypothesis import strategies as st

from llava_min import video
from llava_min.errors import MediaError

av = pytest.importorskip("av")


def write(path, levels, times=None, rate=10, codec="libx264", size=(64, 48), format=None):
    """A clip of plain grey frames, one a level; `times` in seconds make the frame rate variable."""
    with av.open(path, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, level in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(
                np.full((size[1], size[0], 3), level, np.uint8), format="rgb24"
            )
            if times is not None:
                frame.pts, frame.time_base = round(1000 * times[index]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


LEVELS = [20 + 10 * index for index in range(20)]


def levels_of(clip) -> list[int]:
    """Each frame's level, to the nearest that was written."""
    return [LEVELS[int(np.abs(np.array(LEVELS) - frame.mean()).argmin())] for frame in clip.frames]


@given(st.integers(1, 500), st.integers(1, 64))
def test_sampled_indices(total, frames):
    """All of few, otherwise as many as asked, first and last among them, evenly spread."""
    indices = video.sample_indices(total, frames)
    assert len(indices) == min(total, frames) and indices == sorted(set(indices))
    assert indices[0] == 0 and indices[-1] == total - 1 or frames == 1
    assert max(np.diff(indices), default=0) - min(np.diff(indices), default=0) <= 1


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi", "clip.ts"])
@pytest.mark.parametrize("frames", [1, 5, 20, 64])
def test_frames_are_those_that_were_written(tmp_path, name, frames):
    clip = video.read(write(str(tmp_path / name), LEVELS), frames)
    expected = video.sample_indices(20, frames)
    assert levels_of(clip) == [LEVELS[index] for index in expected]
    assert clip.times == pytest.approx([index / 10 for index in expected], abs=0.011)
    assert clip.frames.shape == (len(expected), 48, 64, 3)


def test_a_variable_frame_rate_keeps_its_times(tmp_path):
    times = [0.0, 0.1, 0.2, 1.5, 3.0, 3.1, 5.0]
    clip = video.read(write(str(tmp_path / "clip.mp4"), LEVELS[:7], times, rate=30), 7)
    assert clip.times == pytest.approx(times, abs=0.002)


def test_bytes_and_paths_are_the_same_clip(tmp_path):
    path = write(str(tmp_path / "clip.mp4"), LEVELS)
    data = open(path, "rb").read()
    assert np.array_equal(video.read(data, 4).frames, video.read(path, 4).frames)


def test_arrays_are_taken_as_they_are():
    frames = small.frames(5)
    assert np.array_equal(video.read(frames, 2).frames, frames)
    with pytest.raises(MediaError, match="ndarray"):
        video.read(frames[..., 0], 2)


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
    write(str(tmp_path / "secret.mp4"), LEVELS[:3])
    (tmp_path / name).write_bytes(content)
    for source in (str(tmp_path / name), content):
        with pytest.raises(MediaError, match="cannot read the video"):
            video.read(source, 4)


@pytest.mark.parametrize(
    "source", ["rtmp://127.0.0.1/x", "concat:a|b", "subfile,,start,0,end,9,,:x", "pipe:0"]
)
def test_protocols_never_reach_ffmpeg(source):
    with pytest.raises(MediaError, match="cannot read the file"):
        video.read(source, 4)


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
        video.read(buffer.getvalue(), 4)
