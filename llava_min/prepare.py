"""A question and its pictures and videos -> a plan and tiles, ready for the model.

in:  text, messages or token ids; sources of pictures and videos; Options
out: Prepared: the plan, the tiles of each visual in the plan's order, what became of each medium
Read next: loaded.py.
"""

import hashlib
import logging
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from . import budget, image, limits, media, prompt, subtitles, video
from . import config as configuration
from .config import LlavaConfig
from .errors import CheckpointError, ParameterError, PromptError
from .files import read_json, regular
from .image import Tiles
from .options import Options
from .prompt import Visual
from .tokenizer import VISUAL, Tokenizer, split_specials

log = logging.getLogger("llava_min")
EMBEDDED = Path(__file__).parent / "weights" / "tiny"
EXAMPLE_PICTURE, EXAMPLE_QUESTION = EMBEDDED / "samples" / "shapes.png", "Describe the picture."
HOW = {"anyres": "in a grid of tiles", "pad": "padded to a square, one tile",
       "square": "one tile", "crop": "one tile, its middle"}  # fmt: skip


@dataclass(frozen=True)
class Encodable:
    """What stands at one place of the prompt: its segment, its tiles, and whether these are a
    clip's frames.
    """

    segment: budget.Image | budget.Video
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
    """A picture or clip as it was opened; a family without video placeholders takes a clip frame by
    frame.
    """

    places: list[Encodable]
    entry: dict
    instruction: str = ""
    subtitles: str = ""


@dataclass
class Prepared:
    """A prompt ready for the model."""

    plan: budget.Plan
    tokenizer: Tokenizer | None
    visuals: list[Encodable]
    media: list[dict]
    seconds: float = 0.0

    @property
    def ids(self) -> list[int]:
        """The ids of the prompt's text."""
        texts = (s for s in self.plan.segments if isinstance(s, budget.Text))
        return [token for text in texts for token in text.ids]

    @property
    def visual_tokens(self) -> int:
        return self.plan.tokens - len(self.ids)

    def text(self) -> str:
        """The rendered prompt as one text, special tokens and the places of visuals included."""
        parts = []
        for segment in self.plan.segments:
            if not isinstance(segment, budget.Text):
                kind = "image" if isinstance(segment, budget.Image) else "video"
                parts.append(f"<{kind}: {segment.tokens} tokens>")
            elif self.tokenizer is None:
                parts.append(str(list(segment.ids)))
            else:
                parts.append(
                    self.tokenizer.inner.decode(list(segment.ids), skip_special_tokens=False)
                )
        return "".join(parts)


def settings_of(folder: Path, overrides: dict | None, context: int | None) -> LlavaConfig:
    """The configuration of a folder, with its own template, and perhaps another context."""
    config = configuration.read(folder, overrides)
    if context is not None:
        config = replace(config, text=replace(config.text, context=context))
    return replace(config, template=template_of(folder) or config.template)


