"""Decoding over the cache: formula, split loop and Triton kernels against float64, for ragged
lengths.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import Layer, layer_of, mutated, no_worse_than_torch, rows_of

from bench.lease.right_rule import poisoned
from llava_min.kernels import attention, choose, language, rope
from llava_min.kernels import decode_attention as decode

DTYPES = (torch.float16, torch.float32)


def plain(query, key, value, mask):
    """Plain torch in the dtype of its arguments: what the 2x rule compares with."""
    groups = query.shape[2] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = query.transpose(1, 2) @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    return (torch.softmax(scores.masked_fill(~mask, -torch.inf), -1) @ value).transpose(1, 2)


def eight_bit(layer: Layer, kind=torch.int8) -> Layer:
    """The same layer with 8-bit keys and values; unused scales are NaN, unused steps 127 or NaN."""
    (keys, key_scales), (values, value_scales) = (
        rope.quantise(x.nan_to_num(0.0), kind) for x in (layer.keys, layer.values)
    )
    for row in range(len(layer.host_lengths)):
        unused = layer.keys[row, 0, :, 0].isnan()
        for steps in (keys, values):  # 127 is the largest int8, and NaN as fp8
            steps.view(torch.uint8)[row, :, unused] = 127
        key_scales[row, :, unused], value_scales[row, :, unused] = torch.nan, torch.nan
    return Layer(keys, values, key_scales, value_scales, layer.lengths, layer.host_lengths)


def check_decode(
    decode, starts, new, heads, kv_heads, head_dim, dtype, kind, programs, seed, scale=1.0
):
    query = rows_of(seed + 2, (len(starts), new, heads, head_dim), dtype, scale)
    layer = layer_of(seed, starts, new, kv_heads, head_dim, dtype)
    if kind is not None:
        layer = eight_bit(layer, kind)
    inputs = [x for x in vars(layer).values() if isinstance(x, torch.Tensor)] + [query]
    before = [x.clone() for x in inputs]
    with poisoned():
        mixed = decode.decode_triton(query, layer, (16, 4, 1, programs))
    exact_layer = layer.double()
    for row, start in enumerate(starts):
        key, value = (
            x[row : row + 1, :, : start + new] for x in (exact_layer.keys, exact_layer.values)
        )
        mask, one = attention.causal_mask(new, start), query[row : row + 1]
        exact = attention.attention_formula(one.double(), key, value, mask)
        by_torch = plain(one, key.to(dtype), value.to(dtype), mask)
        no_worse_than_torch(mixed[row : row + 1], by_torch, exact, score=4 * scale)
    for old, kept in zip(before, inputs):
        assert torch.equal(old.float().nan_to_num(9), kept.float().nan_to_num(9))


@settings(max_examples=12, deadline=None)
@given(
    starts=st.lists(st.integers(0, 90), min_size=1, max_size=2),
    new=st.integers(1, 8),
    heads=st.sampled_from([(1, 1), (7, 1), (6, 2)]),
    head_dim=st.sampled_from([16, 64]),
    dtype=st.sampled_from(DTYPES),
    kind=st.sampled_from([None, torch.int8, torch.float8_e4m3fn]),
    programs=st.sampled_from([1, 4, 12, 40]),
    scale=st.sampled_from([1.0, 20.0]),
    seed=st.integers(0, 2**31),
)
def test_decode(starts, new, heads, head_dim, dtype, kind, programs, scale, seed):
    """1 to 7 splits of blocks of 16, many of them empty; one to three tiles of query rows; scores
    of +-80.
    """
    check_decode(decode, starts, new, *heads, head_dim, dtype, kind, programs, seed, scale)


@settings(max_examples=20, deadline=None)
@given(
    starts=st.lists(st.integers(0, 90), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (7, 1), (6, 2)]),
    dtype=st.sampled_from([*DTYPES, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_decode_on_a_cpu(starts, heads, dtype, seed):
    """Rows of different lengths, NaN behind each: as exact as the formula in the same dtype."""
    layer = layer_of(seed, starts, 1, heads[1], 16, dtype)
    query = rows_of(seed + 2, (len(starts), 1, heads[0], 16), dtype)
    mixed = decode.decode_attention(query, layer)
    assert mixed.is_contiguous()
    wider = layer.double().keys_and_values(1, torch.float64)
    exact = decode.decode_formula(query.double(), *wider, layer.lengths)
    by_formula = decode.decode_formula(query, *layer.keys_and_values(1, dtype), layer.lengths)
    no_worse_than_torch(mixed, by_formula, exact, score=4)


@pytest.mark.parametrize("length", [0, 14, 15, 16, 31, 32, 33])
def test_lengths_around_a_block(length):
    check_decode(decode, [length], 1, 2, 1, 16, torch.float32, None, 2, 0)


@settings(max_examples=10, deadline=None)
@given(total=st.integers(1, 40), splits=st.integers(1, 50), seed=st.integers(0, 2**31))
def test_tiled_loop_is_the_formula(total, splits, seed):
    """In float64, also with more splits than keys."""
    query, key, value = (
        rows_of(seed + i, (n, 8)).double() for i, n in enumerate((3, total, total))
    )
    exact = attention.attention_formula(query[None, None], key[None, None], value[None, None], None)
    tiled = decode.decode_tiled(query, key, value, splits)
    assert (tiled - exact[0, 0]).abs().max() < 1e-10


def test_equal_scores_give_the_mean():
    layer = layer_of(0, [70], 1, 1, 16, torch.float32)
    mixed = decode.decode_triton(torch.zeros(1, 1, 2, 16), layer, (16, 4, 1, 5))
    mean = layer.values[0, 0, :71].mean(0)
    torch.testing.assert_close(mixed[0, 0], mean.expand(2, 16), atol=1e-6, rtol=0)


def test_the_same_bits_each_time():
    layer = layer_of(0, [90, 3], 2, 2, 16, torch.float16)
    query = rows_of(2, (2, 2, 4, 16), torch.float16)
    one, two = (decode.decode_triton(query, layer, (16, 4, 1, 24)) for _ in range(2))
    assert torch.equal(one, two)


def test_a_row_without_keys_is_zero():
    """A length of -1 leaves nothing to see: zeros, not 0/0; the other row does not notice."""
    check_row_without_keys(decode)


def check_row_without_keys(decode):
    layer = layer_of(0, [0, 40], 1, 1, 16, torch.float32)
    query = rows_of(2, (2, 1, 2, 16))
    usual = decode.decode_triton(query, layer, (16, 4, 1, 6))
    layer.lengths[0] = -1
    mixed = decode.decode_triton(query, layer, (16, 4, 1, 6))
    assert torch.equal(mixed[0], torch.zeros(1, 2, 16)) and torch.equal(mixed[1], usual[1])


def test_steps_without_the_host():
    """Rotate, write and attend at lengths that only the device tensor knows: what a CUDA graph
    replays.

    The grid and all host numbers stay those of the first step; only `lengths` moves.
    """
    capacity, head_dim = 24, 16
    static, moving = (
        layer_of(0, [0], 0, 1, head_dim, torch.float32, spare=capacity) for _ in range(2)
    )
    for step in range(20):
        qkv = rows_of(step, (1, 1, 4 * head_dim))
        angles = rope.angles(torch.tensor([[step]]), 10_000.0, head_dim)
        mixed = decode.decode_triton(rope.write_triton(qkv, angles, static), static, (16, 4, 1, 3))
        with choose.using("reference"):
            exact = decode.decode_attention(rope.write(qkv, angles, moving), moving)
        torch.testing.assert_close(mixed, exact, atol=2e-6, rtol=0)
        static.lengths += 1
        moving.lengths += 1
        moving.host_lengths[0] += 1
    assert static.host_lengths.tolist() == [0]


def check_not_finite(decode, where, wrong):
    """An overflow in float16 must reach the logits, where NumericsError is raised."""
    layer, query = layer_of(0, [70], 1, 1, 16, torch.float32), rows_of(2, (1, 1, 2, 16))
    at = {"query": query[0, 0, 1], "key": layer.keys[0, 0, 40], "value": layer.values[0, 0, 40]}
    at[where][...] = wrong
    mixed = decode.decode_triton(query, layer, (16, 4, 1, 4))
    assert not mixed[0, 0, 1].isfinite().any()
    assert (where != "query") or mixed[0, 0, 0].isfinite().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("where", ["query", "key", "value"])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_hidden(where, wrong):
    check_not_finite(decode, where, wrong)


@pytest.mark.parametrize(
    ("capability", "multiprocessors", "capacity", "kv_heads", "splits"),
    [
        ((9, 0), 132, 131_100, 4, 33),
        ((9, 0), 132, 1_100, 4, 18),
        ((8, 0), 108, 131_100, 4, 27),
        ((8, 6), 82, 131_100, 2, 82),
        ((9, 0), 132, 131_100, 32, 4),
        ((9, 0), 132, 30, 4, 1),
    ],
)
def test_splits_fill_the_gpu_once(capability, multiprocessors, capacity, kv_heads, splits):
    """As many programs as run at once on this GPU, and none without keys in a full cache."""
    gpu = choose.Gpu(capability, multiprocessors)
    keys = torch.empty(1, kv_heads, capacity, 128, dtype=torch.bfloat16, device="meta")
    lengths = torch.zeros(1, dtype=torch.int32)
    layer = Layer(keys, keys, None, None, lengths, np.zeros(0, int))
    assert decode.splits_of(layer, 1, gpu, decode.BLOCKS[gpu.part, 16]) == splits


def test_public_function_launches_two_kernels():
    layer = layer_of(0, [40, 7], 3, 1, 16, torch.float32)
    query = rows_of(2, (2, 3, 2, 16))
    before = language.launches.copy()
    with choose.using("triton"):
        mixed = decode.decode_attention(query, layer)
    assert language.launches - before == {"decode_kernel": 1, "combine_kernel": 1}
    torch.testing.assert_close(mixed, decode.decode_attention(query, layer), atol=2e-6, rtol=0)


MUTANTS = {
    "key mask dropped": ("<= last[:, None], scores", "<= last[:, None] + 1000, scores"),
    "causal off by one": ("last = seen + row // GROUP", "last = seen + row // GROUP - 1"),
    "query rows taken as tokens": ("last = seen + row // GROUP", "last = seen + row"),
    "later splits dropped": ("range(0, filled, AT_ONCE", "range(0, 1, AT_ONCE"),
    "splits added without their maximum": (
        "tl.exp2(one_maximum - raised)",
        "tl.exp2(0 * one_maximum)",
    ),
    "earlier splits not shrunk": ("mixed = mixed * shrink +", "mixed = mixed +"),
    "empty splits combined": ("inside = split < filled", "inside = split < splits"),
    "filled splits not written": ("(split * each < stop)", "(split * each < stop - BLOCK)"),
    "split rounded down": (
        "tl.cdiv(tl.cdiv(tl.maximum(seen + new, 0), block), splits)",
        "(tl.cdiv(tl.maximum(seen + new, 0), block) // splits)",
    ),
    "key scale forgotten": ("scores *= scale[None, :]", "scores += 0 * scale[None, :]"),
    "value scale forgotten": (
        "weights *= scale[None, :]",
        "weights += 0 * scale[None, :]",
    ),
    "empty split divided": ("tl.where(total != 0.0, total, 1.0)", "total"),
    "length of the first row for all": (
        "tl.load(lengths + batch)\n    each = keys_of_a_split(seen, new, splits, BLOCK)",
        "tl.load(lengths)\n    each = keys_of_a_split(seen, new, splits, BLOCK)",
    ),
    "splits of the first row for all": (
        "tl.load(lengths + batch)\n    each = keys_of_a_split(seen, new, splits, block)",
        "tl.load(lengths)\n    each = keys_of_a_split(seen, new, splits, block)",
    ),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a mistake may well divide by zero
@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name, tmp_path):
    mutant = mutated(decode, tmp_path, *MUTANTS[name])
    with pytest.raises(AssertionError):
        check_decode(mutant, [61, 30], 3, 4, 2, 16, torch.float32, None, 12, 0)
        check_decode(mutant, [61], 1, 4, 2, 16, torch.float32, torch.int8, 8, 0)
        check_decode(mutant, [1300], 1, 16, 1, 16, torch.float32, None, 80, 0, 8.0)
        check_row_without_keys(mutant)
