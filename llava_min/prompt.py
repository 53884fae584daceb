"""A conversation -> pieces: special tokens, text runs and visuals, in the order of the template.

in:  turns (role, parts); a part is a Visual or a text, which may hold visuals inside
out: a list of Special | str | Visual
One small renderer for each template, no template language: what a renderer writes as `Special`
becomes a special token, and nothing else ever does.
Read before: projector.py. Read next: tokenizer.py.
Agrees with: the chat templates that are published beside the checkpoints; conversation.py of LLaVA-
NeXT.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .errors import PromptError


@dataclass(frozen=True)
class Special:
    """A token that only a template can write."""

    token: str


@dataclass(frozen=True)
class Visual:
    """The place of a visual: `kind` is "image" or "video", `index` counts within the kind."""

    kind: str
    index: int


Text = tuple  # one text part: a tuple of str and Visual
Piece = Special | str | Visual


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation: role "system", "user" or "assistant", and its parts in order."""

    role: str
    parts: tuple[Visual | Text, ...]


def leading(parts) -> int:
    """How many parts are visuals before the first text."""
    return next(
        (index for index, part in enumerate(parts) if not isinstance(part, Visual)), len(parts)
    )


def onevision(turns: list[Turn]) -> Iterator[Piece]:
    """The template of HF OneVision checkpoints: no system turn, each text on its own line."""
    for turn in turns:
        yield Special("<|im_start|>")
        yield f"{turn.role} "
        for part in turn.parts:
            if isinstance(part, Visual):
                yield part
            else:
                yield "\n"
                yield from part
        yield Special("<|im_end|>")
    yield Special("<|im_start|>")
    yield "assistant\n"


def qwen(turns: list[Turn]) -> Iterator[Piece]:
    """The original code's qwen_1_5: always a system turn, a line break after each visual."""
    if not turns or turns[0].role != "system":
        turns = [Turn("system", (("You are a helpful assistant.",),)), *turns]
    for turn in turns:
        yield Special("<|im_start|>")
        yield f"{turn.role}\n"
        for part in turn.parts:
            if isinstance(part, Visual):
                yield part
                yield "\n"
            else:
                yield from part
        yield Special("<|im_end|>")
        yield "\n"
    yield Special("<|im_start|>")
    yield "assistant\n"


TEMPLATES: dict[str, Callable[[list[Turn]], Iterator[Piece]]] = {
    "onevision": onevision,
    "qwen": qwen,
}
PUBLISHED = {
    # sha256 of a chat template's text -> the renderer that writes the same
    "fbf77862dcdda468": "onevision",
}
PLACEHOLDER = re.compile(r"<(image|video)>")


def user_turn(text: str, images: int, videos: int) -> Turn:
    """The one turn of a plain prompt. <image> and <video> in it place the visuals; without any,
    they come first.

    >>> user_turn("<image>\\nWhat is this?", images=1, videos=0).parts
    (Visual(kind='image', index=0), ('What is this?',))
    """
    given = {"image": images, "video": videos}
    runs: list[str | Visual] = []
    counts = {"image": 0, "video": 0}
    for index, part in enumerate(PLACEHOLDER.split(text)):
        if index % 2:
            runs.append(Visual(part, counts[part]))
            counts[part] += 1
        elif part:
            runs.append(part)
    if not any(counts.values()):
        visuals = [Visual(kind, index) for kind, count in given.items() for index in range(count)]
        return Turn("user", (*visuals, (text,)))
    for kind in given:
        if counts[kind] != given[kind]:
            raise PromptError(
                f"cannot place the visuals: prompt: expected as many <{kind}> as there are "
                f"{kind}s "
                f"({given[kind]}), found {counts[kind]}. Leave them all out to put the visuals "
                "first."
            )
    return Turn("user", separated(runs))


def separated(runs: list[str | Visual]) -> tuple[Visual | Text, ...]:
    """Visuals in front of the text, with nothing but blanks between them, become parts of their
    own.
    """
    front: list[Visual | Text] = []
    while runs and (isinstance(runs[0], Visual) or (not runs[0].strip() and len(runs) > 1)):
        first = runs.pop(0)
        if isinstance(first, Visual):
            front.append(first)
    if front and runs:
        runs[0] = runs[0].lstrip()
    return (*front, *([tuple(runs)] if runs else []))


def from_messages(messages: list[dict]) -> tuple[list[Turn], list, list]:
    """OpenAI-style messages -> (turns, image sources, video sources); a part without a source takes
    one beside.

    A source of None stands for a medium that is passed beside the messages.
    """
    turns, images, videos = [], [], []
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in (
            "system",
            "user",
            "assistant",
        ):
            raise PromptError(
                "cannot read the messages: role: expected 'system', 'user' or 'assistant', "
                f"found {message.get('role') if isinstance(message, dict) else message!r}."
            )
        content = message.get("content", "")
        parts: list[Visual | Text] = []
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            kind = str(part.get("type", "")).removesuffix("_url")
            if kind == "text":
                parts.append((part["text"],))
            elif kind in ("image", "video"):
                sources = images if kind == "image" else videos
                parts.append(Visual(kind, len(sources)))
                sources.append(source_of(part, kind))
            else:
                raise PromptError(
                    "cannot read the messages: type: expected 'text', 'image', 'image_url', "
                    "'video' or "
                    f"'video_url', found {part.get('type')!r}."
                )
        turns.append(Turn(message["role"], tuple(parts)))
    return turns, images, videos


def source_of(part: dict, kind: str):
    """Where a message part says its medium is: image, image_url, url, path; None if it does not
    say.
    """
    for key in (kind, f"{kind}_url", "url", "path"):
        if part.get(key) is not None:
            return part[key]["url"] if isinstance(part[key], dict) else part[key]
    return None
