"""Many questions at once: each gets the answer that it gets alone, whatever the others do."""

import math
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st

import llava_min
from llava_min.engine import admission, batch
from llava_min.engine.answers import Answer, Finished
from llava_min.engine.batch import answer_each, grouped, ready_for
from llava_min.engine.slots import Slots
from llava_min.errors import LlavaMinError, NumericsError
from llava_min.generate import Token
from llava_min.model import Portion
from llava_min.planning import memory as needs

QUESTIONS = ("What?", "And where is it now?", "Hm", "Tell me " * 20, "Why " * 50)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """In float64, so that a margin between two tokens is never a matter of rounding."""
    folder = small.small(tmp_path_factory.mktemp("model"), seed=3)
    return llava_min.load(folder, dtype="float64")


def request(number: int) -> dict:
    """A question of some length, about a picture, a clip or nothing; greedy or drawn."""
    rng = np.random.default_rng(number)
    found = {"question": QUESTIONS[number % len(QUESTIONS)], "max_tokens": int(rng.integers(1, 9))}
    found |= {"temperature": 1.2, "seed": number} if number % 3 == 0 else {}
    found |= {"ignore_eos": bool(number % 2)}
    if number % 4 == 1:
        found["images"] = [small.picture(*(int(side) for side in rng.integers(40, 160, 2)))]
    elif number % 4 == 3:
        found["videos"] = [small.frames(int(rng.integers(1, 5)))]
    return found


@pytest.fixture(scope="module")
def alone(model):
    """{number: its answer alone}, made when it is asked for."""
    made = {}

    def answer(number: int) -> Answer:
        if number not in made:
            given = request(number)
            made[number] = model.generate(given.pop("question"), **given)
        return made[number]

    return answer


def submit(slots, model, number: int, listen=lambda event: None):
    return slots.submit(*ready_for(model, "request", request(number)), time.perf_counter(), listen)


@pytest.mark.parametrize("watched", [True, False])
def test_a_step_covers_the_rows_from_the_first_to_the_last_that_writes(model, watched):
    """Without a watcher, every prompt that has a row was read before the first step."""
    slots, steps = Slots(model, 4, 500, watched), []
    slots.pace.seconds = math.inf  # chunks as on any machine
    step_of = slots.step_of

    def noted(start, stop):
        ends = [slots.questions[start], slots.questions[stop - 1]]
        read = not slots.being_read() and not (slots.waiting and None in slots.questions)
        steps.append((stop - start, all(one is not None and one.writing for one in ends), read))
        return step_of(start, stop)

    slots.step_of = noted
    for number in range(12):
        submit(slots, model, number)
    while slots.busy:
        slots.round()
    lengths, exact, read = zip(*steps, strict=True)
    assert {1, 4} <= set(lengths) <= {1, 2, 3, 4} and all(exact) and all(read) != watched


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), min_size=1, max_size=9),
    st.integers(1, 4),
    st.booleans(),
)
def test_any_order_gives_each_its_own_answer(model, alone, arrivals, rows, watched):
    """Questions come after any number of rounds, in any number of rows: text, ids and reason."""
    slots, asked, arrivals = Slots(model, rows, 500, watched), [], list(arrivals)
    for number, pause in arrivals:
        asked.append((number, submit(slots, model, number)))
        for _ in range(pause):
            slots.round()
    while slots.busy:
        slots.round()
    for number, one in asked:
        expected = alone(number)
        assert one.error is None, one.error
        assert one.answer.token_ids == expected.token_ids and one.answer.text == expected.text
        assert one.answer.finish_reason == expected.finish_reason
        cached = one.answer.usage["cached_tokens"]
        assert one.answer.usage == expected.usage | {"cached_tokens": cached}
    assert slots.cache.host_lengths.tolist() == slots.cache.lengths.tolist() == [0] * rows


