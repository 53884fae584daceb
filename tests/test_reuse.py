"""What rows of the slots hold is used again, and every answer is still the one given alone."""

import time

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import llava_min
from llava_min.engine.batch import ready_for
from llava_min.engine.looks import Looks
from llava_min.engine.pace import Pace
from llava_min.engine.rows import WORTH, Contents
from llava_min.engine.slots import Slots

SYSTEM = "You are somebody who answers in few words. " * 4
PICTURES = [small.picture(80, 60), small.picture(81, 60)]


@pytest.fixture(scope="module", params=["auto", "int8"])
def model(request, tmp_path_factory):
    """In float64, with a cache as it is and with one of 8 bits."""
    folder = small.small(tmp_path_factory.mktemp("model"), seed=3)
    return llava_min.load(folder, dtype="float64", kv_dtype=request.param)


def asked(words: list[int], picture: int | None, system: bool) -> dict:
    """A question whose beginning is that of others."""
    found = {"question": " ".join(f"word{word}" for word in words), "max_tokens": 4}
    found |= {"ignore_eos": True} | ({"system": SYSTEM} if system else {})
    return found if picture is None else found | {"images": [PICTURES[picture]]}


def finish(slots: Slots, one=None):
    while slots.busy and not (one and one.ended):
        slots.round()


QUESTION = st.builds(
    asked,
    st.lists(st.integers(0, 2), min_size=1, max_size=12),
    st.sampled_from([None, 0, 1]),
    st.booleans(),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(QUESTION, st.integers(0, 12)), min_size=2, max_size=7), st.integers(1, 3))
def test_answers_do_not_depend_on_what_was_reused(model, questions, rows):
    """Any mixture of shared beginnings, rows and moments: ids of each as alone."""
    slots, submitted = Slots(model, rows, 700, looks=1 << 20), []
    for question, pause in questions:
        submitted.append(slots.submit(*ready_for(model, "r", question), 0.0))
        for _ in range(pause):
            slots.round()
    finish(slots)
    for one, (question, _) in zip(submitted, questions):
        assert one.error is None, one.error
        given = dict(question)
        assert one.answer.token_ids == model.generate(given.pop("question"), **given).token_ids


def test_the_next_turn_computes_only_what_is_new(model):
    """A second question about the same picture: all before it is in the row already."""
    slots = Slots(model, 2, 700)
    first = slots.submit(*ready_for(model, "r", asked([0], 0, True)), 0.0)
    finish(slots)
    second = slots.submit(*ready_for(model, "r", asked([1], 0, True)), 0.0)
    finish(slots)
    prompt = second.prepared.plan.tokens
    assert first.answer.usage["cached_tokens"] == 0
    assert 0 < prompt - second.answer.usage["cached_tokens"] < 40


def test_what_a_busy_row_holds_is_copied(model):
    """While the first answer is still written, a second question shares its picture."""
    slots = Slots(model, 2, 900)
    question = asked([0], 0, True) | {"max_tokens": 60}
    first = slots.submit(*ready_for(model, "r", question), 0.0)
    while not first.writing:
        slots.round()
    second = slots.submit(*ready_for(model, "r", asked([1], 0, True)), 0.0)
    finish(slots, second)
    assert first.writing and second.answer.usage["cached_tokens"] > 90
    finish(slots)
    given = dict(question)
    assert first.answer.token_ids == model.generate(given.pop("question"), **given).token_ids


