"""A conversation as turns: who says what, and where the pictures and clips go in it.

in:  the text of a prompt, how many pictures and clips there are
out: turns (role, parts); a part is a Visual or a text, which may hold visuals inside

families/templates.py writes turns as pieces: Special | str | Visual. What it writes as `Special`
becomes a special token, and nothing else ever does.
Read projector.py first. Read next: tokenizer.py.
Agrees with: conversation.py of LLaVA-NeXT.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .errors import PromptError


@dataclass(frozen=True)
class Special:
    """A token that only a template can write."""

    token: str


@dataclass(frozen=True)
class Beginning(Special):
    """The token that begins every prompt: the tokenizer may add it by itself, or leave it out.

    Either way it is there once. Where the tokenizer adds it, the text after it is the first word.
    """


@dataclass(frozen=True)
class Visual:
    """The place of a visual: `kind` is "image" or "video", `index` counts within the kind.

    `frame` numbers the frames of a clip that is taken one by one; None means the whole visual.
    """

    kind: str
    index: int
    frame: int | None = None


Text = tuple[str | Visual, ...]  # one text part, which may hold visuals inside
Piece = Special | str | Visual


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation: role "system", "user" or "assistant", and its parts in order."""

    role: str
    parts: tuple[Visual | Text, ...]


PLACEHOLDER = re.compile(r"<(image|video)>")


def check_counts(pieces: Iterable[Piece], images: int, videos: int, frames: int | None) -> None:
    """PromptError unless the visuals among the pieces are as many as were given.

    `frames` placeholders for pictures may take the frames of the one clip.
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
    """The one turn of a plain prompt, in which <image> and <video> place the visuals.

    Without placeholders the visuals come first. frames: of the one clip, in a family that takes it
    frame by frame; then as many <image> place them. Without pictures one <image> a clip places the
    clips, as the original code's prompts do.

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
    """The sentences that LLaVA-Video was trained with, word for word.

    A blank is missing in the original too.
    """
    stamps = ",".join(f"{time:.2f}s" for time in times)
    return (
        f"The video lasts for {seconds:.2f} seconds, and {len(times)} frames are uniformly "
        "sampled from it. "
        f"These frames are located at {stamps}.Please answer the following questions related to "
        "this video."
    )


def with_notes(turn: Turn, note: Callable[[int], str]) -> Turn:
    """The turn with note(i), if it is not empty, after clip i and before the text that follows.

    A note has lines of its own.
    """
    parts: list[Visual | Text] = []
    waiting = ""
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

    def each_frame(visual: Visual) -> list[Visual]:
        if visual.kind != "video" or visual.frame is not None:
            return [visual]
        return [Visual("video", visual.index, frame) for frame in range(count(visual.index))]

    parts: list[Visual | Text] = []
    for part in turn.parts:
        if isinstance(part, Visual):
            parts += each_frame(part)
        else:
            runs: list[str | Visual] = []
            for run in part:
                runs += each_frame(run) if isinstance(run, Visual) else [run]
            parts.append(tuple(runs))
    return Turn(turn.role, tuple(parts))


def separated(runs: list[str | Visual]) -> tuple[Visual | Text, ...]:
    """The parts of a turn, in which visuals before the text become parts of their own.

    Between these visuals there is nothing but blanks. These, and those before the text, are
    dropped: what separates a visual from the text is the template's to write.
    """
    front: list[Visual | Text] = []
    while runs and (isinstance(runs[0], Visual) or (not runs[0].strip() and len(runs) > 1)):
        first = runs.pop(0)
        if isinstance(first, Visual):
            front.append(first)
    if front and runs and isinstance(runs[0], str):
        runs[0] = runs[0].lstrip()
    return (*front, *([tuple(runs)] if runs else []))
