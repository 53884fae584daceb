"""Linear layers of eight-bit weights: every road to the product, and what rounding rows costs."""

import os
import subprocess
import sys

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import mutated, no_worse_than_torch, rows_of
from safetensors.torch import load_file
from test_quantize import folder_of
from tokenizers import Tokenizer

import llava_min
from llava_min.config import Quantization
from llava_min.errors import CheckpointError
from llava_min.kernels import choose, decode_attention, int8, int8_cpu, language
from llava_min.planning import memory as needs
from llava_min.weights import names, packed, quantize
from llava_min.weights.__main__ import inspect
from llava_min.weights.tiny import exam, lessons, train

DTYPES = (torch.float16, torch.float32)
SMALL = (16, 32, 1, 1)  # outputs and inputs of a block
with choose.using("auto"):
    INTEGERS = choose.path_of(torch.zeros(1)) == "cpu" and int8_cpu.exact()
in_integers = pytest.mark.skipif(not INTEGERS, reason="no exact products of bytes on this CPU")


def weights_of(seed: int, outputs: int, inputs: int, kind: str = "normal"):
    """(weights float32 [N K], their bytes, their scales); "uniform" ones have the lowest peak."""
    weight = rows_of(seed, (outputs, inputs), torch.float32, 0.02)
    if kind == "uniform":
        weight = torch.erf(weight / 0.02 / 2**0.5) * 0.03
    elif kind == "heavy":
        weight = weight * rows_of(seed + 1, (outputs, inputs), torch.float32).abs()
    found, scale = quantize.codes(weight, 8, 0, "rtn")
    return weight, found, scale.float()


def laid_out(found, scale, choice: str = "auto"):
    """Words, scales, bias and limit, as a layer has them."""
    with choose.using(choice):
        return *int8.repack(found, scale), None, int8.limit_of(found)


# The kernel of a GPU ---------------------------------------------------------------------


def check_linear(int8, count, outputs, inputs, dtype, biased, seed):
    """The small-M kernel is held to the weights as they are, by the 2x rule."""
    _, found, scale = weights_of(seed, outputs, inputs)
    scale, rows = scale.to(dtype), rows_of(seed + 1, (count, inputs), dtype)
    bias, before = rows_of(seed, (outputs,), dtype) if biased else None, rows.clone()
    product = int8.linear_triton(rows, found, scale, bias, SMALL)
    exact = int8.linear_formula(rows.double(), found, scale.double())
    weight = found.to(dtype) * scale[:, None]
    by_torch = rows @ weight.T
    if biased:
        exact, by_torch = exact + bias.double(), by_torch + bias
    terms = (rows.abs().double() @ weight.abs().double().T).max() / exact.abs().max()
    no_worse_than_torch(product, by_torch, exact, score=float(terms))
    assert torch.equal(rows, before)


