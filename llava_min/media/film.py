"""The pictures of a few frames of a video, each at its time.

in:  a path or a file in memory; numbers of frames in the order of showing
out: RGB [H W 3]

A wanted frame is reached from the key frame before it: seek there, decode up to it and no further.
A packet may give no picture: it is damaged, or says that nothing changed. Then the picture shown
before it still stands.
Read media/timeline.py first. Read next: media/video.py.
Agrees with: decoding everything from the start (tested, frame for frame); QuickTime File Format,
"Matrices", for how a picture lies.
"""

import logging
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
from PIL import Image

from .stream import Key, Stream
from .timeline import HIDDEN, timeline_of

if TYPE_CHECKING:
    from av import VideoFrame
    from av.sidedata.sidedata import SideData

log = logging.getLogger("llava_min")
Matrix = tuple[int, int, int, int]
INTRA = 1  # a picture that refers to no other, as FFmpeg counts their types
SKIPPING = ("h264", "mpeg1video", "mpeg2video")  # decoders that leave out just what none refers to


class Shown:
    """Decoded frames, (number, frame) each in the order of showing, looked up one after the other.

    `now` is the one that was looked up.
    """

    def __init__(self, frames: Iterator[tuple[int, "VideoFrame"]]) -> None:
        self.frames = frames
        self.now: tuple[int, VideoFrame] | None = None
        self.following: tuple[int, VideoFrame] | None = None

    def look_up(self, number: int) -> bool:
        """Go to frame `number`, or to the last one before it; whether it is that frame itself."""
        while self.now is None or self.now[0] < number:
            self.following = self.following or next(self.frames, None)
            if self.following is None or self.following[0] > number:
                return False
            self.now, self.following = self.following, None
        return self.now[0] == number


