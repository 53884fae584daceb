"""Where visuals go, and what the renderers write."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from languages import SENTENCES

from llava_min import prompt
from llava_min.errors import PromptError
from llava_min.families import templates
from llava_min.prompt import Special, Turn, Visual
from llava_min.request import messages as chat_messages


def written(pieces) -> str:
    """The rendered prompt as text, visuals as <kind index>."""
    shown = []
    for piece in pieces:
        if isinstance(piece, Visual):
            shown.append(f"<{piece.kind} {piece.index}>")
        else:
            shown.append(piece.token if isinstance(piece, Special) else piece)
    return "".join(shown)


def test_onevision_is_the_published_text():
    turn = prompt.user_turn("What is it?", images=1, videos=0)
    expected = "<|im_start|>user <image 0>\nWhat is it?<|im_end|><|im_start|>assistant\n"
    assert written(templates.onevision([turn])) == expected


def test_qwen_is_the_published_text():
    turn = prompt.user_turn("What is it?", images=1, videos=0)
    expected = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<image 0>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert written(templates.qwen([turn])) == expected


def test_several_turns_keep_their_order():
    turns = [
        Turn("user", (Visual("image", 0), ("A",))),
        Turn("assistant", (("B",),)),
        Turn("user", (("C",),)),
    ]
    assert written(templates.onevision(turns)) == (
        "<|im_start|>user <image 0>\nA<|im_end|><|im_start|>assistant \nB<|im_end|>"
        "<|im_start|>user \nC<|im_end|><|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "text, images, videos, expected",
    [
        ("Q", 2, 1, "<image 0><image 1><video 0>\nQ"),
        ("<image>\nQ", 1, 0, "<image 0>\nQ"),
        ("<image> <image>\n\nQ", 2, 0, "<image 0><image 1>\nQ"),
        ("Is <image> like <image>?", 2, 0, "\nIs <image 0> like <image 1>?"),
        ("<video><image> Q", 1, 1, "<video 0><image 0>\nQ"),
        ("<image>", 1, 0, "<image 0>"),
        ("<image>Q <image>", 2, 0, "<image 0>\nQ <image 1>"),
        ("Q <Image>", 1, 0, "<image 0>\nQ <Image>"),
    ],
)
def test_placeholders_place_the_visuals(text, images, videos, expected):
    rendered = written(templates.onevision([prompt.user_turn(text, images, videos)]))
    assert rendered.removeprefix("<|im_start|>user ").split("<|im_end|>")[0] == expected


@pytest.mark.parametrize(
    "text, images, videos",
    [
        ("<image>", 0, 0),
        ("<image>", 2, 0),
        ("<image>", 1, 1),
        ("<image><image>", 1, 0),
        ("<video>", 1, 0),
    ],
)
def test_a_wrong_number_of_placeholders_is_an_error(text, images, videos):
    with pytest.raises(PromptError, match="expected as many"):
        prompt.user_turn(text, images, videos)
    with pytest.raises(PromptError, match="expected as many"):
        prompt.user_turn("<image>" * 2, 0, 1, frames=3)


@given(st.text(max_size=50), st.integers(0, 3), st.integers(0, 3))
def test_every_visual_appears_once_in_order(text, images, videos):
    text = text.replace("<", "")
    for name in templates.TEMPLATES:
        pieces = list(templates.TEMPLATES[name]([prompt.user_turn(text, images, videos)]))
        visuals = [piece for piece in pieces if isinstance(piece, Visual)]
        expected = [Visual("image", i) for i in range(images)] + [
            Visual("video", i) for i in range(videos)
        ]
        assert visuals == expected
        assert text in written(pieces)


def test_messages_keep_the_order_of_their_parts():
    turns, images, videos = chat_messages.from_messages(
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "First <image>"},
                    {"type": "image_url", "image_url": {"url": "a.png"}},
                    {"type": "image"},
                    {"type": "video", "video": "b.mp4"},
                    {"type": "text", "text": "last"},
                ],
            },
            {"role": "assistant", "content": "ok"},
        ]
    )
    assert images == ["a.png", None] and videos == ["b.mp4"]
    assert written(templates.onevision(turns)) == (
        "<|im_start|>user \nFirst <image><image 0><image 1><video 0>\nlast<|im_end|>"
        "<|im_start|>assistant \nok<|im_end|><|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "robot", "content": "x"}],
        ["hi"],
        [{"content": "x"}],
        [{"role": "user", "content": [{"type": "audio"}]}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": {"type": "text", "text": "x"}}],
        [{"role": "user", "content": ["x"]}],
        [{"role": "user", "content": [{"type": "text", "text": 5}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
    ],
)
def test_messages_that_cannot_be_read(messages):
    with pytest.raises(PromptError, match="cannot read the messages"):
        chat_messages.from_messages(messages)


TEMPLATES = Path(__file__).parent / "templates"  # as published on the hub
RENDERERS = {
    "onevision_ov_hf": "onevision",
    "onevision_si_hf": "onevision_si",
    "interleave_b": "interleave",
    "long_llava_a": "long_llava",
    "next_video_d": "vicuna",
    "next_video_d_old": "vicuna",
    "llava15": "vicuna",
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
    assert re.sub(r"<(image|video) \d+>", r"<\1>", ours).removeprefix("<s>") == rendered[0]


def knows(name: str, conversation: list[tuple[str, list[dict]]]) -> bool:
    """Whether the template has words for it: some know no videos, one says a system text twice."""
    videos = any(part == VIDEO for _, parts in conversation for part in parts)
    system = any(role == "system" for role, _ in conversation)
    template = (TEMPLATES / f"{name}.jinja").read_text()
    return not (videos and "<video>" not in template) and not (system and name.endswith("_old"))


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
