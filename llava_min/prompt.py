"""A conversation -> pieces: special tokens, text runs and visuals, in the order of the template.

in:  turns (role, parts); a part is a Visual or a text, which may hold visuals inside
out: a list of Special | str | Visual
One small renderer for each template, no template language: what a renderer writes as `Special`
becomes a special token, and nothing else ever does.
Read before: projector.py. Read next: tokenizer.py.
Agrees with: the chat templates that are published beside the checkpoints; conversation.py of LLaVA-
NeXT.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .errors import PromptError, shown


@dataclass(frozen=True)
class Special:
    """A token that only a template can write."""

    token: str


@dataclass(frozen=True)
class Visual:
    """The place of a visual: `kind` is "image" or "video", `index` counts within the kind.

    `frame` numbers the frames of a clip that is taken one by one; None stands for all there is.
    """

    kind: str
    index: int
    frame: int | None = None


Text = tuple  # one text part: a tuple of str and Visual
Piece = Special | str | Visual


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation: role "system", "user" or "assistant", and its parts in order."""

    role: str
    parts: tuple[Visual | Text, ...]


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


def interleave(turns: list[Turn]) -> Iterator[Piece]:
    """The template of llava-interleave: each text on a line of its own, answers included."""
    for turn in turns:
        yield Special("<|im_start|>")
        yield f"{turn.role}\n"
        for part in turn.parts:
            if isinstance(part, Visual):
                yield part
            else:
                yield "\n"
                yield from part
        yield Special("<|im_end|>")
        yield "\n"
    yield Special("<|im_start|>")
    yield "assistant\n"


def onevision_si(turns: list[Turn]) -> Iterator[Piece]:
    """The other template of HF OneVision checkpoints: each visual on a line of its own."""
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


def qwen(turns: list[Turn]) -> Iterator[Piece]:
    """The original code's qwen_1_5: the same with a system turn always."""
    if not turns or turns[0].role != "system":
        turns = [Turn("system", (("You are a helpful assistant.",),)), *turns]
    yield from onevision_si(turns)


def long_llava(turns: list[Turn]) -> Iterator[Piece]:
    """The template of long-llava-qwen2: a blank between visuals, a line break after the last one.

    As published, a system turn that is given stands without its header, and each text ends its
    turn.
    """
    if not turns or turns[0].role != "system":
        yield Special("<|im_start|>")
        yield "system\nYou are a helpful assistant."
        yield Special("<|im_end|>")
        yield "\n"
    for turn in turns:
        if turn.role != "system":
            yield Special("<|im_start|>")
            yield f"{turn.role}\n"
        for index, part in enumerate(turn.parts):
            if isinstance(part, Visual):
                yield part
                last = not any(isinstance(later, Visual) for later in turn.parts[index + 1 :])
                yield "\n" if last else " "
            else:
                yield from part
                yield Special("<|im_end|>")
                yield "\n"
    yield Special("<|im_start|>")
    yield "assistant\n"


def vicuna(turns: list[Turn]) -> Iterator[Piece]:
    """The template of the HF checkpoints on Vicuna: USER: and ASSISTANT:, a line break after each
    visual.
    """
    yield Special("<s>")
    for turn in turns:
        if turn.role != "system":
            yield f"{turn.role.upper()}: "
        for part in turn.parts:
            if isinstance(part, Visual):
                yield part
                yield "\n"
            else:
                yield from part
                yield " "
    yield "ASSISTANT:"


TEMPLATES: dict[str, Callable[[list[Turn]], Iterator[Piece]]] = {
    "onevision": onevision,
    "onevision_si": onevision_si,
    "qwen": qwen,
    "interleave": interleave,
    "long_llava": long_llava,
    "vicuna": vicuna,
}
PUBLISHED = {
    # sha256 of a published chat template, blanks left out -> the renderer that writes the same
    "751efcb1ecb008fc": "onevision",
    "8b1507b4903f2083": "onevision_si",
    "f69eddf8056c4cf7": "interleave",
    "f052acfe5bc4e3d0": "long_llava",
    "8f69d58b2f6f704b": "vicuna",
    "d2991f7cf964b89e": "vicuna",
    "a4fb14d326db0e23": "vicuna",
    "c47e71d2762ebd2c": "qwen",
}


def known_template(text: str) -> str | None:
    """The renderer that writes what a stored chat template writes, recognised by its text."""
    return PUBLISHED.get(hashlib.sha256("".join(text.split()).encode()).hexdigest()[:16])


PLACEHOLDER = re.compile(r"<(image|video)>")


def check_counts(pieces, images: int, videos: int, frames: int | None) -> None:
    """PromptError unless the visuals among the pieces are as many as were given.

    `frames` placeholders for pictures may stand for the frames of the one clip.
    """
    for kind, given in (("image", images), ("video", videos)):
        found = sum(isinstance(piece, Visual) and piece.kind == kind for piece in pieces)
        if found != given:
            hint = f" (or {frames}, one for each frame)" if frames and kind == "image" else ""
            raise PromptError(
                "cannot place the visuals",
                "prompt",
                f"as many <{kind}> as there are {kind}s ({given}){hint}",
                found,
                "Leave them all out to put the visuals first.",
            )


