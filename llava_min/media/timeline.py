"""When each frame of a video is shown, and which packet holds it, mostly without decoding.

in:  a stream's packets
out: for frame n in the order of showing: its time in the file's own units, its packet, and the key
     frame that it is decoded from

Three ways, by what a file says. An MP4 with a whole index, of which nothing is hidden, is read by
groups, when asked. Of other files all packets are read once. Where these do not say it (raw
streams, B-frames in an AVI, times that are missing or go back), all is decoded once and the frames
are counted.
A group (of pictures) is a key frame and what follows it, in the order of decoding, up to the next
one. Its leading frames follow the key frame in that order and are shown before it, after the group
before. A packet may be hidden: it is decoded, as others refer to it, but not shown. Edit lists hide
packets, and may hold one packet several times; each place has a number of its own.
Read media/stream.py first. Read next: media/film.py.
Agrees with: decoding everything with FFmpeg from the start (tested on random clips).
"""

from array import array
from bisect import bisect_right
from dataclasses import dataclass
from itertools import chain, islice
from typing import Protocol

from .stream import Key, Stream

HIDDEN = -1  # in place of the number of a frame


class Timeline(Protocol):
    """What is shown when. Frames are numbered as shown, packets in the order of decoding."""

    def __len__(self) -> int: ...

    def stamp(self, frame: int) -> int:
        """When a frame is shown, in the file's own units."""
        ...

    def packet(self, frame: int) -> int:
        """The packet that holds a frame."""
        ...

    def frame(self, packet: int) -> int:
        """The frame that a packet holds, or HIDDEN."""
        ...

    def key(self, packet: int, before: bool = False) -> Key | None:
        """The key frame that starts a packet's group, or the group before it; None: the start."""
        ...

    def duration(self) -> int:
        """For how long the last frame is shown; 0 where the file does not say."""
        ...


def timeline_of(stream: Stream) -> Timeline:
    """The timeline of a stream, read in the quickest way that is right for it."""
    keys = indexed_keys(stream)
    if keys and (index := Index(stream, keys)).starts_whole():
        return index
    return Survey(stream)


# An index ------------------------------------------------------------------------


def indexed_keys(stream: Stream) -> list[int] | None:
    """The key frames of an MP4 whose index says all and hides nothing; None of other files."""
    entries, size = stream.video.index_entries, stream.container.size
    if not (stream.is_mp4 and 0 < len(entries) == stream.video.frames and entries[0].is_keyframe):
        return None
    keys, before = [], entries[0].timestamp - 1
    for number, entry in enumerate(entries):
        if entry.is_discard or entry.timestamp <= before or entry.pos + entry.size > size:
            return None
        before = entry.timestamp
        if entry.is_keyframe:
            keys.append(number)
    return keys


@dataclass(frozen=True)
class Group:
    """A key frame, and of each packet of its group: stamp and packet as shown, its frame."""

    key: Key
    stamps: "array[int]"
    packets: "array[int]"
    frames: "array[int]"


class Index:
    """The timeline of an MP4 whose index is whole; its groups are read when they are asked for."""

    def __init__(self, stream: Stream, keys: list[int]) -> None:
        self.stream, self.entries, self.keys = stream, stream.video.index_entries, keys
        self.groups: dict[int, Group] = {}
        self.last = 0  # the duration of the frame that is shown last

    def starts_whole(self) -> bool:
        """Whether the file's first frame is a key frame: frames before one may not decode."""
        first = self.group(0)
        return first.key.stamp == first.stamps[0]

    def group(self, number: int) -> Group:
        """The group of a packet. It holds the same numbers of packets and of frames."""
        place = bisect_right(self.keys, number) - 1
        if place not in self.groups:
            start = self.keys[place]
            stop = self.keys[place + 1] if place + 1 < len(self.keys) else len(self.entries)
            entry = self.entries[start]
            key = Key(start, entry.timestamp, (entry.timestamp, entry.pos, None), None)
            packets = [packet for _, packet in islice(self.stream.packets(key), stop - start)]
            stamps = [packet.pts for packet in packets if packet.pts is not None]
            if len(stamps) != stop - start:
                raise self.stream.refusal(self.stream.name, "what its index says", "other packets")
            order = sorted(range(len(stamps)), key=stamps.__getitem__)
            if stop == len(self.entries):
                self.last = packets[order[-1]].duration or 0
            frames = array("q", bytes(8 * len(order)))
            for frame, packet in enumerate(order):
                frames[packet] = start + frame
            self.groups[place] = Group(
                key._replace(stamp=stamps[0]),
                array("q", (stamps[packet] for packet in order)),
                array("q", (start + packet for packet in order)),
                frames,
            )
        return self.groups[place]

    def __len__(self) -> int:
        return len(self.entries)

    def stamp(self, frame: int) -> int:
        group = self.group(frame)
        return group.stamps[frame - group.key.number]

    def packet(self, frame: int) -> int:
        group = self.group(frame)
        return group.packets[frame - group.key.number]

    def frame(self, packet: int) -> int:
        """The frame of a packet; of a group that was not read yet, any number that is in it.

        While frames are decoded no group can be read, and only later ones are not.
        """
        group = self.groups.get(bisect_right(self.keys, packet) - 1)
        return group.frames[packet - group.key.number] if group else packet

    def key(self, packet: int, before: bool = False) -> Key | None:
        key = self.group(packet).key
        return self.group(max(key.number - 1, 0)).key if before else key

    def duration(self) -> int:
        self.group(len(self) - 1)
        return self.last


