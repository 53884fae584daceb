"""Prompt lookup: the answer with drafts is the answer without them, and takes fewer forwards."""

import json
from dataclasses import replace

import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import llava_min
from llava_min import trace
from llava_min.cache import Cache
from llava_min.command.main import main
from llava_min.decoder import DECODE_QUERIES
from llava_min.engine.lookup import History, Lookup
from llava_min.engine.rules import Likelihoods
from llava_min.engine.step import decoding
from llava_min.errors import ParameterError
from llava_min.generate import generate
from llava_min.options import MOST_DRAFTED, Options
from llava_min.segments import Plan, Text

PICTURE = str(small.TINY / "samples" / "shapes.png")
DRAFTS = ("drafted_tokens", "accepted_tokens")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """In float64, where a forward of several rows rounds nothing that a choice could see."""
    folder = small.small(tmp_path_factory.mktemp("model"), seed=3)
    return llava_min.load(folder, dtype="float64", device="cpu")


def both(model, question, **options):
    """(the answer without lookup, the answer with it); what they say of themselves is equal."""
    lookup = options.pop("lookup", MOST_DRAFTED)
    without = model.generate(question, **options)
    drafted = model.generate(question, **options, lookup=lookup)
    said = [(one.token_ids, one.text, one.finish_reason) for one in (without, drafted)]
    assert said[0] == said[1]
    assert not set(DRAFTS) & set(without.usage)
    assert {k: v for k, v in drafted.usage.items() if k not in DRAFTS} == without.usage
    accepted, tried = drafted.usage["accepted_tokens"], drafted.usage["drafted_tokens"]
    assert 0 <= accepted <= min(tried, len(without.token_ids))
    return without, drafted


few = st.lists(st.integers(5, 9), min_size=1, max_size=6)  # so that they come again


@settings(max_examples=150, deadline=None)
@given(
    words=few,
    times=st.integers(1, 6),
    lookup=st.integers(1, MOST_DRAFTED),
    max_tokens=st.integers(1, 30),
    temperature=st.sampled_from([0.0, 0.0, 0.05, 0.3, 1.0]),
    seed=st.integers(0, 99),
    penalty=st.sampled_from([1.0, 1.0, 1.1, 0.9]),
    top_k=st.sampled_from([0, 2]),
    ends=st.lists(st.integers(0, 29), max_size=2),
    stopped=st.booleans(),
)
def test_the_answer_is_the_same(
    model, words, times, lookup, max_tokens, temperature, seed, penalty, top_k, ends, stopped
):
    """Whatever ends it, wherever in a draft, and however a token is chosen."""
    options = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "repetition_penalty": penalty,
        "top_k": top_k,
    }
    question = (words * times)[:40]
    plain = model.generate(question, **options)
    eos = {plain.token_ids[i] for i in ends if i < len(plain.token_ids)}
    if stopped and len(plain.text) > 6:
        options["stop"] = plain.text[3:5]
    text = replace(model.config.text, eos_ids=tuple(eos) or model.config.text.eos_ids)
    ending = replace(model, config=replace(model.config, text=text))
    both(ending, question, lookup=lookup, **options)


def test_a_repeated_answer_takes_fewer_forwards(model, monkeypatch):
    """A model that repeats itself: each forward of eight rows gives up to eight tokens."""
    forwards, decoder = [], model.network.decoder
    forward = decoder.forward

    def counted(rows, cache, *kept):
        forwards.append(rows.shape[1])
        return forward(rows, cache, *kept)

    monkeypatch.setattr(decoder, "forward", counted)
    options = {"max_tokens": 200, "ignore_eos": True}
    question = [5, 6, 7, 8] * 3
    without = model.generate(question, **options)
    assert forwards == [12, *[1] * 199]
    forwards.clear()
    drafted = model.generate(question, **options, lookup=MOST_DRAFTED)
    assert drafted.token_ids == without.token_ids
    assert len(forwards) < 100 and max(forwards[1:]) == DECODE_QUERIES == MOST_DRAFTED + 1
    rows = sum(forwards[1:]) - len(forwards[1:])
    assert drafted.usage["drafted_tokens"] == rows
    assert drafted.usage["accepted_tokens"] + len(forwards) == 200


def test_nothing_is_drafted_past_the_end_of_the_cache(model):
    """Every length of a repeated answer, with a cache that has room for it and no more."""
    question = [5, 6, 7, 8] * 3
    whole = model.generate(question, max_tokens=60, ignore_eos=True).token_ids
    for count in range(30, 60):
        answer = model.generate(question, max_tokens=count, ignore_eos=True, lookup=7)
        assert answer.token_ids == whole[:count]
        assert answer.usage["drafted_tokens"] - answer.usage["accepted_tokens"] < 60


@pytest.mark.parametrize("most", [1, 3, 7])
def test_a_draft_is_as_long_as_there_is_room_for(model, most):
    """The newest token takes a place, and what is drafted as many as are left."""
    ids = [5, 6, 7, 8] * 3
    for spare in range(1, 11):
        cache = Cache.empty(model.config.text, 1, len(ids) + spare, torch.float64)
        model.network.prefill(Plan((Text(tuple(ids)),), 4096), [], cache)
        step = decoding(model.network, cache, model.known_ids)
        lookup = Lookup(model.network, cache, model.known_ids, step, ids, most)
        lookup([5])  # after which 6 7 8 came
        assert len(lookup.waiting) == lookup.drafted == min(most, spare - 1)
        assert int(cache.host_lengths[0]) == len(ids) + 1 and lookup.accepted == 0


