"""The renderers next to the published chat templates, and how a checkpoint's own is found."""

import itertools
import json
import logging
import re
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from languages import SENTENCES
from test_prompt import written

from llava_min.errors import CheckpointError
from llava_min.families import folder, templates
from llava_min.prompt import Piece, Special, Turn, Visual
from llava_min.request import messages as chat_messages

TEMPLATES = Path(__file__).parent / "templates"  # as published on the hub
RENDERERS = {
    "onevision_ov_hf": "onevision",
    "onevision_si_hf": "onevision_si",
    "interleave_b": "interleave",
    "long_llava_a": "long_llava",
    "next_video_d": "vicuna",
    "next_video_d_old": "vicuna",
    "llava15": "vicuna",
    "llava_vicuna_old": "vicuna",
    "llava16_34b": "onevision_si",
    "llava16_mistral": "mistral",
    "llava16_mistral_slash": "mistral_2024",
    "llava16_mistral_old": "mistral_2024",
    "llama3_llava_next": "llama3",
    "qwen2_chatml": "qwen",
}
IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


CONVERSATIONS = {
    "one picture": [("user", [IMAGE, text("Q")])],
    "two pictures": [("user", [IMAGE, IMAGE, text("Q")])],
    "a clip": [("user", [VIDEO, text("Q")])],
    "pictures and a clip": [("user", [IMAGE, IMAGE, VIDEO, text("Q\nand more")])],
    "text alone": [("user", [text("Q")])],
    "several turns": [
        ("user", [IMAGE, text("Q1")]),
        ("assistant", [text("A1")]),
        ("user", [text("Q2")]),
    ],
    "a system turn": [("system", [text("S")]), ("user", [IMAGE, text("Q")])],
    "two texts": [("user", [IMAGE, text("Q"), text("and more")])],
}


def check_rendering(name: str, conversation: list[tuple[str, list[dict]]]) -> None:
    """Our renderer and the published template write the same."""
    chat = pytest.importorskip("transformers.utils.chat_template_utils")
    template = (TEMPLATES / f"{name}.jinja").read_text()
    messages = [{"role": role, "content": parts} for role, parts in conversation]
    turns, _, _ = chat_messages.from_messages(messages)
    if name == "qwen2_chatml":  # takes text only: the visuals stand in it
        places = {"image": "<image>\n", "video": "<video>\n"}
        for message in messages:
            parts = (places.get(p["type"], p.get("text")) for p in message["content"])
            message["content"] = "".join(parts)
    rendered, _ = chat.render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=True
    )
    ours = written(templates.TEMPLATES[RENDERERS[name]](turns))
    ours = re.sub(r"<(image|video) \d+>", r"<\1>", ours)
    assert re.sub(r"^<(s|\|begin_of_text\|)>", "", ours) == rendered[0]


def knows(name: str, conversation: list[tuple[str, list[dict]]]) -> bool:
    """Whether the template has words for it.

    Some know no videos, one says a system text twice, and one ends the turn with each text.
    """
    videos = any(part == VIDEO for _, parts in conversation for part in parts)
    system = any(role == "system" for role, _ in conversation)
    several = any(len([p for p in parts if p["type"] == "text"]) > 1 for _, parts in conversation)
    template = (TEMPLATES / f"{name}.jinja").read_text()
    return not (
        (videos and "<video>" not in template)
        or (system and name.endswith("_old"))
        or (several and name == "long_llava_a")
    )


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", RENDERERS)
def test_renderers_write_what_the_published_templates_write(name, conversation):
    template = (TEMPLATES / f"{name}.jinja").read_text()
    assert templates.known_template(template) == RENDERERS[name]
    assert templates.known_template(template.replace("user", "usr", 1) + " x") is None
    if knows(name, CONVERSATIONS[conversation]):
        check_rendering(name, CONVERSATIONS[conversation])


words = st.sampled_from(list(SENTENCES.values()))
texts = st.lists(st.one_of(words, st.text("ab\n \t<>|{}%é☕", min_size=1)), min_size=1, max_size=2)


@st.composite
def conversations(draw) -> list[tuple[str, list[dict]]]:
    """A system turn or none, then questions with visuals and answers by turns."""
    system = draw(st.lists(words, max_size=1))
    turns = [("system", [text(each)]) for each in system]
    for number in range(draw(st.sampled_from([1, 3, 5]))):
        visuals = [IMAGE] * draw(st.integers(0, 2)) + [VIDEO] * draw(st.integers(0, 1))
        said = [text("".join(draw(texts)))]
        turns.append(("assistant", said) if number % 2 else ("user", visuals + said))
    return turns