@settings(max_examples=12, deadline=None)
@given(
    count=st.sampled_from([1, 2, 7, 16, 17, 33]),
    outputs=st.integers(1, 50),
    inputs=st.integers(1, 130),
    dtype=st.sampled_from(DTYPES),
    biased=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_linear(count, outputs, inputs, dtype, biased, seed):
    """Rows, outputs and inputs that are no multiple of a block."""
    check_linear(int8, count, outputs, inputs, dtype, biased, seed)


MUTANTS = {
    "scale forgotten": ("total *= tl.load(scales + n", "total *= 1 + 0 * tl.load(scales + n"),
    "scale of the first output": ("tl.load(scales + n,", "tl.load(scales + 0 * n,"),
    "bias forgotten": ("total += tl.load(bias + n", "total += 0 * tl.load(bias + n"),
    "the first inputs for all": ("tile + start,", "tile,"),
    "a block of inputs dropped": ("range(0, K, BLOCK_K)", "range(0, K - BLOCK_K, BLOCK_K)"),
    "outputs past the end": (
        "mask=(m < M)[None, :] & (n < N)[:, None])",
        "mask=(m < M)[None, :] & (n < N + 1)[:, None])",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(name, tmp_path):
    mutant = mutated(int8, tmp_path, *MUTANTS[name])
    with pytest.raises((AssertionError, IndexError)):
        check_linear(mutant, 3, 20, 70, torch.float32, True, 0)


@settings(max_examples=15, deadline=None)
@given(
    count=st.sampled_from([17, 40]),
    outputs=st.sampled_from([8, 40, 41]),
    inputs=st.sampled_from([64, 72, 70]),
    peak=st.sampled_from([1.0, 300.0]),
    seed=st.integers(0, 2**31),
)
def test_bytes_on_a_gpu(count, outputs, inputs, peak, seed):
    """torch._int_mm, in one part or in many, is as near to the weights as a CPU's product; what it
    does not take is multiplied as it is.
    """
    _, found, scale = weights_of(seed, outputs, inputs)
    rows = rows_of(seed + 1, (count, inputs))
    rows[::3, 0] += peak - 1
    exact = int8.linear_formula(rows.double(), found, scale.double())
    limit = int8.limit_of(found)
    with choose.using("triton"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "DEVICE_CHUNK", 8 * count)
        product = int8.linear(rows, *int8.repack(found, scale), None, limit)
        patch.setattr(int8, "DEVICE_CHUNK", 2**20)
        torch.testing.assert_close(int8.linear(rows, found, scale, None, limit), product)
        as_they_are = int8.linear(rows, found, scale)
    torch.testing.assert_close(as_they_are.double(), exact, atol=1e-4 * peak, rtol=1e-4)
    whole = outputs % 8 == inputs % 8 == 0
    assert torch.equal(product, as_they_are) is not whole
    error = (product - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert error.max() < 0.05
    assert peak == 1 or error[::3].max() < 2e-3  # two bytes: one would err ten times as much


# Products in integers ------------------------------------------------------------------


@in_integers
@settings(max_examples=30, deadline=None)
@given(
    count=st.sampled_from([1, 8, 9, 40]),
    outputs=st.integers(1, 40),
    inputs=st.integers(1, 200),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**31),
)
def test_whole_numbers_are_multiplied_exactly(count, outputs, inputs, dtype, seed):
    """Of rows whose largest number is 127 rounding takes nothing: in float32 the sums are exact."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(-127, 128, (outputs, inputs), generator=generator, dtype=torch.int8)
    rows = torch.randint(-127, 128, (count, inputs), generator=generator).to(dtype)
    rows[:, seed % inputs] = 127 * (-1) ** seed
    scale = torch.full((outputs,), 2.0**-9, dtype=dtype)
    product = int8.linear(rows, *laid_out(found, scale))
    exact = rows.double() @ found.double().T * 2.0**-9
    assert product.dtype == dtype
    step = {torch.float32: 1e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(product.double(), exact, rtol=step, atol=2e-3)


@in_integers
@pytest.mark.parametrize("inputs", [5, 896, 18_944])
@pytest.mark.parametrize("count", [1, 8, 9, 70])
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_the_worst_sums(inputs, count, signs):
    """All numbers as large as they can be: no sum on the way is cut off."""
    found = torch.full((33, inputs), 127 * signs[0], dtype=torch.int8)
    rows = torch.full((count, inputs), 3.0 * signs[1])
    product = int8.linear(rows, *laid_out(found, torch.ones(33)))
    torch.testing.assert_close(product, torch.full((count, 33), 381.0 * inputs) * np.prod(signs))


SATURATING = """
import torch
from llava_min.kernels import int8, int8_cpu
found, rows = torch.full((33, 64), 127, dtype=torch.int8), torch.full((40, 64), 3.0)
words, scales = int8.repack(found, torch.ones(33))
for count in (1, 40):
    product = int8.linear(rows[:count], words, scales, None, int8.limit_of(found))
    assert (product - 381 * 64).abs().max() < 1, product
print(int8_cpu.exact(), words.is_mkldnn)
"""


@in_integers
@pytest.mark.parametrize("instructions, exact", [("AVX2", False), ("AVX2_VNNI", None)])
def test_a_cpu_whose_sums_overflow(instructions, exact):
    """oneDNN told to do without VNNI adds pairs up in 16 bits: that is noticed, and not used. With
    VNNI for AVX2, where this CPU has it, either road is right.
    """
    values = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    done = subprocess.run([sys.executable, "-c", SATURATING], capture_output=True, text=True,
                          env=values)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert exact is None or done.stdout.split() == [str(exact)] * 2


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["normal", "uniform", "heavy"]),
    count=st.sampled_from([1, 9, 40]),
    channels=st.integers(0, 4),
    factor=st.sampled_from([1.0, 10.0, 100.0, 1e4]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_rounding_rows_at_most_doubles_the_error(kind, count, channels, factor, dtype, seed):
    """Beside weight-only int8, with a few channels far larger than the rest: on every road."""
    weight, found, scale = weights_of(seed, 96, 512, kind)
    rows = rows_of(seed + 2, (count, 512))
    rows[:, :channels] *= factor
    rows = rows.to(dtype)
    exact = rows.double() @ weight.double().T
    weight_only = int8.linear_formula(rows.double(), found, scale.double())
    allowed = 2 * (weight_only - exact).norm()
    for choice in ("auto", "triton"):
        if choice == "triton" and dtype == torch.bfloat16:
            continue  # not in the interpreter
        given = laid_out(found, scale, choice)
        with choose.using(choice):
            product = int8.linear(rows, *given)
        assert (product - exact).norm() <= 1.02 * allowed


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("count", [1, 40])
def test_a_wrong_number_stays_in_its_row(count, wrong):
    """NaN in, NaN out: never a number that looks right."""
    _, found, scale = weights_of(0, 20, 64)
    rows = rows_of(1, (count, 64))
    exact = int8.linear(rows, *laid_out(found, scale))
    rows[-1, 5] = wrong
    for choice in ("auto", "triton", "reference"):
        given = laid_out(found, scale, choice)
        with choose.using(choice):
            product = int8.linear(rows, *given)
        assert not product[-1].isfinite().any()
        assert (product[:-1] - exact[:-1]).abs().max() < 0.1 if count > 1 else True


def test_without_its_rule_rounding_fails():
    """Four channels a hundred times the rest: one byte errs over three times what weights do."""
    weight, found, scale = weights_of(0, 96, 512)
    rows = rows_of(2, (40, 512))
    rows[:, :4] *= 100
    exact = rows.double() @ weight.double().T
    weight_only = (int8.linear_formula(rows.double(), found, scale.double()) - exact).norm()
    largest = int8_cpu.largest_of(rows)
    one_byte = (int8_cpu.one_byte(rows, largest).double() - 128) * largest / 127
    of_bytes = int8.linear_formula(one_byte, found, scale.double())
    assert (of_bytes - exact).norm() > 3 * weight_only
    rest = rows.clone()
    rest[:, :4] = 0
    lost = one_byte.clone()
    lost[:, :4] = 0
    assert (lost - rest).norm() > 0.2 * rest.norm()  # what the other channels said


def test_which_rows_are_two_bytes():
    """Those whose largest number is above the limit, and no others."""
    rows = torch.ones(3, 100)
    rows[1, 7], rows[2, 7] = 5.0, -5.1  # usual: the root of 1.24 and of 1.25
    limit = torch.tensor(5.05 / 1.245**0.5)
    largest = int8_cpu.largest_of(rows)
    assert int8_cpu.peaked(rows, largest, limit).tolist() == [2]


@in_integers
@pytest.mark.parametrize("count, multiplied", [(1, 2), (8, 16), (9, 9)])
def test_few_rows_are_two_bytes(monkeypatch, count, multiplied):
    """Many even ones are one, and cost half as much."""
    _, found, scale = weights_of(0, 20, 64, "uniform")
    product, sizes = int8_cpu.product, []

    def counted(rows, *given):
        sizes.append(len(rows))
        return product(rows, *given)

    monkeypatch.setattr(int8_cpu, "product", counted)
    int8.linear(torch.ones(count, 64), *laid_out(found, scale))
    assert sizes == [multiplied]


@in_integers
@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 8),
    inputs=st.integers(1, 300),
    factor=st.sampled_from([0.0, 1e-20, 1.0, 1e20]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_few_rows_in_every_form(count, inputs, factor, dtype, seed):
    """One alone, several at once, and as a compiler sees them: alike but for a step here and there
    and the last rounding.
    """
    _, found, scale = weights_of(seed, 33, inputs)
    words, scales, *_ = laid_out(found, scale)
    rows = rows_of(seed + 1, (count, inputs))
    rows[0] *= factor
    rows = rows.to(dtype)
    few = int8_cpu.few_rows(rows, words, scales)
    one = torch.cat([int8_cpu.one_row(row[None], words, scales) for row in rows])
    traced = int8_cpu.traced_rows(rows, words, scales)
    step = int8_cpu.largest_of(rows) / int8_cpu.STEPS * 127 * scale.max()
    last = {torch.float32: 1e-6, torch.bfloat16: 2**-7}[dtype] * few.abs().amax(1, keepdim=True)
    near = 2 * step + last
    for other in (one, traced):
        assert other.dtype == dtype and ((other - few).abs() <= near).all()


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 300)),
    scale=st.sampled_from([0.0, 1e-20, 1.0, 1e30]),
    part=st.sampled_from([1, 100, 2**18]),
    seed=st.integers(0, 2**31),
)
def test_bytes_of_rows(shape, scale, part, seed):
    """One byte is the nearest step; two are the nearest of 256 times as many steps."""
    rows = rows_of(seed, shape, torch.float32, scale)
    largest = int8_cpu.largest_of(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8_cpu, "PART", part)
        found = int8_cpu.one_byte(rows, largest)
    assert (
        (found.double() - 128) * largest / 127 - rows
    ).abs().max() <= 0.501 * largest.max() / 127
    high, low = int8_cpu.two_bytes(rows, largest).double().sub(128).chunk(2)
    step = largest.double() / int8_cpu.STEPS
    assert torch.all(((256 * high + low) * step - rows).abs() <= 0.51 * step)


@in_integers
@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(9, 40),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    peaks=st.lists(st.integers(0, 8), max_size=4),
    seed=st.integers(0, 2**31),
)
def test_a_row_is_the_same_among_others(count, dtype, peaks, seed):
    """Sums of integers are exact: bit by bit, in a prompt of any length and among few rows."""
    _, found, scale = weights_of(seed, 70, 130)
    rows = rows_of(seed + 1, (count, 130))
    rows[peaks, 0] *= 1000
    rows, given = rows.to(dtype), laid_out(found, scale)
    whole = int8.linear(rows, *given)
    assert torch.equal(int8.linear(rows[:9], *given), whole[:9])
    few = int8.linear(rows[:8], *given)
    assert torch.equal(int8.linear(rows[:3], *given), few[:3])
    single = torch.cat([int8.linear(row[None], *given) for row in rows[:8]])
    least = 3e-5 * rows[:8].float().abs().amax(-1, keepdim=True) * found.abs().max() * scale.max()
    close = 2 * torch.finfo(dtype).eps * few.float().abs() + 2 * least  # a step of 16 bits or two
    assert ((single - few).abs() <= close).all()
    assert ((few - whole[:8]).norm(dim=-1) < 0.03 * few.norm(dim=-1)).all()


@pytest.mark.parametrize("count", [1, 4, 40])
def test_rows_may_be_columns(count):
    """Strides change nothing, though bytes are taken from numbers as they lie in memory."""
    _, found, scale = weights_of(0, 20, 64)
    given = laid_out(found, scale)
    rows = rows_of(1, (64, count)).T
    assert torch.equal(int8.linear(rows, *given), int8.linear(rows.contiguous(), *given))


@settings(max_examples=40, deadline=None)
@given(
    choice=st.sampled_from(["auto", "reference"]),
    exact=st.booleans(),
    count=st.sampled_from([0, 1, 8, 9, 64, 65, 130]),
    outputs=st.integers(1, 60),
    inputs=st.sampled_from([1, 15, 16, 128, 130]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_every_road(choice, exact, count, outputs, inputs, dtype, seed):
    """Few rows and many, where sums of bytes are exact and where they are not, in every dtype."""
    _, found, scale = weights_of(seed, outputs, inputs)
    rows, bias = rows_of(seed + 1, (1, count, inputs), dtype), rows_of(seed, (outputs,), dtype)
    with choose.using(choice), pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8, "CHUNK", {"cpu": 7 * inputs})
        if not exact:
            patch.setattr(int8_cpu, "exact", lambda: False)
        words, scales, _, limit = *int8.repack(found, scale.to(dtype)), None, int8.limit_of(found)
        product = int8.linear(rows, words, scales, bias, limit)
    true = int8.linear_formula(rows.double(), found, scale.to(dtype).double()) + bias.double()
    terms = rows.abs().double() @ (found.abs().double() * scale.double()[:, None]).T
    assert product.dtype == dtype and product.shape == (1, count, outputs)
    allowed = 8 * torch.finfo(dtype).eps * (terms + 1) + words.is_mkldnn * 4e-5 * terms
    if words.is_mkldnn and count > int8_cpu.FEW:  # half a step of each number
        allowed = allowed + 0.006 * rows.abs().amax(-1, keepdim=True).double() * (
            found.abs().double().sum(-1) * scale.double()
        )
    assert ((product - true).abs() <= allowed).all()


def test_rows_wider_than_float16_stay_so():
    """A tower's `down` and a projector in float16: products past its end are float32."""
    layer = packed.Eight(64, 5, bias=True, wide=True).half().requires_grad_(False)
    layer.packed.data.fill_(127)
    layer.scale.data.fill_(1.0)
    layer.bias.data.fill_(1.0)
    layer.ready()
    for count in (1, 40):
        product = layer(torch.full((count, 64), 1000.0).half())
        assert product.dtype == torch.float32
        torch.testing.assert_close(product, torch.full((count, 5), 127 * 64_000.0 + 1))


@in_integers
@settings(max_examples=25, deadline=None)
@given(
    heads=st.integers(1, 3),
    count=st.integers(1, 14),
    seen=st.integers(1, 90),
    peak=st.sampled_from([1.0, 100.0]),
    worst=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_scores_of_a_cache_of_bytes(heads, count, seen, peak, worst, seed):
    """Keys that stay bytes: the scores of wide ones to a step of 16 bits, and the worst sums."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randint(-127, 128, (heads, seen, 64), generator=generator, dtype=torch.int8)
    query = rows_of(seed, (heads, count, 64)).bfloat16().float()
    query[:, :, 0] *= peak
    if worst:
        keys, query = torch.full_like(keys, -127), torch.full_like(query, 3.0)
    exact = decode_attention.scores_torch(query.double(), keys)
    found = decode_attention.scores_integers(query, keys)
    step = query.abs().amax(-1, keepdim=True).double() / int8_cpu.STEPS
    assert found.dtype == torch.float32 and found.shape == exact.shape
    assert ((found - exact).abs() <= 0.51 * step * 64 * 127 + 1e-6 * exact.abs()).all()


# Checkpoints ----------------------------------------------------------------------------


def packed_layers(network) -> set[str]:
    return {name for name, layer in network.named_modules() if isinstance(layer, packed.Eight)}


@pytest.mark.parametrize("layout", ["hf", "original"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_of_eight_bits(tmp_path, layout, tied):
    """Written, inspected and loaded: tower, projector and head too; as --int8 of its source."""
    source = folder_of(tmp_path / "in", layout, tied, shards=2)
    target = quantize.quantize(source, tmp_path / "out", Quantization(bits=8))
    assert inspect(str(target)) == 0
    for dtype in ("float32", "bfloat16"):
        made, loaded = llava_min.load(target, dtype=dtype), llava_min.load(source,
            dtype=dtype, int8=True)  # fmt: skip
        media = {"images": [small.picture(130, 90)]}
        assert torch.equal(made.logits("What?", **media), loaded.logits("What?", **media))
    config = made.config
    blocks = [f"decoder.blocks.{i}.{name}" for i in range(config.text.num_layers)
              for name in names.LINEARS]  # fmt: skip
    blocks += [f"vision.blocks.{i}.{name}" for i in range(config.vision.num_layers)
               for name in ("qkv", "output", "up", "down")]  # fmt: skip
    others = {"decoder.head", "projector.linear_1", "projector.linear_2"}
    assert packed_layers(made.network) == {*blocks, *others}
    plain = llava_min.load(source, dtype="float32").logits("What?", **media)
    error = (made.logits("What?", **media) - plain).norm() / plain.norm()
    assert 0 < error < 0.05


def test_four_bits_leave_the_tower(tmp_path):
    network = llava_min.load(folder_of(tmp_path / "in"), dtype="float32", bits=4).network
    assert packed_layers(network) == {"decoder.head"}


def test_the_first_format_is_refused(tmp_path):
    """Its eight bits had scales for groups: what to do is said, and four bits alone still load."""
    import json

    source = folder_of(tmp_path / "in")
    for wanted in (Quantization(bits=8), Quantization(4), Quantization(4, head=16)):
        folder = tmp_path / f"{wanted.bits} {wanted.head}"
        quantize.quantize(source, folder, wanted)
        values = json.loads((folder / "config.json").read_text())
        del values["quantization_config"]["format"]
        (folder / "config.json").write_text(json.dumps(values))
        if wanted.head == 16:
            assert llava_min.load(folder).config.quantization == wanted
            continue
        with pytest.raises(CheckpointError, match="format.*Quantise the checkpoint again"):
            llava_min.load(folder)


def test_biases_and_embeddings_stay(tmp_path):
    source = folder_of(tmp_path / "in")
    target = quantize.quantize(source, tmp_path / "out", Quantization(bits=8))
    before, after = (load_file(folder / "model.safetensors") for folder in (source, target))
    kept = before.keys() & after.keys()
    assert all(torch.equal(before[name], after[name]) for name in kept)
    gone = {
        name.removesuffix(".weight")
        for name in before.keys() - kept
        if "post_layernorm" not in name
    }  # of the tower, which is not used
    assert {f"{stem}.packed" for stem in gone} <= after.keys()
    assert not [name for name in gone if "norm" in name or "embed" in name]


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_are_counted_exactly(tmp_path, tied):
    folder = folder_of(tmp_path / "in", tied=tied)
    model, held = llava_min.load(folder, dtype="bfloat16", device="cpu", bits=8), 0
    for layer in model.network.modules():
        own = (*vars(layer).values(), *layer._parameters.values())
        held += sum(t.numel() * t.dtype.itemsize for t in own if isinstance(t, torch.Tensor))
    said = needs.weight_bytes(model.config, needs.Storage("bfloat16", bits=8))
    assert said == pytest.approx(held, rel=0.002)


def test_the_toy_answers_as_before():
    """The exam's questions on fresh pictures and clips, tower and projector in eight bits too: as
    in bfloat16 but for one in a hundred.
    """
    plain = llava_min.load(dtype="bfloat16", device="cpu")
    teacher = lessons.Teacher(plain.config, Tokenizer.from_file(str(small.TINY / "tokenizer.json")))
    networks = [plain.network, llava_min.load(dtype="bfloat16", device="cpu", bits=8).network]
    right = []
    for kind in ("picture", "clip"):
        batch = teacher.draw(np.random.default_rng(11), kind, 20, exam=True)
        with torch.no_grad():
            right.append([exam.verdicts(batch, *train.answer_logits(network, batch))
                          for network in networks])  # fmt: skip
    before, after = (sum((marks[i] for marks in right), []) for i in (0, 1))
    assert len(before) > 150 and sum(before) > 0.9 * len(before)
    assert sum(a != b for a, b in zip(before, after)) <= 0.01 * len(before)


def test_launches_of_a_gpu():
    """Few rows are one launch, many none of ours."""
    _, found, scale = weights_of(0, 40, 64)
    before = language.launches.copy()
    with choose.using("triton"):
        for count in (3, 16, 17):
            int8.linear(rows_of(1, (count, 64)), found, scale, None, int8.limit_of(found))
    assert language.launches - before == {"bytes_kernel": 2}


def test_v_says_how(caplog):
    """The format of the weights, and what becomes of rows on this device."""
    import logging

    with caplog.at_level(logging.DEBUG, "llava_min"):
        llava_min.load(device="cpu", bits=8)
        llava_min.load(device="cpu", bits=4)
    how = int8.explained(torch.device("cpu"))
    assert f"weights int8, a scale for each output, head of 8 bits: {how}" in caplog.text
    assert f"weights int4, groups of 128, head of 8 bits: {how}" in caplog.text
    with choose.using("reference"):
        assert int8.explained(torch.device("cpu")) == "rows as they are"