def test_a_stranger_does_not_push_out_a_conversation(model):
    """Of two rows the one used longest ago is taken by a prompt that shares nothing."""
    slots = Slots(model, 2, 900)
    for words in ([0], [0, 1]):
        slots.submit(*ready_for(model, "r", asked(words, 0, True)), 0.0)
        finish(slots)
    slots.submit(*ready_for(model, "r", {"question": "Give a title.", "max_tokens": 2}), 0.0)
    finish(slots)
    again = slots.submit(*ready_for(model, "r", asked([0, 1, 2], 0, True)), 0.0)
    finish(slots)
    assert again.answer.usage["cached_tokens"] > 100


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_strangers_take_the_rows_in_turn(model, rows):
    """The first goes to a row that nobody has used, and so does each until there is none."""
    contents, taken = Contents(model.empty_cache(700, rows)), []
    for words in range(2 * rows):
        prepared, _ = ready_for(model, "r", asked([words] * 3, None, False))
        row, _, _ = contents.take(prepared, list(range(rows)))
        contents.cache.row(row).advance(prepared.plan.tokens)
        contents.leave(row, [])
        taken.append(row)
    assert sorted(taken[:rows]) == list(range(rows)) and taken[rows:] == taken[:rows]


def test_what_failed_is_not_used_again(model, monkeypatch):
    slots = Slots(model, 1, 700)
    first = slots.submit(*ready_for(model, "r", asked([0], 0, True)), 0.0)
    monkeypatch.setattr(first.reply, "take", lambda *_: 1 / 0)
    finish(slots)
    assert isinstance(first.error, ZeroDivisionError)
    second = slots.submit(*ready_for(model, "r", asked([0], 0, True)), 0.0)
    finish(slots)
    assert second.answer.usage["cached_tokens"] == 0


def test_numbers_of_visuals_are_keyed(model):
    """Two servers give the same picture different numbers; the text has its ids in both."""
    prepared, _ = ready_for(model, "r", asked([0], 0, False))
    found = []
    for _ in range(2):
        contents = Contents(model.empty_cache(700, 1))
        contents.take(prepared, [0])
        found.append(contents.numbers[0])
    text = found[0] >= 0
    assert np.array_equal(text, found[1] >= 0) and np.array_equal(found[0][text], found[1][text])
    assert (found[0][~text] != found[1][~text]).all()
    assert prepared.visuals[0].hash(b"a") != prepared.visuals[0].hash(b"b")


@pytest.mark.parametrize(
    "shared, held, free, expected",
    [
        ([0, 0, 0], 100, [0, 1, 2], (1, None)),  # nothing in common: the row used longest ago
        ([90, 0, 0], 100, [0, 1, 2], (0, 0)),  # most of a free row
        ([50, 0, 0], 100, [0, 1, 2], (0, 0)),  # half of one
        ([49, 0, 0], 100, [0, 1, 2], (1, 0)),  # less of a free row, which is worth keeping
        ([90, 0, 0], 100, [1, 2], (1, 0)),  # of a busy row
        ([WORTH - 1, 0, 0], 100, [0, 1, 2], (1, None)),
        ([WORTH, 0, 0], 100, [0, 1, 2], (1, 0)),
        ([90, 0, 90], 100, [1, 2], (2, 2)),  # as much of a free row as of a busy one
    ],
)
def test_which_row_a_prompt_takes(model, shared, held, free, expected):
    contents = Contents(model.empty_cache(0, 3))
    contents.numbers, contents.used = [np.arange(held)] * 3, [3, 1, 2]
    assert contents.choose(shared, free) == expected


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=20),
    st.integers(0, 20),
)
def test_looks_hold_the_newest_within_their_limit(visits, limit):
    """Against a model of it: the rows are always right, and never more than the limit."""
    tower = []

    class Seen:
        def __init__(self, name, tokens):
            self.digest, self.segment = bytes([name]), type("S", (), {"tokens": tokens})

    def encode(visual, k):
        tower.append(visual.digest)
        for _ in range(visual.segment.tokens):
            yield torch.full((1, 1), float(visual.digest[0]))

    looks, order = Looks(encode, 4 * limit), []
    for name, _ in visits:
        seen = Seen(name, name + 1)
        before = len(tower)
        rows = torch.cat(list(looks.encode(seen, 1)))
        assert rows.shape == (name + 1, 1) and (rows == name).all()
        assert (len(tower) == before) == (name in order)
        order = [other for other in order if other != name] + [name] * (name + 1 <= limit)
        while sum(other + 1 for other in order) > limit:
            order.pop(0)
        assert looks.bytes == sum(t.nbytes for t in looks.rows.values()) <= 4 * limit


