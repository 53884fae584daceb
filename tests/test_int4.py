"""Four-bit weights: packing bit by bit, and both products against float64, for ragged sizes."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import mutated, no_worse_than_torch, rows_of

from llava_min.kernels import choose, int4, language

DTYPES = (torch.float16, torch.float32)
SMALL = (16, 4, 1, 6)  # 16 outputs of a block, and up to six programs


def packed(seed, outputs, inputs, group, symmetric, scale_dtype=torch.float32):
    """Words, scales and offsets of random weights, every nibble drawn and every scale different."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 16, (outputs, inputs), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(inputs // group, outputs, generator=generator) + 0.5).to(scale_dtype)
    offsets = None if symmetric else rows_of(seed, scales.shape, scale_dtype)
    return int4.pack(q), scales, offsets


def check_linear(int4, kind, count, outputs, inputs, group, symmetric, dtype, seed):
    """The small-M kernel is held to the weights as they are, not to weights rounded to `dtype`."""
    weights = packed(seed, outputs, inputs, group, symmetric, torch.float16)
    rows = rows_of(seed + 1, (count, inputs), dtype)
    before = rows.clone()
    if kind == "small":
        product = int4.linear_small(rows, *weights, SMALL)
    else:
        with choose.using("triton"):
            product = int4.linear_large(rows, *weights, chunk=20 * inputs)
    exact_weights = (x if x is None or x.dtype == torch.int16 else x.double() for x in weights)
    exact = int4.linear_formula(rows.double(), *exact_weights)
    weight = int4.dequantise_formula(*(weights if kind == "large" else widened(weights)), dtype)
    terms = (rows.abs().double() @ weight.abs().double().T).max() / exact.abs().max()
    no_worse_than_torch(product, rows @ weight.T, exact, score=float(terms))
    assert torch.equal(rows, before)


def widened(weights):
    words, scales, offsets = weights
    return words, scales.float(), None if offsets is None else offsets.float()


@pytest.mark.catalogue("NU-INT4", "unpacking is the inverse of packing")
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_unpack_is_the_inverse_of_pack(data):
    outputs, count = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    q = torch.randint(0, 16, (outputs, 128 * count), generator=generator, dtype=torch.uint8)
    words = int4.pack(q)
    assert words.shape == (count, outputs, 32) and words.dtype == torch.int16
    assert torch.equal(int4.unpack(words), q)


def test_partial_blocks_are_refused():
    """SigLIP's 4304 inputs are 33.6 blocks: refused by number, never padded in silence."""
    with pytest.raises(ValueError, match="multiple of 128, found 4304"):
        int4.pack(torch.zeros(1, 4304, dtype=torch.uint8))


@pytest.mark.catalogue("NU-INT4", "no more than half a step off")
@settings(max_examples=12, deadline=None)
@given(
    group=st.sampled_from(int4.GROUPS),
    symmetric=st.booleans(),
    scale=st.sampled_from([0.0, 1e-3, 10.0]),
    seed=st.integers(0, 2**31),
)
def test_quantise_is_half_a_step_off(group, symmetric, scale, seed):
    weight = rows_of(seed, (5, 256), scale=scale)
    q, scales, offsets = int4.quantise(weight, group, symmetric)
    again = int4.dequantise_formula(int4.pack(q), scales, offsets, torch.float32)
    error = (again - weight).abs().unflatten(1, (-1, group)).amax(-1)
    assert torch.all(error <= 0.5001 * scales.T)


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(["small", "large"]),
    count=st.sampled_from([1, 2, 3, 7, 16, 17, 33]),
    outputs=st.integers(1, 50),
    blocks=st.integers(1, 4),
    group=st.sampled_from(int4.GROUPS),
    symmetric=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_linear(kind, count, outputs, blocks, group, symmetric, dtype, seed):
    """Outputs that are no multiple of a block, one to four shares of the inputs, all groups."""
    check_linear(int4, kind, count, outputs, blocks * 128, group, symmetric, dtype, seed)