@pytest.mark.parametrize("name", RENDERERS)
@settings(max_examples=60, deadline=None)
@given(conversation=conversations())
def test_random_conversations_in_29_languages(name, conversation):
    assert len(SENTENCES) == 29
    if knows(name, conversation):
        check_rendering(name, conversation)


# The order of parts --------------------------------------------------------------

parts_of_users = st.lists(
    st.one_of(st.sampled_from([IMAGE, VIDEO]), words.map(text)), min_size=1, max_size=5
)


@st.composite
def mixtures(draw) -> list[tuple[str, list[dict]]]:
    """Conversations whose turns hold texts and visuals in any number and order."""
    turns = [("system", [text(each)]) for each in draw(st.lists(words, max_size=1))]
    for number in range(draw(st.sampled_from([1, 3]))):
        turns.append(("assistant" if number % 2 else "user", draw(parts_of_users)))
    return turns


def inside(pieces: list[Piece], turn: Turn) -> None:
    """AssertionError unless these pieces hold the turn's parts, in order, and blanks besides."""
    for part in turn.parts:
        for run in (part,) if isinstance(part, Visual) else part:
            while pieces and isinstance(pieces[0], str) and pieces[0] != run:
                assert not pieces.pop(0).strip()
            assert pieces.pop(0) == run
    assert not any(not isinstance(piece, str) or piece.strip() for piece in pieces)


CHATML = ("onevision", "onevision_si", "qwen", "interleave", "long_llava", "chatml_direct")


@pytest.mark.parametrize("name", CHATML)
@settings(max_examples=100, deadline=None)
@given(conversation=mixtures())
def test_every_part_is_inside_its_turn(name, conversation):
    """Between <|im_start|>role and <|im_end|>, in the given order, whatever the mixture."""
    messages = [{"role": role, "content": parts} for role, parts in conversation]
    turns, _, _ = chat_messages.from_messages(messages)
    pieces = list(templates.TEMPLATES[name](turns))
    marks = [i for i, piece in enumerate(pieces) if isinstance(piece, Special)]
    runs = [pieces[a + 1 : b] for a, b in itertools.pairwise([-1, *marks, len(pieces)])]
    headless = name == "long_llava" and turns[0].role == "system"  # as published
    if headless:
        runs, turns = runs[1:], turns[1:]
    elif runs[1][0].startswith("system") and turns[0].role != "system":
        runs = runs[2:]
    for turn, between, said in zip(turns, runs[::2], runs[1::2], strict=False):
        assert not "".join(between).strip()
        assert said.pop(0).strip() == turn.role
        inside(said, turn)
    assert len(runs) == 2 * len(turns) + 2 and runs[-1] == ["assistant\n"]
    kinds = [piece.token for piece in pieces if isinstance(piece, Special)]
    kinds = ["<|im_start|>", *kinds] if headless else kinds
    assert kinds == ["<|im_start|>", "<|im_end|>"] * (len(kinds) // 2) + ["<|im_start|>"]


@settings(max_examples=100, deadline=None)
@given(conversation=mixtures())
def test_every_part_is_inside_its_turn_of_vicuna(conversation):
    messages = [{"role": role, "content": parts} for role, parts in conversation]
    turns, _, _ = chat_messages.from_messages(messages)
    pieces = list(templates.vicuna(turns))
    assert pieces.pop(0) == templates.Beginning("<s>") and pieces.pop() == "ASSISTANT:"
    for turn in turns:
        if turn.role != "system":
            assert pieces.pop(0) == turn.role.upper() + ": "
        ends = [i for i, piece in enumerate(pieces) if piece in ("USER: ", "ASSISTANT: ")]
        inside(pieces[: [*ends, len(pieces)][0]], turn)
        del pieces[: [*ends, len(pieces)][0]]
    assert not pieces


@pytest.mark.parametrize("name", sorted(set(templates.TEMPLATES) - set(CHATML)))
@settings(max_examples=100, deadline=None)
@given(conversation=mixtures())
def test_every_part_is_written_once_and_in_order(name, conversation):
    messages = [{"role": role, "content": parts} for role, parts in conversation]
    turns, _, _ = chat_messages.from_messages(messages)
    written_pieces = iter(templates.TEMPLATES[name](turns))
    for turn in turns:
        for part in turn.parts:
            for run in (part,) if isinstance(part, Visual) else part:
                assert run in written_pieces  # an iterator: what was passed is gone
    visuals = [piece for piece in templates.TEMPLATES[name](turns) if isinstance(piece, Visual)]
    assert (
        len(visuals)
        == len(set(visuals))
        == sum(isinstance(part, Visual) for turn in turns for part in turn.parts)
    )


CURIOUS = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)
HELPFUL = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
ROLE = "<|start_header_id|>{}<|end_header_id|>\n\n"
ORIGINAL = {
    # what the original code writes of a picture, a question, an answer and another question,
    # after its system turn; then how it writes the system turn "S"
    "vicuna_v1": (
        f"<s>{CURIOUS} ",
        "USER: <image 0>\nQ ASSISTANT: A</s>USER: R ASSISTANT:",
        "<s>S ",
    ),
    "mistral_instruct": (
        "<s>[INST] ",
        "<image 0>\nQ [/INST] A </s>[INST] R [/INST]",
        "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\n",
    ),
    "chatml_direct": (
        "<|im_start|>system\nAnswer the questions.<|im_end|>",
        "<|im_start|>user\n<image 0>\nQ<|im_end|><|im_start|>assistant\nA<|im_end|>"
        "<|im_start|>user\nR<|im_end|><|im_start|>assistant\n",
        "<|im_start|>system\nS<|im_end|>",
    ),
    "llava_llama_3": (
        f"<|begin_of_text|>{ROLE.format('system')}{HELPFUL}<|eot_id|>",
        f"{ROLE.format('user')}<image 0>\nQ<|eot_id|>{ROLE.format('assistant')}A<|eot_id|>"
        f"{ROLE.format('user')}R<|eot_id|>{ROLE.format('assistant')}",
        f"<|begin_of_text|>{ROLE.format('system')}S<|eot_id|>",
    ),
}