def test_a_short_prompt_is_read_whole_in_its_first_turn(model):
    """No turn goes by without work."""
    slots = Slots(model, 2, 500)
    slots.pace.seconds, slots.pace.speed, slots.pace.newest = 1e-9, 1.0, 1.0  # the smallest chunks
    long = slots.submit(*ready_for(model, "request", {"question": [7] * 400, "max_tokens": 2}), 0.0)
    slots.round()
    short = slots.submit(*ready_for(model, "request", {"question": [9] * 10, "max_tokens": 2}), 0.0)
    slots.round()
    assert short.reply.new and long.done == 16


def test_a_row_has_room_for_the_prompt_and_the_answer_and_no_more_is_asked(model):
    prepared, options = ready_for(model, "request", {"question": "Hm", "max_tokens": 5})
    need = prepared.plan.tokens + 5
    Slots(model, 1, need).submit(prepared, options, 0.0)
    with pytest.raises(AssertionError):
        Slots(model, 1, need - 1).submit(prepared, options, 0.0)


def test_events_come_in_order_and_each_to_its_own_listener(model, alone):
    slots, heard = Slots(model, 2, 500), {number: [] for number in (1, 3, 6, 9)}
    for number, events in heard.items():
        submit(slots, model, number, events.append)
    while slots.busy:
        slots.round()
    for number, events in heard.items():
        *_, finished, answer = events
        kinds = [type(event) for event in events]
        assert kinds == sorted(kinds, key=[Portion, Token, Finished, Answer].index)
        text = "".join(event.text for event in events if isinstance(event, Token | Finished))
        assert text == answer.text == alone(number).text and isinstance(finished, Finished)


def test_free_rows_are_those_that_no_question_has_or_waits_for(model):
    slots, asked, free = Slots(model, 2, 500), [], []
    for number in (0, 4, 8):
        free.append(slots.free)
        asked.append(submit(slots, model, number))
    free.append(slots.free)
    slots.round()
    assert [*free, slots.free] == [2, 1, 0, 0, 0]
    for one in asked:
        slots.cancel(one)
    assert slots.free == 2


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_first_that_came_is_read_first(model, rows):
    slots, heard = Slots(model, rows, 500), []
    for number in (0, 4, 8):
        submit(slots, model, number, lambda event, number=number: heard.append(number))
    slots.round()
    assert heard[0] == 0


def test_others_are_written_while_a_prompt_is_read(model):
    """A long prompt takes many portions; in each round in between an answer grows by a token."""
    slots, grown = Slots(model, 2, 4000), []
    long = {"question": "Why?", "videos": [small.frames(24)], "max_tokens": 1, "frames": 24}
    writer = slots.submit(
        *ready_for(model, "request", {"question": "What?", "max_tokens": 60, "ignore_eos": True}),
        0.0,
    )
    while not writer.writing:
        slots.round()
    reader = slots.submit(*ready_for(model, "request", long), 0.0)
    while not reader.ended:
        slots.round()
        grown.append(len(writer.reply.new))
    assert len(grown) > 8
    assert [after - before for before, after in zip(grown, grown[1:])] == [1] * (len(grown) - 1)


def test_a_short_prompt_waits_for_one_portion_of_a_long_one(model):
    """Its first token comes in the round after that in which it came."""
    slots, order = Slots(model, 2, 4000), []
    long = {"question": "Why?", "videos": [small.frames(24)], "max_tokens": 1, "frames": 24}
    slots.submit(*ready_for(model, "r", long), 0.0, order.append)
    slots.round()
    short = slots.submit(*ready_for(model, "r", {"question": "Hm", "max_tokens": 2}), 0.0)
    before = len(order)
    while not short.ended:
        slots.round()
    assert len(order) - before <= 1


