"""A video -> the frames that are looked at: chosen by their times first, decoded when asked for.

in:  a path, URL, bytes, a folder of pictures, uint8 [F H W 3], or a list of pictures; a Choice
out: Clip: frames [H W 3] uint8, upright, in RGB, one at a time; their times in seconds

Read media/film.py first. Read next: image.py.
Agrees with: LLaVA-NeXT's tutorials, linspace(0, N - 1, frames) cut to integers; the card of
LLaVA-NeXT-Video-7B-hf, arange(0, N, N / frames); LLaVA-Video's load_video where `fps` divides the
file's rate.
"""

import hashlib
import io
import math
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import MediaError, ParameterError
from . import limits
from . import sources as media
from .film import Film

Times = Film | Sequence[float]  # when each frame is shown, in seconds
AS_A_LIST = "Put the frames of one clip in a list of their own: videos=[[frame, frame]]."
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


@dataclass(frozen=True)
class Choice:
    """Which frames of a video are taken, from `start` to `end`.

    They are `frames` of them, spread evenly; or `fps` a second, `frames` at most; or those nearest
    to the times `at`; or all, where none of these is given. All times are in seconds from the first
    frame on. ends: whether evenly spread frames include the last one.
    """

    frames: int | None = None
    fps: float | None = None
    start: float = 0.0
    end: float = math.inf
    at: tuple[float, ...] = ()
    ends: bool = True


class SampledClip:
    """Chosen frames [H W 3], the second at which each is shown, and the whole video's seconds.

    `pictures(i)` gives the frames from the i-th on. Asked for in order, each is decoded once and
    one is held at a time. `sources` are what the frames come from: paths or bytes.
    """

    def __init__(
        self,
        times: Sequence[float],
        seconds: float,
        pictures: Callable[[int], Iterator[np.ndarray]],
        sources: Sequence[str | Path | bytes | memoryview],
    ) -> None:
        self.times, self.seconds, self.pictures = tuple(times), seconds, pictures
        self.sources = sources
        self.number, self.following = -1, pictures(0)
        self.picture: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, number: int) -> np.ndarray:
        if not 0 <= number < len(self):
            raise IndexError(number)
        if self.picture is None or number != self.number:
            if number != self.number + 1:
                self.following = self.pictures(number)
            self.number, self.picture = number, next(self.following)
        return self.picture

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the first frame."""
        return self[0].shape[1::-1]

    @cached_property
    def hash(self) -> bytes:
        """A hash of the sources and of which frames these are; nothing is decoded for it."""
        seen = hashlib.blake2b(repr(self.times).encode())
        for source in self.sources:
            file = open(source, "rb") if isinstance(source, str | Path) else io.BytesIO(source)
            with file:
                while block := file.read(1 << 20):
                    seen.update(block)
        return seen.digest()


def sample_clip(source: media.Video, choice: Choice) -> SampledClip:
    """The frames of a video that are chosen; those of an array or a list are chosen already."""
    if isinstance(source, np.ndarray):
        return clip_from_array(source, choice)
    if isinstance(source, media.FrameList):
        return clip_from_frames(source, choice)
    name = media.name_of(source)
    if not isinstance(source, media.Readable):
        raise MediaError("cannot read the video", name, "a file or frames", "neither", AS_A_LIST)
    if isinstance(source, str | Path) and os.path.isdir(source):
        return clip_from_folder(Path(source), choice, name)
    if not media.on_disk(source):
        source = media.read_bytes(source, limits.VIDEO_BYTES)
        film = Film(io.BytesIO(source), name)
    else:
        source = media.film_path(source)
        film = Film(source, name)
    seconds = film.seconds
    numbers = chosen(film, seconds, choice, name)
    times = [film[number] for number in numbers]
    return SampledClip(times, seconds, lambda first: film.pictures(numbers[first:]), [source])


def clip_from_folder(folder: Path, choice: Choice, name: str) -> SampledClip:
    """A folder of pictures, in the order of the numbers in their names, taken as a second apart."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in PICTURES]
    if not files:
        raise MediaError("cannot read the video", name, "a folder of pictures", "none in it")
    files.sort(key=natural)
    numbers = chosen(range(len(files)), float(len(files)), choice, name)
    return SampledClip(
        [float(number) for number in numbers],
        float(len(files)),
        lambda first: (np.asarray(media.open_picture(files[n])) for n in numbers[first:]),
        [files[number] for number in numbers],
    )