@pytest.mark.parametrize("name", ORIGINAL)
def test_the_original_conversations(name):
    """By the rules of conversation.py: what ends a turn, and where the system text goes."""
    system, rest, given_system = ORIGINAL[name]
    conversation = [
        {"role": "user", "content": [IMAGE, text("Q")]},
        {"role": "assistant", "content": [text("A")]},
        {"role": "user", "content": [text("R")]},
    ]
    turns, _, _ = chat_messages.from_messages(conversation)
    assert written(templates.TEMPLATES[name](turns)) == system + rest
    given_turn = {"role": "system", "content": [text("S")]}
    turns, _, _ = chat_messages.from_messages([given_turn, *conversation])
    assert written(templates.TEMPLATES[name](turns)) == given_system + rest


@pytest.mark.parametrize(
    "content, expected",
    [
        ([text("Q"), IMAGE], "Q\n<image 0>"),
        ([IMAGE, IMAGE, text("Q")], "<image 0> <image 1>\nQ"),
        ([IMAGE, text("Q"), VIDEO, text("R")], "<image 0>\nQ\n<video 0>\nR"),
        ([IMAGE], "<image 0>"),
        ([text("Q"), text("R")], "Q\nR"),
    ],
    ids=str,
)
def test_long_llava_separates_its_parts(content, expected):
    turns, _, _ = chat_messages.from_messages([{"role": "user", "content": content}])
    assert written(templates.long_llava(turns)) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{expected}<|im_end|>\n<|im_start|>assistant\n"
    )


# Recognising a template ----------------------------------------------------------


