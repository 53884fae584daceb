"""Pictures and clips are opened and become what the vision tower sees.

in:  sources, Options
out: {(kind, index): Medium}

Read image.py, media/sources.py first. Read next: request/prepare.py.
"""

import hashlib
import logging
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from .. import image, prompt
from .. import segments as plans
from ..config import LlavaConfig
from ..errors import wrong_value
from ..media import sources as media
from ..media import video
from ..media.subtitles import read_subtitles, subtitles_at
from ..options import Options

log = logging.getLogger("llava_min")
HOW = {
    "anyres": "in a grid of tiles",
    "pad": "padded to a square, one tile",
    "square": "one tile",
    "crop": "one tile, its middle",
}
NO_TILES = np.empty((0, 0, 0, 3), np.uint8)  # of a picture of which only the size is wanted


class Entry(TypedDict):
    """What became of one medium, as --json prints it."""

    type: str  # "image" or "video"
    source: str
    size: list[int]  # width, height
    tiles: NotRequired[int]  # of a picture
    frames: NotRequired[int]  # of a video
    times: NotRequired[list[float]]  # in seconds
    tokens: int


@dataclass(frozen=True)
class Encodable:
    """One visual of the prompt: its segment, and its tiles [B S S 3], possibly not made yet."""

    segment: plans.Visual
    pixels: image.Pixels

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that stand for all that the vision tower and the projector will see."""
        seen = hashlib.blake2b(repr(self.segment).encode(), digest_size=32)
        if isinstance(self.pixels, image.FrameTiles):
            seen.update(self.pixels.hash)
        else:
            seen.update(np.ascontiguousarray(self.pixels).data)
        return seen.digest()

    def hash(self, key: bytes = b"") -> int:
        """A number below 2^62 for the digest.

        Whoever does not know the key cannot make two visuals that have the same one.
        """
        short = hashlib.blake2b(self.digest, key=key, digest_size=8)
        return int.from_bytes(short.digest(), "big") >> 2


@dataclass
class Medium:
    """A picture or clip as it was opened.

    It has one place in the prompt, or one for each frame in a family without video placeholders.
    """

    places: list[Encodable]
    entry: Entry
    instruction: str = ""  # that tells a clip's times
    subtitles: str = ""  # what is said at these times


Opened = dict[tuple[str, int], Medium]  # by kind ("image" or "video") and index
Kept = dict[tuple[object, ...], Medium]  # also by what changes how a medium is opened


# Media -------------------------------------------------------------------------


def open_media(
    images: list[media.Picture],
    videos: list[media.Video],
    options: Options,
    config: LlavaConfig,
    kept: Kept,
    headers: bool,
) -> Opened:
    """{(kind, index): Medium} of every picture and clip; those in `kept` are not opened again."""
    opened: Opened = {}
    mode, before = image_mode(len(images), options, config), len(kept)
    if options.max_tiles is not None:
        grids = tuple(g for g in config.grids if g[0] * g[1] <= options.max_tiles)
        config = replace(config, grids=grids or config.grids[:1])
    read = picture_header if headers else open_picture
    for index, picture in enumerate(images):
        key = ("image", index, mode, options.max_tiles)
        opened["image", index] = kept[key] = kept.get(key) or read(picture, mode, config)
    if len(images) > 1 and len(kept) > before:
        log.info(f"{len(images)} pictures: each {HOW[mode]} (--multi-image {options.multi_image})")
    choice = video.Choice(
        frames=options.frames or (None if options.fps else config.frames),
        fps=options.fps,
        start=options.start or 0,
        end=math.inf if options.end is None else options.end,
        at=options.at,
        ends=config.sample_ends,
    )
    for index, clip in enumerate(videos):
        clip_key = ("video", index, choice, options.subtitles)
        opened["video", index] = kept[clip_key] = kept.get(clip_key) or open_clip(
            clip, choice, options.subtitles, config
        )
    return opened


def image_mode(count: int, options: Options, config: LlavaConfig) -> str:
    """How the pictures become tiles."""
    wanted = options.multi_image
    if wanted != "auto" and wanted not in config.image_modes:
        known = f"auto or {' or '.join(config.image_modes)} for {config.family}"
        raise wrong_value("multi_image", known, wanted)
    if count < 2:
        return config.image_modes[0]
    return config.several_images if wanted == "auto" else wanted


def open_picture(source: media.Picture, mode: str, config: LlavaConfig) -> Medium:
    """A picture as tiles."""
    picture = media.open_picture(source, log.warning)
    return medium_of(source, picture.size, image.MODES[mode](picture, config), mode, config)


def picture_header(source: media.Picture, mode: str, config: LlavaConfig) -> Medium:
    """A picture by its size alone: what it will become, and no tiles."""
    return medium_of(source, media.picture_size(source), NO_TILES, mode, config)


def medium_of(
    source: media.Picture,
    size: tuple[int, int],
    pixels: np.ndarray,
    mode: str,
    config: LlavaConfig,
) -> Medium:
    """The Medium of a picture of `size` (width, height), whose tiles are `pixels`."""
    segment = plans.picture(size, mode, config)
    entry: Entry = {
        "type": "image",
        "source": media.label_of(source),
        "size": list(size),
        "tiles": segment.tiles,
        "tokens": segment.tokens,
    }
    return Medium([Encodable(segment, pixels)], entry)


def open_clip(
    source: media.Video, choice: video.Choice, subtitles: str | Path | None, config: LlavaConfig
) -> Medium:
    """A clip as one visual, or as one for each frame where the family has no video of its own.

    subtitles: the file that they are in, or None.
    """
    clip = video.sample_clip(source, choice)
    size, count = clip.size, len(clip)
    if count > config.frames:
        log.warning(
            f"{count} frames are more than the {config.frames} that this checkpoint was made for"
        )
    if config.pool_mode is None:
        one = plans.picture(size, config.frame_mode, config)
        frames = (image.FrameTiles(clip, config, range(i, i + 1)) for i in range(count))
        places = [Encodable(one, frame) for frame in frames]
    else:
        whole = plans.clip(list(clip.times), size, config)
        places = [Encodable(whole, image.FrameTiles(clip, config, range(count)))]
    entry: Entry = {
        "type": "video",
        "source": media.label_of(source),
        "size": list(size),
        "frames": count,
        "times": list(clip.times),
        "tokens": sum(place.segment.tokens for place in places),
    }
    spoken = "" if subtitles is None else subtitles_at(read_subtitles(subtitles), clip.times)
    return Medium(places, entry, prompt.time_instruction(clip.times, clip.seconds), spoken)
