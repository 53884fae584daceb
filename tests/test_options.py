"""Wrong options are answered by a plain sentence with the option's name in it."""

import copy
import pickle
import re
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava_min import errors
from llava_min.errors import LlavaMinError, ParameterError
from llava_min.options import Options

KINDS = [LlavaMinError, *LlavaMinError.__subclasses__()]
WRONG = {
    "temperature": [-0.1, 101, float("nan"), "1", True],
    "top_k": [-1, 1.5, 2**31, True],
    "top_p": [0, 0.0, 1.1, float("nan")],
    "min_p": [-1, 2],
    "repetition_penalty": [0, 101],
    "seed": [-1, 2**63, 0.5],
    "max_tokens": [0, -1, 1.5, True],
    "frames": [0, True, 2.5],
    "max_tiles": [0, "3"],
    "fps": [0, -1, float("inf"), float("nan"), "2", True],
    "start": [-1, "1:00"],
    "end": [float("nan")],
    "at": [[-1], ["1"], 3, [True]],
    "subtitles": [3],
    "multi_image": ["grid", 3],
    "timestamps": [1],
    "system": [3],
    "template": [3],
    "raw": [0],
    "prefill": [3],
    "lookup": [-1, 8, 1.5, "3", True],
    "ignore_eos": ["yes"],
    "stop": ["", ["a", ""], [3], 3],
    "json_schema": ["no JSON", "[1]", 3, [1]],
    "choices": ["", ["a", ""], [3], 3],
    "regex": ["", 3],
}


def check_sentence(line: str) -> None:
    """A sentence for people: one line, a full stop or a question mark, no form to be filled in."""
    assert re.fullmatch(r"[A-Za-z'-].*[.?]", line) and line.isprintable()
    assert ": expected " not in line and len(line) < 300


def test_every_option_is_tried():
    assert WRONG.keys() == {field.name for field in fields(Options)}


@pytest.mark.parametrize(
    "name, value", [(name, value) for name, values in WRONG.items() for value in values]
)
def test_a_wrong_value_is_named(name, value):
    with pytest.raises(ParameterError, match=rf"^{name} must be ") as caught:
        Options.of(**{name: value})
    check_sentence(str(caught.value))


@pytest.mark.parametrize("other", [dict(frames=4), dict(fps=1.0), dict(start=0.5), dict(end=3)])
def test_at_stands_alone(other):
    with pytest.raises(ParameterError, match=f"^at and {list(other)[0]} cannot be used together.$"):
        Options.of(at=[1, 2], **other)
    assert Options.of(at=[1, 2]).at == (1, 2)


@pytest.mark.parametrize(
    "name, meant",
    [
        ("max_tokenz", "max_tokens"),
        ("temprature", "temperature"),
        ("topk", "top_k"),
        ("fp", "fps"),
        ("nothing_like_it", None),
        ("", None),
        ("a\nb" * 1000, None),
    ],
)
def test_an_option_that_does_not_exist(name, meant):
    """The option that is spelt most alike is offered, and none where all are far from it."""
    with pytest.raises(ParameterError, match="No option is called") as caught:
        Options.of(**{name: 1})
    check_sentence(str(caught.value))
    offered = re.search(r"did you mean (\w+)\?$", str(caught.value))
    assert (offered and offered[1]) == meant


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(st.text(), min_size=5, max_size=5))
def test_errors_pickle_and_copy_whole(kind, texts):
    """The same text, type and exit code: another process or a copy must say the same."""
    for error in (kind(*texts), kind(texts[0])):
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
            assert type(again) is kind and again.exit_code == error.exit_code
            assert str(again) == str(error) and again.args == error.args


def test_the_two_forms_of_an_error():
    whole = errors.CheckpointError("cannot load", "a.json", "a list", 3, "Fetch it again.")
    assert str(whole) == "cannot load: a.json: expected a list, found 3. Fetch it again."
    assert str(ParameterError("a and b\ncannot be used together.")) == (
        r"a and b\ncannot be used together."
    )
