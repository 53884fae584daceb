"""SwiGLU and the three GELUs: Triton in the interpreter against float64, at most twice torch's own
error.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import mutated, no_worse_than_torch, rows_of

from llava_min.kernels import activation, choose, language

DTYPES = (torch.float16, torch.float32)


def check_swiglu(activation, count, width, dtype, scale, seed):
    gate_up = rows_of(seed, (count, 2 * width), dtype, scale)
    before = gate_up.clone()
    mixed = activation.swiglu_triton(gate_up, tile=16)
    exact = activation.swiglu_torch(gate_up.double())
    gate, up = gate_up.chunk(2, dim=-1)
    no_worse_than_torch(mixed, F.silu(gate) * up, exact)
    assert torch.equal(gate_up, before)


def check_gelu(activation, kind, count, width, dtype, scale, biased, seed):
    rows = rows_of(seed, (count, width), dtype, scale)
    bias = rows_of(seed + 1, (width,), dtype) if biased else None
    mixed = activation.gelu_triton(rows, kind, bias, tile=16)
    total, exact_total = (
        (rows + bias, rows.double() + bias.double()) if biased else (rows, rows.double())
    )
    exact = activation.gelu_torch(exact_total, kind)
    no_worse_than_torch(mixed, activation.gelu_torch(total, kind), exact)


@settings(max_examples=10, deadline=None)
@given(
    count=st.integers(1, 3),
    width=st.integers(1, 50),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1.0, 30.0]),
    seed=st.integers(0, 2**31),
)
def test_swiglu(count, width, dtype, scale, seed):
    """Widths across up to four blocks of 16; scale 30 reaches gates where exp(-x) overflows
    float16.
    """
    check_swiglu(activation, count, width, dtype, scale, seed)


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(activation.GELUS),
    count=st.integers(1, 3),
    width=st.integers(1, 50),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([1.0, 30.0]),
    biased=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_gelu(kind, count, width, dtype, scale, biased, seed):
    check_gelu(activation, kind, count, width, dtype, scale, biased, seed)


def test_the_three_gelus_differ():
    """By 2e-2 for the quick one and 4e-4 for tanh, at most: enough to turn an answer, too little to
    crash.
    """
    rows = torch.linspace(-4, 4, 801)
    quick, tanh, exact = (activation.gelu_triton(rows, kind) for kind in activation.GELUS)
    assert 1e-2 < (quick - exact).abs().max() < 3e-2
    assert 1e-4 < (tanh - exact).abs().max() < 1e-3


def test_shapes_and_launches():
    """Leading axes, strided rows, no rows at all; and the public functions reach the kernels."""
    rows = rows_of(0, (2, 3, 80))[:, :, 8:72]
    before = language.launches.copy()
    with choose.using("triton"):
        mixed, bent = activation.swiglu(rows), activation.gelu(rows, "gelu")
        assert activation.swiglu(rows[:0]).shape == (0, 3, 32)
        assert activation.gelu(rows[:0], "gelu").shape == (0, 3, 64)
    assert language.launches - before == {"swiglu_kernel": 1, "gelu_kernel": 1}
    torch.testing.assert_close(mixed, activation.swiglu(rows), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(bent, activation.gelu(rows, "gelu"), atol=1e-6, rtol=1e-6)


MUTANTS = {
    "gate and up exchanged": ("2 * WIDTH + WIDTH + column", "2 * WIDTH + 0 * WIDTH + column"),
    "sigmoid in place of silu": ("gate * tl.sigmoid(gate)", "tl.sigmoid(gate)"),
    "quick for tanh": ("1.5957691216057308 * (x + 0.044715 * x * x * x)", "1.702 * x"),
    "bias forgotten": ("x += tl.load(bias + column", "x += 0 * tl.load(bias + column"),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a mistake may well divide by zero
@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name, tmp_path):
    mutant = mutated(activation, tmp_path, *MUTANTS[name])
    with pytest.raises(AssertionError):
        check_swiglu(mutant, 2, 20, torch.float32, 1.0, 0)
        check_gelu(mutant, "gelu_pytorch_tanh", 2, 20, torch.float32, 1.0, True, 0)
