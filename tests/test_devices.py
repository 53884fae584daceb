"""Any device: which path it takes, and what plain torch does there, operator by operator.

The operators of a device that is not here are those of a CPU on the path that it would take.
"""

import logging

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_checks import layer_of, no_worse_than_torch, rows_of
from test_choose import TEXT, TOWER, random
from torch.utils._python_dispatch import TorchDispatchMode

import llava_min
from llava_min.base import cpu
from llava_min.cache import Cache
from llava_min.command import arguments
from llava_min.command.main import main
from llava_min.command.threads import set_threads
from llava_min.config import TextConfig
from llava_min.decoder import Decoder
from llava_min.engine.recording import recorded
from llava_min.errors import ParameterError
from llava_min.families.folder import EXAMPLE_PICTURE
from llava_min.kernels import (
    activation,
    attention,
    choose,
    half,
    int4,
    int4_bytes,
    int4_packing,
    paths,
)
from llava_min.kernels.decode_attention import decode_attention
from llava_min.planning import devices
from llava_min.vision import VisionTower
from llava_min.weights.packed import Eight, Four

HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture
def reference():
    with choose.using("reference"):
        yield


# The rule ----------------------------------------------------------------------

RULE = {
    # choice, device, what it has -> its path
    ("auto", "cuda", None, (8, 0), True): "triton",
    ("auto", "cuda", None, (12, 0), True): "triton",
    ("auto", "cuda", None, None, True): "triton",
    ("auto", "cuda", None, (7, 5), True): "reference",
    ("auto", "cuda", None, (6, 1), True): "reference",
    ("auto", "cuda", None, (9, 0), False): "reference",
    ("auto", "mps", None, None, False): "reference",
    ("auto", "xpu", None, None, True): "reference",
    ("auto", "cpu", "AVX512", None, False): "cpu",
    ("auto", "cpu", "AVX2", None, False): "cpu",
    ("auto", "cpu", "DEFAULT", None, False): "reference",
    ("auto", "cpu", "SVE256", None, False): "reference",
    ("auto", "cpu", None, None, False): "reference",
    ("reference", "cuda", None, (9, 0), True): "reference",
    ("reference", "cpu", "AVX512", None, True): "reference",
    ("triton", "cpu", "AVX512", None, True): "triton",
}


@pytest.mark.parametrize("asked", RULE, ids=str)
def test_the_rule(asked):
    assert paths.path(*asked)[0] == RULE[asked]


def test_a_device_of_which_nothing_is_known_is_a_new_one():
    assert paths.path("auto", "cuda")[0] == "triton"


def test_a_plan_says_what_loading_will_do(caplog, capsys):
    """The same path and reason in -v, --plan and its JSON, asked for or not."""
    for choice in ("auto", "reference"):
        with choose.using(choice), caplog.at_level(logging.DEBUG, "llava_min"):
            llava_min.load(device="cpu")
        path, reason = devices.path("cpu", choice)
        assert f"kernels {path}: {reason}" in caplog.text
        assert main(["--plan", "--device", "cpu", "--kernels", choice, "Why?"]) == 0
        assert f"kernels: {path}: {reason}\n" in capsys.readouterr().out
        planned = llava_min.plan(question="Why?", device="cpu", kernels=choice)
        assert planned.json()["kernels"] == {"path": path, "reason": reason}
    with pytest.raises(ParameterError, match="kernels"):
        llava_min.plan(question="Why?", kernels="fast")


@pytest.mark.parametrize(
    ("text", "machine", "vectors"),
    [
        ("flags\t: fpu avx2 avx512f\n", "x86_64", "AVX512"),
        ("flags\t: fpu avx2\n", "x86_64", "AVX2"),
        ("flags\t: fpu sse2\n", "x86_64", None),
        ("Features\t: fp asimd\n", "aarch64", None),
        (None, "AMD64", "AVX2"),
        (None, "arm64", None),
    ],
)
def test_vectors_of_a_cpu_without_torch(text, machine, vectors, tmp_path, monkeypatch):
    """By Linux's list where there is one, otherwise by the kind of processor."""
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert cpu.vector_instructions() == vectors


