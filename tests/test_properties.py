"""What must hold of any decoder with a cache, in float64 at 1e-10: logic, with no rounding to hide
behind.
"""

import itertools

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_min import decoder, model
from llava_min import segments as plans
from llava_min.cache import Cache

EXACT = 1e-10


@pytest.fixture(scope="module")
def llava():
    return small.random_model(small.hf_config(tied=False), dtype=torch.float64)


def plan_of(llava, seed: int, pictures: int, frames: int):
    """A random plan of text runs, pictures and a clip, and the tiles of its visuals."""
    rng = np.random.default_rng(seed)
    config = llava.config
    segments, tiles = [], []
    for _ in range(pictures):
        size = tuple(int(x) for x in rng.integers(20, 150, 2))
        segment = plans.picture(size, "anyres", config)
        segments.append(segment)
        tiles.append(rng.integers(0, 256, (segment.tiles, 56, 56, 3), dtype=np.uint8))
        segments.append(plans.Text(tuple(rng.integers(0, 500, rng.integers(1, 9)).tolist())))
    if frames:
        segments.append(plans.clip([float(i) for i in range(frames)], (9, 9), config))
        tiles.append(rng.integers(0, 256, (frames, 56, 56, 3), dtype=np.uint8))
    segments.append(plans.Text(tuple(rng.integers(0, 500, rng.integers(1, 9)).tolist())))
    return plans.Plan(tuple(segments), config.text.context), tiles


def encoded(llava, plan, tiles, k=8):
    """What `encode` gives for each visual of a plan."""
    visuals = [segment for segment in plan.segments if not isinstance(segment, plans.Text)]
    return [llava.encode(*visual, k) for visual in zip(visuals, tiles, strict=True)]


def run(llava, plan, tiles, chunk=4096, keep="all", k=8):
    cache = Cache.empty(llava.config.text, 1, plan.tokens + 8, torch.float64)
    visuals = encoded(llava, plan, tiles, k)
    return llava.prefill(plan, visuals, cache, chunk=chunk, keep=keep), cache


@pytest.mark.catalogue("NU-CHUNK", "any chunks, spans of pictures split, as the whole")
@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 999), st.integers(0, 2), st.integers(0, 5), st.integers(1, 90), st.integers(1, 7)
)
def test_chunked_prefill_is_whole_prefill(llava, seed, pictures, frames, chunk, k):
    """Any chunk size, splits inside a picture included, and any number of tiles encoded at once."""
    plan, tiles = plan_of(llava, seed, pictures, frames)
    whole, _ = run(llava, plan, tiles)
    parts, cache = run(llava, plan, tiles, chunk=chunk, k=k)
    assert whole.shape == (plan.tokens, 512)
    assert (whole - parts).abs().max() < EXACT
    last, _ = run(llava, plan, tiles, chunk=chunk, keep="last")
    assert (whole[-1:] - last).abs().max() < EXACT
    assert cache.host_lengths.tolist() == [plan.tokens] == cache.lengths.tolist()


@pytest.mark.parametrize("new", [1, 2, decoder.DECODE_QUERIES, decoder.DECODE_QUERIES + 1])
@pytest.mark.parametrize("rows", [1, decoder.DECODE_QUERIES + 1])
def test_few_new_tokens_of_a_row_are_decoded_and_more_are_prefilled(llava, monkeypatch, new, rows):
    """By the kernel made for as many, however many rows and heads there are."""
    called = set()
    for where, name in ((decoder, "decode_attention"), (decoder.attention, "prefill")):
        own = getattr(where, name)
        monkeypatch.setattr(
            where, name, lambda *given, own=own, name=name: called.add(name) or own(*given)
        )
    cache = Cache.empty(llava.config.text, rows, new, torch.float64)
    llava.decoder(llava.decoder.embed(torch.ones(rows, new, dtype=torch.long)), cache)
    assert called == {"decode_attention" if new <= 8 else "prefill"}


@pytest.mark.catalogue("NU-CACHE", "every step with a cache as without one")
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.integers(1, 7))
def test_cached_decode_is_full_forward(llava, seed, steps):
    rng = np.random.default_rng(seed)
    plan, tiles = plan_of(llava, seed, 1, 0)
    more = rng.integers(0, 500, steps).tolist()
    _, cache = run(llava, plan, tiles)
    for count in range(1, steps + 1):
        stepped = llava.decode(torch.tensor([more[count - 1]]), cache)
        longer = plans.Plan((*plan.segments, plans.Text(tuple(more[:count]))), plan.context)
        whole, _ = run(llava, longer, tiles)
        assert (stepped[0] - whole[-1]).abs().max() < EXACT


