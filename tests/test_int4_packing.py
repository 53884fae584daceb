"""Four-bit weights in words: packing bit by bit, rounding, and writing out, for ragged sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import mutated, no_worse_than_torch, rows_of

from llava_min.kernels import choose, int4_packing

DTYPES = (torch.float16, torch.float32)


def packed(seed, outputs, inputs, group, scale_dtype=torch.float32):
    """Words and scales of random weights, every nibble drawn and every scale different."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 16, (outputs, inputs), generator=generator, dtype=torch.uint8)
    scales = (torch.rand(inputs // group, outputs, generator=generator) + 0.5).to(scale_dtype)
    return int4_packing.pack(q), scales


def check_dequantise(int4_packing, outputs, inputs, group, dtype, seed, step=20):
    """The kernel, `step` outputs at a time: its error is at most twice that of torch's float32."""
    words, scales = packed(seed, outputs, inputs, group, torch.float16)
    parts = []
    with choose.using("triton"):
        for first in range(0, outputs, step):
            last = min(first + step, outputs)
            parts.append(int4_packing.dequantise(words, scales, dtype, first, last))
    exact = int4_packing.dequantise_formula(words, scales.double(), torch.float64)
    by_torch = int4_packing.dequantise_formula(words, scales.float(), dtype)
    no_worse_than_torch(torch.cat(parts), by_torch, exact)


@pytest.mark.catalogue("NU-INT4", "unpacking is the inverse of packing")
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_unpack_is_the_inverse_of_pack(data):
    outputs, count = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    q = torch.randint(0, 16, (outputs, 128 * count), generator=generator, dtype=torch.uint8)
    words = int4_packing.pack(q)
    assert words.shape == (count, outputs, 32) and words.dtype == torch.int16
    assert torch.equal(int4_packing.unpack(words), q)


def test_partial_blocks_are_refused():
    """SigLIP's 4304 inputs are 33.6 blocks: refused by number, never padded in silence."""
    with pytest.raises(ValueError, match="multiple of 128, found 4304"):
        int4_packing.pack(torch.zeros(1, 4304, dtype=torch.uint8))


@pytest.mark.catalogue("NU-INT4", "no more than half a step off")
@settings(max_examples=12, deadline=None)
@given(
    group=st.sampled_from(int4_packing.GROUPS),
    scale=st.sampled_from([0.0, 1e-3, 10.0]),
    seed=st.integers(0, 2**31),
)
def test_quantise_is_half_a_step_off(group, scale, seed):
    weight = rows_of(seed, (5, 256), scale=scale)
    q, scales = int4_packing.quantise(weight, group)
    again = int4_packing.dequantise_formula(int4_packing.pack(q), scales, torch.float32)
    error = (again - weight).abs().unflatten(1, (-1, group)).amax(-1)
    assert torch.all(error <= 0.5001 * scales.T)


@settings(max_examples=12, deadline=None)
@given(
    outputs=st.integers(1, 50),
    blocks=st.integers(1, 4),
    group=st.sampled_from(int4_packing.GROUPS),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_written_out(outputs, blocks, group, dtype, seed):
    """Parts of the outputs that are no multiple of a block, all groups."""
    check_dequantise(int4_packing, outputs, 128 * blocks, group, dtype, seed)


MUTANTS = {
    "top bit lost": ("((packed >> 4 * plane) & 15)", "((packed >> 4 * plane) & 7)"),
    "planes in reverse": ("(packed >> 4 * plane)", "(packed >> 4 * (3 - plane))"),
    "wrong middle": (".to(tl.float32) - 8.0", ".to(tl.float32) - 7.0"),
    "planes in one group": ("+ plane * 32 // GROUP", "+ 0 * plane"),
    "part begins at zero": ("n, word, inside = first + row", "n, word, inside = row"),
    "scale forgotten": ("values *= tl.load", "values += 0 * tl.load"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name, tmp_path):
    mutant = mutated(int4_packing, tmp_path, *MUTANTS[name])
    with pytest.raises(AssertionError):
        check_dequantise(mutant, 30, 256, 32, torch.float32, 0)