def natural(file: Path) -> list[str | int]:
    """A key that sorts numbers in names by their value.

    >>> natural(Path("frame10.png")) > natural(Path("frame9.png"))
    True
    """
    parts = re.split(r"(\d+)", file.name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def clip_from_array(array: np.ndarray, choice: Choice) -> SampledClip:
    """A clip of frames already chosen, uint8 [F H W 3]; their times are their numbers."""
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or 0 in array.shape:
        raise MediaError(
            "cannot read the video",
            "the ndarray",
            "uint8 [frames, height, width, 3]",
            f"{array.dtype} {list(array.shape)}",
            AS_A_LIST if array.ndim == 3 else "",
        )
    refuse_choice(choice)
    frames = np.ascontiguousarray(array)
    return SampledClip(range(len(array)), 0.0, lambda first: iter(frames[first:]), [frames.data])


def clip_from_frames(frames: media.FrameList, choice: Choice) -> SampledClip:
    """A clip of frames already chosen, each any kind of picture; their times are their numbers.

    Files are opened when they are asked for.
    """
    if not frames:
        raise MediaError("cannot read the video", "the list of frames", "frames", "none")
    refuse_choice(choice)
    kept = [frame_source(frame) for frame in frames]
    return SampledClip(
        range(len(kept)),
        0.0,
        lambda first: (np.asarray(media.open_picture(frame)) for frame in kept[first:]),
        [frame.data if isinstance(frame, np.ndarray) else frame for frame in kept],
    )


def frame_source(frame: media.Picture) -> Path | bytes | np.ndarray:
    """A frame as it is kept: the path of a file, the bytes of one, or uint8 [H W 3]."""
    if isinstance(frame, np.ndarray | Image.Image):
        return np.ascontiguousarray(media.open_picture(frame))
    if media.on_disk(frame):
        return media.local_path(frame)
    return media.read_bytes(frame, limits.IMAGE_BYTES)


def refuse_choice(choice: Choice) -> None:
    """ParameterError where frames that are chosen already are to be chosen from."""
    if choice != Choice(choice.frames, ends=choice.ends):
        raise ParameterError(
            "fps, start, end and at cannot be used with an array or a list of frames, which are "
            "chosen already."
        )


# Which frames ------------------------------------------------------------------


def sample_indices(total: int, frames: int, ends: bool = True) -> list[int]:
    """Which of `total` frames to take: all of them if they are few, otherwise evenly spread.

    ends: with the last one or without it.

    >>> sample_indices(100, 4), sample_indices(100, 4, ends=False), sample_indices(3, 8)
    ([0, 33, 66, 99], [0, 25, 50, 75], [0, 1, 2])
    """
    if total <= frames:
        return list(range(total))
    if not ends:
        return [number * total // frames for number in range(frames)]
    return np.linspace(0, total - 1, frames).astype(int).tolist()


def nearest(times: Times, time: float) -> int:
    """The frame that is nearest to `time`; of two equally near ones the earlier.

    >>> nearest([0.0, 0.4, 1.0], 0.7), nearest([0.0, 0.4, 1.0], 0.71)
    (1, 2)
    """
    after = bisect_left(times, time)
    if after == len(times) or (after and time - times[after - 1] <= times[after] - time + 1e-6):
        return after - 1
    return after


def chosen(times: Times, seconds: float, choice: Choice, name: str) -> list[int]:
    """The numbers of the frames that a Choice takes of those at `times`, ascending.

    >>> chosen(range(100), 100.0, Choice(4, start=10, end=19.5), "a folder")
    [10, 13, 16, 19]
    >>> chosen(range(100), 100.0, Choice(fps=0.25, end=10), "a folder")
    [0, 4, 8]
    """
    first, stop = bisect_left(times, choice.start), bisect_right(times, choice.end)
    last = times[len(times) - 1]
    if max(choice.at, default=0) > max(seconds, last):
        latest = f"{max(choice.at):g}"
        raise ParameterError(f"at must be times within the {last:.2f} s of {name}, not {latest}.")
    if first >= stop:
        interval = f"{choice.start:g} to {min(choice.end, last):g}"
        raise ParameterError(
            f"start and end must span a frame within the {last:.2f} s of {name}, not {interval}."
        )
    if choice.at:
        return [nearest(times, time) for time in sorted(choice.at)]
    if choice.fps:
        count = int((times[stop - 1] - times[first]) * choice.fps + 1e-6) + 1
        wanted = (times[first] + number / choice.fps for number in range(count))
        numbers = sorted({nearest(times, time) for time in wanted})
        if choice.frames is None or len(numbers) <= choice.frames:
            return numbers
    count = choice.frames or stop - first
    return [first + number for number in sample_indices(stop - first, count, choice.ends)]
