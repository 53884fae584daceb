"""The token loop: when it stops, what it shows, and that the same question gets the same answer."""

import time

import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st

import llava_min
from llava_min.engine.answers import Finished
from llava_min.errors import CheckpointError, MediaError, ParameterError, PromptError
from llava_min.generate import StopTexts, Token


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return llava_min.load(small.small(tmp_path_factory.mktemp("model"), seed=3))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("abc", max_size=3), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
)
def test_text_ends_before_the_first_stop_text(pieces, stops):
    """However the text is cut into pieces, what is shown is the text before the earliest stop."""
    stop, shown = StopTexts(tuple(stops)), ""
    for piece in pieces:
        shown += stop.feed(piece)
    shown += stop.finish()
    whole = "".join(pieces)
    ends = [whole.find(text) for text in stops if text in whole]
    if not ends:
        assert shown == whole and not stop.found
    else:
        assert stop.found and whole.startswith(shown)
        assert not any(text in shown for text in stops)


def test_times_add_up(model):
    start = time.perf_counter()
    times = model.generate("What?", images=[small.picture(90, 60)], max_tokens=4).timings
    whole = time.perf_counter() - start
    assert 0 < times["prefill_s"] <= times["ttft_s"]
    assert 0 < times["decode_s"] <= whole - times["ttft_s"] + 1e-3


def test_greedy_follows_the_logits(model):
    """Each token is the most likely one after the prompt and the tokens before it."""
    ids = []
    text = model.prepare("What?").ids
    answer = model.generate("What?", max_tokens=6, ignore_eos=True)
    assert len(answer.token_ids) == 6 and answer.finish_reason == "length"
    for token in answer.token_ids:
        assert int(model.logits(text + ids)[-1].argmax()) == token
        ids.append(token)


def test_sampling_is_reproducible_and_the_seed_matters(model):
    """0.8 and seed 7, twice; other seeds give other texts."""
    ask = lambda seed: model.generate("What?", temperature=0.8, seed=seed, max_tokens=12).token_ids
    assert ask(7) == ask(7)
    assert len({tuple(ask(seed)) for seed in range(5)}) > 1


def test_streamed_text_is_the_answer(model):
    options = dict(temperature=1.0, seed=2, max_tokens=30)
    assert "".join(model.stream("What?", **options)) == model.generate("What?", **options).text


def test_a_stop_text_ends_the_answer(model):
    whole = model.generate("What?", temperature=1.0, seed=5, max_tokens=40)
    stop = whole.text[5:8]
    cut = model.generate("What?", temperature=1.0, seed=5, max_tokens=40, stop=[stop])
    assert cut.finish_reason == "stop" and cut.text == whole.text[: whole.text.find(stop)]


def test_the_end_token_ends_the_answer(model):
    """With every id an end token, one token comes and no text."""
    from dataclasses import replace

    text = replace(model.config.text, eos_ids=tuple(range(512)))
    ending = replace(model, config=replace(model.config, text=text))
    answer = ending.generate("What?", max_tokens=5)
    assert (answer.finish_reason, len(answer.token_ids), answer.text) == ("stop", 1, "")
    assert len(ending.generate("What?", max_tokens=5, ignore_eos=True).token_ids) == 5


def test_ctrl_c_is_raised_or_keeps_what_was_said(model, monkeypatch):
    """A program is interrupted; the command, which says that it can be, keeps the text so far."""
    decode, calls = model.network.decode, []

    def interrupted(ids, cache):
        calls.append(ids)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return decode(ids, cache)

    monkeypatch.setattr(model.network, "decode", interrupted)
    options = dict(max_tokens=20, ignore_eos=True)
    with pytest.raises(KeyboardInterrupt):
        model.generate("What?", **options)
    calls.clear()
    events = list(model.events("What?", interruptible=True, **options))
    assert [e.reason for e in events if isinstance(e, Finished)] == ["interrupted"]
    assert sum(isinstance(e, Token) for e in events) == 3
    assert events[-1].finish_reason == "interrupted" and len(events[-1].token_ids) == 3


