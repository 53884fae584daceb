"""RoPE with the cache write: Triton in the interpreter against the formula in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import Layer, layer_of, mutated, no_worse_than_torch, rows_of

from llava_min.kernels import choose, language, rope

DTYPES = (torch.float16, torch.float32)


def angles_of(starts, new, head_dim, dtype=torch.float32):
    positions = torch.tensor(starts)[:, None] + torch.arange(new)
    return rope.angles(positions, theta=10_000.0, head_dim=head_dim, dtype=dtype)


@pytest.mark.parametrize("theta, factor", [(1e4, 1.0), (1e4, 2.5), (1e6, 1.0), (1e9, 1.0)])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_angles_of_far_positions(theta, factor, head_dim):
    """Against extended precision up to the last position of long-llava, linear scaling included.

    In float32 an angle is as good as its few roundings allow, and those grow with the angle.
    """
    positions = np.array([0, 1, 4_095, 32_767, 223_999])
    half = np.arange(0, head_dim, 2).astype(np.longdouble) / head_dim
    exact = positions[:, None] / np.longdouble(factor) / np.longdouble(theta) ** half
    exact = np.concatenate([-exact, exact], axis=-1)
    expected = np.stack([np.cos(exact), np.sin(exact)])
    for dtype, ulp in ((torch.float64, 2.0**-53), (torch.float32, 2.0**-24)):
        found = rope.angles(torch.tensor(positions)[None], theta, head_dim, factor, dtype)
        error = np.abs(found[:, 0].double().numpy() - expected.astype(np.float64))
        assert (error <= 6 * ulp * (np.abs(exact).astype(np.float64) + 1)).all(), dtype


def written(layer: Layer, new: int) -> torch.Tensor:
    """What `write` put into the cache: [2 B K T E]."""
    rows = [
        torch.stack([cache[row, :, start : start + new] for cache in (layer.keys, layer.values)])
        for row, start in enumerate(layer.host_lengths)
    ]
    return torch.stack(rows, dim=1)


def check_write(rope, starts, new, heads, kv_heads, head_dim, dtype, seed):
    qkv = rows_of(seed, (len(starts), new, (heads + 2 * kv_heads) * head_dim), dtype)
    angles, before = angles_of(starts, new, head_dim), qkv.clone()
    layers = [
        layer_of(seed, starts, new, kv_heads, head_dim, d) for d in (dtype, dtype, torch.float64)
    ]
    untouched = layers[0].keys.clone(), layers[0].values.clone()
    query = rope.write_triton(qkv, angles, layers[0], tokens=4)
    reference = rope.write_torch(qkv, angles, layers[1])
    exact = rope.write_torch(qkv.double(), angles.double(), layers[2])
    no_worse_than_torch(query, reference, exact)
    no_worse_than_torch(written(layers[0], new), written(layers[1], new), written(layers[2], new))
    assert torch.equal(qkv, before)
    for row, start in enumerate(starts):  # nothing else of the cache was written
        for cache, old in zip((layers[0].keys, layers[0].values), untouched):
            cache[row, :, start : start + new] = old[row, :, start : start + new]
            assert torch.equal(cache[row].nan_to_num(9.0), old[row].nan_to_num(9.0))


@settings(max_examples=12, deadline=None)
@given(
    starts=st.lists(st.integers(0, 40), min_size=1, max_size=2),
    new=st.integers(1, 9),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2)]),
    head_dim=st.sampled_from([2, 16, 32]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_write(starts, new, heads, head_dim, dtype, seed):
    """Rows of different lengths, three blocks of four tokens, several heads to one key head."""
    check_write(rope, starts, new, *heads, head_dim, dtype, seed)


def check_write_8bit(rope, kind=torch.int8):
    starts, new, kv_heads, head_dim = [3, 0], 5, 2, 16
    qkv = rows_of(0, (2, new, 8 * head_dim), scale=3.0)
    qkv[0, 2] = 0.0  # a vector of zeros: scale zero, no division by it
    angles = angles_of(starts, new, head_dim)
    plain = layer_of(0, starts, new, kv_heads, head_dim, torch.float32)
    rope.write_triton(qkv, angles, plain, tokens=4)
    shape = plain.keys.shape
    layer = Layer(
        *torch.zeros(2, *shape, dtype=kind),
        *torch.zeros(2, *shape[:3]),
        plain.lengths,
        plain.host_lengths,
    )
    rope.write_triton(qkv, angles, layer, tokens=4)
    steps, scales = rope.quantise(written(plain, new), kind)
    found, right = written(layer, new).float(), steps.float()
    if kind != torch.int8 and language.INTERPRETED:
        exact = written(plain, new) / scales.clamp(min=rope.TINY)[..., None]
        rounded_up = torch.frexp(exact).exponent != torch.frexp(right).exponent
        assert rounded_up.float().mean() < 0.1
        found, right = (x.masked_fill(rounded_up, 0.0) for x in (found, right))
    assert torch.equal(found, right)
    kept = Layer(
        layer.key_scales[..., None],
        layer.value_scales[..., None],
        None,
        None,
        layer.lengths,
        layer.host_lengths,
    )
    assert torch.equal(scales, written(kept, new)[..., 0])


def check_not_finite(rope, kind):
    """One NaN or infinity makes the scale of its whole vector NaN or infinite: in 8 bits the number
    itself would be lost.
    """
    for wrong in (torch.nan, torch.inf):
        qkv = rows_of(0, (1, 3, 4 * 16))
        qkv[0, 1, 2 * 16 + 5], qkv[0, 2, 3 * 16 + 9] = wrong, wrong
        shape = 1, 1, 8, 16
        layer = Layer(
            *torch.zeros(2, *shape, dtype=kind),
            *torch.zeros(2, *shape[:3]),
            torch.zeros(1, dtype=torch.int32),
            np.array([0]),
        )
        rope.write_triton(qkv, angles_of([0], 3, 16), layer, tokens=4)
        assert layer.key_scales[0, 0, :3].isfinite().tolist() == [True, False, True]
        assert layer.value_scales[0, 0, :3].isfinite().tolist() == [True, True, False]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", rope.LARGEST, ids=str)
def test_what_is_not_finite_is_not_hidden(kind):
    check_not_finite(rope, kind)


@pytest.mark.parametrize("kind", rope.LARGEST, ids=str)
def test_write_8bit(kind):
    """Steps and scales are exactly those of `quantise`.

    Triton's interpreter loses the carry where rounding to fp8 reaches the next power of two (124.7
    becomes 64, not 128); those numbers are left to a GPU.
    """
    check_write_8bit(rope, kind)


NUMBERS = st.floats(-1e4, 1e4, width=32) | st.floats(-(2**-10), 2**-10, width=32)
NUMBERS = NUMBERS.map(lambda x: x if abs(x) > 448 * rope.TINY else 0.0)  # what a scale can resolve


@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=40), st.sampled_from(list(rope.LARGEST)))
def test_quantise(vector, kind):
    """int8: half a step of scale = max/127 from the truth; fp8: 2^-4 of the number, or half the
    smallest step, 2^-10 scales. A second time changes nothing; zeros stay zeros.
    """
    vector = torch.tensor(vector)
    steps, scale = rope.quantise(vector, kind)
    again = rope.dequantise(steps, scale, torch.float64)
    error = (again - vector.double()).abs()
    if kind == torch.int8:
        bound = torch.full_like(error, float(scale) / 2)
    else:
        bound = torch.maximum(vector.double().abs() / 16, scale.double() / 1024)
    assert torch.all(error <= bound * (1 + 1e-5) + 1e-38), (error, bound)
    steps_again, scale_again = rope.quantise(again.float(), kind)
    assert torch.equal(steps.float(), steps_again.float())
    torch.testing.assert_close(scale, scale_again, rtol=3e-7, atol=0)


@settings(max_examples=20, deadline=None)
@given(near=st.integers(0, 1000), far=st.integers(0, 1000), shift=st.integers(0, 1000))
def test_scores_depend_only_on_the_distance(near, far, shift):
    """In float64: a wrong partner or sign makes a score depend on where the pair stands."""
    query, key = rows_of(0, (1, 1, 1, 32)).double(), rows_of(1, (1, 1, 1, 32)).double()

    def score(first, second):
        angles = [angles_of([position], 1, 32, torch.float64) for position in (first, second)]
        return (rope.rotate(query, angles[0]) * rope.rotate(key, angles[1])).sum()

    assert abs(score(near, far) - score(near + shift, far + shift)) < 1e-10


def test_public_function_launches_once():
    qkv, angles = rows_of(0, (1, 2, 64)), angles_of([4], 2, 16)
    layers = [layer_of(0, [4], 2, 1, 16, torch.float32) for _ in range(2)]
    before = language.launches.copy()
    with choose.using("triton"):
        query = rope.write(qkv, angles, layers[0])
    assert language.launches - before == {"write_kernel": 1}
    torch.testing.assert_close(query, rope.write(qkv, angles, layers[1]), atol=1e-6, rtol=1e-6)
    with pytest.raises(AssertionError):  # no room: never a write behind the end of the cache
        rope.write_triton(rows_of(0, (1, 6, 64)), angles_of([4], 6, 16), layers[0])


MUTANTS = {
    "rope sign": ("turned = first * cos - second * sin", "turned = first * cos + second * sin"),
    "values rotated": (
        "if head < HEADS + KV_HEADS:\n        angle",
        "if head < HEADS + 2 * KV_HEADS:\n        angle",
    ),
    "written at the block, not behind the row": ("tl.load(lengths + batch) + start", "start"),
    "length of the first row for all": ("tl.load(lengths + batch)", "tl.load(lengths)"),
    "all value heads in one place": ("(head - HEADS - KV_HEADS).to(tl.int64)", "0"),
    "steps cut, not rounded": ("tl.floor(first + 0.5)", "tl.floor(first)"),
    "NaN ignored by the maximum": ("largest += 0.0 * (", "0.0 * ("),
    "scale of one half": (
        "tl.maximum(tl.max(tl.abs(first), axis=1), tl.max(tl.abs(second), axis=1))",
        "tl.max(tl.abs(first), axis=1)",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name, tmp_path):
    mutant = mutated(rope, tmp_path, *MUTANTS[name])
    with pytest.raises(AssertionError):
        check_write(mutant, [7, 2], 5, 4, 2, 16, torch.float32, 0)
        check_write_8bit(mutant)
        check_not_finite(mutant, torch.int8)
