"""A question and its pictures and videos -> a plan and tiles, ready for the model.

in:  text, messages or token ids; sources of pictures and videos; Options
out: Prepared: the plan, the tiles of each visual in the plan's order, what became of each medium

Read request/visuals.py first. Read next: engine/handle.py.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard, TypeVar, overload

from .. import prompt
from .. import segments as plans
from ..base.memory import memory_guard
from ..config import LlavaConfig
from ..errors import CheckpointError, ParameterError, PromptError, wrong_value
from ..families import templates
from ..media import sources as media
from ..options import Options
from ..prompt import Visual
from ..tokenizer import VISUAL, Tokenizer, split_specials
from . import messages as chat_messages
from .visuals import Encodable, Entry, Kept, Opened, open_media

log = logging.getLogger("llava_min")
# turns: of a conversation that is kept; None: a description of what is shown
Question = chat_messages.Question | Sequence[prompt.Turn] | None
Pictures = media.Picture | Iterable[media.Picture] | None
Videos = media.Video | Iterable[media.Video | list[media.Picture]] | None
Source = TypeVar("Source")


@dataclass
class Prepared:
    """A prompt ready for the model."""

    plan: plans.Plan
    tokenizer: Tokenizer | None
    visuals: list[Encodable]  # in the plan's order
    media: list[Entry]  # what became of each picture and clip
    seconds: float = 0.0  # that preparing took

    @property
    def ids(self) -> list[int]:
        """The ids of the prompt's text."""
        texts = (s for s in self.plan.segments if isinstance(s, plans.Text))
        return [token for text in texts for token in text.ids]

    @property
    def visual_tokens(self) -> int:
        return self.plan.tokens - len(self.ids)

    def without_media(self) -> "Prepared":
        """The same once its pictures and clips were read, which may take much memory."""
        return replace(self, visuals=[])

    def text(self) -> str:
        """The rendered prompt as one text, special tokens and the places of visuals included."""
        parts = []
        for segment in self.plan.segments:
            if not isinstance(segment, plans.Text):
                kind = "image" if isinstance(segment, plans.Picture) else "video"
                parts.append(f"<{kind}: {segment.tokens} tokens>")
            elif self.tokenizer is None:
                parts.append(str(list(segment.ids)))
            else:
                parts.append(self.tokenizer.decode(list(segment.ids), special=True))
        return "".join(parts)


@memory_guard("prepare the prompt")
def prepare(
    question: Question,
    images: Pictures,
    videos: Videos,
    options: Options,
    config: LlavaConfig,
    tokenizer: Tokenizer | None,
    kept: Kept | None = None,
    headers: bool = False,
) -> Prepared:
    """Open the media, render the prompt, and lay out the plan. Raises LlavaMinError.

    kept: media that an earlier question of the same conversation opened; new ones are added.
    headers: only sizes are wanted, so no picture is decoded and no visual has tiles.
    """
    start = time.perf_counter()
    pictures, clips, turns = media_of(question, images, videos)
    if options.subtitles and (len(clips) != 1 or options.raw or is_ids(question)):
        raise ParameterError(
            "subtitles need exactly one video, and a prompt that is neither raw nor token ids."
        )
    opened = open_media(pictures, clips, options, config, {} if kept is None else kept, headers)
    if is_ids(question):
        ids, keys = list(question), in_order(opened)
        if ids.count(VISUAL) != len(keys):
            expected, found = f"{len(keys)} times {VISUAL}", ids.count(VISUAL)
            raise PromptError("cannot place the visuals", "token ids", expected, found)
    else:
        pieces = pieces_of(question, turns, opened, options, config, tokenizer)
        keys = [(p.kind, p.index, p.frame or 0) for p in pieces if isinstance(p, Visual)]
        ids = require_tokenizer(tokenizer).encode(pieces)
    visuals = [opened[kind, index].places[frame] for kind, index, frame in keys]
    plan = plans.Plan(tuple(segments(ids, visuals, config)), config.text.context)
    entries = [opened[key].entry for key in dict.fromkeys((kind, i) for kind, i, _ in keys)]
    return Prepared(plan, tokenizer, visuals, entries, time.perf_counter() - start)


def media_of(
    question: Question, images: Pictures, videos: Videos
) -> tuple[list[media.Picture], list[media.Video], list[prompt.Turn] | None]:
    """(pictures, clips, turns): what was passed beside a question and what its messages hold."""
    pictures, clips = one_or_many(images), one_or_many(videos)
    if is_turns(question):
        return pictures, clips, list(question)
    if is_messages(question):
        turns, in_pictures, in_clips = chat_messages.from_messages(list(question))
        return (
            fill_in(in_pictures, pictures, "image"),
            fill_in(in_clips, clips, "video"),
            turns,
        )
    return pictures, clips, None


