"""Attention: formula, tiled loop and Triton kernel against float64, for ragged sizes in both
directions.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import layer_of, mutated, no_worse_than_torch, rows_of

from llava_min.kernels import attention, choose, language

DTYPES = (torch.float16, torch.float32)
SMALL = (16, 16, 4, 1)  # blocks of 16: 49 keys and queries make four on each axis


def check_prefill(attention, starts, new, heads, kv_heads, head_dim, dtype, seed, scale=1.0):
    """Rows of different lengths at once; what lies behind a row's end is NaN."""
    query = rows_of(seed + 2, (len(starts), new, heads, head_dim), dtype, scale)
    layer = layer_of(seed, starts, new, kv_heads, head_dim, dtype)
    before = [x.clone() for x in (query, layer.keys, layer.values)]
    mixed = attention.attention_triton(query, layer.keys, layer.values, layer.lengths, SMALL)
    for row, start in enumerate(starts):
        key, value = (x[row : row + 1, :, : start + new] for x in (layer.keys, layer.values))
        mask = attention.causal_mask(new, start)
        one = query[row : row + 1]
        exact = attention.attention_formula(one.double(), key.double(), value.double(), mask)
        by_torch = sdpa(one, key, value, mask)
        no_worse_than_torch(mixed[row : row + 1], by_torch, exact, score=4 * scale)
    for old, kept in zip(before, (query, layer.keys, layer.values)):
        assert torch.equal(old.nan_to_num(9.0), kept.nan_to_num(9.0))


def check_bidirectional(attention, batch, patches, heads, head_dim, dtype, seed):
    """query, key and value are views of one fused tensor, as in the tower."""
    fused = rows_of(seed, (batch, patches, 3, heads, head_dim), dtype)
    query, key, value = fused.unbind(2)
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    mixed = attention.attention_triton(query, key, value, None, SMALL)
    exact = attention.attention_formula(query.double(), key.double(), value.double(), None)
    no_worse_than_torch(mixed, sdpa(query, key, value, None), exact, score=4)


def sdpa(query, key, value, mask):
    """Plain torch in the dtype of its arguments: what the 2x rule compares with."""
    groups = query.shape[2] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query.transpose(1, 2) @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (torch.softmax(scores, dim=-1) @ value).transpose(1, 2)


@settings(max_examples=14, deadline=None)
@given(
    starts=st.lists(st.integers(0, 60), min_size=1, max_size=2),
    new=st.integers(1, 49),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2)]),
    head_dim=st.sampled_from([16, 32, 40]),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1.0, 20.0]),
    seed=st.integers(0, 2**31),
)
def test_prefill(starts, new, heads, head_dim, dtype, scale, seed):
    """scale 20: scores of +-80, where a wrong running maximum overflows."""
    check_prefill(attention, starts, new, *heads, head_dim, dtype, seed, scale)