def test_up_to_the_end_of_the_context(model):
    text = replace(model.config.text, context=40)
    short = replace(model, config=replace(model.config, text=text))
    both(short, [5, 6, 7, 8] * 3, max_tokens=28, ignore_eos=True)


def steps_of(model, ids, lookup):
    """(a cache that has read the ids, the logits of the last, a step with drafts or without)."""
    cache = Cache.empty(model.config.text, 1, len(ids) + 40, torch.float64)
    logits = model.network.prefill(Plan((Text(tuple(ids)),), 4096), [], cache)
    step = decoding(model.network, cache, model.known_ids)
    if lookup:
        step = Lookup(model.network, cache, model.known_ids, step, ids, lookup)
    return cache, logits, step


def test_the_cache_and_the_probabilities_are_the_same(model):
    """After every token: what the cache counts, and what it holds; and logprobs, as a rule."""
    ids, options = [5, 6, 7, 8] * 3, Options(max_tokens=40, ignore_eos=True)
    found = []
    for lookup in (0, 7):
        prepared = model.prepare(ids)
        cache, logits, step = steps_of(model, ids, lookup)
        likely = Likelihoods(3, model.known_ids)
        reply = model.reply(prepared, options, 0.0, [likely])
        lengths = []
        for _ in generate(reply, logits, step):
            lengths.append((int(cache.host_lengths[0]), int(cache.lengths[0])))
        found.append((reply.new, lengths, likely.settle(reply.new), cache.tensors()))
    (ids, lengths, likely, held), (other_ids, other_lengths, other_likely, other_held) = found
    assert ids == other_ids and lengths == other_lengths
    for one, other in zip(likely, other_likely, strict=True):
        assert one.id == other.id and [i for i, _ in one.top] == [i for i, _ in other.top]
        assert abs(one.log_probability - other.log_probability) < 1e-10
    for name in ("keys", "values"):
        assert (held[name] - other_held[name]).abs().max() < 1e-10


@pytest.mark.parametrize(
    "given",
    [{}, {"kv_dtype": "int8"}, {"bits": 4}, {"bits": 4, "kv_dtype": "int8"}],
    ids=str,
)
def test_the_toy(given):
    """Its own words, with every kind of cache and of weights, in float32."""
    toy, accepted = llava_min.load(device="cpu", **given), 0
    for question in ("Describe the picture.", "Where is the star?", "Is there a star?"):
        for options in ({}, {"ignore_eos": True, "max_tokens": 60}, {"temperature": 0.7}):
            _, drafted = both(toy, question, images=[PICTURE], **options)
            accepted += drafted.usage["accepted_tokens"]
    assert accepted > 20


def test_a_chat_goes_on_from_what_was_chosen(model):
    """The next question finds the answer in the cache, and nothing that was drafted in vain."""
    options = {"max_tokens": 24, "ignore_eos": True}
    chats = [model.chat(**options), model.chat(**options, lookup=MOST_DRAFTED)]
    for question in ("a a a a a a", "Again?", "a b a b a b", "More?"):
        plain, drafted = (chat.ask(question) for chat in chats)
        assert plain.token_ids == drafted.token_ids
        assert plain.usage["cached_tokens"] == drafted.usage["cached_tokens"]
    scratch = model.generate(chats[1].turns[:-1], **options)
    assert scratch.token_ids == drafted.token_ids


def test_what_somebody_watches_is_not_drafted(model):
    """Every step shows one token, as it does without lookup."""
    seen = []
    for lookup in (0, MOST_DRAFTED):
        with trace.watch("hidden") as hidden:
            model.generate([5, 6] * 6, max_tokens=20, ignore_eos=True, lookup=lookup)
        seen.append(hidden)
    assert len(seen[0]) == len(seen[1]) == 20
    assert all(torch.equal(one, other) for one, other in zip(*seen))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 9))
def test_a_draft_is_what_followed_last_time(ids, most):
    """By definition: the newest three ids, or else two, at the last place where they were before,
    and from there on.
    """
    expected = []
    for size in (3, 2):
        ends = [e for e in range(size, len(ids)) if ids[e - size : e] == ids[len(ids) - size :]]
        if ends and not expected:
            expected = (ids[ends[-1] :] * most)[:most]
    assert History(ids).following(most) == expected


def test_it_is_for_one_answer_alone(model, tmp_path):
    with pytest.raises(ParameterError, match="lookup drafts for one answer alone"):
        model.generate_batch([{"question": [5, 6], "max_tokens": 2, "lookup": 2}])
    for wrong in (-1, MOST_DRAFTED + 1, 1.0, True, "3"):
        with pytest.raises(ParameterError, match="lookup"):
            model.generate([5, 6], lookup=wrong)


def test_the_command(capsys):
    """--lookup takes a number or none, a question after it is the question, and counts are told."""
    options = ["--image", PICTURE, "--max-tokens", "60", "--ignore-eos", "--device", "cpu"]
    texts = []
    for words in (["--lookup"], ["--lookup", "3"], ["--lookup=3"], []):
        assert main([*words, "Describe the picture.", *options]) == 0
        out, err = capsys.readouterr()
        texts.append(out)
        assert ("drafted ones taken" in err) == bool(words)
    assert len(set(texts)) == 1
    assert main(["--lookup", "3", "--json", "-q", "Describe the picture.", *options]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry["settings"]["lookup"] == 3
    assert entry["usage"]["drafted_tokens"] >= entry["usage"]["accepted_tokens"] > 0
    assert main(["--lookup", "8", "What?"]) == 2
    assert main(["--lookup", "--batch", "in.jsonl", "-o", "out.jsonl"]) == 2
    assert "cannot be used together" in capsys.readouterr().err