def test_a_failure_leaves_the_model_able_to_answer(model):
    before = model.generate("What?", images=[small.picture(50, 40)], max_tokens=5)
    with pytest.raises(PromptError):
        model.generate("<image>", images=[], max_tokens=5)
    with pytest.raises(MediaError):
        model.generate("What?", images=[b"nonsense"])
    after = model.generate("What?", images=[small.picture(50, 40)], max_tokens=5)
    assert before.token_ids == after.token_ids


def test_the_answer_adds_up(model):
    answer = model.generate(
        "What?", images=[small.picture(100, 60)] * 2, videos=[small.frames(3)], max_tokens=4
    )
    assert (
        answer.usage["image_tokens"]
        == sum(entry["tokens"] for entry in answer.media)
        == 17 + 17 + 13
    )
    assert [entry["type"] for entry in answer.media] == ["image", "image", "video"]
    assert answer.media[2]["frames"] == 3 and answer.memory["peak_bytes"] > 0
    assert answer.usage["completion_tokens"] == len(answer.token_ids)


def test_too_long_a_prompt_is_refused_with_the_arithmetic_before_any_vision(model, monkeypatch):
    monkeypatch.setattr(model.network, "encode", None)
    with pytest.raises(
        PromptError, match=r"at most 4,096 tokens, found .* text \+ .* pictures \+ 5,000"
    ):
        model.generate("What?", images=[small.picture(50, 50)], max_tokens=5000)


def test_prompts_as_ids_hold_a_mark_for_each_visual(model):
    picture = small.picture(60, 80)
    prepared = model.prepare("What?", [picture])
    first, _, last = prepared.plan.segments
    ids = [*first.ids, -200, *last.ids]
    assert model.logits(ids, images=[picture]).equal(model.logits("What?", images=[picture]))
    with pytest.raises(PromptError, match="expected 1 times -200"):
        model.logits([1, 2], images=[picture])
    with pytest.raises(PromptError, match="token id"):
        model.logits([1, 512])


def test_messages_are_the_prompt_they_describe(model):
    picture = small.picture(60, 80)
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": parts}]
    assert model.logits(messages, images=[picture]).equal(model.logits("What?", images=[picture]))
    with pytest.raises(PromptError, match="beside"):
        model.generate(messages)


def test_max_tiles_limits_the_grid(model):
    wide = small.picture(160, 60)
    answer = model.generate("What?", images=[wide], max_tokens=1)
    limited = model.generate("What?", images=[wide], max_tokens=1, max_tiles=1)
    assert answer.media[0]["tiles"] > limited.media[0]["tiles"] == 2


def test_prefill_and_raw(model):
    """--prefill is the beginning of the answer; --raw is the template written by hand."""
    by_hand = "<|im_start|>user \nWhat?<|im_end|><|im_start|>assistant\n"
    assert model.logits(by_hand, raw=True).equal(model.logits("What?"))
    assert model.logits(by_hand + "A star", raw=True).equal(model.logits("What?", prefill="A star"))
    picture = small.picture(50, 50)
    by_hand = "<|im_start|>user <image>\nWhat?<|im_end|><|im_start|>assistant\n"
    assert model.logits(by_hand, raw=True, images=[picture]).equal(
        model.logits("What?", images=[picture])
    )


@pytest.mark.parametrize(
    "given",
    [
        {"max_tokens": 0},
        {"max_tokens": 2.5},
        {"frames": 0},
        {"multi_image": "both"},
        {"stop": [""]},
        {"temperatur": 1},
        {"template": "none"},
    ],
)
def test_options_out_of_range_are_named(model, given):
    with pytest.raises(ParameterError, match=next(iter(given))):
        model.generate("What?", **given)


@pytest.mark.parametrize("question", ["", "   ", "\n"])
def test_an_empty_question_is_refused(model, question):
    with pytest.raises(PromptError, match="empty"):
        model.generate(question)


def test_what_is_no_source_is_named(model):
    """From Python too: an argument of another kind, a name that no file can have."""
    for wrong in (5, 1.5, object()):
        with pytest.raises(ParameterError, match="images and videos must be.*not the"):
            model.generate("What?", images=wrong)
        with pytest.raises(ParameterError, match="images and videos must be"):
            model.chat().ask("What?", videos=wrong)
    with pytest.raises(CheckpointError, match="cannot find the checkpoint"):
        llava_min.load("a\0b")