@settings(max_examples=8, deadline=None)
@given(
    batch=st.integers(1, 2),
    patches=st.integers(1, 60),
    heads=st.integers(1, 2),
    head_dim=st.sampled_from([16, 64, 72]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_bidirectional(batch, patches, heads, head_dim, dtype, seed):
    check_bidirectional(attention, batch, patches, heads, head_dim, dtype, seed)


@pytest.mark.parametrize("head_dim", [64, 72, 128])
def test_real_head_sizes(head_dim):
    check_bidirectional(attention, 1, 35, 2, head_dim, torch.float16, 0)
    check_prefill(attention, [17], 20, 2, 1, head_dim, torch.float16, 0)


@settings(max_examples=10, deadline=None)
@given(seen=st.integers(0, 40), new=st.integers(1, 40), block=st.sampled_from([1, 7, 16]))
def test_tiled_loop_is_the_formula(seen, new, block):
    """In float64: the loop that the kernel follows differs from the formula by rounding only."""
    query, key, value = (
        rows_of(i, (n, 8)).double() for i, n in enumerate((new, seen + new, seen + new))
    )
    mask = attention.causal_mask(new, seen)
    exact = attention.attention_formula(
        query[None, :, None], key[None, None], value[None, None], mask
    )
    tiled = attention.attention_tiled(query, key, value, block)
    assert (tiled - exact[0, :, 0]).abs().max() < 1e-10


def test_chunks_make_the_whole():
    """A prompt in chunks of 16, 1 and 20 gives the bits of the prompt in one piece, where blocks
    align, or nearly.
    """
    layer = layer_of(0, [0], 37, 1, 16, torch.float32)
    query = rows_of(2, (1, 37, 2, 16))
    whole = attention.attention_triton(query, layer.keys, layer.values, layer.lengths, SMALL)
    for start, stop in ((0, 16), (16, 17), (17, 37)):
        seen = torch.tensor([start], dtype=torch.int32)
        part = attention.attention_triton(
            query[:, start:stop], layer.keys, layer.values, seen, SMALL
        )
        torch.testing.assert_close(part, whole[:, start:stop], atol=2e-6, rtol=0)


def test_the_future_never_changes_the_past():
    layer = layer_of(0, [5], 37, 1, 16, torch.float32)
    query = rows_of(2, (1, 37, 2, 16))
    before = attention.attention_triton(query, layer.keys, layer.values, layer.lengths, SMALL)
    layer.keys[:, :, 5 + 20 :], layer.values[:, :, 5 + 20 :] = 7.0, 7.0
    query[:, 20:] = 7.0
    after = attention.attention_triton(query, layer.keys, layer.values, layer.lengths, SMALL)
    assert torch.equal(before[:, :20], after[:, :20]) and not torch.equal(
        before[:, 20:], after[:, 20:]
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("where", ["query", "key", "value"])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_hidden(where, wrong):
    """NaN or an overflow comes out as NaN or infinity, in every row that sees it."""
    layer, query = layer_of(0, [3], 20, 1, 16, torch.float32), rows_of(2, (1, 20, 1, 16))
    at = {"query": query[0, 9], "key": layer.keys[0, 0, 12], "value": layer.values[0, 0, 12]}
    at[where][...] = wrong
    by_triton = attention.attention_triton(query, layer.keys, layer.values, layer.lengths, SMALL)
    for mixed in (attention.prefill(query, layer), by_triton):
        assert not mixed[0, 9].isfinite().any()
        # 0 times NaN is NaN, and so is what a mask is added to where there are no kernels
        added = mixed is not by_triton and choose.path_of(query) == "reference"
        assert where == "value" or added or mixed[0, :9].isfinite().all()


def check_rows_without_keys(attention):
    layer = layer_of(0, [0], 37, 1, 16, torch.float32)
    query, seen = rows_of(2, (1, 37, 1, 16)), torch.tensor([-20], dtype=torch.int32)
    mixed = attention.attention_triton(query, layer.keys, layer.values, seen, SMALL)
    assert torch.equal(mixed[:, :20], torch.zeros(1, 20, 1, 16)) and mixed[:, 20:].ne(0).all()


@pytest.mark.catalogue("NU-MASKROW", "rows without keys are zero")
def test_rows_without_keys_are_zero():
    """A length of -20 masks the first 20 of 37 queries wholly: not NaN, and not a mean of all
    values.
    """
    check_rows_without_keys(attention)


def test_public_functions_launch_once():
    layer = layer_of(0, [5, 5], 20, 1, 16, torch.float32)
    query, fused = rows_of(2, (2, 20, 2, 16)), rows_of(3, (2, 20, 3, 2, 16))
    before = language.launches.copy()
    with choose.using("triton"):
        causal, both = attention.prefill(query, layer), attention.bidirectional(*fused.unbind(2))
    assert language.launches - before == {"attention_kernel": 2}
    torch.testing.assert_close(causal, attention.prefill(query, layer), atol=2e-6, rtol=0)
    torch.testing.assert_close(both, attention.bidirectional(*fused.unbind(2)), atol=2e-6, rtol=0)


@settings(max_examples=20, deadline=None)
@given(
    seen=st.integers(0, 60),
    new=st.integers(1, 49),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2)]),
    head_dim=st.sampled_from([16, 40]),
    scale=st.sampled_from([1.0, 20.0]),
    seed=st.integers(0, 2**31),
)
def test_torch_on_a_cpu_and_with_a_mask(seen, new, heads, head_dim, scale, seed):
    """In float64 equal to the formula; scale 20: shares of the past of nearly 0 and nearly 1."""
    query = rows_of(seed, (2, new, heads[0], head_dim), torch.float64, scale)
    key, value = (
        rows_of(seed + i, (2, heads[1], seen + new, head_dim), torch.float64) for i in (1, 2)
    )
    exact = attention.attention_formula(query, key, value, attention.causal_mask(new, seen))
    for by_torch in (attention.attention_merged, attention.attention_torch):
        torch.testing.assert_close(by_torch(query, key, value), exact, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_two_parts_lose_nothing_to_rounding(dtype):
    """The 2x rule where the past weighs nearly all: cancellation in its share would show."""
    query, key, value = (
        rows_of(seed, shape, dtype)
        for seed, shape in enumerate([(1, 20, 4, 16), (1, 2, 900, 16), (1, 2, 900, 16)])
    )
    mask = attention.causal_mask(20, 880)
    exact = attention.attention_formula(*(x.double() for x in (query, key, value)), mask)
    mixed = attention.attention_merged(query, key, value)
    no_worse_than_torch(mixed, sdpa(query, key, value, mask), exact)


MUTANTS = {
    "key mask dropped": ("<= last[:, None], scores", "<= last[:, None] + 1000, scores"),
    "causal off by one": ("last = seen + first + rows", "last = seen + first + rows + 1"),
    "offset forgotten": ("last = seen + first + rows", "last = first + rows"),
    "band begins too late": ("tl.maximum(seen + first + 1, 0) //", "(seen + first + BLOCK_KEY) //"),
    "last block of keys dropped": ("whole, stop, BLOCK_KEY", "whole, stop - BLOCK_KEY, BLOCK_KEY"),
    "sum not shrunk": ("total * shrink + tl.sum", "total + tl.sum"),
    "scale forgotten": ("1.4426950408889634 / (HEAD_DIM**0.5)", "1.4426950408889634"),
    "natural for binary exponent": ("= 1.4426950408889634 / (", "= 1.0 / ("),
    "stride in numbers": ("+ row * stride * HEAD_DIM", "+ row * stride"),
    "heads interleaved": ("head = kv_head * groups + group", "head = group * KV_HEADS + kv_head"),
    "tail of the head dropped": ("weights, tile, high, out", "weights, tile, 0 * high, out"),
    "lowest for masked scores": ('scores, -float("inf"))', "scores, -1e30)"),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a mistake may well divide by zero
@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name, tmp_path):
    mutant = mutated(attention, tmp_path, *MUTANTS[name])
    with pytest.raises(AssertionError):
        check_bidirectional(mutant, 1, 37, 2, 40, torch.float32, 0)
        check_prefill(mutant, [20], 23, 4, 2, 16, torch.float32, 0, 4.0)
        check_rows_without_keys(mutant)