def test_prompts_are_read_in_turns(model):
    """Of two long prompts neither waits for the whole of the other."""
    slots, order = Slots(model, 2, 4000), []
    for name in "ab":
        asked = {"question": "Why?", "videos": [small.frames(16)], "frames": 16, "max_tokens": 1}
        note = lambda event, name=name: order.append(name) if isinstance(event, Portion) else None
        slots.submit(*ready_for(model, "request", asked), 0.0, note)
    while slots.busy:
        slots.round()
    half = len(order) // 2
    assert order[: 2 * (half - 2)] == ["a", "b"] * (half - 2) or order[:6] == list("ababab")


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(0, 40))
def test_what_is_cancelled_leaves_no_trace(model, alone, cancelled, after):
    """Waiting, read or written when it is cancelled: its row is free, the others are as alone."""
    slots = Slots(model, 2, 500)
    asked = [submit(slots, model, number) for number in range(13)]
    for _ in range(after):
        slots.round()
    for number in set(cancelled):
        slots.cancel(asked[number])
    while slots.busy:
        slots.round()
    for number, one in enumerate(asked):
        if one.answer is not None:
            assert one.answer.token_ids == alone(number).token_ids
        else:
            assert number in cancelled and one.error is None
    assert slots.free == 2 and slots.cache.host_lengths.tolist() == [0, 0]


@pytest.mark.parametrize("where", ["take", "encode", "decode"])
def test_a_failure_ends_its_own_question_alone(model, alone, monkeypatch, where):
    """In the choice of a token, in the tower, in the step that all share."""
    error = NumericsError("cannot think", "here", "numbers", "NaN")
    long = request(1 if where == "encode" else 2) | {"max_tokens": 40, "ignore_eos": True}
    slots = Slots(model, 3, 500)
    guilty = slots.submit(*ready_for(model, "request", long), 0.0)
    others = [submit(slots, model, number) for number in (0, 4, 8, 12)]
    if where == "take":
        monkeypatch.setattr(guilty.reply, "take", raising(error))
    elif where == "encode":
        monkeypatch.setattr(model.network, "encode", raising(error))
    else:
        decode, row = model.network.decode, slots.cache.row(0).keys.data_ptr()

        def failing(ids, cache):
            beside = any(one.writing for one in others)
            if cache.keys.data_ptr() == row and slots.questions[0] is guilty and beside:
                raise error
            return decode(ids, cache)

        monkeypatch.setattr(model.network, "decode", failing)
    while slots.busy:
        slots.round()
    assert guilty.error is error
    for number, one in zip((0, 4, 8, 12), others):
        assert one.answer.token_ids == alone(number).token_ids


def test_a_step_that_fails_after_it_counted_is_counted_back(model, alone, monkeypatch):
    """As out of memory in the logits of several rows; each row then goes on by itself."""
    slots, logits = Slots(model, 3, 500), model.network.decoder.logits

    def too_large(hidden):
        if len(hidden) > 1:
            raise MemoryError
        return logits(hidden)

    monkeypatch.setattr(model.network.decoder, "logits", too_large)
    asked = {number: submit(slots, model, number) for number in (0, 1, 4, 8)}
    tokens = {one: one.prepared.plan.tokens for one in asked.values()}
    while slots.busy:
        slots.round()
        for row, one in enumerate(slots.questions):
            if one is not None and one.writing:
                seen = tokens[one] + len(one.reply.new) - 1
                assert slots.cache.host_lengths[row] == slots.cache.lengths[row] == seen
    for number, one in asked.items():
        assert one.answer.token_ids == alone(number).token_ids


