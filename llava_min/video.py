"""A video file -> sampled frames, upright, in RGB, with their times.

in:  a path or bytes, how many frames      out: Clip: frames [F H W 3] uint8, times in seconds
FFmpeg (through PyAV) sees plain files only, with protocols and containers named one by one.
Read next: image.py.
Agrees with: the uniform sampling of LLaVA-NeXT's tutorials: linspace(0, N - 1, frames), cut to
integers.

F frames.
"""

import io
from dataclasses import dataclass

import numpy as np

from . import limits, media
from .errors import LlavaMinError, MediaError

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,flv,gif,h264,hevc"
UNTIMED = ("avi", "h264", "hevc")  # these store the order of decoding only
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}


@dataclass(frozen=True)
class Clip:
    """Sampled frames [F H W 3], the second at which each stands, and the whole clip's seconds (0:
    not known).
    """

    frames: np.ndarray
    times: tuple[float, ...]
    seconds: float = 0.0


def sample_indices(total: int, frames: int) -> list[int]:
    """Which of `total` frames to take: all of them if they are few, otherwise evenly spread, ends
    included.

    >>> sample_indices(100, 4), sample_indices(3, 8)
    ([0, 33, 66, 99], [0, 1, 2])
    """
    if total <= frames:
        return list(range(total))
    return np.linspace(0, total - 1, frames).astype(int).tolist()


def read(source, frames: int) -> Clip:
    """Sample `frames` frames of a video file, or take those of an array [F H W 3] as they are."""
    if isinstance(source, np.ndarray):
        return from_array(source)
    name = media.name_of(source)
    try:
        import av
    except ImportError:
        raise LlavaMinError(
            "cannot read the video", name, "the package av", "none", "pip install av"
        ) from None
    if (
        isinstance(source, (bytes, bytearray))
        or str(source) == "-"
        or str(source).startswith(("data:", "http:", "https:"))
    ):
        opened = io.BytesIO(media.read_bytes(source, limits.VIDEO_BYTES))
    else:
        opened = str(media.local_path(source))
    try:
        return decode(av, opened, name, frames)
    except av.FFmpegError:
        raise MediaError(
            "cannot read the video", name, "a video file", "one that is damaged or of another kind"
        ) from None


def decode(av, opened, name: str, frames: int) -> Clip:
    """Decode the sampled frames: first the packets are counted, then the pictures decoded."""
    total, timed = survey(av, opened, name)
    wanted = set(sample_indices(total, frames))
    pictures, times, start = [], [], None
    with av.open(opened, options=OPTIONS) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or 1)
        for index, frame in enumerate(container.decode(stream)):
            time = frame.time if timed and frame.time is not None else index / rate
            start = time if start is None else start
            if index in wanted:
                pictures.append(upright(frame))
                times.append(round(time - start, 6))
    if not pictures:
        raise MediaError("cannot read the video", name, "frames", "none")
    return Clip(np.stack(pictures), tuple(times), total / rate)


def survey(av, opened, name: str) -> tuple[int, bool]:
    """(how many frames a video holds, whether each says when it is shown), without decoding any."""
    with av.open(opened, options=OPTIONS) as container:
        if not container.streams.video:
            raise MediaError("cannot read the video", name, "a video stream", "none (audio only?)")
        stream = container.streams.video[0]
        size = (stream.codec_context.width, stream.codec_context.height)
        limits.check_pixels(name, size, limits.FRAME_PIXELS)
        timed = container.format.name not in UNTIMED
        shown = [
            timed and packet.pts is not None for packet in container.demux(stream) if packet.size
        ]
    if hasattr(opened, "seek"):
        opened.seek(0)
    return len(shown), all(shown)


def upright(frame) -> np.ndarray:
    """A decoded frame as RGB [H W 3], turned as its display matrix says."""
    picture = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(picture, (frame.rotation // 90) % 4))


def from_array(array: np.ndarray) -> Clip:
    """A clip of frames already chosen, uint8 [F H W 3]; their times are their numbers."""
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or 0 in array.shape:
        raise MediaError(
            "cannot read the video",
            "the ndarray",
            "uint8 [frames, height, width, 3]",
            f"{array.dtype} {list(array.shape)}",
        )
    return Clip(array, tuple(float(index) for index in range(len(array))))