def cpuinfo(cores: list[tuple[int, int]]) -> str:
    """What Linux says of processors, each a (package, core)."""
    return "\n".join(
        f"processor\t: {number}\nphysical id\t: {package}\ncore id\t\t: {core}\n"
        for number, (package, core) in enumerate(cores)
    )


@pytest.mark.parametrize(
    ("cores", "allowed", "quota", "expected"),
    [
        ([(0, 0), (0, 0), (0, 1), (0, 1)], {0, 1, 2, 3}, "max 100000", 2),  # two threads a core
        ([(0, 0), (0, 1), (0, 0), (0, 1)], {0, 1, 2, 3}, None, 2),  # numbered the other way
        ([(0, 0), (0, 0), (0, 1), (0, 1)], {0, 1}, None, 1),  # taskset gave it one core
        ([(0, 0), (0, 1), (1, 0), (1, 1)], {0, 1, 2, 3}, None, 4),  # two packages
        ([(0, core) for core in range(8)], set(range(8)), "150000 100000", 2),
        ([(0, core) for core in range(8)], set(range(8)), "20000 100000", 1),
        ([(0, 0), (0, 1)], {0, 1}, "1600000 100000", 2),
    ],
)
def test_cores_are_those_that_this_process_may_use(
    monkeypatch, tmp_path, cores, allowed, quota, expected
):
    """A thread each: never the second thread of a core, another's core, or more than a quota."""
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(cpu, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda process: allowed, raising=False)
    assert cpu.cores() is None and devices.threads(None, 16)[0] == 16
    (tmp_path / "cpuinfo").write_text(cpuinfo(cores))
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    count, reason = cpu.cores()
    assert count == expected and ("quota" in reason) == (expected < 3 and len(cores) == 8)
    assert devices.threads(None, 16)[0] == expected
    assert devices.threads(None, 1) == (1, "as torch takes by itself")
    assert devices.threads(16, 1) == (16, "--threads 16")


@pytest.mark.parametrize("found", [(4, "4 cores"), None])
def test_no_more_threads_than_cores(found, monkeypatch):
    """As many as torch takes by itself are its own choice."""
    monkeypatch.setattr(cpu, "cores", lambda: found)
    for usual in (1, 4, 5, 64):
        fewer = found is not None and usual > 4
        assert devices.threads(None, usual) == (
            found if fewer else (usual, "as torch takes by itself")
        )
        assert devices.threads(7, usual) == (7, "--threads 7")


def test_threads_of_the_command(caplog):
    """A number, auto, and the line of -v; the command's own number stays where it is chosen."""
    before = torch.get_num_threads()
    assert arguments.parse(["--threads", "auto", "What?"]).threads is None
    assert arguments.parse(["--threads", "3", "What?"]).threads == 3
    for wrong in ("0", "many", ""):
        with pytest.raises(ParameterError, match="--threads must be"):
            arguments.parse(["--threads", wrong, "What?"])
    try:
        with caplog.at_level(logging.DEBUG, "llava_min"):
            set_threads(2)
            assert torch.get_num_threads() == 2 and "threads 2: --threads 2" in caplog.text
            torch.set_num_threads(1)
            set_threads(None)
        assert torch.get_num_threads() == 1 and "threads 1: " in caplog.text
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("file", [False, True])
@pytest.mark.parametrize("tool", [None, "C:/Windows/System32/nvidia-smi.exe"])
def test_a_gpu_is_planned_for_where_its_driver_is(file, tool, monkeypatch):
    """Linux has the driver's file, Windows and WSL its tool; either is enough."""
    monkeypatch.setattr(devices.Path, "exists", lambda path: file)
    monkeypatch.setattr(devices.shutil, "which", lambda name: tool)
    assert devices.default_device() == ("cuda" if file or tool else "cpu")


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_a_device_that_is_not_there(device):
    with pytest.raises(ParameterError, match=f"torch finds no {device} device"):
        llava_min.load(device=device)