def test_a_batch_decodes_as_its_rows_alone(llava):
    """Rows of different lengths in one cache, prefilled through row(b), decoded together."""
    config = llava.config.text
    prompts = [plan_of(llava, seed, seed % 2, 0) for seed in range(3)]
    longest = max(plan.tokens for plan, _ in prompts) + 4
    cache = Cache.empty(config, 3, longest, torch.float64)
    cache.keys.fill_(torch.nan)  # what no row has written must never be read
    cache.values.fill_(torch.nan)
    singles = []
    for index, (plan, tiles) in enumerate(prompts):
        visuals = encoded(llava, plan, tiles)
        llava.prefill(plan, visuals, cache.row(index), chunk=7)
        singles.append(run(llava, plan, tiles)[1])
    assert cache.host_lengths.tolist() == [plan.tokens for plan, _ in prompts]
    for ids in ([5, 6, 7], [8, 9, 10], [100, 200, 300]):
        together = llava.decode(torch.tensor(ids), cache)
        alone = [llava.decode(torch.tensor([i]), single)[0] for i, single in zip(ids, singles)]
        assert (together - torch.stack(alone)).abs().max() < EXACT


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.integers(1, 5))
def test_the_future_never_changes_the_past(llava, seed, changed):
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 500, (2, 12)).tolist()
    second[: 12 - changed] = first[: 12 - changed]
    logits = [
        run(llava, plans.Plan((plans.Text(tuple(ids)),), 99), [])[0] for ids in (first, second)
    ]
    assert (logits[0][: 12 - changed] - logits[1][: 12 - changed]).abs().max() == 0


def test_rewinding_forgets(llava):
    """Two questions behind one prefix: the second answer is as if the first was never asked."""
    plan, tiles = plan_of(llava, 3, 1, 2)
    _, cache = run(llava, plan, tiles)
    fresh = llava.decode(torch.tensor([4]), cache).clone()
    cache.rewind(1)
    for token in (7, 8, 9):
        llava.decode(torch.tensor([token]), cache)
    cache.rewind(3)
    cache.rewind(0)
    assert (llava.decode(torch.tensor([4]), cache) - fresh).abs().max() == 0
    for count in (int(cache.host_lengths[0]) + 1, -1):
        with pytest.raises(AssertionError):
            cache.rewind(count)
    cache.rewind(int(cache.host_lengths[0]))
    assert cache.lengths.tolist() == cache.host_lengths.tolist() == [0]


def test_growing_keeps_what_was_seen(llava):
    plan, tiles = plan_of(llava, 4, 1, 0)
    _, small_cache = run(llava, plan, tiles)
    _, grown = run(llava, plan, tiles)
    grown.grow(500)
    assert grown.capacity == 500
    assert grown.tensors().keys() == {"keys", "values", "lengths"}
    ids = torch.tensor([11])
    assert (llava.decode(ids, grown) - llava.decode(ids, small_cache)).abs().max() == 0


def test_pictures_are_encoded_apart(llava):
    """A picture's rows do not depend on its neighbours: swapping two pictures swaps their rows."""
    plan, tiles = plan_of(llava, 5, 2, 0)
    one, two = (torch.cat(list(rows)) for rows in encoded(llava, plan, tiles))
    rows = torch.cat(list(llava.rows(plan, encoded(llava, plan, tiles))))
    assert torch.equal(rows[: len(one)], one)
    start = len(one) + plan.segments[1].tokens
    assert torch.equal(rows[start : start + len(two)], two)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 6))
def test_plans_count_what_encode_makes(llava, width, height, frames):
    """The token arithmetic without pixels equals the rows that come out."""
    config = llava.config
    segment = plans.picture((width, height), "anyres", config)
    clip = plans.clip([float(i) for i in range(frames)], (9, 9), config)
    assert plans.picture((width, height), "pad", config).tiles == 1 and clip.tiles == frames
    for visual, k in ((segment, 8), (clip, 2)):
        tiles = np.zeros((visual.tiles, 56, 56, 3), np.uint8)
        pieces = list(llava.encode(visual, tiles, k))
        assert sum(map(len, pieces)) == visual.tokens
        assert {piece.shape[1:] for piece in pieces} == {(config.text.hidden_size,)}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 7))
def test_chunks_cut_without_loss(lengths, size):
    pieces = [torch.arange(2.0 * n).reshape(n, 2) for n in lengths]
    passed = list(model.chunks(iter(pieces), lambda: size))
    assert len(passed) == lengths.count(0) + -(-sum(lengths) // size)  # no portion without work
    came, went = itertools.accumulate(lengths), itertools.accumulate(map(len, passed))
    before = [rows for rows, length in zip(came, lengths) if length == 0]
    after = [rows for rows, piece in zip(went, passed) if len(piece) == 0]
    assert after == [rows // size * size for rows in before]  # no chunk waits for what comes next
    cut = [piece for piece in passed if len(piece)]
    assert all(len(chunk) == size for chunk in cut[:-1]) and all(
        0 < len(chunk) <= size for chunk in cut[-1:]
    )
    joined = torch.cat(pieces) if pieces else torch.empty(0, 2)
    assert torch.equal(torch.cat(cut) if cut else torch.empty(0, 2), joined)
    assert all(piece.shape[1:] == (2,) for piece in passed)


def test_named_mutants_break_a_property(llava, monkeypatch):
    """Each slip is one that has been made before; the properties above must see it."""
    from llava_min.kernels import attention, rope

    plan, tiles = plan_of(llava, 1, 1, 3)
    whole, _ = run(llava, plan, tiles)
    angles, whole_attention = rope.angles, attention.attention_merged

    def upper_left(query, key, value):
        new = query.shape[1]
        return whole_attention(query, key[:, :, :new], value[:, :, :new])

    def chunk_relative(positions, *rest, **named):
        return angles(positions - positions.min(), *rest, **named)

    for module, name, mutant in (
        (attention, "attention_merged", upper_left),
        (rope, "angles", chunk_relative),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, mutant)
            parts, _ = run(llava, plan, tiles, chunk=13)
        assert (whole - parts).abs().max() > EXACT, name
