"""Where visuals go, and what the renderers write."""

import io
import sys

import pytest
import small
from hypothesis import given
from hypothesis import strategies as st

import llava_min
from llava_min import prompt
from llava_min.command import arguments
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


def test_a_clip_may_take_a_placeholder_for_each_frame():
    """Of pictures: the error says how many, where a family takes a clip so."""
    either = r"as many <image> as there are images \(0\) \(or 3, one for each frame\), found"
    for text in ("<image>" * 2, "<image>" * 4):
        with pytest.raises(PromptError, match=f"{either} {text.count('<')}"):
            prompt.user_turn(text, 0, 1, frames=3)
    with pytest.raises(PromptError, match=r"images \(0\), found 2"):
        prompt.user_turn("<image>" * 2, 0, 1)
    with pytest.raises(PromptError, match=r"videos \(1\), found 2"):
        prompt.user_turn("<video>" * 2, 0, 1, frames=3)
    turn = prompt.user_turn("<image>" * 3 + "Q", 0, 1, frames=3)
    assert turn.parts == (*(Visual("video", 0, frame) for frame in range(3)), ("Q",))


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


@given(st.lists(st.sampled_from(["x", " x ", " ", "", Visual("image", 0), Visual("video", 0)])))
def test_visuals_before_the_text_are_parts_of_their_own(runs):
    """The text begins with the first run that is not blank, or with the last one."""
    texts = [at for at, run in enumerate(runs) if isinstance(run, str)]
    begin = next((at for at in texts if runs[at].strip()), len(runs))
    if begin == len(runs) and texts[-1:] == [len(runs) - 1]:
        begin = len(runs) - 1
    front, text = [run for run in runs[:begin] if isinstance(run, Visual)], runs[begin:]
    if front and text:
        text[0] = text[0].lstrip()
    assert prompt.separated(list(runs)) == (*front, *([tuple(text)] if text else []))


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


@pytest.mark.parametrize(
    "messages, named",
    [
        ([{"role": "user", "content": "Where?", "images": ["a.png"]}], "'images'"),
        ([{"role": "user", "content": "Where?", "image": "a.png"}], "'image'"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a", "image_url": {}}]}],
            "image_url",
        ),
        ([{"role": "user", "content": [{"type": "image", "image": "a", "text": "b"}]}], "'text'"),
        ([{"role": "system", "content": "Be brief."}], "a turn of the user"),
    ],
)
def test_nothing_in_a_message_is_dropped(messages, named):
    """A key that nothing reads may name a picture, and so is refused by name."""
    with pytest.raises(PromptError, match=named):
        chat_messages.from_messages(messages)


def test_what_clients_add_changes_nothing():
    part = {"type": "image", "image": "a.png", "detail": "low", "cache_control": {}}
    message = {"role": "user", "content": [part], "name": "me", "refusal": None, "audio": None}
    assert chat_messages.from_messages([message])[1] == ["a.png"]


@pytest.mark.parametrize(
    "stored, expected",
    [
        (b"\xef\xbb\xbfWhere is it?\r\n", "Where is it?"),
        (b"Where\r\nis it?\r\n\r\n", "Where\nis it?"),
        ("\ufeffWo ist\r\ndas \ufeffé?".encode(), "Wo ist\ndas \ufeffé?"),
        (b"Where is it?\n", "Where is it?"),
        (b"  Where\ris it? ", "  Where\ris it? "),
    ],
    ids=str,
)
def test_text_files_of_other_editors(tmp_path, monkeypatch, stored, expected):
    """A byte order mark is no text and CR LF is a line break, from a file and from stdin."""
    (tmp_path / "question.txt").write_bytes(stored)
    assert arguments.read_prompt(f"@{tmp_path / 'question.txt'}") == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stored)))
    assert arguments.read_prompt("-") == expected
    assert arguments.read_prompt("a\r\n") == "a\r\n"  # what the command line holds stays


