"""A prompt is read in portions: what comes between, and rows that are not those planned."""

from dataclasses import replace

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import llava_min
from llava_min import segments as plans
from llava_min.cache import Cache
from llava_min.errors import PromptError
from llava_min.generate import Token
from llava_min.model import Portion, finished


@pytest.fixture(scope="module")
def network():
    return small.random_model(small.hf_config(tied=False), dtype=torch.float64)


def prompt(network, seed: int, frames: int):
    """A plan of text, a picture, text, and a clip of some frames; and the tiles of its visuals."""
    rng = np.random.default_rng(seed)
    config, words = network.config, lambda n: plans.Text(tuple(rng.integers(0, 500, n).tolist()))
    size = tuple(int(side) for side in rng.integers(40, 150, 2))
    visuals = [plans.picture(size, "anyres", config)]
    visuals += [plans.clip([0.0] * frames, (9, 9), config)] if frames else []
    tiles = [rng.integers(0, 256, (v.tiles, 56, 56, 3), dtype=np.uint8) for v in visuals]
    segments = (words(3), visuals[0], words(5), *visuals[1:], words(4))
    return plans.Plan(segments, 4096), visuals, tiles


def reading(network, plan, visuals, tiles, cache, chunk=64, k=1):
    encoded = [network.encode(visual, pixels, k) for visual, pixels in zip(visuals, tiles)]
    return network.reading(plan, encoded, cache, lambda: chunk)


def cache_of(network, plans_of, more=8) -> Cache:
    capacity = max(plan.tokens for plan in plans_of) + more
    return Cache.empty(network.config.text, len(plans_of), capacity, torch.float64)


def forged(visual, by: int):
    """A visual whose plan has `by` rows more than it will give."""
    if isinstance(visual, plans.Clip):
        return replace(visual, times=visual.times + (0.0,) * by if by > 0 else visual.times[:by])
    rows, columns = visual.grid.shape
    return replace(visual, grid=replace(visual.grid, shape=(rows + by, columns)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(0, 1), st.sampled_from([-2, -1, 1, 2]))
def test_rows_that_were_not_planned_are_refused(network, seed, which, by):
    """A plan off by some rows, of the picture or of the clip; the message has both numbers, and
    nothing is written after the rows that were planned.
    """
    plan, visuals, tiles = prompt(network, seed, frames=4)
    wrong = forged(visuals[which], by)
    segments = tuple(wrong if s is visuals[which] else s for s in plan.segments)
    plan = plans.Plan(segments, plan.context)
    cache = cache_of(network, [plan], more=0)
    with pytest.raises(PromptError, match=f"{wrong.tokens:,} rows as planned, found [\\d,]+ rows"):
        finished(reading(network, plan, visuals, tiles, cache))


@pytest.mark.parametrize("given, expected", [(0, "found 0 rows"), (1, "found 0 rows"), (3, "more")])
def test_as_many_visuals_as_planned(network, given, expected):
    plan, visuals, tiles = prompt(network, 1, frames=2)
    visuals, tiles = (visuals + visuals)[:given], (tiles + tiles)[:given]
    with pytest.raises(PromptError, match=expected):
        finished(reading(network, plan, visuals, tiles, cache_of(network, [plan])))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(0, 6), st.integers(1, 90), st.integers(1, 5))
def test_portions_come_after_each_chunk_and_between_tiles(network, seed, frames, chunk, k):
    """They count up to the prompt's tokens, and there are enough of them to stop in time."""
    plan, visuals, tiles = prompt(network, seed, frames)
    cache = cache_of(network, [plan])
    portions = list(reading(network, plan, visuals, tiles, cache, chunk, k))
    counts = [portion.done for portion in portions]
    assert counts == sorted(counts) and portions[-1] == Portion(plan.tokens, plan.tokens)
    passes = sum(-(-visual.tiles // k) for visual in visuals)
    assert len(portions) >= max(passes, -(-plan.tokens // chunk))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 99), st.lists(st.integers(0, 2), min_size=60, max_size=60))
def test_other_rows_come_between(network, seed, order):
    """Two prompts are read in turns of any kind while a third row is written: as each alone."""
    prompts = [prompt(network, seed + number, frames=2 * number) for number in range(2)]
    rows = [plan for plan, *_ in prompts]
    apart = [cache_of(network, [plan]) for plan in rows]
    alone = [finished(reading(network, *one, cache)) for one, cache in zip(prompts, apart)]
    cache = cache_of(network, [*rows, rows[0]], more=80)
    words = plans.Plan((plans.Text((5, 6, 7)),), 4096)
    network.prefill(words, [], cache.row(2))
    written, works, logits = 0, [], [None, None]
    for row, one in enumerate(prompts):
        works.append(reading(network, *one, cache.row(row)))
    for turn in order + [0, 1] * 200:
        if turn == 2:
            network.decode(torch.tensor([7]), cache.row(2))
            written += 1
        elif logits[turn] is None:
            try:
                next(works[turn])
            except StopIteration as end:
                logits[turn] = end.value
    for found, expected in zip(logits, alone):
        assert torch.equal(found, expected)
    plain = cache_of(network, [words], more=80)
    network.prefill(words, [], plain)
    for _ in range(written + 1):
        expected = network.decode(torch.tensor([7]), plain)
    assert torch.equal(network.decode(torch.tensor([7]), cache.row(2)), expected)


def test_an_answer_can_be_given_up_while_its_prompt_is_read():
    """To close the events stops the towers at the next portion; the model answers as before."""
    model = llava_min.load(dtype="float32")
    picture, seen = small.picture(250, 250), []
    whole = model.generate("Where?", images=[picture], max_tokens=4)
    vision = model.network.vision.forward
    model.network.vision.forward = lambda tiles: seen.append(len(tiles)) or vision(tiles)
    events = model.events("Where?", images=[picture] * 3, multi_image="anyres")
    for event in events:
        if isinstance(event, Portion):
            break
        assert not isinstance(event, Token)
    events.close()
    assert len(seen) <= 1
    again = model.generate("Where?", images=[picture], max_tokens=4)
    assert again.token_ids == whole.token_ids