# All packets -----------------------------------------------------------------------


class Survey:
    """The timeline of any stream: all packets are read once, and decoded where they do not say.

    A slip is a time that goes back by less than a frame, or in an MP4 by any, where two pieces of
    its edit list meet: it becomes the next time.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream, self.keys = stream, list[Key]()
        self.stamps, self.held = array("q"), array("q")  # as shown: when, and by which packet
        self.frames, self.durations = array("q"), array("q")  # by packet
        self.frame_time = max(round(1 / stream.rate / stream.unit), 1)
        if not (self.read() and self.in_order()):
            self.count()
        self.starts = [key.number for key in self.keys]

    def read(self) -> bool:
        """Read all packets; whether each says when its frame is shown."""
        stamps: list[tuple[int, int]] = []  # of a group
        told = not (self.stream.is_avi and self.stream.video.codec_context.has_b_frames)
        self.begins_with_key, place = True, 0
        for number, packet in self.stream.packets():
            self.begins_with_key &= packet.is_keyframe or number > 0
            if self.stream.begins(packet) or not self.keys:
                self.show(stamps)
                stamps = []
                self.keys.append(self.stream.key(number, packet))
            stamp = self.stream.stamp(packet)
            self.frames.append(HIDDEN)
            self.durations.append(packet.duration or 0)
            if self.stream.is_mp4:  # what an edit list shows out of order may not decode
                told, place = told and (packet.pos or 0) >= place, packet.pos or 0
            if not packet.is_discard:
                told &= stamp is not None
                stamps.append((stamp or 0, number))
        self.show(stamps)
        return told

    def show(self, stamps: list[tuple[int, int]]) -> None:
        """Add a group's frames, (stamp, packet) each, in the order of showing."""
        for stamp, packet in sorted(stamps):
            self.frames[packet] = len(self.stamps)
            self.stamps.append(stamp)
            self.held.append(packet)

    def slips(self, back: int, slipped: bool) -> bool:
        """Whether a time that goes back is a slip; slipped: the one before it was one."""
        return self.stream.is_mp4 or (back < self.frame_time and not slipped)

    def in_order(self) -> bool:
        """Whether every frame is shown after the one before it, but for slips.

        Frames before the first one that decodes are left out: those in front of the first key
        frame, and those that lead it.
        """
        slipped = False
        for frame in range(1, len(self.stamps)):
            back = self.stamps[frame - 1] - self.stamps[frame]
            if back >= 0 and not self.slips(back, slipped):
                return False
            if slipped := back >= 0:
                self.stamps[frame] = self.stamps[frame - 1] + 1
        if self.stamps and (self.held[0] != 0 or not self.begins_with_key):
            self.leave_out()
        return True

    def leave_out(self) -> None:
        """Drop the frames that are shown before the first one that FFmpeg gives out."""
        for number, packet in self.stream.packets():
            first = next(self.stream.decode(number, packet), None)
            if first is not None:
                break
        else:
            first = next(self.stream.decode(0, None), None)
        left = self.frames[first[0]] if first else 0
        self.frames = array("q", (max(frame - left, HIDDEN) for frame in self.frames))
        del self.stamps[:left], self.held[:left]

    def count(self) -> None:
        """Decode everything once. After times that are missing or go back, all follow the last one.

        In an AVI a frame is shown when the chunk comes that makes the decoder give it out.
        """
        stream, stamps, later, slipped = self.stream, array("q"), 0, False
        self.held, self.frames = array("q"), array("q", [HIDDEN]) * len(self.frames)
        for number, packet in chain(stream.packets(), [(0, None)]):
            for held, frame in stream.decode(number, packet):
                said = frame.dts if stream.is_avi else frame.pts
                stamp = (said or 0) + later
                back = stamps[-1] - stamp if stamps else -1
                if stamps and (said is None or back >= 0):
                    slipped = said is not None and self.slips(back, slipped)
                    length = 1 if slipped else self.durations[self.held[-1]] or self.frame_time
                    later, stamp = later + (0 if slipped else back + length), stamps[-1] + length
                else:
                    slipped = False
                self.frames[held] = len(stamps)
                stamps.append(stamp)
                self.held.append(held)
        self.stamps = stamps
        shown = (self.frames[key.number] for key in self.keys)
        self.keys = [
            key._replace(stamp=None if frame == HIDDEN else self.stamps[frame])
            for key, frame in zip(self.keys, shown)
        ]

    def __len__(self) -> int:
        return len(self.stamps)

    def stamp(self, frame: int) -> int:
        return self.stamps[frame]

    def packet(self, frame: int) -> int:
        return self.held[frame]

    def frame(self, packet: int) -> int:
        return self.frames[packet]

    def key(self, packet: int, before: bool = False) -> Key | None:
        place = bisect_right(self.starts, packet) - 1 - before
        return self.keys[place] if place >= 0 else None

    def duration(self) -> int:
        return self.durations[self.held[-1]]
