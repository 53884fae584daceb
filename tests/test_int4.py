"""Linear layers of four-bit weights: both products against float64, for ragged sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import mutated, no_worse_than_torch, rows_of
from test_int4_packing import packed

from llava_min.kernels import choose, int4, language
from llava_min.kernels.int4_packing import GROUPS, dequantise_formula

DTYPES = (torch.float16, torch.float32)
SMALL = (16, 4, 1, 6)  # 16 outputs of a block, and up to six programs


def check_linear(int4, kind, count, outputs, inputs, group, dtype, seed):
    """The small-M kernel is held to the weights as they are, not to weights rounded to `dtype`."""
    words, scales = packed(seed, outputs, inputs, group, torch.float16)
    rows = rows_of(seed + 1, (count, inputs), dtype)
    before = rows.clone()
    if kind == "small":
        product = int4.linear_small(rows, words, scales, SMALL)
    else:
        with choose.using("triton"):
            product = int4.linear_large(rows, words, scales, chunk=20 * inputs)
    exact = int4.linear_formula(rows.double(), words, scales.double())
    weight = dequantise_formula(words, scales if kind == "large" else scales.float(), dtype)
    terms = (rows.abs().double() @ weight.abs().double().T).max() / exact.abs().max()
    no_worse_than_torch(product, rows @ weight.T, exact, score=float(terms))
    assert torch.equal(rows, before)


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(["small", "large"]),
    count=st.sampled_from([1, 2, 3, 7, 16, 17, 33]),
    outputs=st.integers(1, 150),
    blocks=st.integers(1, 4),
    group=st.sampled_from(GROUPS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_linear(kind, count, outputs, blocks, group, dtype, seed):
    """Outputs that are no multiple of a block, one to four shares of the inputs, all groups."""
    check_linear(int4, kind, count, outputs, blocks * 128, group, dtype, seed)


@settings(max_examples=8, deadline=None)
@given(
    count=st.integers(1, 5),
    outputs=st.integers(1, 9),
    group=st.sampled_from(GROUPS),
    seed=st.integers(0, 2**31),
)
def test_tiled_loop_is_the_formula(count, outputs, group, seed):
    """In float64."""
    words, scales = packed(seed, outputs, 256, group, torch.float64)
    rows = rows_of(seed + 1, (count, 256)).double()
    tiled = int4.linear_tiled(rows, words, scales)
    assert (tiled - int4.linear_formula(rows, words, scales)).abs().max() < 1e-10


def test_scaled_sums_are_more_exact_than_scaled_weights():
    """The reason for the kernel's order of work: float16 rows, error a hundredth of dequantising
    first.
    """
    weights = packed(0, 32, 512, 128)
    rows = rows_of(1, (4, 512), torch.float16)
    exact = int4.linear_formula(rows.double(), weights[0], weights[1].double())
    kernel = int4.linear_small(rows.float(), *weights, SMALL)
    rounded = rows.float() @ dequantise_formula(*weights, torch.float16).float().T
    assert (kernel - exact).abs().max() * 100 < (rounded - exact).abs().max()


def test_public_function():
    """Either side of the cross-over: leading axes, bias, launches, and the same bits each time."""
    weights, bias = packed(0, 20, 256, 64), rows_of(1, (20,))
    before = language.launches.copy()
    for count in (2, 40):
        rows = rows_of(2, (1, count, 256))
        with choose.using("triton"):
            product, again = (int4.linear(rows, *weights, bias) for _ in range(2))
        assert torch.equal(product, again)
        exact = int4.linear_formula(rows, *weights) + bias
        torch.testing.assert_close(product, exact, atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(int4.linear(rows, *weights, bias), exact, atol=1e-3, rtol=1e-5)
    assert language.launches - before == {"linear_kernel": 2, "dequantise_kernel": 2}


def check_shares(int4):
    """Several shares, a bias and the layer's own counter, which is zero again afterwards."""
    weights, bias = packed(0, 20, 1024, 64), rows_of(1, (20,))
    rows, arrived = rows_of(2, (3, 1024)), torch.zeros(5, dtype=torch.int32)
    products = [int4.linear_small(rows, *weights, SMALL, bias, arrived) for _ in range(2)]
    exact = int4.linear_formula(rows, *weights) + bias
    torch.testing.assert_close(products[0], exact, atol=1e-3, rtol=1e-5)
    assert torch.equal(*products) and not arrived.any()


def test_shares_are_added_by_the_last():
    check_shares(int4)


@settings(max_examples=60, deadline=None)
@given(tiles=st.integers(1, 1500), slots=st.integers(6, 600), most=st.integers(1, 150))
def test_shares_keep_a_gpu_busy(tiles, slots, most):
    """Nine tenths of the programs' time is work, or no allowed number of shares does better."""
    busy = [tiles * n / (-(-tiles * n // slots) * slots) for n in range(1, min(most, 16) + 1)]
    count = int4.shares(tiles, slots, most)
    assert busy[count - 1] >= 0.9 or busy[count - 1] == max(busy)
    assert all(one < 0.9 for one in busy[: count - 1])


MUTANTS = {
    "nibbles swapped": ("pairs = pairs >> 4 * PLANE", "pairs = pairs >> 4 * (PLANE ^ 1)"),
    "words of a pair swapped": (
        "(pairs & 0xFFFF).to(tl.uint16), (pairs >> 16).to(tl.uint16)",
        "(pairs >> 16).to(tl.uint16), (pairs & 0xFFFF).to(tl.uint16)",
    ),
    "top bit lost": ("(pairs & 0x000F000F) | MAGIC", "(pairs & 0x00070007) | MAGIC"),
    "scale forgotten": ("total += group_total * scale[:, None]", "total += group_total"),
    "a share dropped": ("for share in range(splits)", "for share in range(1, splits)"),
    "bias forgotten": ("total += tl.load(bias + n", "total += 0 * tl.load(bias + n"),
    "counter not set back": ("tl.store(arrived + block_n, 0)", "tl.store(arrived + block_n, 1)"),
    "one counter for all outputs": ("tl.atomic_add(arrived + block_n", "tl.atomic_add(arrived"),
    "scale of the first group for all": (
        "block * (128 // GROUP) + group, tl.int64)",
        "0, tl.int64)",
    ),
    "last block of a share dropped": (
        "(split + 1) * each // splits)",
        "(split + 1) * each // splits - 1)",
    ),
    "shares overlap": ("range(split * each // splits,", "range(0 * split,"),
    "wrong middle": ("= 1032.0 if", "= 1031.0 if"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name, tmp_path):
    mutant = mutated(int4, tmp_path, *MUTANTS[name])
    with pytest.raises(AssertionError):
        check_linear(mutant, "small", 3, 20, 512, 64, torch.float16, 0)
        check_shares(mutant)
