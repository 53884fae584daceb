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

import numpy as np

from .. import image, prompt
from .. import segments as plans
from ..config import LlavaConfig
from ..errors import ParameterError
from ..image import Tiles
from ..media import sources as media
from ..media import subtitles, video
from ..options import Options

log = logging.getLogger("llava_min")
HOW = {"anyres": "in a grid of tiles", "pad": "padded to a square, one tile",
       "square": "one tile", "crop": "one tile, its middle"}  # fmt: skip


@dataclass(frozen=True)
class Encodable:
    """One visual of the prompt: its segment, its tiles, and whether these are a clip's frames."""

    segment: plans.Image | plans.Video
    tiles: Tiles
    is_clip: bool

    @cached_property
    def hash(self) -> int:
        """A number below 2^62 for all that the vision tower and the projector will see."""
        tiles = self.tiles.pixels
        known = np.ascontiguousarray(tiles) if isinstance(tiles, np.ndarray) else tiles.hash
        seen = hashlib.blake2b(known, digest_size=8)
        seen.update(repr((self.tiles.size, self.tiles.grid, self.is_clip)).encode())
        return int.from_bytes(seen.digest(), "big") >> 2


@dataclass
class Medium:
    """A picture or clip as it was opened.

    It has one place in the prompt, or one for each frame in a family without video placeholders.
    """

    places: list[Encodable]
    entry: dict
    instruction: str = ""
    subtitles: str = ""


# Media -------------------------------------------------------------------------


def open_media(
    images: list, videos: list, options: Options, config: LlavaConfig, kept: dict, headers: bool
) -> dict:
    """{(kind, index): Medium} of every picture and clip; those in `kept` are not opened again."""
    mode, opened, new = image_mode(len(images), options, config), {}, len(kept)
    if options.max_tiles is not None:
        grids = tuple(g for g in config.grids if g[0] * g[1] <= options.max_tiles)
        config = replace(config, grids=grids or config.grids[:1])
    read = picture_header if headers else open_picture
    for i, source in enumerate(images):
        key = ("image", i, mode, options.max_tiles)
        opened["image", i] = kept[key] = kept.get(key) or read(source, mode, config)
    if len(images) > 1 and len(kept) > new:
        log.info(f"{len(images)} pictures: each {HOW[mode]} (--multi-image {options.multi_image})")
    most = options.frames or (None if options.fps else config.frames)
    end = math.inf if options.end is None else options.end
    choice = video.Choice(
        most, options.fps, options.start or 0, end, options.at, config.sample_ends
    )
    for i, source in enumerate(videos):
        key = ("video", i, choice, options.subtitles)
        opened["video", i] = kept[key] = kept.get(key) or open_clip(source, *key[2:], config)
    return opened


def image_mode(count: int, options: Options, config: LlavaConfig) -> str:
    """How the pictures become tiles."""
    wanted = options.multi_image
    if wanted != "auto" and wanted not in config.image_modes:
        raise ParameterError(
            "cannot prepare the pictures",
            "multi_image",
            f"auto or {' or '.join(config.image_modes)} for {config.family}",
            repr(wanted),
        )
    if count < 2:
        return config.image_modes[0]
    return config.several_images if wanted == "auto" else wanted


def open_picture(source, mode: str, config: LlavaConfig) -> Medium:
    """A picture as tiles."""
    picture = media.open_picture(source, log.warning)
    return picture_of(source, picture.size, image.MODES[mode](picture, config), mode, config)


def picture_header(source, mode: str, config: LlavaConfig) -> Medium:
    """A picture by its size alone: what it will become, and no tiles."""
    return picture_of(source, media.picture_size(source), None, mode, config)


def picture_of(source, size, tiles: Tiles | None, mode: str, config: LlavaConfig) -> Medium:
    segment = plans.picture(size, mode, config)
    entry = {
        "type": "image",
        "source": media.label_of(source),
        "size": list(size),
        "tiles": segment.tiles,
        "tokens": segment.tokens,
    }
    return Medium([Encodable(segment, tiles, False)], entry)


def open_clip(source, choice: video.Choice, said, config: LlavaConfig) -> Medium:
    """A clip as one visual, or as one for each frame where the family has no video of its own.

    said: the source of its subtitles, or None.
    """
    clip = video.read(source, choice)
    size, count = clip.size, len(clip)
    if count > config.frames:
        log.warning(
            f"{count} frames are more than the {config.frames} that this checkpoint was made for"
        )
    if config.pool_mode is None:
        segment = plans.picture(size, config.frame_mode, config)
        each = (image.FrameTiles(clip, config, range(i, i + 1)) for i in range(count))
        places = [Encodable(segment, Tiles(tile, size, None), False) for tile in each]
    else:
        tiles = image.FrameTiles(clip, config, range(count))
        places = [Encodable(plans.clip(list(clip.times), config), Tiles(tiles, size, None), True)]
    entry = {
        "type": "video",
        "source": media.label_of(source),
        "size": list(size),
        "frames": count,
        "times": list(clip.times),
        "tokens": sum(place.segment.tokens for place in places),
    }
    told = "" if said is None else subtitles.shown(subtitles.read(said), clip.times)
    return Medium(places, entry, prompt.time_instruction(clip.times, clip.seconds), told)
