"""Attention that writes out its scores, on a CPU: as exact as torch's flash attention
for every size of blocks, and blind to what a query must not see.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import no_worse_than_torch, rows_of

from llava_min.kernels import attention, attention_cpu, attention_sizes, choose, onednn

BF16 = torch.bfloat16
pytestmark = pytest.mark.skipif(
    not onednn.multiplies(torch.empty(1, dtype=BF16)),
    reason="needs a CPU for which oneDNN multiplies in bfloat16",
)


def inputs(seed, batch, new, stop, heads, head_dim, scale=1.0, dtype=BF16):
    """query [B T H E], key and value [B K S E]: views of a cache with NaN after its end."""
    query = rows_of(seed, (batch, new, heads[0], head_dim), dtype, scale)
    cache = rows_of(seed + 1, (2, batch, heads[1], stop + 9, head_dim), dtype)
    cache[:, :, :, stop:] = torch.nan
    return query, *cache[:, :, :, :stop]


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 2),
    new=st.integers(1, 90),
    seen=st.integers(0, 90),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2), (14, 2)]),
    head_dim=st.sampled_from([16, 40, 72]),
    causal=st.booleans(),
    scores=st.sampled_from([1, 2**10, 2**13, 2**20]),
    rows=st.sampled_from([1, 16, 512]),
    step=st.sampled_from([1, 8, 128]),
    scale=st.sampled_from([0.1, 1.0, 20.0]),
    dtype=st.sampled_from([BF16, torch.float32]),
    seed=st.integers(0, 2**31),
)
def test_as_exact_as_flash_attention(
    batch, new, seen, heads, head_dim, causal, scores, rows, step, scale, dtype, seed
):
    """Also where scores are large: rounded to bfloat16 they would lose four times as much."""
    given = inputs(seed, batch, new, seen + new, heads, head_dim, scale, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_sizes, "SCORES", scores)
        patch.setattr(attention_sizes, "CAUSAL_ROWS", rows)
        patch.setattr(attention_sizes, "LEAST_ROWS", 1)
        patch.setattr(attention_sizes, "STEP", step)
        found = attention_cpu.attention(*given, causal)
    mask = attention.causal_mask(new, seen) if causal else None
    exact = attention.attention_formula(*(x.double() for x in given), mask)
    if causal:
        flash = attention.attention_merged(*given)
    else:
        query, *others = (x.transpose(1, 2) if x is given[0] else x for x in given)
        others = (x.repeat_interleave(heads[0] // heads[1], 1) for x in others)
        flash = torch.nn.functional.scaled_dot_product_attention(query, *others).transpose(1, 2)
    no_worse_than_torch(found, flash, exact, score=4 * scale)


def test_scores_are_not_rounded():
    """Scores of some hundreds, near each other: bfloat16 would be off by one and more."""
    query, key, value = inputs(0, 1, 64, 64, (2, 1), 64, scale=60.0)
    key[:] = key[:, :, :1] + key / 64
    exact = attention.attention_formula(*(x.double() for x in (query, key, value)), None)
    found = attention_cpu.attention(query, key, value, False)
    rounded = torch.softmax((query.transpose(1, 2) / 8) @ key.mT, -1) @ value
    error, other = ((x.double() - exact).abs().mean() for x in (found, rounded.transpose(1, 2)))
    assert 4 * error < other, (error, other)


@settings(max_examples=20, deadline=None)
@given(
    new=st.integers(2, 90),
    seen=st.integers(0, 40),
    at=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_the_future_changes_nothing(new, seen, at, seed):
    """Other keys and values after a token leave every bit of it and of those before."""
    query, key, value = inputs(seed, 1, new, seen + new, (4, 2), 16)
    token = int(at * (new - 2))
    whole = attention_cpu.attention(query, key, value, True)
    for tensor in (key, value):
        tensor[:, :, seen + token + 1 :] = rows_of(seed + 5, (1,), BF16)
    other = attention_cpu.attention(query, key, value, True)
    assert torch.equal(whole[:, : token + 1], other[:, : token + 1])
    assert not torch.equal(whole[:, token + 1 :], other[:, token + 1 :])


def test_rows_of_a_batch_are_as_alone():
    query, key, value = inputs(3, 3, 80, 120, (4, 2), 16)
    whole = attention_cpu.attention(query, key, value, True)
    for row in range(3):
        some = (x[row : row + 1] for x in (query, key, value))
        assert torch.equal(whole[row : row + 1], attention_cpu.attention(*some, True))


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_views_of_one_tensor_as_in_the_tower(monkeypatch, dtype):
    """oneDNN gets contiguous weights: with others it takes ten thousand times as long."""
    contiguous, linear = [], onednn.linear

    def spy(rows, weight, bias):
        contiguous.append(rows.is_contiguous() and weight.is_contiguous())
        return linear(rows, weight, bias)

    monkeypatch.setattr(onednn, "linear", spy)
    monkeypatch.setattr(attention_cpu, "LEAST", 70 * 70)
    fused = rows_of(4, (2, 70, 3, 4, 24), dtype)
    query, key, value = fused.unbind(2)
    found = attention.bidirectional(query, key, value)
    assert contiguous and all(contiguous)
    apart = (x.contiguous().transpose(1, 2) for x in (key, value))
    assert torch.equal(found, attention_cpu.attention(query.contiguous(), *apart, False))
    assert found.shape == query.shape


@pytest.mark.parametrize("new, dtype, path, taken", [
    (80, BF16, "auto", True),
    (79, BF16, "auto", False),
    (80, torch.float32, "auto", True),
    (80, torch.float64, "auto", False),
    (80, torch.float16, "auto", False),
    (80, BF16, "reference", False),
])  # fmt: skip
def test_which_queries_it_takes(new, dtype, path, taken, monkeypatch):
    """Many, in numbers that oneDNN multiplies, on the road of a CPU; both ways of looking."""
    calls, attend = [], attention_cpu.attention
    monkeypatch.setattr(attention_cpu, "LEAST", 80 * 100)
    monkeypatch.setattr(
        attention_cpu, "attention", lambda *given, **how: calls.append(1) or attend(*given, **how)
    )
    query, key, value = (x.to(dtype) for x in inputs(5, 1, new, 100, (2, 2), 16))
    with choose.using(path):
        attention.causal(query, key, value)
        assert len(calls) == taken
        query = torch.cat([query, query[:, :20]], 1)  # new and 20 more: each sees each
        attention.bidirectional(query, key.transpose(1, 2), value.transpose(1, 2))
    assert len(calls) == 2 * taken + (new == 79 and path == "auto")


@pytest.mark.parametrize("causal", [True, False])
def test_what_is_written_out_is_bounded(causal):
    """No more than the scores of a block, and those in 16 bits, though all would be 40 MB."""
    query, key, value = inputs(6, 1, 900, 1500, (7, 1), 16)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, profile_memory=True) as profile:
        attention_cpu.attention(query, key, value, causal)
    events = profile.profiler.kineto_results.events()
    largest = max(event.nbytes() for event in events if event.name() == "[memory]")
    assert largest <= 4 * attention_sizes.SCORES


@settings(max_examples=200, deadline=None)
@given(
    groups=st.sampled_from([1, 3, 7, 16]),
    new=st.integers(1, 3000),
    before=st.integers(0, 100_000),
    causal=st.booleans(),
)
def test_blocks_cover_every_token(groups, new, before, causal):
    """Each of them sees what it may, and no block holds many more scores than it should."""
    stop, done = before + new, 0
    for tokens, seen, used in attention_sizes.blocks_of(groups, new, stop, causal):
        assert tokens.start <= done < tokens.stop <= new
        done = tokens.stop
        assert seen == (before + tokens.start if causal else stop)
        if causal:
            end = before + tokens.stop
            assert (
                end
                <= used
                <= max(attention_sizes.STEP * (end // attention_sizes.STEP + 1), 1.125 * end)
            )
        rows = groups * (tokens.stop - tokens.start)
        assert rows * stop <= max(
            attention_sizes.SCORES, attention_sizes.LEAST_ROWS * stop, groups * stop
        )
    assert done == new


def test_prompts_of_any_length_have_products_of_few_sizes():
    """A thousand lengths after any number of tokens: oneDNN makes code for each size."""
    found = {
        (tokens.stop - tokens.start, used)
        for new in range(300, 1300)
        for before in (0, 17, 1000)
        for tokens, _, used in attention_sizes.blocks_of(7, new, before + new, True)
    }
    assert len(found) < 50
