"""The chat templates of the families: turns become pieces, one small renderer for each.

in:  turns of a conversation
out: Special | str | Visual, one by one

There is no template language. What a renderer writes as `Special` becomes a special token, and
nothing else ever does. The parts of a turn keep the order in which they were given; published
templates put the visuals of a turn first, so a turn that begins with them is written as published.
Read prompt.py first. Read next: families/folder.py.
Agrees with: the chat templates that are published with the checkpoints; conversation.py of LLaVA
and LLaVA-NeXT.
"""

import hashlib
import re
from collections.abc import Callable, Iterator

from ..prompt import Beginning, Piece, Special, Text, Turn, Visual

CURIOUS = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)
HELPFUL = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)


def with_system(turns: list[Turn], text: str) -> list[Turn]:
    """The turns with a system turn always: `text`, unless there is one."""
    if turns and turns[0].role == "system":
        return turns
    return [Turn("system", ((text,),)), *turns]


def visuals_on_lines(turn: Turn) -> Iterator[Piece]:
    """The parts of a turn, with a line break after each visual."""
    for part in turn.parts:
        if isinstance(part, Visual):
            yield part
            yield "\n"
        else:
            yield from part


def texts_on_lines(turn: Turn) -> Iterator[Piece]:
    """The parts of a turn, with a line break before each text."""
    for part in turn.parts:
        if isinstance(part, Visual):
            yield part
        else:
            yield "\n"
            yield from part


def onevision(turns: list[Turn]) -> Iterator[Piece]:
    """The template of HF OneVision checkpoints: no system turn, each text on its own line."""
    for turn in turns:
        yield Special("<|im_start|>")
        yield f"{turn.role} "
        yield from texts_on_lines(turn)
        yield Special("<|im_end|>")
    yield Special("<|im_start|>")
    yield "assistant\n"


def interleave(turns: list[Turn]) -> Iterator[Piece]:
    """The template of llava-interleave: each text on a line of its own, answers included."""
    for turn in turns:
        yield Special("<|im_start|>")
        yield f"{turn.role}\n"
        yield from texts_on_lines(turn)
        yield Special("<|im_end|>")
        yield "\n"
    yield Special("<|im_start|>")
    yield "assistant\n"


def onevision_si(turns: list[Turn]) -> Iterator[Piece]:
    """The other template of HF OneVision checkpoints: each visual on a line of its own."""
    for turn in turns:
        yield Special("<|im_start|>")
        yield f"{turn.role}\n"
        yield from visuals_on_lines(turn)
        yield Special("<|im_end|>")
        yield "\n"
    yield Special("<|im_start|>")
    yield "assistant\n"


def qwen(turns: list[Turn]) -> Iterator[Piece]:
    """The original code's qwen_1_5: the same with a system turn always."""
    yield from onevision_si(with_system(turns, "You are a helpful assistant."))


def long_llava(turns: list[Turn]) -> Iterator[Piece]:
    """The template of long-llava-qwen2: a blank between visuals, line breaks between other parts.

    As published, a system turn that is given has no header.
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
        before: Visual | Text | None = None
        for part in turn.parts:
            visuals = isinstance(part, Visual) and isinstance(before, Visual)
            yield "" if before is None else " " if visuals else "\n"
            yield from [part] if isinstance(part, Visual) else part
            before = part
        yield Special("<|im_end|>")
        yield "\n"
    yield Special("<|im_start|>")
    yield "assistant\n"


def vicuna(turns: list[Turn]) -> Iterator[Piece]:
    """The template of the HF checkpoints on Vicuna: USER: and ASSISTANT:.

    A line break follows each visual.
    """
    yield Beginning("<s>")
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


def vicuna_v1(turns: list[Turn]) -> Iterator[Piece]:
    """The original code's llava_v1: a system turn always, and </s> after each answer."""
    yield Beginning("<s>")
    for turn in with_system(turns, CURIOUS):
        if turn.role != "system":
            yield f"{turn.role.upper()}: "
        yield from visuals_on_lines(turn)
        yield Special("</s>") if turn.role == "assistant" else " "
    yield "ASSISTANT:"


def mistral(turns: list[Turn], end: tuple[Piece, ...] = (Special("</s>"), " ")) -> Iterator[Piece]:
    """The template of llava-v1.6-mistral: questions in [INST] and [/INST].

    As published, a system turn comes before the first [INST]. `end` follows an answer.
    """
    yield Beginning("<s>")
    for turn in turns:
        before, after = {
            "system": ("<<SYS>>\n", ("\n<</SYS>>\n\n",)),
            "user": ("[INST] ", (" [/INST]",)),
            "assistant": (" ", end),
        }[turn.role]
        yield before
        yield from visuals_on_lines(turn)
        yield from after


def mistral_2024(turns: list[Turn]) -> Iterator[Piece]:
    """The first template of llava-v1.6-mistral: plain letters, and no token, end an answer."""
    yield from mistral(turns, ("<\\s> ",))


