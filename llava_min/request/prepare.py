"""A question and its pictures and videos -> a plan and tiles, ready for the model.

in:  text, messages or token ids; sources of pictures and videos; Options
out: Prepared: the plan, the tiles of each visual in the plan's order, what became of each medium

Read request/visuals.py first. Read next: engine/handle.py.
"""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import prompt
from .. import segments as plans
from ..base import memory as memory_errors
from ..config import LlavaConfig
from ..errors import CheckpointError, ParameterError, PromptError
from ..families import templates
from ..media import sources as media
from ..options import Options
from ..prompt import Visual
from ..tokenizer import VISUAL, Tokenizer, split_specials
from . import messages as chat_messages
from .visuals import Encodable, open_media

log = logging.getLogger("llava_min")


@dataclass
class Prepared:
    """A prompt ready for the model."""

    plan: plans.Plan
    tokenizer: Tokenizer | None
    visuals: list[Encodable]
    media: list[dict]
    seconds: float = 0.0

    @property
    def ids(self) -> list[int]:
        """The ids of the prompt's text."""
        texts = (s for s in self.plan.segments if isinstance(s, plans.Text))
        return [token for text in texts for token in text.ids]

    @property
    def visual_tokens(self) -> int:
        return self.plan.tokens - len(self.ids)

    def text(self) -> str:
        """The rendered prompt as one text, special tokens and the places of visuals included."""
        parts = []
        for segment in self.plan.segments:
            if not isinstance(segment, plans.Text):
                kind = "image" if isinstance(segment, plans.Image) else "video"
                parts.append(f"<{kind}: {segment.tokens} tokens>")
            elif self.tokenizer is None:
                parts.append(str(list(segment.ids)))
            else:
                parts.append(
                    self.tokenizer.inner.decode(list(segment.ids), skip_special_tokens=False)
                )
        return "".join(parts)


@memory_errors.memory("prepare the prompt")
def prepare(
    question,
    images,
    videos,
    options: Options,
    config: LlavaConfig,
    tokenizer: Tokenizer | None,
    kept: dict | None = None,
    headers: bool = False,
) -> Prepared:
    """Open the media, render the prompt, and lay out the plan. Raises LlavaMinError.

    kept: media that an earlier question of the same conversation opened; new ones are added.
    headers: only sizes are wanted, so no picture is decoded and no visual has tiles.
    """
    start = time.perf_counter()
    images, videos, turns = one_or_many(images), one_or_many(videos), None
    if isinstance(question, list) and all(isinstance(turn, prompt.Turn) for turn in question):
        turns = question
    elif is_messages(question):
        turns, in_images, in_videos = chat_messages.from_messages(list(question))
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
            written = raw_pieces(checked(question), require_tokenizer(tokenizer))
            prompt.check_counts(written, len(images), len(videos), frames)
        else:
            written = rendered(turns, opened, options, config)
        pieces = [(p.kind, p.index, p.frame or 0) for p in written if isinstance(p, Visual)]
        ids = require_tokenizer(tokenizer).encode(written)
    visuals = [opened[kind, index].places[frame] for kind, index, frame in pieces]
    plan = plans.Plan(tuple(segments(ids, visuals, config)), config.text.context)
    entries = [
        opened[key].entry for key in dict.fromkeys((kind, index) for kind, index, _ in pieces)
    ]
    return Prepared(plan, tokenizer, visuals, entries, time.perf_counter() - start)


def rendered(turns, opened: dict, options: Options, config: LlavaConfig) -> list[prompt.Piece]:
    """The turns in the words of the template, with the options that change them.

    These are the system turn, time instructions, subtitles and the beginning of the answer.
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
    if name not in templates.TEMPLATES:
        raise ParameterError(
            "cannot render the prompt",
            "template",
            f"one of {', '.join(templates.TEMPLATES)}",
            repr(name),
        )
    return [*templates.TEMPLATES[name](turns), *([options.prefill] if options.prefill else [])]


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
                yield plans.Text(tuple(run))
            run = []
            if token is not None:
                yield next(remaining).segment
        elif 0 <= token < config.text.vocab_size:
            run.append(token)
        else:
            raise PromptError(
                "cannot embed the prompt", "token id", f"0 to {config.text.vocab_size - 1}", token
            )


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
    """The question; PromptError where it is no text, or a blank one."""
    if not isinstance(question, str) or not question.strip():
        raise PromptError("cannot ask", "prompt", "a question", "an empty text")
    return question


def require_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    """The tokenizer; CheckpointError where there is none."""
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
    """A list of sources, also of a single one; ParameterError for what is neither."""
    if not isinstance(sources, Iterable | None) and not hasattr(sources, "convert"):
        expected = "a picture or video, or a list of them"
        raise ParameterError("cannot ask", "images, videos", expected, media.name_of(sources))
    alone = isinstance(sources, str | bytes | Path | np.ndarray) or hasattr(sources, "convert")
    return [sources] if alone else list(sources or ())


def fill_in(sources: list, beside: list, kind: str) -> list:
    """The sources of the messages, with those passed next to them in place of None, in order.

    PromptError where their numbers differ.
    """
    places = sum(source is None for source in sources)
    if places != len(beside):
        raise PromptError(
            "cannot place the visuals", "messages", f"{places} {kind}s beside them", len(beside)
        )
    remaining = iter(beside)
    return [next(remaining) if source is None else source for source in sources]


def default_question(images: list, videos: list) -> str:
    """What is asked about media without a prompt; PromptError without media too."""
    if not images and not videos:
        raise PromptError("cannot ask", "prompt", "a question", "none")
    counts = (("picture", len(images)), ("video", len(videos)))
    nouns = [noun + "s" * (count > 1) for noun, count in counts if count]
    return f"Describe the {' and the '.join(nouns)}."