def template_of(folder: Path) -> str | None:
    """The renderer that writes what the folder's chat template writes, recognised by the hash of
    its text.
    """
    text = None
    if regular(folder / "chat_template.jinja"):
        text = (folder / "chat_template.jinja").read_text("utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if text is None and regular(folder / name):
            text = read_json(folder / name, "chat template").get("chat_template")
    if not isinstance(text, str):
        return None
    found = prompt.known_template(text)
    if found is None:
        log.warning(
            "the checkpoint's chat template is not one that is known; choose a renderer with "
            "--template"
        )
    return found


@limits.memory("prepare the prompt")
def prepare(question, images, videos, options: Options, config: LlavaConfig,
            tokenizer: Tokenizer | None, kept: dict | None = None,
            headers: bool = False) -> Prepared:  # fmt: skip
    """Open the media, render the prompt, and lay out the plan. Raises LlavaMinError.

    kept: media that an earlier question of the same conversation opened; new ones are added.
    headers: sizes alone are wanted; no picture is decoded, no visual has tiles.
    """
    start = time.perf_counter()
    images, videos, turns = one_or_many(images), one_or_many(videos), None
    if isinstance(question, list) and all(isinstance(turn, prompt.Turn) for turn in question):
        turns = question
    elif is_messages(question):
        turns, in_images, in_videos = prompt.from_messages(list(question))
        images, videos = fill_in(in_images, images, "image"), fill_in(in_videos, videos, "video")
    if options.subtitles and (len(videos) != 1 or options.raw or is_ids(question)):
        expected = "one video, and a prompt that is neither raw nor ids"
        raise ParameterError("cannot place the subtitles", "subtitles", expected, "another")
    kept = {} if kept is None else kept
    opened = open_media(images, videos, options, config, kept, headers)
    clips = [len(opened["video", i].places) for i in range(len(videos))]
    frames = clips[0] if len(clips) == 1 and clips[0] > 1 and not images else None
    if is_ids(question):
        pieces = [("image", i, 0) for i in range(len(images))]
        pieces += [("video", i, f) for i, count in enumerate(clips) for f in range(count)]
        ids = list(question)
        if ids.count(VISUAL) != len(pieces):
            raise PromptError(
                "cannot place the visuals",
                "token ids",
                f"{len(pieces)} times {VISUAL}",
                ids.count(VISUAL),
            )
    else:
        if turns is None and not options.raw:
            text = default_question(images, videos) if question is None else checked(question)
            turns = [prompt.user_turn(text, len(images), len(videos), frames)]
        if options.raw:
            written = raw_pieces(checked(question), needed(tokenizer))
            prompt.check_counts(written, len(images), len(videos), frames)
        else:
            written = rendered(turns, opened, options, config)
        pieces = [(p.kind, p.index, p.frame or 0) for p in written if isinstance(p, Visual)]
        ids = needed(tokenizer).encode(written)
    visuals = [opened[kind, index].places[frame] for kind, index, frame in pieces]
    plan = budget.Plan(tuple(segments(ids, visuals, config)), config.text.context)
    entries = [
        opened[key].entry for key in dict.fromkeys((kind, index) for kind, index, _ in pieces)
    ]
    return Prepared(plan, tokenizer, visuals, entries, time.perf_counter() - start)


def rendered(turns, opened: dict, options: Options, config: LlavaConfig) -> list[prompt.Piece]:
    """The turns in the words of the template, with the system turn, time instructions and prefill
    asked for.
    """
    if options.system is not None:
        turns = [prompt.Turn("system", ((options.system,),)), *turns]
    if config.pool_mode is None:
        turns = [
            prompt.frame_by_frame(turn, lambda i: len(opened["video", i].places)) for turn in turns
        ]
    timed = config.time_instruction if options.timestamps is None else options.timestamps

    def note(clip: int) -> str:
        medium = opened["video", clip]
        return "\n".join(filter(None, [timed and medium.instruction, medium.subtitles]))

    turns = [prompt.with_notes(turn, note) for turn in turns]
    name = config.template if options.template == "auto" else options.template
    if name not in prompt.TEMPLATES:
        raise ParameterError(
            "cannot render the prompt",
            "template",
            f"one of {', '.join(prompt.TEMPLATES)}",
            repr(name),
        )
    return [*prompt.TEMPLATES[name](turns), *([options.prefill] if options.prefill else [])]


def raw_pieces(text: str, tokenizer: Tokenizer) -> list[prompt.Piece]:
    """A prompt that is complete: <image> and <video> are visuals, special tokens are parsed."""
    pieces: list[prompt.Piece] = []
    counts = {"image": 0, "video": 0}
    for index, part in enumerate(prompt.PLACEHOLDER.split(text)):
        if index % 2:
            pieces.append(Visual(part, counts[part]))
            counts[part] += 1
        else:
            pieces += split_specials(part, tokenizer)
    return pieces


def segments(ids: list[int], visuals: list[Encodable], config: LlavaConfig) -> Iterator:
    """Runs of ids as Text, and the segment of each visual in its place."""
    remaining, run = iter(visuals), []
    for token in [*ids, None]:
        if token is None or token == VISUAL:
            if run:
                yield budget.Text(tuple(run))
            run = []
            if token is not None:
                yield next(remaining).segment
        elif 0 <= token < config.text.vocab_size:
            run.append(token)
        else:
            raise PromptError(
                "cannot embed the prompt", "token id", f"0 to {config.text.vocab_size - 1}", token
            )


# Media -------------------------------------------------------------------------


def open_media(images: list, videos: list, options: Options, config: LlavaConfig, kept: dict,
               headers: bool) -> dict:  # fmt: skip
    """{(kind, index): Medium} of every picture and clip, those in `kept` not opened again."""
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
    """A picture as its size says: what it will become, and no tiles."""
    return picture_of(source, media.picture_size(source), None, mode, config)


def picture_of(source, size, tiles: Tiles | None, mode: str, config: LlavaConfig) -> Medium:
    segment = budget.picture(size, mode, config)
    entry = {
        "type": "image",
        "source": media.name_of(source),
        "size": list(size),
        "tiles": segment.tiles,
        "tokens": segment.tokens,
    }
    return Medium([Encodable(segment, tiles, False)], entry)


def open_clip(source, choice: video.Choice, said, config: LlavaConfig) -> Medium:
    """A clip as one visual, or as one for each frame where the family has no video of its own.

    said: its subtitles, or None.
    """
    clip = video.read(source, choice)
    size, count = clip.size, len(clip)
    if count > config.frames:
        log.warning(
            f"{count} frames are more than the {config.frames} that this checkpoint was made for"
        )
    if config.pool_mode is None:
        segment = budget.picture(size, config.frame_mode, config)
        each = (image.FrameTiles(clip, config, range(i, i + 1)) for i in range(count))
        places = [Encodable(segment, Tiles(tile, size, None), False) for tile in each]
    else:
        tiles = image.FrameTiles(clip, config, range(count))
        places = [Encodable(budget.clip(list(clip.times), config), Tiles(tiles, size, None), True)]
    entry = {
        "type": "video",
        "source": media.name_of(source),
        "size": list(size),
        "frames": count,
        "times": list(clip.times),
        "tokens": sum(place.segment.tokens for place in places),
    }
    told = "" if said is None else subtitles.shown(subtitles.read(said), clip.times)
    return Medium(places, entry, prompt.time_instruction(clip.times, clip.seconds), told)


# What was given ----------------------------------------------------------------


def is_ids(question) -> bool:
    return (
        isinstance(question, list | tuple)
        and bool(question)
        and all(type(i) is int for i in question)
    )


def is_messages(question) -> bool:
    return isinstance(question, list | tuple) and not is_ids(question)


def checked(question) -> str:
    """A question that says something."""
    if not isinstance(question, str) or not question.strip():
        raise PromptError("cannot ask", "prompt", "a question", "an empty text")
    return question


def needed(tokenizer: Tokenizer | None) -> Tokenizer:
    """The tokenizer, where there is one."""
    if tokenizer is None:
        raise CheckpointError(
            "cannot read text",
            "tokenizer.json",
            "it, or vocab.json and merges.txt, in the checkpoint",
            "neither",
            "Pass token ids instead.",
        )
    return tokenizer


def one_or_many(sources) -> list:
    """A list of sources, also of one that was given alone; ParameterError for what is neither."""
    if not isinstance(sources, Iterable | None) and not hasattr(sources, "convert"):
        expected = "a picture or video, or a list of them"
        raise ParameterError("cannot ask", "images, videos", expected, media.name_of(sources))
    alone = isinstance(sources, str | bytes | Path | np.ndarray) or hasattr(sources, "convert")
    return [sources] if alone else list(sources or ())


def fill_in(sources: list, beside: list, kind: str) -> list:
    """Sources from the messages, those that were None taken from what is passed beside them, in
    order.
    """
    places = sum(source is None for source in sources)
    if places != len(beside):
        raise PromptError(
            "cannot place the visuals", "messages", f"{places} {kind}s beside them", len(beside)
        )
    remaining = iter(beside)
    return [next(remaining) if source is None else source for source in sources]


def default_question(images: list, videos: list) -> str:
    """What is asked about media without a prompt."""
    if not images and not videos:
        raise PromptError("cannot ask", "prompt", "a question", "none")
    counts = (("picture", len(images)), ("video", len(videos)))
    nouns = [noun + "s" * (count > 1) for noun, count in counts if count]
    return f"Describe the {' and the '.join(nouns)}."