@pytest.mark.parametrize(
    ("capability", "choice", "expected"),
    [((7, 5), "auto", False), ((9, 0), "auto", True), ((9, 0), "reference", False)],
)
def test_only_kernels_are_recorded(capability, choice, expected, monkeypatch):
    """In a recording only the device counts, so plain torch would read the whole capacity."""
    monkeypatch.setattr(choose, "gpu_at", lambda index: choose.Gpu(capability, 40))
    monkeypatch.setattr(choose.language, "AVAILABLE", True)
    with choose.using(choice):
        assert recorded(torch.device("cuda")) is expected
        assert recorded(torch.device("cpu")) is False


# Operators ---------------------------------------------------------------------


class Operators(TorchDispatchMode):
    """Every operator by name, with the tensors that it allocated."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[str, torch.Tensor]] = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        found = function(*arguments, **(named or {}))
        flat = torch.utils._pytree.tree_leaves
        given = {x.untyped_storage().data_ptr() for x in flat(arguments) if torch.is_tensor(x)}
        for one in flat(found):
            if torch.is_tensor(one) and one.untyped_storage().data_ptr() not in given:
                self.seen.append((str(function), one))
        return found

    def largest(self) -> tuple[int, str]:
        return max((one.numel() * one.element_size(), name) for name, one in self.seen)

    def wide(self) -> list[tuple[str, int]]:
        """Names and sizes of what is float32, the largest first."""
        found = [(name, x.numel()) for name, x in self.seen if x.dtype == torch.float32]
        return sorted(found, key=lambda pair: -pair[1])


SEEN = 3000
LONG = TextConfig(**{**vars(TEXT), "hidden_size": 128, "intermediate_size": 128, "head_dim": 32})


def packed(decoder: Decoder, bits: int) -> Decoder:
    """The decoder with random weights of `bits` bits in every linear of its blocks."""
    for block in decoder.blocks:
        for name in ("qkv", "output", "gate_up", "down"):
            old = getattr(block, name)
            sizes, biased = (old.in_features, old.out_features), old.bias is not None
            new = Four(*sizes, 32, biased) if bits == 4 else Eight(*sizes, biased)
            new.to(old.weight.dtype)
            low, high = (0, 256) if bits == 4 else (-127, 128)
            codes = torch.randint(low, high, new.packed.shape, dtype=new.packed.dtype)
            new.packed = torch.nn.Parameter(codes, requires_grad=False)
            new.scale.data.fill_(0.01)
            if old.bias is not None:
                new.bias.data.copy_(old.bias)
            new.ready()
            setattr(block, name, new)
    return decoder


def step_of(dtype, kv_dtype=None, bits=None, tokens=1, rows=1) -> Operators:
    """A decoder's step, or the chunk of a prompt, after SEEN tokens: what it did."""
    decoder = random(Decoder(LONG), 0.1).to(dtype)
    decoder = decoder if bits is None else packed(decoder, bits)
    cache = Cache.empty(LONG, rows, SEEN + 100, dtype, kv_dtype)
    for tensor in cache.stored(lambda tensor: tensor):
        if tensor is not None:
            tensor.copy_(torch.randn(tensor.shape))
    cache.advance(SEEN)
    ids = torch.ones(rows, tokens, dtype=torch.long)
    # not inference_mode, in which the parts of linear and attention would not be seen
    with torch.no_grad(), Operators() as operators:
        decoder(decoder.embed(ids), cache)
    return operators


KEYS = LONG.num_kv_heads * SEEN * LONG.head_dim  # numbers of one layer's keys


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_step_reads_the_cache_where_it_is(reference, dtype, bits, rows):
    """No copy of a layer's keys in any dtype; what is float32 are rows and angles."""
    operators = step_of(dtype, None, bits, rows=rows)
    size, name = operators.largest()
    assert size < KEYS, (size, name)  # half of the bytes of the keys
    assert operators.wide()[0][1] <= rows * LONG.intermediate_size * 2, operators.wide()[:3]
    assert {name.split(".")[1] for name, _ in operators.seen} <= ALLOWED


