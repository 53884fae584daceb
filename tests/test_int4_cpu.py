"""Linear layers of four-bit weights by torch's operator for CPUs: one answer in every way."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import rows_of

from llava_min.kernels import int4, int4_cpu, int4_packing


def test_agrees_with_torch_on_cpu():
    """torch's own int4 product, given the same weights by its own packing, is another witness."""
    q, scales = int4_packing.quantise(rows_of(0, (64, 256)), 128)
    rows = rows_of(1, (3, 256), torch.float32)
    words = torch._convert_weight_to_int4pack_for_cpu(q.to(torch.int32), 1)
    both = torch.stack([scales, torch.zeros_like(scales)], dim=-1).bfloat16()
    theirs = torch._weight_int4pack_mm_for_cpu(rows.bfloat16(), words, 128, both).float()
    ours = int4.linear_formula(rows.bfloat16().float(), int4_packing.pack(q), both[..., 0].float())
    assert (
        ours - theirs
    ).abs().max() < 0.01 * ours.abs().max()  # bfloat16 result: one step is 0.4%


@settings(max_examples=15, deadline=None)
@given(
    count=st.sampled_from([1, 2, 7, 96, 97, 130]),
    outputs=st.integers(1, 200),
    blocks=st.integers(1, 3),
    group=st.sampled_from(int4_packing.GROUPS),
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
        written = int4_cpu.dequantise_torch(*packed)[:, :outputs].T
        assert torch.equal(written, weight.flatten(1).to(dtype))
        chunked = int4_cpu.linear_torch(rows, *packed, step=64)[:, :outputs]
        torch.testing.assert_close(chunked, int4.linear(rows, *packed)[:, :outputs])
        bias = F.pad(bias, (0, packed[1].shape[1] - outputs))
    product = int4.linear(rows, *packed, bias)[:, :outputs]
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
