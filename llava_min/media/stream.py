"""The video stream of a file through FFmpeg (PyAV): its packets, numbered, and what they decode to.

in:  a path or a file in memory
out: packets in the order of decoding; decoded frames, each with the number of its packet

FFmpeg sees plain files only, with protocols and containers named one by one. Of several video
streams it picks the best one, as its own player does; pictures that are attached to sound are none.
Read media/sources.py first. Read next: media/timeline.py.
"""

from collections.abc import Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from ..errors import MediaError
from . import limits

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream

KINDS = {
    # how users call them: FFmpeg's names; none of these opens another file or a host
    "MP4, MOV": "mov,mp4,m4a,3gp,3g2,mj2",
    "MKV, WebM": "matroska,webm",
    "AVI": "avi",
    "MPEG": "mpeg,mpegvideo,m4v",
    "TS": "mpegts",
    "WMV": "asf",
    "OGV": "ogg",
    "FLV": "flv",
    "MXF": "mxf",
    "DV": "dv",
    "IVF": "ivf",
    "OBU": "obu",
    "Y4M": "yuv4mpegpipe",
    "GIF": "gif",
    "APNG": "apng",
    "raw H.264": "h264",
    "raw HEVC": "hevc",
}
CONTAINERS = ",".join(KINDS.values())
OPTIONS = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
RAW = ("h264", "hevc", "m4v", "mpegvideo")  # pictures one after the other, without times


Mark = tuple[int | None, int | None, int | None]


class Key(NamedTuple):
    """A key frame, from which decoding may begin."""

    number: int  # of its packet, from the start, in the order of decoding
    place: int | None  # where to seek to; None: nowhere
    mark: Mark  # by which its packet is known
    stamp: int | None  # when it is shown, where that is known


class Stream:
    """The packets of a file's video, and its decoder. `decoded` counts the frames it gave out."""

    def __init__(self, source: str | BinaryIO, name: str) -> None:
        try:
            import av
        except ImportError:
            raise self.refusal(name, "the package av", "none", "pip install av") from None
        self.av, self.source, self.name, self.decoded = av, source, name, 0
        self.errors = 0  # packets that could not be decoded
        self.open()
        codec = self.video.codec_context
        limits.check_pixels(name, (codec.width, codec.height), limits.FRAME_PIXELS)
        self.kind = self.container.format.name
        self.is_raw, self.is_avi = self.kind in RAW, self.kind == "avi"
        self.is_mp4 = "mp4" in self.kind
        self.rate = float(self.video.average_rate or self.video.guessed_rate or 25)
        self.unit = float(self.video.time_base or 1 / self.rate)

    @staticmethod
    def refusal(name: str, expected: str, found: str, hint: str = "") -> MediaError:
        return MediaError("cannot read the video", name, expected, found, hint)

    def open(self) -> None:
        """Open the file at its start."""
        if not isinstance(self.source, str):
            self.source.seek(0)
        try:
            self.container = self.av.open(
                self.source, "r", options=OPTIONS, metadata_errors="replace"
            )
        except self.av.FFmpegError:
            kinds = f"a video ({', '.join(KINDS)})"
            raise self.refusal(self.name, kinds, "a damaged file or another kind") from None
        video = self.container.streams.best("video")
        if not isinstance(video, self.av.VideoStream):
            raise self.refusal(self.name, "a video stream", "none (audio only?)")
        if video.disposition & self.av.stream.Disposition.attached_pic:
            raise self.refusal(self.name, "a video stream", "no video, only an attached picture")
        if video.codec_context is None:
            raise self.refusal(self.name, "a codec that is known", "another")
        # the frames of an APNG share a header, which only the first thread would see
        video.thread_type = "SLICE" if video.codec_context.name == "apng" else "AUTO"
        video.codec_context.flags |= self.av.codec.context.Flags.copy_opaque
        self.video: VideoStream = video

    def stamp(self, packet: "Packet[VideoStream]") -> int | None:
        """When a packet's frame is shown, as the file says: in an AVI by the chunk's number."""
        return packet.dts if self.is_avi else packet.pts

    def key(self, number: int, packet: "Packet[VideoStream]") -> Key:
        """A packet as a place to begin at."""
        place = packet.pts if packet.dts is None else packet.dts
        return Key(number, place if number else None, self.mark(packet), self.stamp(packet))

    def mark(self, packet: "Packet[VideoStream]") -> Mark:
        """What tells a packet from others, and is the same when it is reached by seeking."""
        if self.is_mp4:
            return packet.dts, packet.pos, None
        return self.stamp(packet), packet.pos, packet.size

    def begins(self, packet: "Packet[VideoStream]") -> bool:
        """Whether decoding may begin here.

        In MPEG program streams only packets with a position have times of their own; FFmpeg guesses
        the others' from the packets it has read so far.
        """
        return packet.is_keyframe and (self.kind != "mpeg" or packet.pos is not None)

    # Packets and frames ------------------------------------------------------------

    def demuxed(self) -> Iterator["Packet[VideoStream]"]:
        """The packets from here on; a file that breaks off ends there."""
        try:
            yield from (packet for packet in self.container.demux(self.video) if packet.size)
        except self.av.FFmpegError:
            return

    def packets(self, key: Key | None = None) -> Iterator[tuple[int, "Packet[VideoStream]"]]:
        """(number, packet) from a key frame on, or from the start."""
        if key is None or key.place is None or (found := self.sought(key)) is None:
            self.open()
            return islice(enumerate(self.demuxed()), key.number if key else 0, None)
        return enumerate(found, key.number)

    def sought(self, key: Key) -> Iterator["Packet[VideoStream]"] | None:
        """The packets from a key frame on; None where seeking does not lead there."""
        if key.place is None or self.is_raw:
            return None
        try:
            self.container.seek(key.place, stream=self.video)
        except self.av.FFmpegError:
            return None
        packets = self.demuxed()
        for packet in packets:
            if self.mark(packet) == key.mark:
                return chain([packet], packets)
            if packet.dts is not None and packet.dts > key.place:
                return None
        return None

    def decode(
        self, number: int, packet: "Packet[VideoStream] | None"
    ) -> Iterator[tuple[int, "VideoFrame"]]:
        """(number of its packet, frame) of what a packet, or at the end None, makes come out.

        Damaged packets give nothing.
        """
        if packet is not None:
            packet.opaque = (number,)  # an object of its own: av tells them apart by their address
        try:
            frames = self.video.decode(packet)
        except self.av.FFmpegError:
            self.errors += 1
            return
        for frame in frames:
            self.decoded += 1
            if isinstance(frame.opaque, tuple):
                yield frame.opaque[0], frame