ALLOWED = {
    # what allocates in a step: an operator that comes to this list is a choice
    *("_scaled_dot_product_flash_attention_for_cpu", "mm", "addmm", "embedding", "bmm"),
    *("arange", "add", "mul", "div", "sub", "cos", "sin", "cat", "stack", "roll", "reciprocal"),
    *("pow", "mean", "rsqrt", "silu", "_to_copy", "clone", "neg", "linalg_vector_norm"),
    *("clamp", "empty", "new_empty", "__lshift__", "__rshift__", "empty_like"),
}


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_eight_bits_are_read_in_blocks(reference, kind, monkeypatch):
    """Nothing wide is larger than a block or than the scores of a head's keys."""
    monkeypatch.setattr("llava_min.kernels.rope.WIDE", 2**13)
    operators = step_of(torch.bfloat16, kind)
    assert operators.wide()[0][1] <= max(2**13, LONG.num_heads * (SEEN + 1)), operators.wide()[:3]
    assert operators.largest()[0] < KEYS


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_prompt_needs_no_mask_of_all_its_scores(reference, dtype):
    """A chunk of 90 tokens after 3,000: the one mask is as high as a block of queries."""
    operators = step_of(dtype, tokens=90)
    scores = 90 * LONG.num_heads * (SEEN + 90)
    assert operators.largest()[0] <= 2 * attention.ROWS * (SEEN + 90) < 2 * scores
    assert operators.wide()[0][1] < KEYS


@pytest.mark.parametrize("tokens", [1, 5, 90])
def test_the_formula_would_be_seen(reference, tokens, monkeypatch):
    """What these tests forbid: the formula's wide copy of the keys."""
    for name in ("causal", "F.scaled_dot_product_attention"):
        monkeypatch.setattr(f"llava_min.kernels.decode_attention.{name}", by_formula)
    monkeypatch.setattr(attention, "causal", by_formula)
    assert step_of(torch.bfloat16, tokens=tokens).wide()[0][1] >= KEYS


def by_formula(query, key, value):
    """The formula without a mask: causal attention, or one folded query [B K G E]."""
    if query.shape[1] == key.shape[1]:
        return attention.attention_formula(query.transpose(1, 2), key, value, None).transpose(1, 2)
    return attention.attention_formula(query, key, value, None)


OF_A_CPU = "attention.attention_merged", "int4_cpu.pack", "int4_cpu.linear_torch", "onednn.reorder"
OF_A_CPU += "int8_cpu.prepack", "int8_cpu.linear_torch", "attention_cpu.attention"


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_nothing_of_a_cpu_is_called(bits, monkeypatch):
    """Another device lacks these operators; without the choice they are taken here."""

    def refused(*_):
        raise NotImplementedError

    def answer() -> str:
        model = llava_min.load(device="cpu", dtype="bfloat16", bits=bits)
        return model.generate("Where is the star?", images=[EXAMPLE_PICTURE], max_tokens=3).text

    for name in OF_A_CPU:
        monkeypatch.setattr(f"llava_min.kernels.{name}", refused)
    with choose.using("reference"):
        assert answer()
    if devices.path("cpu")[0] == "cpu":
        with choose.using("auto"), pytest.raises(NotImplementedError):
            answer()


# Numbers -----------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    starts=st.lists(st.integers(0, 60), min_size=1, max_size=3),
    new=st.integers(1, 8),
    heads=st.sampled_from([(1, 1), (7, 1), (6, 2)]),
    dtype=st.sampled_from([torch.float64, torch.float32, *HALVES]),
    seed=st.integers(0, 2**31),
)
def test_attention_by_every_path(starts, new, heads, dtype, seed):
    """Rows of different lengths, NaN after each: the formula in float64, the 2x rule elsewhere."""
    layer = layer_of(seed, starts, new, heads[1], 16, dtype)
    query = rows_of(seed + 2, (len(starts), new, heads[0], 16), dtype)
    for choice in ("auto", "reference"):
        with choose.using(choice):
            mixed = decode_attention(query, layer)
        for row, start in enumerate(starts):
            one = query[row : row + 1]
            key, value = (x[row : row + 1, :, : start + new] for x in (layer.keys, layer.values))
            mask = attention.causal_mask(new, start)
            exact = attention.attention_formula(one.double(), key.double(), value.double(), mask)
            by_formula = attention.attention_formula(one, key, value, mask)
            if dtype == torch.float64:
                assert (mixed[row : row + 1] - exact).abs().max() < 1e-12
            else:
                no_worse_than_torch(mixed[row : row + 1], by_formula, exact, score=4)


