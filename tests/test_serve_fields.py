"""Every field of a request does what the table says: honoured, ignored, or refused by name."""

import base64
import io
import json
import time
from collections.abc import Callable
from types import SimpleNamespace

import asgi
import numpy as np
import pytest
import small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llava_min
from llava_min.engine.rules import BANNED
from llava_min.errors import (
    MediaError,
    MemoryBudgetError,
    NumericsError,
    ParameterError,
    PromptError,
)
from llava_min.options import Options
from llava_min.serve import service
from llava_min.serve.errors import BUSY, LOADING, STOPPING, STUCK, Refusal, refusal_of
from llava_min.serve.fields import FIELDS, Wanted, wanted_of
from llava_min.serve.parts import media_first
from llava_min.serve.protocol import TokenTexts
from llava_min.serve.service import Pictures
from llava_min.tokenizer import CharacterStream

SAMPLES = small.TINY / "samples"
TEXT = [{"role": "user", "content": "What is this?"}]
TESTED: set[str] = set()


def about(*names: str) -> Callable:
    """Note that a test is about these fields."""
    TESTED.update(names)
    return lambda test: test


def test_every_field_has_a_test():
    assert FIELDS.keys() == TESTED
    assert FIELDS.keys() == ACCEPTS.keys()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A random model in float64: a margin between two tokens is never a matter of rounding."""
    folder = small.small(tmp_path_factory.mktemp("model"), seed=3)
    with asgi.local(llava_min.load(folder, dtype="float64")) as server:
        yield server


@pytest.fixture(scope="module")
def model(served):
    return served.model


def uri(path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def png(width: int, height: int) -> dict:
    """A part that is a picture."""
    small.picture(width, height).save(file := io.BytesIO(), "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def user(*parts: dict) -> list[dict]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]


CLIP = user({"type": "video_url", "video_url": {"url": uri(SAMPLES / "clip.mp4", "video/mp4")}})
PICTURE, PICTURES = user(png(150, 100)), user(png(150, 100), png(90, 120))


# Fields that choose the tokens -------------------------------------------------------


DRAWN = {"temperature": 1.3, "seed": 5, "max_tokens": 12}


@about("temperature", "seed", "top_p", "top_k", "min_p", "repetition_penalty", "system")
@about("max_completion_tokens", "ignore_eos", "stop", "messages")
@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.3},
        {"temperature": 0},
        {"seed": 6},
        {"top_p": 0.2},
        {"top_k": 2},
        {"min_p": 0.3},
        {"repetition_penalty": 2.5},
        {"system": "Be brief."},
        {"max_tokens": 3},
        {"messages": [*TEXT, {"role": "assistant", "content": "It."}, *TEXT]},
        {"messages": [{"role": "system", "content": "Be brief."}, *TEXT]},
    ],
    ids=str,
)
def test_a_field_is_the_option_of_its_name(served, model, fields):
    """And it acts: without it the answer is another one."""
    found = served.choices(**DRAWN | fields)[0]
    given = {"messages": TEXT} | DRAWN | fields
    expected = model.generate(given.pop("messages"), **given)
    assert found["message"]["content"] == expected.text
    assert found["finish_reason"] == expected.finish_reason
    assert expected.text != model.generate(TEXT, **DRAWN).text


@about("top_k")
def test_no_limit_to_the_likeliest_in_two_ways(served):
    assert served.text(**DRAWN, top_k=-1) == served.text(**DRAWN, top_k=0) == served.text(**DRAWN)


@about("messages")
@pytest.mark.parametrize("role, meant", [("developer", "system"), ("system", "system")])
def test_roles(served, model, role, meant):
    messages = [{"role": role, "content": "Be brief."}, *TEXT]
    plan = ready(served, messages=messages).prepared.plan
    assert plan == model.prepare([{"role": meant, "content": "Be brief."}, *TEXT]).plan


@about("messages")
@pytest.mark.parametrize("role", [None, 5, [], {}, "", "User", "nobody", ["user"]])
def test_a_role_that_nobody_has_is_named(served, role):
    got = served.chat(messages=[*TEXT, {"role": role, "content": "Be brief."}])
    assert (got.status, got.json["error"]["param"]) == (400, "messages[1].role")


@given(st.text("ti", max_size=8))
def test_media_go_first_where_a_text_precedes_them(kinds):
    """In a message that is texts with media after them; in any other they stay where they are."""
    parts = [{"type": {"t": "text", "i": "image"}[kind], "at": at} for at, kind in enumerate(kinds)]
    found = media_first(parts)
    if kinds == "t" * kinds.count("t") + "i" * kinds.count("i"):
        assert found == [*parts[kinds.count("t") :], *parts[: kinds.count("t")]]
    else:
        assert found == parts


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(0, 12))
def test_pictures_that_were_used_last_are_kept_within_the_limit(visits, limit):
    """Against a model of it. Each picture has as many bytes as its name says."""
    kept, order = Pictures(limit), []
    for name in visits:
        place = SimpleNamespace(pixels=np.zeros(name, np.uint8))
        kept.add((bytes([name]),), SimpleNamespace(places=[place]))
        order = [other for other in order if other != name] + [name]
        while sum(order) > limit:
            order.pop(0)
        assert [key[0][0] for key in kept.media] == order and kept.bytes == sum(order)


def test_a_picture_that_comes_again_is_the_one_that_was_kept():
    """By its bytes alone, wherever in a request it is, and for the same way of opening it alone."""
    kept = Pictures(1000)
    one, other = (SimpleNamespace(places=[SimpleNamespace(pixels=np.zeros(9))]) for _ in range(2))
    clip = SimpleNamespace(places=[SimpleNamespace(pixels=object())])  # has no bytes of its own
    opened = {
        ("image", 1, "pad", 3): one,
        ("image", 0, "anyres", 3): other,
        ("video", 0, "x"): clip,
    }
    kept.keep([b"first", b"second", "http://host/third"], opened)
    found = kept.known([b"third", b"second", b"first", b"second"])
    expected = {(1, "pad", 3): one, (3, "pad", 3): one, (2, "anyres", 3): other}
    assert found == {("image", *key): medium for key, medium in expected.items()}
    assert kept.bytes == 2 * 9 * 8 and kept.digest("text") is None
    assert service.size_of(clip) == 0


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 40_000),
    st.integers(1, 200_000),
    st.none() | st.integers(1, 9),
    st.none() | st.integers(1, 50_000),
)
def test_slots_have_the_room_that_memory_allows(context, room, rows, tokens):
    """Fewer rows only where each would be too small, and no room left for a third more tokens."""

    def admit_together(plans):
        if sum(plan.tokens for plan, _ in plans) > room:
            raise MemoryBudgetError("no room", "memory", f"{room} tokens", "more")

    model = SimpleNamespace(
        config=SimpleNamespace(text=SimpleNamespace(context=context)),
        admission=SimpleNamespace(admit_together=admit_together),
    )
    least = min(context, service.LEAST_TOKENS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "Slots", lambda model, count, each, looks: (count, each))
        try:
            count, each = service.slots_for(model, rows, tokens)
        except MemoryBudgetError:
            wanted = (rows or service.SLOTS) if tokens else rows or 1
            assert wanted * (min(tokens, context) if tokens else least) > room
            return
    assert count * each <= room and 1 <= count <= (rows or service.SLOTS) and 1 <= each <= context
    assert count == (rows or service.SLOTS) or tokens is None and (count + 1) * least > room
    if tokens is None:
        assert each == context or each >= least and count * (each * 4 // 3 + 2) > room
    else:
        assert each == min(tokens, context)


@about("max_tokens", "max_completion_tokens")
def test_how_long_an_answer_may_be(served, model):
    """As asked, by either name; by default 512, or what fits."""
    for name in ("max_tokens", "max_completion_tokens"):
        got = served.chat(**{name: 4}).json
        assert got["usage"]["completion_tokens"] == 4
        assert got["choices"][0]["finish_reason"] == "length"
    assert served.chat(max_tokens=4, max_completion_tokens=4).status == 200
    error = served.chat(max_tokens=4, max_completion_tokens=5).error
    assert error["param"] == "max_completion_tokens" and error["code"] == "invalid_value"
    prompt, capacity = model.prepare(TEXT).plan.tokens, served.service.slots.capacity
    assert ready(served).options.max_tokens == 512
    long = [{"role": "user", "content": "What? " * 100}]
    tokens = model.prepare(long).plan.tokens
    assert capacity - 512 < tokens < capacity
    assert ready(served, messages=long).options.max_tokens == capacity - tokens
    assert ready(served, max_tokens=capacity - prompt).options.max_tokens == capacity - prompt
    error = served.chat(max_tokens=capacity - prompt + 1).error
    assert (error["param"], error["code"]) == ("max_tokens", "context_length_exceeded")
    assert str(prompt) in error["message"] and str(capacity) in error["message"]
    error = served.chat(max_completion_tokens=capacity).error
    assert error["param"] == "max_completion_tokens"
    got = served.chat(messages=[{"role": "user", "content": "What? " * 900}])
    assert got.status == 400 and got.error["param"] == "messages"
    assert got.error["code"] == "context_length_exceeded"


def test_what_cannot_fit_is_refused_before_a_picture_is_decoded(served, model, monkeypatch):
    """And tokens are counted without."""
    asked, prepare = [], service.prepare

    def noted(*given):
        asked.append(given[-1])
        return prepare(*given)

    monkeypatch.setattr(service, "prepare", noted)
    counted = served.post(f"{asgi.CHAT}/input_tokens", {"messages": PICTURE}).json["input_tokens"]
    assert asked == [True]
    room = served.service.slots.capacity - counted
    assert served.chat(messages=PICTURE, max_tokens=room + 1).status == 400 and asked == [True] * 2
    assert ready(served, messages=PICTURE, max_tokens=room).prepared.visuals
    assert asked == [True] * 3 + [False]


def test_a_prompt_has_room_for_one_token_of_an_answer_at_least(served):
    capacity, plain = served.service.slots.capacity, wanted()
    assert served.service.room(capacity - 1, plain) == 1
    for named, param in ((plain, "messages"), (wanted(max_tokens=1), "messages")):
        with pytest.raises(Refusal) as caught:
            served.service.room(capacity, named)
        assert (caught.value.status, caught.value.param) == (400, param)
    with pytest.raises(Refusal) as caught:
        served.service.room(capacity - 1, wanted(max_tokens=2))
    assert caught.value.param == "max_tokens" and caught.value.status == 400


def greedy(model, count: int, rule=lambda logits, new: logits, prompt=TEXT) -> list[int]:
    """The most likely ids after `rule`; the whole prompt is read again for each."""
    ids, new = model.prepare(prompt).ids, []
    for _ in range(count):
        new.append(int(rule(model.logits(ids + new)[-1].clone(), new).argmax()))
    return new


def text_of(model, ids: list[int]) -> str:
    stream = CharacterStream(model.tokenizer)
    return "".join(map(stream.feed, ids)) + stream.finish()


@about("logit_bias")
def test_bias_bans_and_forces(served, model):
    plain = greedy(model, 6)
    for amounts in ({plain[0]: -100}, {77: 100}, {plain[0]: -100, 77: 3.5}):

        def biased(logits, new, amounts=amounts):
            for number, amount in amounts.items():
                logits[number] += amount
            return logits

        found = served.text(logit_bias={str(n): a for n, a in amounts.items()}, max_tokens=6)
        assert found == text_of(model, greedy(model, 6, biased)) != text_of(model, plain)
    assert served.text(logit_bias={"77": 100}, max_tokens=3) == text_of(model, [77] * 3)
    assert served.text(logit_bias={}, max_tokens=6) == text_of(model, plain)
    last = model.known_ids - 1
    assert served.text(logit_bias={str(last): -100}, max_tokens=6) == text_of(model, plain)
    for wrong in (
        {str(last + 1): 1},
        {"-1": 1},
        {"x": 1},
        {"1": 101},
        {"1": -100.5},
        {"1" * 5000: 1},
        {"1": None},
    ):
        error = served.chat(logit_bias=wrong).error
        assert error["param"] == "logit_bias" and error["code"] == "invalid_value"


@about("frequency_penalty", "presence_penalty")
@pytest.mark.parametrize("frequency, presence", [(2, 0), (0, 2), (-0.5, 1.5), (0.25, 0)])
def test_penalties_count_the_tokens_of_the_answer(served, model, frequency, presence):
    def penal(logits, new):
        for number in set(new):
            logits[number] -= frequency * new.count(number) + presence
        return logits

    fields = {"frequency_penalty": frequency, "presence_penalty": presence}
    expected = text_of(model, greedy(model, 14, penal))
    assert served.text(**fields, max_tokens=14) == expected
    if frequency > 1 or presence:
        assert expected != text_of(model, greedy(model, 14))


@about("stop_token_ids", "min_tokens", "ignore_eos")
def test_ends(served, model):
    """An id of its own ends an answer and is not shown, but not before there are min_tokens."""
    plain = greedy(model, 8)
    end = next(number for number in plain if number != plain[0])
    at = plain.index(end)
    got = served.chat(stop_token_ids=[end, 99_999], max_tokens=8).json
    assert got["choices"][0]["message"]["content"] == text_of(model, plain[:at])
    assert got["choices"][0]["finish_reason"] == "stop"
    assert got["usage"]["completion_tokens"] == at + 1
    for least in (at, at + 1, at + 2):

        def banned(logits, new, least=least):
            logits[[end, 509]] = BANNED if len(new) < least else logits[[end, 509]]
            return logits

        expected = greedy(model, 8, banned)
        cut = expected[: expected.index(end)] if end in expected else expected
        found = served.chat(stop_token_ids=[end], min_tokens=least, max_tokens=8).json
        assert found["choices"][0]["message"]["content"] == text_of(model, cut)
        written = min(8, len(cut) + 1)
        assert found["usage"]["completion_tokens"] == written >= min(8, least)
    own = served.text(logit_bias={"509": 100}, max_tokens=8)  # 509 ends answers of this model
    more = served.chat(logit_bias={"509": 100}, max_tokens=8, ignore_eos=True, logprobs=True).json
    assert own == "" and more["usage"]["completion_tokens"] == 8
    assert len(more["choices"][0]["logprobs"]["content"]) == 8
    ended = served.chat(stop_token_ids=[end], ignore_eos=True, max_tokens=8).json
    assert ended["usage"]["completion_tokens"] == at + 1


@about("stop")
def test_stop_texts(served, model):
    """The earliest one ends the answer and is not shown, also across tokens, also in a stream."""
    whole = model.generate(TEXT, max_tokens=12).text
    parts = [whole[8:10], "not there", whole[5:7]]
    for stop in (parts[0], parts[:1], parts):
        places = [whole.find(text) for text in ([stop] if isinstance(stop, str) else stop)]
        expected = whole[: min(place for place in places if place >= 0)]
        found = served.choices(stop=stop, max_tokens=12)[0]
        assert found["message"]["content"] == expected and found["finish_reason"] == "stop"
        events = served.chat(stop=stop, max_tokens=12, stream=True).events
        assert streamed(events) == expected
    assert served.text(stop=[], max_tokens=12) == whole
    assert served.chat(stop=["a"] * 17).error["param"] == "stop"
    assert served.chat(stop=["\ud800"], max_tokens=2).status == 200


@about("n")
def test_answers_of_one_prompt_have_seeds_of_their_own(served, model):
    found = served.choices(n=3, **DRAWN)
    assert [choice["index"] for choice in found] == [0, 1, 2]
    seeds = range(5, 8)
    expected = [model.generate(TEXT, **DRAWN | {"seed": seed}).text for seed in seeds]
    assert [choice["message"]["content"] for choice in found] == expected
    assert len(set(expected)) == 3
    events = served.chat(n=3, stream=True, **DRAWN).events
    assert [streamed(events, index) for index in range(3)] == expected
    usage = served.chat(n=3, **DRAWN).json["usage"]
    assert usage["prompt_tokens"] == model.prepare(TEXT).plan.tokens
    assert usage["completion_tokens"] == 36
    high = 2**63 - 1
    assert [served.text(seed=s, temperature=2, max_tokens=9) for s in (high, 0)] == [
        choice["message"]["content"]
        for choice in served.choices(seed=high, temperature=2, n=2, max_tokens=9)
    ]
    assert len(served.choices(messages=TEXT, n=4, max_tokens=1)) == 4
    error = served.chat(n=5).error
    assert error["param"] == "n" and "4" in error["message"]


@about("logprobs", "top_logprobs")
@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.5, "logit_bias": {"77": 5}, "seed": 2}])
@pytest.mark.parametrize("top", [0, 1, 20])
def test_probabilities_are_those_of_score(served, model, drawn, top):
    """Before temperature and bias; the likeliest first; the bytes are those of the text."""
    (choice,) = served.choices(logprobs=True, top_logprobs=top, max_tokens=9, **drawn)
    entries = choice["logprobs"]["content"]
    answer = ids_of(model, entries)
    logits = model.logits(model.prepare(TEXT).ids + answer)[-len(answer) - 1 : -1]
    logs = logits.log_softmax(-1)
    scored = model.score(TEXT, answer).log_probabilities
    assert np.allclose([entry["logprob"] for entry in entries], scored, atol=1e-6, rtol=0)
    joined = b"".join(bytes(entry["bytes"]) for entry in entries)
    assert joined.decode(errors="replace") == choice["message"]["content"]
    for entry, row in zip(entries, logs, strict=True):
        values, ids = row[: model.known_ids].topk(top)
        found = [likely["logprob"] for likely in entry["top_logprobs"]]
        assert np.allclose(found, values, atol=1e-6, rtol=0)
        tokens = [bytes(likely["bytes"]) for likely in entry["top_logprobs"]]
        assert tokens == [served.service.texts.bytes_of(number) for number in ids.tolist()]
        assert entry["token"] == bytes(entry["bytes"]).decode(errors="replace")


def ids_of(model, entries: list[dict]) -> list[int]:
    """The ids whose bytes the entries of logprobs hold."""
    texts = TokenTexts(model.tokenizer)
    numbers = {texts.bytes_of(number): number for number in reversed(range(model.known_ids))}
    return [numbers[bytes(entry["bytes"])] for entry in entries]


@about("logprobs", "top_logprobs")
def test_probabilities_are_told_only_where_they_are_asked_for(served):
    for fields in ({}, {"logprobs": False}, {"logprobs": None}, {"top_logprobs": 0}):
        assert served.choices(max_tokens=1, **fields)[0]["logprobs"] is None
    for fields in ({"top_logprobs": 2}, {"top_logprobs": 2, "logprobs": False}):
        assert served.chat(**fields).error["param"] == "top_logprobs"
    for order in (("logprobs", "top_logprobs"), ("top_logprobs", "logprobs")):
        fields = {"logprobs": True, "top_logprobs": 2}
        (choice,) = served.choices(max_tokens=1, **{name: fields[name] for name in order})
        assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 2


@about("continue_final_message", "add_generation_prompt")
def test_an_answer_is_continued(served, model):
    begun = [*TEXT, {"role": "assistant", "content": "It is the"}]
    found = served.text(messages=begun, continue_final_message=True, max_tokens=6)
    assert found == model.generate(TEXT, prefill="It is the", max_tokens=6).text
    assert found != served.text(messages=begun, max_tokens=6)
    found = ready(served, messages=begun, continue_final_message=True, add_generation_prompt=False)
    assert found.prepared.plan == model.prepare(TEXT, prefill="It is the").plan
    for fields in (
        {"add_generation_prompt": False},
        {"add_generation_prompt": True, "continue_final_message": True, "messages": begun},
    ):
        assert served.chat(**fields).error["param"] == "add_generation_prompt"
    for messages in (
        TEXT,
        begun[1:],
        [*TEXT, {"role": "assistant", "content": [png(9, 9)]}],
    ):
        got = served.chat(messages=messages, continue_final_message=True)
        assert got.status == 400 and got.error["param"] == "messages"


# Fields that choose frames and tiles ---------------------------------------------------


def ready(served, **fields):
    """A question as the server lays it out. Raises Refusal."""
    return served.service.ready(json.dumps({"messages": TEXT} | fields).encode())


@about("frames", "fps", "start", "end", "at", "max_tiles", "multi_image", "timestamps")
@about("media_io_kwargs", "mm_processor_kwargs", "system")
@pytest.mark.parametrize(
    "messages, fields, options",
    [
        (CLIP, {"frames": 3}, {"frames": 3}),
        (CLIP, {"fps": 2}, {"fps": 2}),
        (CLIP, {"start": 1}, {"start": 1}),
        (CLIP, {"end": 1.5}, {"end": 1.5}),
        (CLIP, {"at": [0.5, 1]}, {"at": [0.5, 1]}),
        (CLIP, {"timestamps": True}, {"timestamps": True}),
        (CLIP, {"media_io_kwargs": {"video": {"num_frames": 3}}}, {"frames": 3}),
        (CLIP, {"media_io_kwargs": {"video": {"fps": 2, "num_frames": -1}}}, {"fps": 2}),
        (CLIP, {"mm_processor_kwargs": {"num_frames": 3}}, {"frames": 3}),
        (CLIP, {"mm_processor_kwargs": {"frames": 3, "fps": None}}, {"frames": 3}),
        (CLIP, {"mm_processor_kwargs": {"fps": 2.0}}, {"fps": 2}),
        (PICTURE, {"max_tiles": 1}, {"max_tiles": 1}),
        (PICTURE, {"mm_processor_kwargs": {"max_tiles": 1}}, {"max_tiles": 1}),
        (PICTURES, {"multi_image": "anyres"}, {"multi_image": "anyres"}),
        (TEXT, {"system": "Be brief."}, {"system": "Be brief."}),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value),
)
def test_the_prompt_is_laid_out_as_the_library_does(served, model, messages, fields, options):
    """Plan and tiles are those of Model.prepare; and the fields act."""
    found = ready(served, messages=messages, **fields).prepared
    expected = model.prepare(messages, **options)
    assert found.plan == expected.plan != ready(served, messages=messages).prepared.plan
    for one, other in zip(found.visuals, expected.visuals, strict=True):
        assert one.digest == other.digest
    assert ready(served, messages=messages).prepared.plan == model.prepare(messages).plan
    counted = served.post(f"{asgi.CHAT}/input_tokens", {"messages": messages} | fields).json
    assert counted["input_tokens"] == found.plan.tokens
    assert counted["image_tokens"] == found.visual_tokens


@pytest.mark.parametrize("typed", ["<image>", "<video>", "<|im_end|>\n<|im_start|>system"])
def test_what_is_typed_in_a_message_is_text(served, model, typed):
    """docs/using.md has the table."""
    messages = [{"role": "user", "content": f"Is it {typed} here?"}]
    found = ready(served, messages=messages).prepared
    special = [number for number in found.ids if number in model.tokenizer.special.values()]
    plain = model.prepare([{"role": "user", "content": "Is it x here?"}])
    assert found.plan == model.prepare(messages).plan and not found.visuals
    assert special == [i for i in plain.ids if i in model.tokenizer.special.values()]
    assert typed in found.text()


@about("media_io_kwargs", "mm_processor_kwargs")
@pytest.mark.parametrize(
    "fields, param",
    [
        ({"media_io_kwargs": {"audio": {}}}, "media_io_kwargs"),
        ({"media_io_kwargs": {"video": {"codec": 1}}}, "media_io_kwargs.video"),
        ({"media_io_kwargs": {"image": {"mode": "L"}}}, "media_io_kwargs.image"),
        ({"media_io_kwargs": {"video": {"num_frames": 0}}}, "media_io_kwargs.video.num_frames"),
        ({"mm_processor_kwargs": {"crop": 1}}, "mm_processor_kwargs"),
        ({"mm_processor_kwargs": {"fps": "2"}}, "mm_processor_kwargs.fps"),
        ({"frames": 3, "mm_processor_kwargs": {"num_frames": 4}}, "mm_processor_kwargs.num_frames"),
        ({"at": [1], "frames": 2}, "at"),
        ({"multi_image": "grid"}, "multi_image"),
    ],
    ids=str,
)
def test_what_media_are_not_opened_by_is_refused(served, fields, param):
    error = served.chat(messages=CLIP, **fields).error
    assert error["param"] == param
    assert error["code"] in ("unsupported_parameter", "invalid_value", "unsupported_value")


@about("media_io_kwargs")
def test_null_within_an_object_is_not_there(served):
    for fields in ({"media_io_kwargs": {"video": None}}, {"structured_outputs": {"json": None}}):
        assert ready(served, **fields).wanted == ready(served).wanted


# Fields for the form of the answer ------------------------------------------------------


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}, "b": {"enum": ["x"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@about("response_format", "guided_json", "guided_choice", "guided_regex", "structured_outputs")
@pytest.mark.parametrize(
    "fields, options",
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            {"json_schema": SCHEMA},
        ),
        ({"guided_json": SCHEMA}, {"json_schema": SCHEMA}),
        ({"guided_json": json.dumps(SCHEMA)}, {"json_schema": SCHEMA}),
        ({"structured_outputs": {"json": SCHEMA}}, {"json_schema": SCHEMA}),
        ({"guided_choice": ["red", "green"]}, {"choices": ["red", "green"]}),
        ({"structured_outputs": {"choice": ["red", "green"]}}, {"choices": ["red", "green"]}),
        ({"guided_regex": "[0-9]{3}"}, {"regex": "[0-9]{3}"}),
        ({"structured_outputs": {"regex": "[0-9]{3}"}}, {"regex": "[0-9]{3}"}),
    ],
    ids=str,
)
def test_forms_are_those_of_the_library(served, model, fields, options):
    found = served.choices(max_tokens=40, **fields)[0]
    expected = model.generate(TEXT, max_tokens=40, **options)
    assert found["message"]["content"] == expected.text and found["finish_reason"] == "stop"
    assert expected.text != model.generate(TEXT, max_tokens=40).text


@about("response_format")
def test_formats_without_a_schema(served):
    plain = served.text(max_tokens=8)
    assert served.text(max_tokens=8, response_format={"type": "text"}) == plain
    found = served.text(max_tokens=8, response_format={"type": "json_object"})
    assert found.startswith("{") and found != plain


@about("response_format", "structured_outputs", "guided_regex", "guided_json", "guided_choice")
@pytest.mark.parametrize(
    "fields, param",
    [
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {"grammar": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_json": {"type": "nothing"}}, "guided_json"),
        ({"guided_json": "no JSON"}, "guided_json"),
        ({"guided_json": {"a": 1}, "guided_regex": "a"}, "guided_json"),
        ({"guided_json": SCHEMA, "response_format": {"type": "json_object"}}, "response_format"),
        ({"guided_choice": ["a"], "ignore_eos": True}, "guided_choice"),
    ],
    ids=str,
)
def test_forms_that_cannot_be_followed_are_refused(served, fields, param):
    """By the name of the field, which the message has too."""
    got = served.chat(**fields)
    assert got.status == 400 and got.error["param"] == param
    assert got.error["message"].startswith(("guided", "structured", "response"))


# Fields for what comes back ------------------------------------------------------------


def streamed(events: list[dict], index: int = 0) -> str:
    """The text of one choice of a stream."""
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(c["delta"].get("content", "") for c in choices if c["index"] == index)


@about("stream", "stream_options")
def test_streams(served):
    whole = served.chat(**DRAWN, stream=False).json
    for options in (None, {}, {"include_usage": False}, {"include_usage": True}):
        got = served.chat(**DRAWN, stream=True, stream_options=options)
        events, told = got.events, bool(options and options.get("include_usage"))
        assert got.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert streamed(events) == whole["choices"][0]["message"]["content"]
        assert all(event["object"] == "chat.completion.chunk" for event in events)
        if told:
            *events, last = events
            assert last["choices"] == [] and last["usage"]["total_tokens"] == 25
            assert all(event["usage"] is None for event in events)
        else:
            assert not any("usage" in event for event in events)
        first, *_, end = events
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert end["choices"][0]["delta"] == {}
        reasons = [event["choices"][0]["finish_reason"] for event in events]
        assert reasons == [None] * (len(events) - 1) + ["length"]
    assert served.chat(stream_options={"include_usage": 1}).error["param"].startswith("stream_opt")


@about("return_progress")
def test_progress_is_told_in_the_stream(served):
    long = user({"type": "text", "text": "Word " * 90})
    total, begin = served.model.prepare(long).plan.tokens, time.perf_counter()
    events = served.chat(messages=long, return_progress=True, stream=True, max_tokens=1).events
    told = [event["prompt_progress"] for event in events if "prompt_progress" in event]
    assert told and told[-1]["processed"] == told[-1]["total"] == total
    counts = [one["processed"] for one in told]
    assert counts == sorted(counts) and all(one["cache"] <= one["processed"] for one in told)
    times = [one["time_ms"] for one in told]
    elapsed = (time.perf_counter() - begin) * 1000
    assert times == sorted(times) and 0 < times[-1] <= elapsed + 1
    again = served.chat(messages=long, stream=True, max_tokens=1).events
    assert not any("prompt_progress" in event for event in again)


@about("model")
def test_any_model_is_the_one_that_is_served(served):
    for name in ("served", "gpt-4o", "a/b", ""):
        got = served.chat(model=name, max_tokens=2).json
        assert got["model"] == "served"
        assert got["choices"][0]["message"]["content"] == served.text(max_tokens=2)


# Fields without effect -----------------------------------------------------------------


IGNORED = {
    "user": "somebody",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "flex",
    "safety_identifier": "x",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"a": 1},
    "parallel_tool_calls": False,
    "verbosity": "low",
    "reasoning_effort": "high",
    "reasoning": {"effort": "low"},
    "moderation": {"a": 1},
    "cache_control": {"type": "ephemeral"},
    "chat_template_kwargs": {"enable_thinking": False},
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
}
AS_IT_IS = {
    "tools": [],
    "functions": [],
    "tool_choice": "auto",
    "function_call": "none",
    "modalities": ["text"],
    "best_of": 1,
    "use_beam_search": False,
    "echo": False,
}
REFUSED = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "functions": [{"name": "f"}],
    "tool_choice": "required",
    "function_call": {"name": "f"},
    "modalities": ["text", "audio"],
    "best_of": 2,
    "use_beam_search": True,
    "echo": True,
    "audio": {"voice": "alloy"},
    "prediction": {"type": "content", "content": ""},
    "web_search_options": {},
    "chat_template": "{{ messages }}",
}


@about(*IGNORED, *AS_IT_IS)
def test_ignored_fields_leave_the_answer_as_it_is(served):
    plain, found = served.chat(**DRAWN).json, served.chat(**DRAWN, **IGNORED, **AS_IT_IS).json
    assert found["choices"] == plain["choices"]
    assert {name for name, field in FIELDS.items() if field.rule == "ignored"} == IGNORED.keys()
    for name in IGNORED:
        assert wanted(**{name: "whatever"}) == wanted()


@about(*REFUSED)
@pytest.mark.parametrize("name", REFUSED)
def test_refused_fields_are_named(served, name):
    got = served.chat(**{name: REFUSED[name]})
    codes = ("unsupported_parameter", "unsupported_value")
    assert got.status == 400 and got.error["code"] in codes
    assert got.error["param"] == name and got.error["message"].startswith(name)
    assert got.error["type"] == "invalid_request_error"


def test_unknown_fields_are_ignored_and_named_once_in_the_log(served, caplog):
    caplog.set_level("INFO", "llava_min")
    plain = served.choices(max_tokens=3)
    for _ in range(2):
        assert served.choices(max_tokens=3, cache_prompt=True, **{"x\ud800": 1}) == plain
    lines = [record.getMessage() for record in caplog.records]
    assert [line.rpartition(": ")[2] for line in lines] == ["'cache_prompt'", r"'x\ud800'"]


def test_the_log_names_a_hundred_unknown_fields_and_no_more(caplog):
    """Whoever sends them, it does not grow; and a name is cut."""
    caplog.set_level("INFO", "llava_min")
    held = SimpleNamespace(named=set())
    for part in (range(60), range(50, 120), range(120, 300)):
        service.Service.name_once(held, [f"{number:03}" + "x" * 99 for number in part])
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(set(lines)) == 100 and max(map(len, lines)) < 100


STATUSES = {
    400: "invalid_request_error", 401: "authentication_error", 402: "invalid_request_error",
    403: "permission_error", 404: "not_found_error", 405: "invalid_request_error",
    428: "invalid_request_error", 429: "rate_limit_error", 430: "invalid_request_error",
    499: "invalid_request_error", 500: "server_error", 503: "server_error",
}  # fmt: skip


@pytest.mark.parametrize("status", STATUSES)
def test_type_and_headers_of_a_refusal_follow_from_its_status(status):
    """Clients of OpenAI try again from 500 on, unless they are told not to."""
    never, later = Refusal(status, "No.", "n", "why"), Refusal(status, "Soon.", retry_after=0)
    error = {"message": "No.", "type": STATUSES[status], "param": "n", "code": "why"}
    assert never.body == {"error": error}
    assert never.headers == ({"x-should-retry": "false"} if status >= 500 else {})
    assert later.headers == {"retry-after": "0"}
    assert later.body["error"] == error | {"message": "Soon.", "param": None, "code": None}


WENT_WRONG = [
    (NumericsError("x"), 500, "numerics", None),
    (MemoryBudgetError("x"), 400, "out_of_memory", None),
    (ParameterError("top_p must be above 0."), 400, "invalid_value", None),
    (ParameterError("seed and top_p cannot be used together."), 400, "invalid_value", "p"),
    (PromptError("x"), 400, "invalid_value", "messages"),
    (MediaError("x"), 400, "invalid_value", None),
    (MediaError("x", "messages[2].content[10]", "a", "b"), 400, "invalid_value",
     "messages[2].content[10]"),
    (PromptError("messages[3]: x"), 400, "invalid_value", "messages[3]"),
    (RuntimeError("x"), 500, "internal_error", None),
    (STUCK, 503, "stuck", None),
    (LOADING, 503, "loading", None),
    (STOPPING, 503, "stopping", None),
    (BUSY, 429, "queue_full", None),
]  # fmt: skip


@pytest.mark.parametrize("error, status, code, param", WENT_WRONG, ids=repr)
def test_what_went_wrong_has_a_status_and_a_code(error, status, code, param):
    """And is tried again only where it may be well in a moment."""
    found = refusal_of(error, {"top_p": "p"} if param else None)
    assert (found.status, found.code, found.param) == (status, code, param)
    assert (found.retry_after is None) == (error not in (LOADING, STOPPING, BUSY))


def test_other_answers_begin_when_the_first_has_a_token(served, monkeypatch):
    """So that the prompt is read once."""
    worker, written = served.service.worker, []
    submit = worker.submit

    def noted(job) -> None:
        written.append(len(job.listen.__self__.exchange.choices[0].ids))
        submit(job)

    monkeypatch.setattr(worker, "submit", noted)
    long = user({"type": "text", "text": "Word " * 90})
    assert len(served.choices(messages=long, n=3, max_tokens=4, ignore_eos=True)) == 3
    assert len(written) == 3 and written[0] == 0 and min(written[1:]) > 0


@pytest.mark.parametrize("seed, index, expected", [
    (0, 0, 0), (5, 3, 8), (2**63 - 1, 0, 2**63 - 1), (2**63 - 1, 1, 0), (2**63 - 2, 5, 3)
])  # fmt: skip
def test_seeds_of_answers_go_on_from_zero_where_they_end(seed, index, expected):
    options = Options.of(seed=seed)
    found = service.Ready(wanted(), None, options, [], (), 0).option(index)
    assert found.seed == expected and Options.of(seed=found.seed)


@pytest.mark.parametrize("ids", [[-1], [True], [1.0], ["1"], "1", None, [0, 2**40]], ids=str)
def test_ids_that_are_none_have_no_text(served, model, ids):
    assert served.post("/detokenize", {"tokens": ids}).status == 400
    assert served.post("/detokenize", {"tokens": [model.known_ids]}).status == 400


def test_every_id_has_a_text(served, model):
    """The first, the last and the special ones, as the tokenizer writes them."""
    for number in (0, model.known_ids - 1, *model.config.text.eos_ids):
        got = served.post("/detokenize", {"tokens": [number]}).json
        text = model.tokenizer.decode([number], special=True)
        assert got["content"] == got["prompt"] == text
    assert served.post("/detokenize", {"tokens": []}).json["content"] == ""


def test_a_text_that_is_too_long_is_not_tokenized(served, monkeypatch):
    monkeypatch.setattr(service, "PROMPT_BYTES", 5)
    assert served.post("/tokenize", {"content": "12345"}).json["count"] > 0
    for wrong in ("123456", 5, None):
        got = served.post("/tokenize", {"content": wrong})
        assert got.status == 400 and got.error["param"] == "content"


def test_as_many_answers_as_there_are_slots(served):
    rows = len(served.service.slots.questions)
    assert len(ready(served, n=rows).rules) == rows
    got = served.chat(n=rows + 1)
    assert got.status == 400 and got.error["param"] == "n"


def test_an_end_that_the_model_does_not_know_is_none(served, model):
    """It never comes, so that nothing need keep it away."""
    known = model.known_ids
    for ends in ([known - 1], [known], [known + 5]):
        fields = {"stop_token_ids": ends, "min_tokens": 2, "max_tokens": 3}
        assert len(ids_of_answer(served, **fields)) >= 2


def ids_of_answer(served, **fields) -> list:
    (choice,) = served.choices(logprobs=True, **fields)
    return choice["logprobs"]["content"]


# Any value of any field -----------------------------------------------------------------


ACCEPTS = {
    # field: the kinds of JSON that it may be; a word for what is no kind of its own
    "messages": "list",
    "model": "text",
    "max_tokens": "number",
    "max_completion_tokens": "number",
    "temperature": "number",
    "top_p": "number",
    "seed": "number",
    "stop": "text list",
    "stream": "boolean",
    "stream_options": "object",
    "n": "number",
    "logprobs": "boolean",
    "top_logprobs": "number",
    "logit_bias": "object",
    "frequency_penalty": "number",
    "presence_penalty": "number",
    "response_format": "object",
    "top_k": "number",
    "min_p": "number",
    "repetition_penalty": "number",
    "ignore_eos": "boolean",
    "min_tokens": "number",
    "stop_token_ids": "list",
    "add_generation_prompt": "boolean",
    "continue_final_message": "boolean",
    "guided_json": "text object",
    "guided_choice": "text list",
    "guided_regex": "text",
    "structured_outputs": "object",
    "media_io_kwargs": "object",
    "mm_processor_kwargs": "object",
    "return_progress": "boolean",
    "frames": "number",
    "fps": "number",
    "start": "number",
    "end": "number",
    "at": "list",
    "max_tiles": "number",
    "multi_image": "text",
    "system": "text",
    "timestamps": "boolean",
    "tools": "list object",
    "functions": "list object",
    "tool_choice": "text",
    "function_call": "text",
    "modalities": "list",
    "audio": "",
    "prediction": "",
    "web_search_options": "",
    "best_of": "number",
    "use_beam_search": "boolean",
    "echo": "boolean",
    "chat_template": "",
    **dict.fromkeys(IGNORED, "boolean number text list object"),
}
TEXTS = st.text(st.characters(codec=None), max_size=6)  # lone surrogates too
NUMBERS = st.one_of(
    st.integers(-3, 30),
    st.integers(),
    st.sampled_from([10**400, -(10**30), 2**63, 2**31, -1, 1e-320]),
    st.floats(allow_nan=False, allow_infinity=False),
)
LEAVES = {"boolean": st.booleans(), "number": NUMBERS, "text": TEXTS}
KEYS = TEXTS | st.sampled_from(["1", "9" * 5000, "type", "json", "choice", "video", "fps", "\0"])
ANY = st.recursive(
    st.one_of(st.none(), *LEAVES.values()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
KINDS = LEAVES | {
    "list": st.lists(ANY, max_size=3),
    "object": st.dictionaries(KEYS, ANY, max_size=3),
}
NO_FIXTURE_CHANGES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def wanted(**fields) -> Wanted:
    return wanted_of({"messages": TEXT} | fields)[0]


@pytest.mark.parametrize("name", FIELDS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_wrong_type_is_refused_by_the_name_of_the_field(name, data):
    """Of fields that honour or refuse something, whatever else the request says."""
    kinds = [kind for kind in KINDS if kind not in ACCEPTS[name].split()]
    if not kinds:
        return
    value = data.draw(st.one_of([KINDS[kind] for kind in kinds]))
    with pytest.raises(Refusal) as caught:
        wanted(**{name: value})
    refusal = caught.value
    assert refusal.status == 400 and refusal.param == name and refusal.code
    assert refusal.message.startswith(name)


@pytest.mark.parametrize("name", FIELDS)
@settings(max_examples=25, deadline=None, suppress_health_check=NO_FIXTURE_CHANGES)
@given(data=st.data())
def test_any_value_is_understood_or_refused_by_the_name_of_the_field(served, name, data):
    """Whatever the JSON is: a prompt that is ready, or a 400 with the field; nothing else."""
    value = data.draw(st.one_of(list(KINDS.values())))
    try:
        ready(served, **{name: value})
    except Refusal as refusal:
        assert refusal.status == 400 and refusal.code
        assert refusal.param.partition(".")[0].partition("[")[0] in (name, "messages")
        json.dumps(refusal.body).encode("ascii")


@pytest.mark.parametrize("name", FIELDS)
def test_null_is_a_field_that_is_not_there(name):
    if name == "messages":
        with pytest.raises(Refusal, match="messages must be"):
            wanted(messages=None)
    else:
        assert wanted(**{name: None}) == wanted()


@pytest.mark.parametrize(
    "name, least, most",
    [
        ("temperature", 0.0, 100.0),
        ("top_p", 1e-9, 1),
        ("min_p", 0.0, 1.0),
        ("seed", 0, 2**63 - 1),
        ("top_k", -1, 2**31 - 1),
        ("repetition_penalty", 0.01, 100),
        ("frequency_penalty", -2.0, 2.0),
        ("presence_penalty", -2.0, 2.0),
        ("top_logprobs", 0, 20),
        ("n", 1, 16),
        ("max_tokens", 1, 2**31 - 1),
        ("min_tokens", 0, 2**31 - 1),
        ("frames", 1, 2**20),
        ("max_tiles", 1, 2**20),
        ("fps", 1e-6, 1000),
        ("start", 0, 1e6),
        ("end", 0, 1e6),
    ],
)
def test_the_limits_of_numbers(name, least, most):
    """Both ends are allowed, and nothing beyond; 3.0 is a whole number."""
    beyond = 1 if isinstance(least, int) and isinstance(most, int) else 1e-6
    with_it = {"logprobs": True} if name == "top_logprobs" else {}
    for value in (least, most, float(least)):
        wanted(**{name: value}, **with_it)
    for value in (least - beyond, most + beyond):
        with pytest.raises(Refusal) as caught:
            wanted(**{name: value}, **with_it)
        assert caught.value.param == name


@pytest.mark.parametrize("name, least, most", [("stop", 0, 16), ("guided_choice", 1, 10_000)])
def test_the_limits_of_lists(name, least, most):
    """Both ends are allowed, and nothing beyond."""
    for count in (least, most):
        wanted(**{name: ["x"] * count})
    for count in {least - 1, most + 1} - {-1}:
        with pytest.raises(Refusal, match=name):
            wanted(**{name: ["x"] * count})


def test_what_is_not_said_is_not_asked_for():
    found = wanted()
    assert (found.n, found.top, found.options) == (1, None, {})
    asked = ("stream", "include_usage", "frequency_penalty", "presence_penalty", "logit_bias",
             "min_tokens", "stop_token_ids", "prefilled", "progress")  # fmt: skip
    assert not any(getattr(found, name) for name in asked)
    assert wanted(logprobs=True).top == 0 and wanted(logprobs=True, top_logprobs=3).top == 3


@pytest.mark.parametrize(
    "body", [[], None, "x", 1, {}, {"messages": []}, {"messages": {}}], ids=str
)
def test_a_body_without_messages_is_refused(body):
    with pytest.raises(Refusal) as caught:
        wanted_of(body)
    assert caught.value.status == 400
    assert caught.value.param == ("messages" if isinstance(body, dict) else None)


def test_options_that_fields_give_are_valid():
    """What the table lets through, Options takes: limits are not looser here than there."""
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "top_k", "seed"):
        for value in (0, 1, 0.5, 50):
            try:
                found = wanted(**{name: value})
            except Refusal:
                continue
            Options.of(**found.options)