def raising(error: LlavaMinError):
    def call(*given, **named):
        raise error

    return call


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("places", [[0], [1, 3], [2], [0, 1, 2, 3]])
def test_the_rows_of_a_step_that_do_not_write_are_counted_back(device, places):
    """On a GPU all rows, as they are recorded; elsewhere those from the first to the last."""
    slots, covered = object.__new__(Slots), []

    def step(start, stop):
        def made(ids):
            covered.append((start, stop, ids))
            slots.cache.host_lengths[start:stop] += 1
            slots.cache.lengths[start:stop] += 1
            return "logits"

        return made

    slots.model = SimpleNamespace(network=SimpleNamespace(device=SimpleNamespace(type=device)))
    slots.questions = [
        SimpleNamespace(reply=SimpleNamespace(new=[7, 70 + row])) for row in range(4)
    ]
    slots.cache = SimpleNamespace(host_lengths=np.arange(4), lengths=np.arange(4))
    slots.step, slots.step_of = step(0, 4), step
    first, found = slots.stepped(places)
    ((start, stop, ids),) = covered
    assert (start, stop) == ((0, 4) if device == "cuda" else (places[0], places[-1] + 1))
    assert found == "logits" and first == start and len(ids) == stop - start
    assert [ids[row - first] for row in places] == [70 + row for row in places]
    expected = [row + (row in places) for row in range(4)]
    assert slots.cache.host_lengths.tolist() == slots.cache.lengths.tolist() == expected


def test_rolling_requests_come_out_whatever_their_length(model, alone, monkeypatch):
    """More requests than rows, and some of them wrong: an outcome each, and its own."""
    requests = {("line", number): request(number) for number in range(12)}
    requests["line", 50] = {"question": "Hm", "max_tokens": 0}
    requests["line", 51] = {"question": "What?", "max_tokens": 99_999}
    found = dict(answer_each(model, requests, 3))
    assert found.keys() == requests.keys()
    for (_, number), outcome in found.items():
        if number < 50:
            assert outcome.token_ids == alone(number).token_ids
        else:
            assert isinstance(outcome, LlavaMinError)
    assert list(answer_each(model, {}, 3)) == []


def test_a_wrong_request_is_called_by_its_name(model):
    """Before any other is answered."""
    requests = {("line", 6): {"question": "Hm", "max_tokens": 1}, ("line", 7): "nonsense"}
    (key, error), _ = answer_each(model, requests, 1)
    assert key == ("line", 7) and "line 7: expected an object" in str(error)


def test_media_are_decoded_once_their_turn_comes(model, monkeypatch):
    """The sizes of all requests are those of the headers, and no picture is held but one."""
    prepare, looked = batch.prepare, []

    def noted(*given, headers):
        looked.append("headers" if headers else "pixels")
        return prepare(*given, headers=headers)

    monkeypatch.setattr(batch, "prepare", noted)
    requests = {("line", n): request(n) | {"max_tokens": 1} for n in (1, 5, 9)}
    for _ in answer_each(model, requests, 1):
        looked.append("answer")
    assert looked == ["headers"] * 3 + ["pixels", "answer"] * 3


def test_a_long_request_does_not_take_the_others_rows(model, monkeypatch):
    """With room for three short rows, and not for three as long as the longest, it comes last."""
    requests = {("line", n): {"question": "What?", "max_tokens": 3} for n in range(6)}
    requests["line", 2] = {"question": "What?", "max_tokens": 900}
    plan = model.prepare("What?").plan
    short = needs.together(model.config, [(plan, 3)] * 3, model.storage)
    long = needs.together(model.config, [(plan, 900)], model.storage)
    room = max(short.cache + short.activations, long.cache + long.activations)
    monkeypatch.setattr(admission, "free_bytes", lambda device: room)
    made, build = [], Slots.__init__

    def watched(self, model, rows, capacity, watched=True):
        made.append((rows, capacity))
        build(self, model, rows, capacity, watched)

    monkeypatch.setattr(Slots, "__init__", watched)
    order = [number for (_, number), _ in answer_each(model, requests, 3)]
    assert order[-1] == 2 and sorted(order) == list(range(6))
    assert made == [(3, plan.tokens + 3), (1, plan.tokens + 900)]