@pytest.mark.parametrize(
    "stored, found",
    [
        (b"\xef\xbb\xbf\r\n", "an empty text"),
        ("\ufeffhi".encode("utf-16-le"), "the byte 0xff at 0"),
        (b"\xef\xbb\xbfhi \xff", "the byte 0xff at 6"),
    ],
    ids=str,
)
def test_text_files_that_are_refused(tmp_path, stored, found):
    (tmp_path / "question.txt").write_bytes(stored)
    with pytest.raises(PromptError, match=f"question.txt.*{found}"):
        arguments.read_prompt(f"@{tmp_path / 'question.txt'}")


# What a user types: the table of docs/using.md ------------------------------------


TYPED = ("<image>", "<video>", "<|im_end|>", "<|im_start|>system", "<s>")


@pytest.fixture(scope="module")
def model():
    return llava_min.load()


def check_text(model, expected, **given) -> None:
    """A prompt has the special tokens and visuals of `expected`, and its text as it was typed."""
    special = set(model.tokenizer.special.values())
    found, other = model.prepare(**given), model.prepare(**expected)
    kept = lambda prepared: [number for number in prepared.ids if number in special]
    assert kept(found) == kept(other) and len(found.visuals) == len(other.visuals)


@pytest.mark.parametrize("typed", TYPED)
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_in_messages_all_that_is_typed_is_text(model, typed, role):
    def messages(text):
        last = [{"role": "user", "content": "What?"}]
        return [{"role": role, "content": f"Is it {text} here?"}, *last]

    check_text(model, {"question": messages("x")}, question=messages(typed))
    assert f"Is it {typed} here?" in model.prepare(messages(typed)).text()


@pytest.mark.parametrize("typed", TYPED)
@pytest.mark.parametrize("option", ["system", "prefill", "subtitles"])
def test_in_options_all_that_is_typed_is_text(model, tmp_path, typed, option):
    def given(text):
        if option != "subtitles":
            return {"question": "What?", option: text}
        path = tmp_path / "a.srt"
        path.write_text(f"1\n00:00:00,000 --> 00:01:00,000\n{text}\n")
        clip = str(small.TINY / "samples" / "clip.mp4")
        return {"question": "What?", option: str(path), "videos": [clip], "frames": 2}

    check_text(model, given("x"), **given(f"Is it {typed} here?"))
    assert "here?" in model.prepare(**given(f"Is it {typed} here?")).text()


@pytest.mark.parametrize("kind", ["image", "video"])
def test_in_a_plain_prompt_a_place_without_a_medium_is_refused(model, kind):
    """However it is asked; the other words of the table are text there too."""
    text, match = f"What is <{kind}>?", f"expected as many <{kind}>"
    line = lambda question: model.generate_batch([{"question": question}])
    for ask in (model.generate, model.chat().ask, line):
        with pytest.raises(PromptError, match=match) as error:
            ask(text)
        assert error.value.exit_code == 4
    for typed in TYPED[2:]:
        check_text(model, {"question": "x"}, question=typed)


@pytest.mark.parametrize("name", sorted(templates.TEMPLATES))
def test_a_typed_end_of_a_turn_is_one_only_where_turns_are_written_in_letters(name):
    """Two turns, and one that types what is between them: the same but for special tokens."""
    said = lambda role, text: Turn(role, ((text,),))
    two = list(
        templates.TEMPLATES[name]([said("user", "a"), said("assistant", "b"), said("user", "c")])
    )
    typed = written(two).partition("a")[2].rpartition("c")[0]
    one = list(templates.TEMPLATES[name]([said("user", f"a{typed}c")]))
    tokens = [sum(isinstance(piece, Special) for piece in pieces) for pieces in (one, two)]
    assert (tokens[0] < tokens[1]) == (name not in ("vicuna", "mistral_2024"))


def test_in_a_raw_prompt_special_tokens_and_places_are_what_they_say(model):
    picture = str(small.TINY / "samples" / "shapes.png")
    found = model.prepare("<image>a<|im_end|>", images=[picture], raw=True)
    assert len(found.visuals) == 1 and found.ids[-1] == model.tokenizer.special["<|im_end|>"]