@settings(max_examples=20, deadline=None)
@given(
    seen=st.integers(0, 60),
    new=st.integers(1, 49),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2)]),
    size=st.sampled_from([1, 4, 16, 256]),
    seed=st.integers(0, 2**31),
)
def test_blocks_of_queries(seen, new, heads, size, seed):
    """Any block size, also one that leaves a shorter last block: in float64 the formula."""
    query = rows_of(seed, (2, new, heads[0], 16), torch.float64)
    key, value = rows_of(seed + 1, (2, 2, heads[1], seen + new, 16), torch.float64)
    exact = attention.attention_formula(query, key, value, attention.causal_mask(new, seen))
    found = attention.attention_torch(query, key, value, size)
    assert (found - exact).abs().max() < 1e-12


@settings(max_examples=25, deadline=None)
@given(
    count=st.sampled_from([1, 2, 7, 40]),
    outputs=st.integers(1, 50),
    blocks=st.integers(1, 3),
    group=st.sampled_from(int4_packing.GROUPS),
    dtype=st.sampled_from([torch.float64, torch.float32, *HALVES]),
    seed=st.integers(0, 2**31),
)
def test_weights_in_bytes(count, outputs, blocks, group, dtype, seed):
    """Every code, scales of either sign: written out exactly, multiplied in any chunks."""
    inputs = 128 * blocks
    generator = torch.Generator().manual_seed(seed)
    shape = outputs, inputs
    codes = torch.randint(0, 16, shape, generator=generator, dtype=torch.uint8)
    scales, rows = rows_of(seed, (outputs, inputs // group), dtype), rows_of(1, (count, inputs))
    words, laid = int4_bytes.pack(codes, scales)
    exact = (codes.double().unflatten(1, (-1, group)) - 8) * scales.double()[..., None]
    exact = exact.flatten(1)
    weight = int4_bytes.dequantise_torch(words, laid, inputs)
    assert torch.equal(weight, exact.to(dtype)) and words.dtype == torch.int8
    rows = rows.to(dtype)
    allowed = 4 * torch.finfo(dtype).eps * (rows.abs().double() @ exact.abs().T)
    found = [int4_bytes.linear_torch(rows, words, laid, chunk) for chunk in (1, 9 * inputs)]
    for product in [*found, int4.linear(rows[None], words, laid)[0]]:
        assert ((product - rows.double() @ exact.T).abs() <= allowed).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_layers_are_those_of_the_other_path(bits):
    """One layer's codes, laid out for this CPU and for any device: the same products."""
    found = []
    for choice in ("auto", "reference"):
        with choose.using(choice):
            torch.manual_seed(0)
            decoder = packed(random(Decoder(LONG), 0.1), bits)
            layer = decoder.blocks[0].gate_up
            found.append(layer(rows_of(0, (3, 128))))
    assert layer.words.dtype == torch.int8 and getattr(layer, "arrived", None) is None
    near = 1e-4 if bits == 4 else 2e-3  # rows of 16 bits: a ten thousandth of sums of about ten
    torch.testing.assert_close(*found, atol=near, rtol=1e-4)


# float16 -----------------------------------------------------------------------


def test_a_swiglu_past_the_end_of_float16():
    """The 2x rule: plain torch's float16, with 2^-8 of `up` so that nothing overflows there."""
    gate_up = rows_of(0, (5, 2 * 256), torch.float16, 300.0)
    weight = rows_of(1, (64, 256), torch.float16, 0.1)
    gate, up = gate_up.double().chunk(2, -1)
    exact = F.silu(gate) * up @ weight.double().T
    assert not F.linear(half_swiglu(gate_up), weight).isfinite().all()
    small = torch.cat([gate_up[:, :256], gate_up[:, 256:] / 256], 1)
    by_torch = F.linear(half_swiglu(small), weight).float() * 256
    found = half.linear(activation.swiglu(gate_up), weight)
    assert found.dtype == torch.float32
    error, allowed = ((x.double() - exact).abs().max() for x in (found, by_torch))
    assert error <= 2 * allowed


def half_swiglu(gate_up):
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


@pytest.mark.parametrize("largest", [1e-8, 1e-3, 1.0, 6e4, 1e9])
@pytest.mark.parametrize("bias", [False, True])
def test_rows_of_any_size_in_float16(largest, bias):
    """Relative error as at the size of one, where float16 rows would be infinite or zero."""
    rows, weight = rows_of(0, (7, 300)), rows_of(1, (40, 300), torch.float16, 0.1)
    rows = rows / rows.abs().amax(-1, keepdim=True) * largest
    added = rows_of(2, (40,), torch.float16) if bias else None
    exact = rows.double() @ weight.double().T + (added.double() if bias else 0.0)
    error = (half.linear(rows, weight, added) - exact).abs().max() / exact.abs().max()
    assert error < 2 * torch.finfo(torch.float16).eps


def test_kernels_keep_to_float16():
    rows = rows_of(0, (7, 300), torch.float16)
    with choose.using("triton"):
        assert half.linear(rows, rows).dtype == torch.float16


def logits_of(decoder, dtype):
    decoder = decoder.to(dtype)
    cache = Cache.empty(decoder.config, 1, 60, dtype)
    with torch.inference_mode():
        hidden = [decoder(decoder.embed(torch.arange(30)[None]), cache)]
        cache.advance(30)
        hidden.append(decoder(decoder.embed(torch.tensor([[3]])), cache))
        return decoder.logits(torch.cat(hidden, 1)).double()


def features_of(tower, dtype):
    tiles = torch.randint(0, 256, (2, 28, 28, 3), dtype=torch.uint8, generator=generator())
    with torch.inference_mode():
        return tower.to(dtype)(tiles).double()


def generator():
    return torch.Generator().manual_seed(0)


def naive(patch):
    """The float16 of plain torch, which ends at 65,504."""
    for module in (activation, half):
        patch.setattr(module, "too_narrow", lambda *_: False)


def scaled_up(module, down, before):
    for block in module.blocks:
        block.down.weight *= down
        (block.up if hasattr(block, "up") else block.gate_up).weight *= before
    return module


def with_four_bits(decoder):
    """Its `down` in four bits, with weights of -128 to 112."""
    for block in decoder.blocks:
        down = Four(LONG.intermediate_size, LONG.hidden_size, 32, False)
        codes = torch.randint(0, 256, down.packed.shape, dtype=torch.uint8, generator=generator())
        down.packed = torch.nn.Parameter(codes, requires_grad=False)
        down.scale.data.fill_(16.0)
        block.down = down.to(decoder.norm.weight.dtype)
        block.down.ready()
    return decoder


MODELS = {
    "decoder": lambda x: logits_of(scaled_up(random(Decoder(LONG), 0.1), 3e3, 30), x),
    "packed": lambda x: logits_of(
        with_four_bits(scaled_up(random(Decoder(LONG), 0.1), 1.0, 300).to(x)), x
    ),
    "tower": lambda x: features_of(scaled_up(random(VisionTower(TOWER), 0.3), 300, 100), x),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_whose_activations_pass_float16(kind, reference):
    """Naive float16 gives infinities; here the error is below that of bfloat16, which has three
    bits less and lacks no range.
    """
    found = [MODELS[kind](x) for x in (torch.float64, torch.float16, torch.bfloat16)]
    ours, theirs = ((x - found[0]).pow(2).mean().sqrt() for x in found[1:])
    assert ours < theirs / 2, (ours, theirs)
    with pytest.MonkeyPatch.context() as patch:
        naive(patch)
        assert not MODELS[kind](torch.float16).isfinite().all()


@pytest.mark.parametrize("given", [{}, {"bits": 4}, {"bits": 8, "kv_dtype": "int8"}], ids=str)
def test_the_toy_answers_in_float16(given, reference):
    """A picture through tower, projector and decoder, as on a T4."""
    model = llava_min.load(device="cpu", dtype="float16", **given)
    answer = model.generate("Where is the star?", images=[EXAMPLE_PICTURE])
    assert answer.text == "In the top left."
