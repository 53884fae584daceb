"""RMSNorm and LayerNorm: Triton in the interpreter against float64, at most twice torch's own
error.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import mutated, no_worse_than_torch, rows_of

from llava_min.kernels import choose, language, norm

DTYPES = (torch.float16, torch.float32)


def check_rms_norm(norm, count, width, dtype, scale, seed):
    rows, update = (
        rows_of(seed, (count, width), dtype, scale),
        rows_of(seed + 1, (count, width), dtype, scale),
    )
    weight = rows_of(seed + 2, (width,), dtype)
    total, normed = norm.rms_norm_triton(rows, update, weight, 1e-6, tile=256)
    assert torch.equal(total, rows + update)
    exact = norm.rms_norm_torch((rows + update).double(), weight.double(), 1e-6)
    no_worse_than_torch(normed, norm.rms_norm_torch(rows + update, weight, 1e-6), exact)
    plain = norm.rms_norm_triton(rows, None, weight, 1e-6, tile=256)[1]
    exact = norm.rms_norm_torch(rows.double(), weight.double(), 1e-6)
    no_worse_than_torch(plain, norm.rms_norm_torch(rows, weight, 1e-6), exact)


@settings(max_examples=12, deadline=None)
@given(
    count=st.integers(1, 7),
    width=st.sampled_from([1, 5, 16, 33, 72, 130]),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1.0, 300.0, 1e-3]),
    seed=st.integers(0, 2**31),
)
def test_rms_norm(count, width, dtype, scale, seed):
    """scale 300: squares overflow float16 where statistics are not taken in float32."""
    check_rms_norm(norm, count, width, dtype, scale, seed)


def check_layer_norm(norm, count, width, dtype, scale, offset, seed):
    rows = rows_of(seed, (count, width), dtype, scale) + offset
    weight, bias = rows_of(seed + 1, (width,), dtype), rows_of(seed + 2, (width,), dtype)
    normed = norm.layer_norm_triton(rows, weight, bias, 1e-6, tile=256)
    exact = norm.layer_norm_torch(rows.double(), weight.double(), bias.double(), 1e-6)
    no_worse_than_torch(normed, norm.layer_norm_torch(rows, weight, bias, 1e-6), exact)


@settings(max_examples=8, deadline=None)
@given(
    count=st.integers(1, 7),
    width=st.sampled_from([2, 5, 16, 72, 130]),
    dtype=st.sampled_from(DTYPES),
    offset=st.sampled_from([0.0, 100.0]),
    seed=st.integers(0, 2**31),
)
def test_layer_norm(count, width, dtype, offset, seed):
    """offset 100: E[x^2] - mean^2 loses the variance to cancellation, and a mean that is off by one
    float32 step of 100 shifts every number.
    """
    check_layer_norm(norm, count, width, dtype, 1.0, offset, seed)


def test_shapes_and_launches():
    """Leading axes, strided rows, no rows at all; and the public functions reach the kernels."""
    wide_rows = rows_of(0, (2, 3, 80), torch.float32)
    rows, weight = wide_rows[:, :, 8:72], rows_of(1, (64,), torch.float32)
    before = language.launches.copy()
    with choose.using("triton"):
        normed = norm.rms_norm(rows, weight, 1e-5)
        total, again = norm.add_rms_norm(rows, torch.zeros_like(rows), weight, 1e-5)
        centred = norm.layer_norm(rows, weight, weight, 1e-5)
        assert norm.rms_norm(rows[:0], weight, 1e-5).shape == (0, 3, 64)
        assert norm.rms_norm(rows.double(), weight.double(), 1e-5).dtype == torch.float64
    counted = language.launches - before
    assert counted == {"rms_norm_kernel": 2, "layer_norm_kernel": 1}
    assert normed.shape == rows.shape and torch.equal(again, normed) and torch.equal(total, rows)
    torch.testing.assert_close(normed, norm.rms_norm(rows, weight, 1e-5), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        centred, norm.layer_norm(rows, weight, weight, 1e-5), atol=1e-6, rtol=1e-6
    )


def test_gradients_stay_with_torch():
    """No kernel has a backward pass: what needs a gradient takes the formula."""
    rows = torch.randn(2, 8, requires_grad=True)
    norm.rms_norm(rows, torch.ones(8), 1e-6).sum().backward()
    assert rows.grad is not None


MUTANTS = {
    "statistics of the padded block": (
        "axis=1) / WIDTH + eps)\n    values = (values",
        "axis=1) / BLOCK + eps)\n    values = (values",
    ),
    "residual forgotten": ("values += load_tile(update", "values *= load_tile(update"),
    "epsilon squared": (
        "axis=1) / WIDTH + eps)\n    whole",
        "axis=1) / WIDTH + eps * eps)\n    whole",
    ),
    "mean left as rounded": ("values - rest[:, None]", "values - 0 * rest[:, None]"),
    "padding centred": ("tl.where(inside, values - mean[:, None], 0.0)", "values - mean[:, None]"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name, tmp_path):
    mutant = mutated(norm, tmp_path, *MUTANTS[name])
    with pytest.raises(AssertionError):
        check_rms_norm(mutant, 3, 33, torch.float32, 1.0, 0)
        check_layer_norm(mutant, 3, 33, torch.float32, 0.001, 5.0, 0)
        check_layer_norm(mutant, 1, 130, torch.float32, 1.0, 100.0, 10)
