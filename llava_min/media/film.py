"""A video file through FFmpeg (PyAV): when its frames are shown, and the pictures of a few of them.

in:  a path or a file in memory; numbers of frames in the order of showing
out: RGB [H W 3]

Packets say when their frames are shown without being decoded. A wanted frame is then reached from
the key frame before it: seek there, decode up to it and no further. FFmpeg sees plain files only,
with protocols and containers named one by one.
Read media/sources.py first. Read next: media/video.py.
Agrees with: decoding everything from the start and counting (tested, frame for frame).

A group (of pictures) is a key frame and what follows it, in the order of decoding, up to the next
one. Its leading frames follow the key frame in that order and are shown before it, after the group
before.
"""

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count, dropwhile, groupby, islice
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ..errors import MediaError
from . import limits

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream

log = logging.getLogger("llava_min")
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,flv,gif,h264,hevc"
UNTIMED = ("avi", "h264", "hevc")  # these store the order of decoding only
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}


class Film:
    """The second at which each frame is shown, from the first one on, in the order of showing.

    An MP4 with a whole index is read group by group when asked. Of other files all packets are read
    once. Frames without times of their own are shown at their number over the frame rate, and are
    decoded from the start. `decoded` counts the frames that were decoded.
    """

    def __init__(self, source: str | BinaryIO, name: str) -> None:
        try:
            import av
        except ImportError:
            raise MediaError(
                "cannot read the video", name, "the package av", "none", "pip install av"
            ) from None
        self.av, self.source, self.name, self.decoded = av, source, name, 0
        self.open()
        codec, entries = self.stream.codec_context, self.stream.index_entries
        limits.check_pixels(name, (codec.width, codec.height), limits.FRAME_PIXELS)
        self.rate = float(self.stream.average_rate or 1)
        self.timed = self.container.format.name not in UNTIMED
        # the place to seek to, the key frame's stamp, all stamps as shown; by the first's number
        self.groups: dict[int, tuple[int | None, int | None, Sequence[int]]] = {}
        self.total = len(entries)
        self.indexed = (
            "mp4" in self.container.format.name
            and 0 < self.total == self.stream.frames
            and not entries[0].is_discard
            and entries[-1].pos + entries[-1].size <= self.container.size
        )
        if not self.indexed:
            self.survey()
        if not self.total:
            raise MediaError("cannot read the video", name, "frames", "none")
        unit = self.stream.time_base
        self.unit = float(unit) if self.timed and unit else 1 / self.rate
        self.first = self.stamp(0)

    def open(self) -> None:
        """Open the file at its start."""
        if not isinstance(self.source, str):
            self.source.seek(0)
        try:
            self.container = self.av.open(
                self.source, "r", options=OPTIONS, metadata_errors="replace"
            )
        except self.av.FFmpegError:
            raise MediaError(
                "cannot read the video", self.name, "a video", "a damaged file or another kind"
            ) from None
        if not self.container.streams.video:
            raise MediaError(
                "cannot read the video", self.name, "a video stream", "none (audio only?)"
            )
        self.stream = self.container.streams.video[0]
        if self.stream.codec_context is None:
            raise MediaError("cannot read the video", self.name, "a codec that is known", "another")
        self.stream.thread_type = "AUTO"

    def survey(self) -> None:
        """Read all packets, and keep their groups. Discarded ones are decoded, but never shown."""
        keys: dict[int, tuple[int | None, int | None]] = {}
        stamps: list[int | None] = []
        for packet in self.demuxed():
            if packet.is_keyframe or not keys:
                place = packet.pts if packet.dts is None else packet.dts
                keys[len(stamps)] = (place, packet.pts)
            if not packet.is_discard:
                stamps.append(packet.pts)
        self.total = len(stamps)
        known = [stamp for stamp in stamps if stamp is not None]
        self.timed &= len(set(known)) == self.total
        if self.timed:
            ends = [*list(keys)[1:], self.total]
            for (start, (place, key)), end in zip(keys.items(), ends):
                self.groups[start] = (place, key, sorted(known[start:end]))
        else:
            self.groups = {0: (None, None, range(self.total))}
        self.starts = list(self.groups)

    def group(self, number: int) -> int:
        """The number of the first frame of the group that holds frame `number`."""
        if not self.indexed:
            return self.starts[bisect_right(self.starts, number) - 1]
        entries = self.stream.index_entries
        start = max(entries.search_timestamp(entries[number].timestamp), 0)
        if start not in self.groups:
            first = entries[start].timestamp
            stop = entries.search_timestamp(first + 1, backward=False)
            stop = stop if stop > 0 else self.total
            packets = self.packets(entries[stop - 1].timestamp, lambda p: p.dts == first)
            stamps = [p.pts for p in islice(packets, stop - start) if p.pts is not None]
            self.groups[start] = (stamps[0], stamps[0], sorted(stamps))
        return start

    def stamp(self, number: int) -> int:
        """When frame `number` is shown, in the file's own units."""
        start = self.group(number)
        return self.groups[start][2][number - start]

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, number: int) -> float:
        if not 0 <= number < self.total:
            raise IndexError(number)
        return round((self.stamp(number) - self.first) * self.unit, 6)

    # Decoding --------------------------------------------------------------------

    def demuxed(self) -> Iterator["Packet[VideoStream]"]:
        """The packets from here on; a file that breaks off ends there."""
        try:
            yield from (packet for packet in self.container.demux(self.stream) if packet.size)
        except self.av.FFmpegError:
            return

    def packets(
        self, place: int | None, wanted: Callable[["Packet[VideoStream]"], bool]
    ) -> Iterator["Packet[VideoStream]"]:
        """The packets from the first `wanted` one on, after seeking to `place`.

        They come from the start where there is no place, or where seeking does not lead there.
        """
        if place is not None:
            try:
                self.container.seek(place, stream=self.stream)
                found = dropwhile(lambda packet: not wanted(packet), self.demuxed())
                return chain([next(found)], found)
            except (self.av.FFmpegError, StopIteration):
                pass
        self.open()
        return dropwhile(lambda packet: not wanted(packet), self.demuxed())

    def pictures(self, numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """The frames of these numbers, in ascending order, upright in RGB [H W 3]."""
        for start, run in groupby(numbers, self.entrance):
            yield from self.decode_run(start, [self.stamp(number) for number in run])

    def entrance(self, number: int) -> int:
        """The group from whose key frame on frame `number` is decoded.

        For a leading frame it is the group before.
        """
        start = self.group(number)
        _, key, _ = self.groups[start]
        leading = self.timed and key is not None and self.stamp(number) < key
        return self.group(start - 1) if leading and start else start

    def decode_run(self, start: int, stamps: list[int]) -> Iterator[np.ndarray]:
        """The pictures shown at `stamps`, all decoded from the key frame of group `start` on.

        A frame that cannot be decoded is replaced by the one shown after it, or by the last one.
        """
        frames = self.frames(start, stamps)
        first = next(frames, None)
        if start and (first is None or first[0] > stamps[0]):  # refreshed without a key frame
            frames = self.frames(self.group(start - 1), stamps)
            first = next(frames, None)
        if first is None:
            raise MediaError("cannot read the video", self.name, "frames", "none that decodes")
        shown, frame = first
        for stamp in stamps:
            while shown < stamp and (following := next(frames, None)):
                shown, frame = following
            if shown != stamp:
                time = (stamp - self.first) * self.unit
                log.warning(f"{self.name}: the frame at {time:.2f} s is damaged; another stands in")
            yield upright(frame)

    def frames(self, start: int, stamps: list[int]) -> Iterator[tuple[int, "VideoFrame"]]:
        """(stamp, frame) as shown, decoded from the key frame of group `start` on.

        Decoding ends when the frames at `stamps` are decoded.
        """
        place, key, _ = self.groups[start]
        numbers, waiting, codec = count(), set(stamps), self.stream.codec_context
        # frames that no other refers to are left out; in HEVC those of a higher layer still may
        skips = self.timed and codec.name != "hevc"
        for packet in self.packets(place, lambda packet: not self.timed or packet.pts == key):
            if skips:
                codec.skip_frame = "DEFAULT" if packet.pts in waiting else "NONREF"
            yield from self.decode(packet, numbers)
            waiting.discard(packet.pts if self.timed else None)
            if not waiting:
                break
        yield from self.decode(None, numbers)

    def decode(
        self, packet: "Packet[VideoStream] | None", numbers: Iterator[int]
    ) -> Iterator[tuple[int, "VideoFrame"]]:
        """(stamp, frame) of what a packet, or at the end None, makes the decoder give out.

        Damaged packets give nothing.
        """
        try:
            frames = self.stream.decode(packet)
        except self.av.FFmpegError:
            return
        for frame in frames:
            self.decoded += 1
            stamp = frame.pts if self.timed else next(numbers)
            if stamp is not None:
                yield stamp, frame


def upright(frame: "VideoFrame") -> np.ndarray:
    """A decoded frame as RGB [H W 3], turned as its display matrix says."""
    picture = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(picture, (frame.rotation // 90) % 4))