def test_a_picture_is_looked_at_once(model, monkeypatch):
    """Other words before it, so that no row helps; the tower is not asked again."""
    slots, counted, vision = Slots(model, 1, 700, looks=1 << 20), [], model.network.vision
    forward = vision.forward
    monkeypatch.setattr(vision, "forward", lambda tiles: counted.append(1) or forward(tiles))
    for system in ("One.", "Two, and more."):
        question = asked([0], 0, False) | {"system": system}
        slots.submit(*ready_for(model, "r", question), 0.0)
        before = len(counted)
        finish(slots)
        assert bool(len(counted) - before) == (system == "One.")


@pytest.mark.parametrize("hurried", [True, False])
def test_a_chunk_takes_no_longer_than_its_budget(hurried):
    """Whatever the speed, once known: tokens of a chunk / speed <= budget, or the least chunk."""
    pace = Pace.of("cpu")
    size, budget = pace.tokens(1024), 0.2 if hurried else 2.0
    assert size() == 1024
    pace.hurried = hurried
    assert size() == (16 if hurried else 1024)
    for speed in (10.0, 100.0, 1000.0, 100_000.0):
        for _ in range(30):
            pace.measured(size(), size() / speed)
        longest = min(1024, max(16, budget * speed + 1e-3))
        assert longest - 16 < size() <= longest and size() % 16 == 0
    assert pace.tokens(100)() == 100
    assert pace.tiles(8) == 1 and Pace.of("cuda").tiles(8) == 8 and Pace().tiles(8) == 8
    pace = Pace()  # of a model that nobody shares
    pace.measured(10, 10.0)
    assert pace.tokens(1024)() == 1024


def test_the_slower_of_two_speeds_counts():
    """One fast chunk makes no long one next; a slow one is heard at once."""
    pace = Pace.of("cpu")
    pace.hurried = True
    for speed, expected in ((1000, 192), (3000, 400), (500, 96), (3000, 416)):
        pace.measured(100, 100 / speed)
        assert pace.tokens(1024)() == expected, speed


def test_the_pace_is_told_of_each_token_that_is_read(model, monkeypatch):
    told: list[int] = []
    monkeypatch.setattr(Pace, "measured", lambda self, tokens, seconds: told.append(tokens))
    slots = Slots(model, 1, 700)
    for words in ([0] * 40, [0] * 60):  # and never that none were, as while tiles are looked at
        prepared, options = ready_for(model, "r", asked(words, 0, True))
        one = slots.submit(prepared, options, 0.0)
        finish(slots)
        assert sum(told) == prepared.plan.tokens - one.cached and all(told)
        told.clear()
    assert one.cached > 0


def test_a_chunk_is_small_only_while_somebody_waits(model, monkeypatch):
    """A slow reader next to a running answer is read in pieces, alone in one."""
    sizes, decoder = [], model.network.decoder
    forward = decoder.forward

    def slow(rows, cache, kept=None):
        if rows.shape[1] > 1:
            sizes.append(rows.shape[1])
            time.sleep(rows.shape[1] / 400)  # 100 tokens in 250 ms
        return forward(rows, cache, kept)

    monkeypatch.setattr(decoder, "forward", slow)
    slots = Slots(model, 2, 900)
    long = {"question": "word " * 120, "max_tokens": 1}
    slots.submit(*ready_for(model, "r", long), 0.0)
    finish(slots)
    assert len(sizes) == 1
    writer = {"question": "Hm", "max_tokens": 100, "ignore_eos": True}
    first = slots.submit(*ready_for(model, "r", writer), 0.0)
    while not first.writing:
        slots.round()
    sizes.clear()
    other = {"question": "other " * 120, "max_tokens": 1}
    finish(slots, slots.submit(*ready_for(model, "r", other), 0.0))
    assert sizes[0] <= 110 and all(size <= 110 for size in sizes) and len(sizes) > 2