def in_order(opened: Opened) -> list[tuple[str, int, int]]:
    """(kind, index, frame) of every place of a visual: all pictures, then all clips."""
    return [
        (kind, index, frame)
        for (kind, index), medium in opened.items()
        for frame in range(len(medium.places))
    ]


def pieces_of(
    question: Question,
    turns: list[prompt.Turn] | None,
    opened: Opened,
    options: Options,
    config: LlavaConfig,
    tokenizer: Tokenizer | None,
) -> list[prompt.Piece]:
    """The prompt in pieces: a raw one as it is, any other in the words of the template."""
    pictures = sum(kind == "image" for kind, _ in opened)
    clips = [len(medium.places) for (kind, _), medium in opened.items() if kind == "video"]
    frames = clips[0] if len(clips) == 1 and clips[0] > 1 and not pictures else None
    if options.raw:
        pieces = raw_pieces(checked(question), require_tokenizer(tokenizer))
        prompt.check_counts(pieces, pictures, len(clips), frames)
        return pieces
    if turns is None:
        text = default_question(pictures, len(clips)) if question is None else checked(question)
        turns = [prompt.user_turn(text, pictures, len(clips), frames)]
    return rendered(turns, opened, options, config)


def rendered(
    turns: list[prompt.Turn], opened: Opened, options: Options, config: LlavaConfig
) -> list[prompt.Piece]:
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
        instruction = medium.instruction if timed else ""
        return "\n".join(filter(None, [instruction, medium.subtitles]))

    turns = [prompt.with_notes(turn, note) for turn in turns]
    name = config.template if options.template == "auto" else options.template
    if name not in templates.TEMPLATES:
        raise wrong_value("template", f"one of {', '.join(templates.TEMPLATES)}", name)
    return [*templates.TEMPLATES[name](turns), *([options.prefill] if options.prefill else [])]


def raw_pieces(text: str, tokenizer: Tokenizer) -> list[prompt.Piece]:
    """A prompt that is complete: <image> and <video> are visuals, special tokens are parsed.

    A beginning such as <s> is added where the tokenizer adds it (tokenizer.py), so it may be left
    out or written out.
    """
    pieces: list[prompt.Piece] = []
    counts = {"image": 0, "video": 0}
    for index, part in enumerate(prompt.PLACEHOLDER.split(text)):
        if index % 2:
            pieces.append(Visual(part, counts[part]))
            counts[part] += 1
        else:
            pieces += split_specials(part, tokenizer)
    return pieces


def segments(
    ids: list[int], visuals: list[Encodable], config: LlavaConfig
) -> Iterator[plans.Segment]:
    """Runs of ids as Text, and the segment of each visual in its place."""
    remaining = iter(visuals)
    run: list[int] = []
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


def is_ids(question: object) -> TypeGuard[Sequence[int]]:
    return (
        isinstance(question, list | tuple)
        and bool(question)
        and all(type(i) is int for i in question)
    )


def is_turns(question: object) -> TypeGuard[Sequence[prompt.Turn]]:
    turns = isinstance(question, list) and all(isinstance(t, prompt.Turn) for t in question)
    return turns and bool(question)


def is_messages(question: object) -> TypeGuard[Sequence[chat_messages.Message]]:
    return isinstance(question, list | tuple) and not is_ids(question)


def checked(question: object) -> str:
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
            "it, vocab.json with merges.txt, or tokenizer.model, in the checkpoint",
            "neither",
            "Pass token ids instead.",
        )
    return tokenizer


@overload
def one_or_many(sources: Pictures) -> list[media.Picture]: ...


@overload
def one_or_many(sources: Videos) -> list[media.Video]: ...


def one_or_many(sources: Pictures | Videos) -> list[media.Picture] | list[media.Video]:
    """A list of sources, also of a single one; ParameterError for what is neither.

    A list in it is one clip, of these frames.
    """
    if sources is None:
        return []
    if isinstance(sources, media.Picture):
        return [sources]
    if not isinstance(sources, Iterable):
        found = media.name_of(sources)
        raise ParameterError(
            f"images and videos must be a picture or video, or a list of them, not {found}."
        )
    return [media.FrameList(s) if isinstance(s, list | tuple) else s for s in sources]


def fill_in(sources: list[Source | None], beside: list[Source], kind: str) -> list[Source]:
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


def default_question(pictures: int, clips: int) -> str:
    """What is asked about media without a prompt; PromptError without media too."""
    if not pictures and not clips:
        raise PromptError("cannot ask", "prompt", "a question", "none")
    counts = (("picture", pictures), ("video", clips))
    nouns = [noun + "s" * (count > 1) for noun, count in counts if count]
    return f"Describe the {' and the '.join(nouns)}."