@settings(max_examples=8, deadline=None)
@given(
    count=st.integers(1, 5),
    outputs=st.integers(1, 9),
    group=st.sampled_from(int4.GROUPS),
    symmetric=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_tiled_loop_is_the_formula(count, outputs, group, symmetric, seed):
    """In float64."""
    words, scales, offsets = packed(seed, outputs, 256, group, symmetric, torch.float64)
    rows = rows_of(seed + 1, (count, 256)).double()
    tiled = int4.linear_tiled(rows, words, scales, offsets)
    assert (tiled - int4.linear_formula(rows, words, scales, offsets)).abs().max() < 1e-10


def test_agrees_with_torch_on_cpu():
    """torch's own int4 product, given the same weights by its own packing, is another witness."""
    q, scales, _ = int4.quantise(rows_of(0, (64, 256)), 128)
    rows = rows_of(1, (3, 256), torch.float32)
    words = torch._convert_weight_to_int4pack_for_cpu(q.to(torch.int32), 1)
    both = torch.stack([scales, torch.zeros_like(scales)], dim=-1).bfloat16()
    theirs = torch._weight_int4pack_mm_for_cpu(rows.bfloat16(), words, 128, both).float()
    ours = int4.linear_formula(rows.bfloat16().float(), int4.pack(q), both[..., 0].float())
    assert (
        ours - theirs
    ).abs().max() < 0.01 * ours.abs().max()  # bfloat16 result: one step is 0.4%


@settings(max_examples=15, deadline=None)
@given(
    count=st.sampled_from([1, 2, 7, 96, 97, 130]),
    outputs=st.integers(1, 200),
    blocks=st.integers(1, 3),
    group=st.sampled_from(int4.GROUPS),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_repacked_for_a_cpu(count, outputs, blocks, group, dtype, seed):
    """torch's operator for few rows, writing out for many, in chunks of one block: one answer."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 16, (outputs, 128 * blocks), generator=generator, dtype=torch.uint8)
    scales = rows_of(seed, (outputs, 128 * blocks // group), dtype)  # of either sign
    rows, bias = rows_of(seed + 1, (count, 128 * blocks), dtype), rows_of(seed, (outputs,), dtype)
    packed = int4.repack(q, scales)
    weight = (q.double().unflatten(1, (-1, group)) - 8) * scales.double()[..., None]
    exact = rows.double() @ weight.flatten(1).T
    if packed[0].dtype == torch.uint8:
        written = int4.dequantise_torch(*packed)[:, :outputs].T
        assert torch.equal(written, weight.flatten(1).to(dtype))
        chunked = int4.linear_torch(rows, *packed, chunk=1)[:, :outputs]
        torch.testing.assert_close(chunked, int4.linear(rows, *packed)[:, :outputs])
        bias = F.pad(bias, (0, packed[1].shape[1] - outputs))
    product = int4.linear(rows, *packed, None, bias)[:, :outputs]
    terms = rows.abs().double() @ weight.flatten(1).abs().T
    step = 4 * torch.finfo(dtype).eps
    assert ((product - exact - bias[:outputs]).abs() <= step * terms + step).all()


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_repacked_on_lesser_cpus(capability):
    """The same property where the processor has fewer instructions, in a process of its own."""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    test = f"{__file__}::test_repacked_for_a_cpu"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_scaled_sums_are_more_exact_than_scaled_weights():
    """The reason for the kernel's order of work: float16 rows, error a hundredth of dequantising
    first.
    """
    weights = packed(0, 32, 512, 128, True)
    rows = rows_of(1, (4, 512), torch.float16)
    exact = int4.linear_formula(rows.double(), weights[0], weights[1].double())
    kernel = int4.linear_small(rows.float(), *weights, SMALL)
    rounded = rows.float() @ int4.dequantise_formula(*weights, torch.float16).float().T
    assert (kernel - exact).abs().max() * 100 < (rounded - exact).abs().max()


def test_public_function():
    """Either side of the cross-over: leading axes, bias, launches, and the same bits each time."""
    weights, bias = packed(0, 20, 256, 64, False), rows_of(1, (20,))
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
    weights, bias = packed(0, 20, 1024, 64, True), rows_of(1, (20,))
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
    "offset forgotten": ("total += offset[:, None] * sums", "total += 0 * offset[:, None] * sums"),
    "sums of one plane": ("tl.dot(ones, x, sums,", "tl.dot(ones, x, 0 * sums,"),
    "last block of a share dropped": (
        "(split + 1) * each // splits)",
        "(split + 1) * each // splits - 1)",
    ),
    "shares overlap": ("range(split * each // splits,", "range(0 * split,"),
    "wrong middle": ("= 1032.0 if", "= 1031.0 if"),
    "planes of the prefill path in one group": ("+ plane * 32 // GROUP", "+ 0 * plane"),
    "chunk begins at zero": ("n, word, inside = first + row", "n, word, inside = row"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name, tmp_path):
    mutant = mutated(int4, tmp_path, *MUTANTS[name])
    with pytest.raises(AssertionError):
        check_linear(mutant, "small", 3, 20, 512, 64, False, torch.float16, 0)
        check_linear(mutant, "large", 3, 30, 256, 32, False, torch.float32, 0)
        check_shares(mutant)