class Film:
    """The second at which each frame is shown, from the first one on, in the order of showing.

    `seconds` is how long the video lasts: up to the end of its last frame.
    """

    def __init__(self, source: str | BinaryIO, name: str) -> None:
        self.stream, self.name = Stream(source, name), name
        self.timeline = timeline_of(self.stream)
        if not len(self.timeline):
            raise self.stream.refusal(name, "frames", "none")
        self.first = self.timeline.stamp(0)
        self.matrices: dict[int, Matrix] = {}

    @property
    def decoded(self) -> int:
        """How many frames were decoded so far."""
        return self.stream.decoded

    @property
    def seconds(self) -> float:
        """How long it lasts. A last frame of unknown length lasts as long as the one before it."""
        last = len(self) - 1
        length = self.timeline.duration() * self.stream.unit
        if not length:
            length = self[last] - self[last - 1] if last else 1 / self.stream.rate
        return round(self[last] + length, 6)

    def __len__(self) -> int:
        return len(self.timeline)

    def __getitem__(self, number: int) -> float:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return round((self.timeline.stamp(number) - self.first) * self.stream.unit, 6)

    # Decoding --------------------------------------------------------------------

    def pictures(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """The frames of these numbers, in ascending order, upright in RGB [H W 3]."""
        for key, run in groupby(numbers, self.entrance):
            yield from self.decode_run(key, list(run))

    def entrance(self, number: int) -> Key | None:
        """The key frame from which frame `number` is decoded; None: the start.

        For a leading frame it is the one before.
        """
        packet = self.timeline.packet(number)
        key = self.timeline.key(packet)
        if key and (key.stamp is None or self.timeline.stamp(number) < key.stamp):
            return self.timeline.key(packet, before=True)
        return key

    def decode_run(self, key: Key | None, numbers: list[int]) -> Iterator[np.ndarray]:
        """The pictures of frames that are all decoded from one key frame.

        Where a packet gives no picture, all frames from the group before on are decoded, and the
        one shown before it, or else the one after it, is taken.
        """
        errors = self.stream.errors
        shown, thorough = Shown(self.refreshed(key, self.frames(key, numbers))), False
        for number in numbers:
            found = shown.look_up(number)
            if not found and not thorough:
                before = self.timeline.key(key.number, before=True) if key else None
                shown, thorough = Shown(self.frames(before, numbers, thorough=True)), True
                found = shown.look_up(number)
            picture = shown.now or shown.following
            if picture is None:
                raise self.stream.refusal(self.name, "frames", "none that decodes")
            if not found and self.stream.errors > errors:
                time = self[number]
                log.warning(f"{self.name}: the frame at {time:.2f} s is damaged; another stands in")
            yield upright(picture[1], self.matrix(picture[1]))

    def matrix(self, frame: "VideoFrame") -> Matrix:
        """How a frame lies.

        A frame whose side data was read stays in memory for a while, so those of one rotation are
        asked once.
        """
        if frame.rotation not in self.matrices:
            self.matrices[frame.rotation] = matrix_of(frame)
        return self.matrices[frame.rotation]

    def frames(
        self, key: Key | None, numbers: list[int], thorough: bool = False
    ) -> Iterator[tuple[int, "VideoFrame"]]:
        """(number, frame) as shown, decoded from a key frame on until these frames are decoded.

        Others that none refers to are left out. `thorough`: all frames, for as long as they are
        asked for; at the end of a file decoders give out the last frame in a way of their own.
        """
        waiting = {self.timeline.packet(number) for number in numbers}
        for held, packet in self.stream.packets(key):
            codec = self.stream.video.codec_context
            needed = thorough or held in waiting or codec.name not in SKIPPING
            codec.skip_frame = "DEFAULT" if needed else "NONREF"
            yield from self.numbered(self.stream.decode(held, packet))
            waiting.discard(held)
            if not waiting and not thorough:
                break
        yield from self.numbered(self.stream.decode(0, None))

    def refreshed(
        self, key: Key | None, frames: Iterator[tuple[int, "VideoFrame"]]
    ) -> Iterator[tuple[int, "VideoFrame"]]:
        """The frames, or none where they do not begin with a whole picture.

        H.264 may refresh a picture part by part; from where that begins some decode wrongly.
        """
        first = next(frames, None)
        parts = key and key.place is not None and self.stream.video.codec_context.name == "h264"
        if first is not None and not (parts and first[1].pict_type != INTRA):
            yield first
            first = None
            yield from frames

    def numbered(
        self, frames: Iterable[tuple[int, "VideoFrame"]]
    ) -> Iterator[tuple[int, "VideoFrame"]]:
        """The frames that are shown, with their numbers in place of their packets'."""
        for packet, frame in frames:
            if (number := self.timeline.frame(packet)) != HIDDEN:
                yield number, frame


def matrix_of(frame: "VideoFrame") -> Matrix:
    """a, b, c and d of a frame's display matrix."""
    for data in cast("Iterable[SideData]", frame.side_data):
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = struct.unpack("=9i", bytes(data))
            return a, b, c, d
    return 1, 0, 0, 1


def upright(frame: "VideoFrame", matrix: Matrix) -> np.ndarray:
    """A decoded frame as RGB [H W 3], on white, turned and mirrored as a display matrix says."""
    if any(component.is_alpha for component in frame.format.components):
        layer = Image.fromarray(frame.to_ndarray(format="rgba"))
        white = Image.new("RGBA", layer.size, "white")
        picture = np.asarray(Image.alpha_composite(white, layer).convert("RGB"))
    else:
        picture = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(displayed(picture, *matrix))


def displayed(picture: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """A picture [H W 3] turned and mirrored, by the nearest of the eight ways to lay it.

    Its point (x, y) is shown at (ax + cy, bx + dy).

    >>> displayed(np.array([[1, 2], [3, 4]]), 0, 1, -1, 0).tolist()  # turned right by 90 degrees
    [[3, 1], [4, 2]]
    """
    if abs(a) + abs(d) < abs(b) + abs(c):
        picture, a, d = picture.swapaxes(0, 1), c, b
    return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