@pytest.mark.parametrize("name", RENDERERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_template_that_is_known_writes_the_same(name, data):
    """With a blank more or less: known only if what it writes stays the same."""
    chat = pytest.importorskip("transformers.utils.chat_template_utils")
    jinja2 = pytest.importorskip("jinja2")
    published = (TEMPLATES / f"{name}.jinja").read_text()
    if data.draw(st.booleans(), "add"):
        place = data.draw(st.integers(0, len(published)))
        blank = data.draw(st.sampled_from([" ", "\n", "\t", "\n  "]))
        text_of_it = published[:place] + blank + published[place:]
    else:
        blanks = [i for i, character in enumerate(published) if character.isspace()]
        place = data.draw(st.sampled_from(blanks))
        text_of_it = published[:place] + published[place + 1 :]
    assume(templates.known_template(text_of_it) is not None)
    for conversation in (each for each in CONVERSATIONS.values() if knows(name, each)):
        messages = [{"role": role, "content": parts} for role, parts in conversation]
        if name == "qwen2_chatml":
            messages = [{"role": role, "content": "x"} for role, _ in conversation]
        try:
            found, expected = (
                chat.render_jinja_template(
                    [messages], chat_template=each, add_generation_prompt=True
                )[0]
                for each in (text_of_it, published)
            )
        except jinja2.TemplateError:  # a blank inside a word
            return
        assert found == expected


@pytest.mark.parametrize("name", RENDERERS)
def test_blanks_count_in_quotes_alone(name):
    published = (TEMPLATES / f"{name}.jinja").read_text()
    quoted = [each for each in re.finditer(r"'[^']*'", published) if re.search(r"\s", each[0])]
    for each in quoted:
        without = "".join(each[0].split())
        other = published[: each.start()] + without + published[each.end() :]
        assert templates.known_template(other) is None, each
    assert quoted
    looser = re.sub(r"(?<=\{%) ", "   ", published) + "\n"
    assert templates.known_template(looser) == RENDERERS[name]
    assert templates.known_template(looser.replace("\n", "\r\n")) == RENDERERS[name]
    escaped = re.sub(r"'[^']*'", lambda found: found[0].replace("\n", "\\n"), published)
    assert templates.known_template(escaped) == RENDERERS[name]


# A checkpoint's template ---------------------------------------------------------

FILES = {
    "processor_config.json": "onevision_ov_hf",
    "chat_template.json": "onevision_si_hf",
    "chat_template.jinja": "interleave_b",
    "tokenizer_config.json": "long_llava_a",
}


def stored(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text()


def write(path: Path, template: object) -> None:
    if path.suffix == ".jinja":
        path.parent.mkdir(exist_ok=True)
        path.write_text(template)
    else:
        path.write_text(json.dumps({"chat_template": template}))


@pytest.mark.parametrize(
    "names", [n for size in range(1, 5) for n in itertools.combinations(FILES, size)], ids=str
)
def test_the_first_template_is_the_one_that_transformers_takes(tmp_path, names):
    transformers = pytest.importorskip("transformers")
    for name in names:
        write(tmp_path / name, stored(FILES[name]))
    found, _ = transformers.LlavaProcessor.get_processor_dict(tmp_path)
    expected = found.get("chat_template")
    if expected is None:  # then the tokenizer's own is the only one
        expected = stored(FILES["tokenizer_config.json"])
    assert folder.template_of(tmp_path) == templates.known_template(expected)


DEFAULT = {"name": "default", "template": stored("onevision_si_hf")}
TOOLS = {"name": "tool_use", "template": stored("interleave_b")}


@pytest.mark.parametrize(
    "template, expected",
    [
        ([DEFAULT, TOOLS], "onevision_si"),
        ([TOOLS, DEFAULT], "onevision_si"),
        ([TOOLS], None),
        ([], None),
        ([TOOLS, "x", {"name": "default"}], None),
        ({"tool_use": TOOLS["template"], "default": DEFAULT["template"]}, "onevision_si"),
        ({"tool_use": TOOLS["template"]}, None),
        ({}, None),
        ("x", None),
        ("", None),
        (5, None),
    ],
    ids=range(11),
)
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json")])
def test_the_template_named_default(tmp_path, caplog, template, expected, name):
    """Wherever it stands; without one, the warning that an unknown text gets."""
    write(tmp_path / name, template)
    assert folder.template_of(tmp_path) == expected
    assert ("not one that is known" in caplog.text) == (expected is None)


def test_templates_in_a_folder_of_their_own(tmp_path, caplog):
    write(tmp_path / "tokenizer_config.json", stored("long_llava_a"))
    write(tmp_path / "chat_templates" / "tool_use.jinja", stored("interleave_b"))
    assert folder.template_of(tmp_path) is None and "not one that is known" in caplog.text
    write(tmp_path / "chat_templates" / "default.jinja", stored("onevision_si_hf"))
    assert folder.template_of(tmp_path) == "onevision_si"
    write(tmp_path / "chat_template.jinja", stored("onevision_ov_hf"))
    assert folder.template_of(tmp_path) == "onevision"


def test_no_template_is_no_warning(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    write(tmp_path / "tokenizer_config.json", None)
    assert folder.template_of(tmp_path) is None and not caplog.text


def test_a_template_that_is_no_text(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="chat_template.jinja"):
        folder.template_of(tmp_path)
