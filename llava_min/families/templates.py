"""The chat templates of the families: turns become pieces, one small renderer for each.

in:  turns of a conversation
out: Special | str | Visual, one by one

There is no template language. What a renderer writes as `Special` becomes a special token, and
nothing else ever does.
Read prompt.py first. Read next: families/folder.py.
Agrees with: the chat templates that are published with the checkpoints; conversation.py of
LLaVA-NeXT.
"""

import hashlib
from collections.abc import Callable, Iterator

from ..prompt import Piece, Special, Turn, Visual


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

    As published, a system turn that is given has no header, and each text ends its turn.
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
    """The template of the HF checkpoints on Vicuna: USER: and ASSISTANT:.

    A line break follows each visual.
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