@given(st.lists(st.integers(1, 50), max_size=9), st.integers(1, 4), st.integers(50, 150))
def test_few_requests_come_last_so_that_the_others_have_all_rows(lengths, rows, room):
    """As few as it takes: with one fewer there is not room for so many rows. Longest first."""

    def rows_that_fit(prompts):
        each = [plan.tokens + answer for plan, answer in prompts]
        counts = range(1, len(each) + 1)
        return max((n for n in counts if n == 1 or n * max(each[:n]) <= room), default=0)

    model = SimpleNamespace(admission=SimpleNamespace(rows_that_fit=rows_that_fit))
    sizes = [(n, (SimpleNamespace(tokens=length), 3)) for n, length in enumerate(lengths)]
    groups = grouped(model, sizes, rows)
    longest = [[lengths[key] + 3 for key, _ in group] for group in groups]
    assert sorted(key for group in groups for key, _ in group) == list(range(len(lengths)))
    assert all(group and group == sorted(group, reverse=True) for group in longest)
    ordered = sorted((length + 3 for length in lengths), reverse=True)
    fits = [rows * ordered[cut] <= room for cut in range(len(ordered) - rows + 1)]
    if rows == 1 or True not in fits:
        assert longest == ([ordered] if ordered else [])
    else:
        cut = fits.index(True)
        assert longest == [group for group in (ordered[cut:], ordered[:cut]) if group]


def test_the_rows_cache_counts_once(model, monkeypatch):
    """What the cache of a group takes is not asked for again by each request that comes into it,
    and is given back before the next group's is made."""
    requests = {("line", n): {"question": "What?", "max_tokens": 3} for n in range(6)}
    requests["line", 2] = {"question": "What?", "max_tokens": 900}
    plan = model.prepare("What?").plan
    short = needs.together(model.config, [(plan, 3)] * 3, model.storage)
    long = needs.together(model.config, [(plan, 900)], model.storage)
    room = max(short.cache + short.activations, long.cache + long.activations)
    alive, build = weakref.WeakSet(), Slots.__init__

    def watched(self, *given, **named):
        assert not alive
        build(self, *given, **named)
        self.bytes = needs.together(
            model.config, [(plan, given[2] - plan.tokens)] * given[1], model.storage
        ).cache
        alive.add(self)

    monkeypatch.setattr(Slots, "__init__", watched)
    monkeypatch.setattr(
        admission, "free_bytes", lambda device: room - sum(slots.bytes for slots in alive)
    )
    found = dict(answer_each(model, requests, 3))
    assert found.keys() == requests.keys()
    assert all(isinstance(outcome, Answer) for outcome in found.values()), found


def test_logits_beside_others_are_those_of_one_alone(model):
    """Within 1e-10 in float64, for every step of an answer whose neighbours come and go."""
    seen = {"alone": [], "beside": []}

    def watching(reply, name):
        take = reply.take
        reply.take = lambda logits, likely=None: seen[name].append(logits.clone()) or take(logits)

    for name, others in (("alone", ()), ("beside", (1, 2, 3, 4, 5, 6))):
        slots = Slots(model, 3, 500)
        ready = ready_for(model, "r", {"question": "What?", "max_tokens": 30, "ignore_eos": True})
        one = slots.submit(*ready, 0.0)
        watching(one.reply, name)
        for number in others:
            submit(slots, model, number)
        while slots.busy:
            slots.round()
    for one, other in zip(seen["alone"], seen["beside"], strict=True):
        assert (one - other).abs().max() < 1e-10


def test_the_toy_in_float32(tmp_path):
    """The embedded checkpoint, four at a time: token for token as one by one."""
    toy = llava_min.load(dtype="float32")
    star = str(small.TINY / "samples" / "shapes.png")
    texts = [
        "Where is the star?",
        "How many shapes are there?",
        "Is there a circle?",
        "Describe it.",
    ]
    asked = [{"question": text, "images": [star], "max_tokens": 40} for text in texts * 2]
    together = dict(answer_each(toy, {("line", n): one for n, one in enumerate(asked)}, 4))
    for number, one in enumerate(asked):
        expected = toy.generate(**one)
        assert together["line", number].token_ids == expected.token_ids