def user_turn(text: str, images: int, videos: int, frames: int | None = None) -> Turn:
    """The one turn of a plain prompt. <image> and <video> in it place the visuals; without any,
    they come first.

    frames: of the one clip, in a family that takes it frame by frame; then as many <image> place
    them. Without pictures one <image> a clip places the clips, as the original code's prompts do.

    >>> user_turn("<image>\\nWhat is this?", images=1, videos=0).parts
    (Visual(kind='image', index=0, frame=None), ('What is this?',))
    """
    runs: list[str | Visual] = []
    counts = {"image": 0, "video": 0}
    for index, part in enumerate(PLACEHOLDER.split(text)):
        if index % 2:
            runs.append(Visual(part, counts[part]))
            counts[part] += 1
        elif part:
            runs.append(part)
    if not any(counts.values()):
        given = (("image", images), ("video", videos))
        visuals = [Visual(kind, index) for kind, count in given for index in range(count)]
        return Turn("user", (*visuals, (text,)))
    if frames and counts == {"image": frames, "video": 0}:
        runs = [Visual("video", 0, run.index) if isinstance(run, Visual) else run for run in runs]
    elif not images and counts == {"image": videos, "video": 0}:
        runs = [Visual("video", run.index) if isinstance(run, Visual) else run for run in runs]
    else:
        check_counts(runs, images, videos, frames)
    return Turn("user", separated(runs))


def time_instruction(times: tuple[float, ...], seconds: float) -> str:
    """The sentences that LLaVA-Video was trained with, word for word (a blank is missing in the
    original too).
    """
    stamps = ",".join(f"{time:.2f}s" for time in times)
    return (
        f"The video lasts for {seconds:.2f} seconds, and {len(times)} frames are uniformly "
        "sampled from it. "
        f"These frames are located at {stamps}.Please answer the following questions related to "
        "this video."
    )


def with_notes(turn: Turn, note: Callable[[int], str]) -> Turn:
    """The turn with note(i), if it says something, on lines of its own behind clip i, in front of
    the text that follows it.
    """
    parts, waiting = [], ""
    for part in turn.parts:
        runs: list[str | Visual] = []
        for run in (part,) if isinstance(part, Visual) else part:
            if isinstance(run, str):
                runs += [waiting, run] if waiting else [run]
                waiting = ""
            else:
                runs.append(run)
                if run.kind == "video" and not run.frame and note(run.index):
                    waiting += note(run.index) + "\n"
        parts.append(part if isinstance(part, Visual) else tuple(runs))
    return Turn(turn.role, (*parts, (waiting,)) if waiting else tuple(parts))


def frame_by_frame(turn: Turn, count: Callable[[int], int]) -> Turn:
    """The turn with count(i) visuals, one a frame, in place of clip i."""
    parts: list[Visual | Text] = []
    for part in turn.parts:
        runs = (part,) if isinstance(part, Visual) else part
        out: list[str | Visual] = []
        for run in runs:
            if isinstance(run, Visual) and run.kind == "video" and run.frame is None:
                out += [Visual("video", run.index, frame) for frame in range(count(run.index))]
            else:
                out.append(run)
        parts += out if isinstance(part, Visual) else [tuple(out)]
    return Turn(turn.role, tuple(parts))


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


ROLES = ("system", "user", "assistant")


def unreadable(where: str, expected: str, found) -> PromptError:
    return PromptError("cannot read the messages", where, expected, shown(found))


def from_messages(messages: list[dict]) -> tuple[list[Turn], list, list]:
    """OpenAI-style messages -> (turns, image sources, video sources); a part without a source takes
    one beside.

    A source of None stands for a medium that is passed beside the messages.
    """
    turns, images, videos = [], [], []
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise unreadable("role", "'system', 'user' or 'assistant'", message)
        content = message.get("content", "")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
            raise unreadable("content", "a text or a list of parts", content)
        parts: list[Visual | Text] = []
        for part in content:
            kind = str(part.get("type", "")).removesuffix("_url")
            if kind == "text" and isinstance(part.get("text"), str):
                parts.append((part["text"],))
            elif kind in ("image", "video"):
                sources = images if kind == "image" else videos
                parts.append(Visual(kind, len(sources)))
                sources.append(source_of(part, kind))
            else:
                known = "'text' with a text, 'image', 'image_url', 'video' or 'video_url'"
                raise unreadable("type", known, part)
        turns.append(Turn(message["role"], tuple(parts)))
    return turns, images, videos


def source_of(part: dict, kind: str):
    """Where a message part says its medium is: image, image_url, url, path; None if it does not
    say.
    """
    for key in (kind, f"{kind}_url", "url", "path"):
        if part.get(key) is not None:
            return part[key].get("url") if isinstance(part[key], dict) else part[key]
    return None