def mistral_instruct(turns: list[Turn]) -> Iterator[Piece]:
    """The original code's mistral_instruct: a system turn is inside the first [INST]."""
    yield Beginning("<s>")
    system = turns[:1] if turns and turns[0].role == "system" else []
    for turn in turns[len(system) :]:
        user = turn.role == "user"
        yield "[INST] " if user else " "
        for first in system:
            yield "<<SYS>>\n"
            yield from visuals_on_lines(first)
            yield "\n<</SYS>>\n\n"
        yield from visuals_on_lines(turn)
        yield from (" [/INST]",) if user else (" ", Special("</s>"))
        system = []


def chatml_direct(turns: list[Turn]) -> Iterator[Piece]:
    """The original code's chatml_direct, of Yi: no line break between turns."""
    for turn in with_system(turns, "Answer the questions."):
        yield Special("<|im_start|>")
        yield f"{turn.role}\n"
        yield from visuals_on_lines(turn)
        yield Special("<|im_end|>")
    yield Special("<|im_start|>")
    yield "assistant\n"


def llama3(turns: list[Turn]) -> Iterator[Piece]:
    """The template of the HF checkpoints on LLaMA-3: each text on a line of its own, and an end."""
    yield Beginning("<|begin_of_text|>")
    for turn in turns:
        yield from llama3_header(turn.role)
        for part in turn.parts:
            if isinstance(part, Visual):
                yield part
            else:
                yield "\n"
                yield from part
                yield Special("<|eot_id|>")
    yield from llama3_header("assistant")


def llava_llama_3(turns: list[Turn]) -> Iterator[Piece]:
    """The original code's llava_llama_3: a system turn always, visuals on lines of their own."""
    yield Beginning("<|begin_of_text|>")
    for turn in with_system(turns, HELPFUL):
        yield from llama3_header(turn.role)
        yield from visuals_on_lines(turn)
        yield Special("<|eot_id|>")
    yield from llama3_header("assistant")


def llama3_header(role: str) -> Iterator[Piece]:
    """Who speaks, in LLaMA-3's special tokens."""
    yield Special("<|start_header_id|>")
    yield role
    yield Special("<|end_header_id|>")
    yield "\n\n"


TEMPLATES: dict[str, Callable[[list[Turn]], Iterator[Piece]]] = {
    "onevision": onevision,
    "onevision_si": onevision_si,
    "qwen": qwen,
    "interleave": interleave,
    "long_llava": long_llava,
    "vicuna": vicuna,
    "vicuna_v1": vicuna_v1,
    "mistral": mistral,
    "mistral_2024": mistral_2024,
    "mistral_instruct": mistral_instruct,
    "chatml_direct": chatml_direct,
    "llama3": llama3,
    "llava_llama_3": llava_llama_3,
}
PUBLISHED = {
    # sha256 of a published chat template (canonical) -> the renderer that writes the same
    "ff02e8d166a273b7": "onevision",
    "57f789038db2355a": "onevision_si",
    "acac0c1441005060": "interleave",
    "41207c9ee68fccd2": "long_llava",
    "a27aa2d97c824cee": "vicuna",
    "6db9d11c34612125": "vicuna",
    "5778b148bfba48a6": "vicuna",
    "f878e61991818cac": "qwen",
    "ea79f29d49339709": "vicuna",
    "13ce1bd289fa4a8e": "onevision_si",
    "4d67b3c2a9cca1fb": "llama3",
    "a9e88b7cc4c36c30": "mistral",
    "b623d210faebdee7": "mistral_2024",
    "a332464004df5d01": "mistral_2024",
}


def known_template(text: str) -> str | None:
    """The renderer that writes what a stored chat template writes, recognised by its text."""
    return PUBLISHED.get(fingerprint(text))


def fingerprint(text: str) -> str:
    """What a chat template is called in PUBLISHED."""
    return hashlib.sha256(canonical(text).encode()).hexdigest()[:16]


def canonical(text: str) -> str:
    """A chat template without the blanks that change nothing of what it writes.

    These are the blanks between the words of a tag, those that transformers lets Jinja drop next
    to a block (lstrip_blocks, trim_blocks), and a last line break. Those in quotes and comments
    stay.

    >>> canonical("{%  if x %}\\n{{ 'a b' }}") == canonical("{% if x %}{{'a b'}}")
    True
    """
    text = text.replace("\r\n", "\n").removesuffix("\n")
    text = re.sub(r"^[ \t]+(?=\{[%#])", "", text, flags=re.MULTILINE)
    text = re.sub(r"(?<=[%#]\})\n", "", text)
    parts = re.split(r"(\{#.*?#\}|\{\{.*?\}\}|\{%.*?%\})", text, flags=re.DOTALL)
    parts[1::2] = (tag if tag[1] == "#" else without_blanks(tag) for tag in parts[1::2])
    return "".join(parts)


def without_blanks(tag: str) -> str:
    """A tag without the blanks outside of its quotes, but those that keep it from ending there."""
    parts = re.split(r"('[^']*'|\"[^\"]*\")", tag[2:-2])
    parts[-1] = parts[-1].rstrip()
    parts[::2] = (re.sub(r"\s+(?!\})", "", part) for part in parts[::2])
    parts[1::2] = (part.replace("\\n", "\n") for part in parts[1::2])
    return tag[:2] + "".join(parts) + tag[-2:]
