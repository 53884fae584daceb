"""Quantised checkpoints: exact codes, the same answers by every road, and folders that are whole or
absent.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import llava_min
from llava_min.base import cpu
from llava_min.config import Quantization
from llava_min.engine import load as loading
from llava_min.errors import CheckpointError, NumericsError, OutputError, ParameterError
from llava_min.families import layouts
from llava_min.kernels import int8_cpu, onednn
from llava_min.weights import load, names, packed, quantize
from llava_min.weights.__main__ import inspect
from llava_min.weights.checkpoint import Checkpoint
from llava_min.weights.tiny import exam, lessons, train

# keys and values of 96 outputs, which is no multiple of the blocks that CPUs take
BOTH = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 32}
COMMAND = (sys.executable, "-m", "llava_min.weights", "quantize")


def folder_of(path, layout="hf", tied=True, shards=1, **text):
    """A small random checkpoint in 16 bits, wide enough to be quantised."""
    config = small.hf_config(tied, **BOTH | text)
    tensors = small.tensors_of(small.random_model(config), layout)
    tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    config = config if layout == "hf" else small.original_config(config)
    return small.write(path, config, tensors, shards)


def multiplied(codes, scale, bits):
    """The weights that codes and scales stand for, [N K/g g]."""
    scale = scale.float().unflatten(0, (len(codes), -1)) if bits == 8 else scale.float()
    steps = codes.float().unflatten(1, (scale.shape[1], -1)) - (8 if bits == 4 else 0)
    return steps * scale[..., None]


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([32, 64, 128]),
    scale=st.sampled_from([0.0, 1e-20, 1e-3, 1.0, 1e4]),
    lean=st.sampled_from([-10.0, 0.0, 0.5, 10.0]),
    seed=st.integers(0, 2**31),
)
def test_codes_are_half_a_step_off_and_clipping_only_helps(bits, group, scale, lean, seed):
    """Groups of one sign too, where the sign of the scale matters."""
    weight = (torch.randn(7, 256, generator=torch.Generator().manual_seed(seed)) + lean) * scale
    found, scales = quantize.codes(weight, bits, group, "rtn")
    group, kind = (group, torch.uint8) if bits == 4 else (256, torch.int8)
    error = multiplied(found, scales, bits) - weight.unflatten(1, (-1, group))
    assert found.dtype == kind and int(found.max()) < (16 if bits == 4 else 128)
    step = scales.float().abs().unflatten(0, (7, -1)).flatten(1)
    assert torch.all(error.abs() <= 0.5001 * step[..., None])
    codes, clipped = quantize.codes(weight, bits, group, "mse")
    better = multiplied(codes, clipped, bits) - weight.unflatten(1, (-1, group))
    assert torch.all(better.square().sum(-1) <= error.square().sum(-1) * (1 + 1e-5))


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([4, 8]), st.sampled_from([-1.0, 0.0, 1.0]), st.integers(0, 2**31))
def test_a_step_is_no_wider_than_it_must(bits, lean, seed):
    """The largest weight of a group takes the longer side of the codes, the rest fits the other.
    Of eight bits, whose group is a row, both sides are as long.
    """
    weight = torch.randn(7, 256, generator=torch.Generator().manual_seed(seed)) + lean
    _, scales = quantize.codes(weight, bits, 64, "rtn")
    least, most = weight.unflatten(1, (-1, 64 if bits == 4 else 256)).aminmax(dim=-1)
    larger, smaller = torch.maximum(-least, most), torch.minimum(-least, most)
    longer, shorter = (8, 7.5) if bits == 4 else (127, 127)
    needed = torch.maximum(larger / longer, smaller / shorter)
    assert torch.all(scales.float().abs().view_as(needed) <= 1.01 * needed)
    assert bits == 4 or torch.all(scales > 0)


def test_no_weight_is_more_than_half_a_step_off_where_a_scale_is_rounded_down():
    """Of groups with two largest weights, of which the one below zero takes the lowest code."""
    largest = torch.linspace(1, 2, 4097)[:, None]
    weight = largest * torch.tensor([[1.0, -1.0, 0.3, 0.0]])
    for method in ("rtn", "mse"):
        found, scales = quantize.codes(weight, 4, 4, method)
        assert (scales > 0).all() and (found[:, 1] < found[:, 3]).all()
    found, scales = quantize.codes(weight, 4, 4, "rtn")
    error = multiplied(found, scales, 4).flatten(1) - weight
    assert torch.all(error.abs() <= 0.5001 * scales.float())
    assert torch.any(error.abs() > 0.49 * scales.float())


def test_what_is_exact_is_not_clipped():
    """Nor are zeros, which any scale holds."""
    for weight in (torch.arange(-8.0, 8)[None], torch.zeros(2, 16)):
        for one, other in zip(*(quantize.codes(weight, 4, 16, way) for way in ("rtn", "mse"))):
            assert torch.equal(one, other)


def test_clipping_helps_indeed():
    """On normal numbers, by a tenth in squared error and more at groups of 128."""
    weight = torch.randn(64, 896, generator=torch.Generator().manual_seed(0))
    errors = {}
    for method in ("rtn", "mse"):
        found = multiplied(*quantize.codes(weight, 4, 128, method), 4).flatten(1)
        errors[method] = float((found - weight).square().sum())
    assert errors["mse"] < 0.9 * errors["rtn"]


@settings(max_examples=20, deadline=None)
@given(outputs=st.integers(1, 9), inputs=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_bytes_hold_two_codes(outputs, inputs, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (outputs, 2 * inputs), generator=generator, dtype=torch.uint8)
    assert packed.pairs(codes).shape == (outputs, inputs)
    assert torch.equal(packed.singles(packed.pairs(codes)), codes)


@settings(max_examples=30, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    outputs=st.sampled_from([1, 96, 128, 200]),
    shape=st.sampled_from([(1, 1), (3, 1), (2, 3), (1, 130), (0, 2)]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)
def test_a_packed_layer_is_its_multiplied_weights(bits, outputs, shape, dtype, seed):
    """Of any number of outputs, laid out a few at a time or whole, for few rows and many."""
    torch.manual_seed(seed)
    weight, bias, rows = torch.randn(outputs, 256), torch.randn(outputs), torch.randn(*shape, 256)
    layer = packed.Four(256, outputs, 64, True) if bits == 4 else packed.Eight(256, outputs, True)
    layer.to(dtype).requires_grad_(False)
    found, scale = quantize.codes(weight, bits, 64, "rtn")
    exact = rows.to(dtype).double() @ multiplied(found, scale, bits).flatten(1).double().T
    layer.packed.data = packed.pairs(found) if bits == 4 else found
    layer.scale.data, layer.bias.data = scale.to(dtype), bias.to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "PART", 2**14)
        layer.ready()
    product = layer(rows.to(dtype))
    assert product.dtype == dtype and product.shape == (*shape, outputs)
    step = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.4}[dtype]
    if bits == 8 and dtype != torch.float64:  # rows may become bytes: test_int8.py has how exactly
        step = 2.0
    assert torch.all((product.double() - exact - bias.to(dtype).double()).abs() <= step)


@pytest.mark.parametrize("layout", ["hf", "original"])
@pytest.mark.parametrize(
    "wanted, tied, shards",
    [
        (Quantization(), True, 1),
        (Quantization(head=16), True, 3),
        (Quantization(bits=8, group=64, head=4), False, 1),
        (Quantization(group=32, method="mse"), False, 3),
    ],
    ids=lambda value: f"{value.bits}-{value.group}" if isinstance(value, Quantization) else None,
)
def test_a_quantised_folder_is_its_multiplied_weights(
    tmp_path, monkeypatch, layout, wanted, tied, shards
):
    """Against the plain model with each weight replaced by what its code stands for. Rows are
    multiplied as they are: what their bytes cost is in test_int8.py.
    """
    monkeypatch.setattr(int8_cpu, "exact", lambda: False)
    source = folder_of(tmp_path / "in", layout, tied, shards)
    quantize.quantize(source, tmp_path / "out", wanted)
    model = llava_min.load(tmp_path / "out", dtype="float32")
    assert model.config.quantization == wanted
    plain = llava_min.load(source, dtype="float32")
    weights = dict(plain.network.named_parameters())
    head = plain.network.decoder.embedding.weight if tied else weights["decoder.head.weight"]
    if wanted.head < 16:
        codes, scale = quantize.codes(head, wanted.head, wanted.group, wanted.method)
        plain.network.decoder.head = torch.nn.Linear(*reversed(head.shape), bias=False)
        exact = multiplied(codes, scale, wanted.head).flatten(1)
        plain.network.decoder.head.weight.data = exact
    for name, weight in weights.items():
        if name != "decoder.head.weight" and names.bits(name, model.config) < 16:
            codes, scale = quantize.codes(weight, wanted.bits, wanted.group, wanted.method)
            weight.data = multiplied(codes, scale, wanted.bits).flatten(1)
    media = {"images": [small.picture(130, 90)]}  # more than 96 rows, then few
    torch.testing.assert_close(
        model.logits("What?", **media), plain.logits("What?", **media), atol=2e-5, rtol=1e-4
    )
    answers = [each.generate("What?", max_tokens=6).token_ids for each in (model, plain)]
    assert answers[0] == answers[1]
    assert inspect(str(tmp_path / "out")) == 0


@pytest.mark.parametrize("bits, tied", [(4, True), (4, False), (8, True)])
def test_on_load_as_from_a_folder(tmp_path, bits, tied):
    source, target = folder_of(tmp_path / "in", tied=tied), tmp_path / "new" / "folder" / "out"
    quantize.quantize(source, target, Quantization(bits=bits))
    for dtype in ("float32", "bfloat16"):
        folder = llava_min.load(target, dtype=dtype)
        loaded = llava_min.load(source, dtype=dtype, bits=bits)
        assert folder.config.quantization == loaded.config.quantization
        assert torch.equal(folder.logits("What?"), loaded.logits("What?"))


def test_everything_else_is_kept(tmp_path):
    """Vision tower, projector, norms, biases and embedding bit by bit, the tokenizer, no more."""
    source = folder_of(tmp_path / "in", shards=2)
    quantize.quantize(source, tmp_path / "out", Quantization())
    before, after = Checkpoint.open(source), Checkpoint.open(tmp_path / "out")
    config = layouts.read_config(tmp_path / "out")
    for name in before.names:
        own, _ = names.ours(name)
        if names.dropped(own, 2):
            assert name not in after.names, name
        elif names.bits(own, config) == 16:
            assert torch.equal(before.tensor(name), after.tensor(name)), name
    changed = {"config.json", "model.safetensors.index.json"}
    for name in os.listdir(source):
        if name.endswith(".json") and name not in changed:
            assert (source / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert {f.name for f in source.iterdir()} == {f.name for f in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("dtype, kept", [("float16", True), ("bfloat16", True), ("float32", False)])
def test_nothing_is_written_in_more_than_16_bits(dtype, kept):
    """What has no more keeps its own kind, in one run of memory."""
    tensor = torch.randn(3, 2).to(getattr(torch, dtype)).T
    ((name, written),) = quantize.in_sixteen_bits([("name", tensor)])
    assert name == "name" and written.is_contiguous() and torch.equal(written, tensor.to(written))
    assert written.dtype == (tensor.dtype if kept else torch.bfloat16)


def test_the_command(tmp_path):
    source = folder_of(tmp_path / "in")
    run = subprocess.run(
        [*COMMAND, str(source), str(tmp_path / "out"), "--group", "64", "--head", "16"],
        capture_output=True, text=True)  # fmt: skip
    assert run.returncode == 0 and run.stdout.endswith(" bytes\n"), run.stderr
    values = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert values == {
        "quant_method": "llava_min",
        "format": 2,
        "bits": 4,
        "group": 64,
        "head": 16,
        "method": "mse",
    }
    again = subprocess.run([*COMMAND, str(source), str(tmp_path / "out")],
                           capture_output=True, text=True)  # fmt: skip
    assert again.returncode == OutputError.exit_code and again.stderr.count("\n") == 1


@pytest.mark.catalogue("QZ-SAME", "what is refused before anything is written")
def test_refusals(tmp_path):
    source = folder_of(tmp_path / "in")
    untouched = contents(source)
    for target in (source, source / "inside", source / "deep" / "inside"):
        with pytest.raises(OutputError, match="a new folder"):
            quantize.quantize(source, target, Quantization())
    done = quantize.quantize(source, tmp_path / "out", Quantization())
    with pytest.raises(CheckpointError, match="quantised"):
        quantize.quantize(done, tmp_path / "twice", Quantization())
    with pytest.raises(ParameterError, match="quantised"):
        llava_min.load(done, bits=4)
    with pytest.raises(ParameterError, match="bits must be 4 or 8, not 3"):
        llava_min.load(source, bits=3)
    narrow = small.small(tmp_path / "narrow")
    with pytest.raises(CheckpointError, match="multiple of 128 inputs, found 48"):
        quantize.quantize(narrow, tmp_path / "three", Quantization())
    tensors = load_file(source / "model.safetensors")
    tensors["language_model.model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    broken = small.write(tmp_path / "nan", small.hf_config(**BOTH), tensors)
    with pytest.raises(NumericsError, match="up_proj"):
        quantize.quantize(broken, tmp_path / "four", Quantization())
    assert contents(source) == untouched
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out", "narrow", "nan"}


@pytest.mark.parametrize(
    "values, word",
    [
        ({"quant_method": "aqlm", "bits": 4}, "aqlm"),
        ({"quant_method": "llava_min", "bits": 3}, "bits"),
        ({"quant_method": "llava_min", "bits": 4, "group": 48}, "group"),
        ({"quant_method": "llava_min", "bits": 4, "group": 64, "head": 8}, "method"),
        ({"quant_method": "llava_min", "zero_point": True}, "zero_point"),
    ],
)
def test_unknown_formats_are_refused(values, word):
    with pytest.raises(CheckpointError, match=word):
        layouts.parse_config(small.hf_config() | {"quantization_config": values})


@pytest.mark.parametrize("wrong", ["missing", "float", "shape", "bytes for a weight"])
def test_codes_are_held_to_their_kind(tmp_path, wrong):
    source = folder_of(tmp_path / "in")
    target = quantize.quantize(source, tmp_path / "out", Quantization())
    tensors = load_file(target / "model.safetensors")
    stem = "language_model.model.layers.0.mlp.up_proj"
    if wrong == "missing":
        del tensors[f"{stem}.scale"]
    elif wrong == "float":
        tensors[f"{stem}.packed"] = tensors[f"{stem}.packed"].float()
    elif wrong == "shape":
        tensors[f"{stem}.scale"] = tensors[f"{stem}.scale"][:, :1].repeat(1, 2)
    else:
        tensors["language_model.model.norm.weight"] = torch.ones(128, dtype=torch.uint8)
    save_file(tensors, target / "model.safetensors")
    with pytest.raises(CheckpointError, match="model.norm" if "bytes" in wrong else "up_proj"):
        llava_min.load(target)


def contents(folder) -> dict:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


STEPS = ("save_file", "synced", "shutil.copyfile", "shutil.copymode", "os.rename", "quantised")


@pytest.mark.catalogue("CLI-INT", "while quantising: nothing is left")
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_failing_anywhere_leaves_nothing(tmp_path, monkeypatch, step, error):
    source = folder_of(tmp_path / "in", shards=2)
    before, calls = contents(source), []
    owner, _, name = step.rpartition(".")
    owner = getattr(quantize, owner) if owner else quantize
    real = getattr(owner, name)

    def failing(*args, **kwargs):
        calls.append(step)
        if len(calls) == (1 if step == "os.rename" else 2):
            raise error("no space left on device")
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)
    with pytest.raises(OutputError if error is OSError else error):
        quantize.quantize(source, tmp_path / "out", Quantization())
    assert calls and [path.name for path in tmp_path.iterdir()] == ["in"]
    assert contents(source) == before


@pytest.mark.catalogue("QZ-ENOSPC", "a full disk is one line, and leaves nothing")
def test_a_full_disk_is_one_line(tmp_path):
    """A limit on the size of a file stands for the disk: the system refuses in the same way."""
    import resource  # which Windows lacks

    source = folder_of(tmp_path / "in")
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    run = subprocess.run([*COMMAND, str(source), str(tmp_path / "out")], preexec_fn=limit,
                         capture_output=True, text=True)  # fmt: skip
    assert run.returncode == OutputError.exit_code and run.stderr.count("\n") == 1, run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.catalogue("QZ-KILL", "a kill at any moment leaves the output absent or whole")
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_killing_leaves_out_absent_or_whole(tmp_path, part):
    """At once and without a word, at some moment after the first file has appeared."""
    source = folder_of(tmp_path / "in", shards=6, num_hidden_layers=4)
    before = contents(source)
    process = subprocess.Popen([*COMMAND, str(source), str(tmp_path / "out")])
    while process.poll() is None and not list(tmp_path.glob(".out-*")):
        time.sleep(0.002)
    time.sleep(0.1 * part)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert contents(source) == before
    if (tmp_path / "out").exists():
        assert llava_min.load(tmp_path / "out").config.quantization is not None
    quantize.quantize(source, tmp_path / "again", Quantization())  # what is left is in nobody's way


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_files_and_folders_are_waited_for(tmp_path, monkeypatch, system):
    """But for folders of Windows, which opens none; it waits for what may be written."""
    (tmp_path / "file").write_bytes(b"x")
    modes, waited, open_ = [], [], os.open
    monkeypatch.setattr(quantize.sys, "platform", system)
    monkeypatch.setattr(quantize.os, "open", lambda *given: modes.append(given[1]) or open_(*given))
    monkeypatch.setattr(quantize.os, "fsync", waited.append)
    for path in (tmp_path, tmp_path / "file"):
        quantize.synced(path)
    assert modes == ([os.O_RDWR] if system == "win32" else [os.O_RDONLY] * 2)
    assert len(waited) == len(modes)


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_a_matrix_is_quantised_some_rows_at_a_time(monkeypatch, rows):
    """The temporary copies are of these rows alone, and the numbers are those of the whole."""
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    wanted, sizes, codes = Quantization(bits=8, group=32), [], quantize.codes
    whole = quantize.quantised(weight, 8, wanted)
    monkeypatch.setattr(quantize, "ROWS", rows * 64 + 63)
    monkeypatch.setattr(
        quantize, "codes", lambda part, *given: sizes.append(len(part)) or codes(part, *given)
    )
    parts = quantize.quantised(weight, 8, wanted)
    assert all(torch.equal(one, other) for one, other in zip(parts, whole, strict=True))
    assert max(sizes) == min(rows, 50) and sum(sizes) == 50


def test_memory_is_one_shard_and_a_layer(tmp_path):
    """Twelve shards of 12 MB: quantising them costs less than three."""
    folder = tmp_path / "in"
    config = small.hf_config(hidden_size=512, intermediate_size=2048, num_hidden_layers=18)
    model = small.random_model(config)
    tensors = {name: t.bfloat16() for name, t in small.tensors_of(model, "hf").items()}
    small.write(folder, config, tensors, shards=12)
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    del model, tensors
    code = (
        "import resource, sys; from llava_min.config import Quantization\n"
        "from llava_min.weights import quantize\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "import torch; torch.ones(9, 256).aminmax(dim=-1); before = peak()\n"
        "quantize.quantize(sys.argv[1], sys.argv[2], Quantization())\n"
        "print(peak() - before)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(folder), str(tmp_path / "out")],
                         capture_output=True, text=True, check=True)  # fmt: skip
    assert total > 120e6 and int(run.stdout) < 0.5 * total, (run.stdout, total)


def test_the_toy_keeps_its_marks():
    """Fresh pictures and clips: groups of 128 with clipping answer as 32 bits do, but for few."""
    plain = llava_min.load(dtype="float32")
    embedded = small.TINY
    wanted = Quantization(method="mse")
    model = quantised_in_memory(embedded, wanted)
    teacher = lessons.Teacher(
        plain.config, plain.tokenizer.inner.__class__.from_file(str(embedded / "tokenizer.json"))
    )
    same = {}
    for kind in ("picture", "clip"):
        batch = teacher.draw(np.random.default_rng(9), kind, 24, exam=True)
        with torch.no_grad():
            marks = [
                exam.verdicts(batch, *train.answer_logits(network, batch))
                for network in (plain.network, model)
            ]
        same[kind] = sum(a - b for a, b in zip(*marks)), len(marks[0])
    lost, count = (sum(values) for values in zip(*same.values()))
    assert count > 200 and lost <= 0.02 * count, same


def quantised_in_memory(folder, wanted):
    """The network of a folder, quantised while it is read."""
    from dataclasses import replace
    from functools import partial

    config = replace(layouts.read_config(folder), quantization=wanted)
    network = load.on_meta(config)
    convert = partial(quantize.converted, config=config)
    load.fill(network, Checkpoint.open(folder), torch.float32, "cpu", convert=[convert])
    packed.ready(network)
    return network


needs_onednn = pytest.mark.skipif(
    not onednn.pays(torch.zeros(1, dtype=torch.bfloat16)), reason="oneDNN has no bfloat16 here"
)


@needs_onednn
@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 5), max_size=2),
    many=st.sampled_from([1, 70]),
    outputs=st.integers(1, 40),
    inputs=st.integers(1, 70),
    biased=st.booleans(),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_an_ordered_layer_is_a_linear_layer(shape, many, outputs, inputs, biased, dtype):
    """For no row, one and many, of any sizes: a product in float64, rounded; its gradient too."""
    weight, rows = torch.randn(outputs, inputs).to(dtype), torch.randn(*shape, many, inputs)
    bias, rows = torch.randn(outputs).to(dtype) if biased else None, rows.to(dtype)
    layer = packed.CpuLinear(weight, bias)
    exact = rows.double() @ weight.double().T + (bias.double() if biased else 0)
    step = 2**-8 if dtype == torch.bfloat16 else 2**-21
    for product in (layer(rows), layer(rows.requires_grad_())):
        assert product.shape == exact.shape and product.dtype == dtype
        largest = exact.abs().max() if exact.numel() else 1
        torch.testing.assert_close(product.double(), exact, rtol=0, atol=float(largest) * step)
    product.sum().backward()
    expected = weight.double().sum(0).expand_as(rows)
    torch.testing.assert_close(rows.grad.double(), expected, rtol=0, atol=100 * step)


@needs_onednn
def test_an_ordered_layer_refuses_other_rows():
    layer = packed.CpuLinear(torch.randn(33, 48).bfloat16())
    for inputs in (47, 49):
        with pytest.raises(RuntimeError):
            layer(torch.zeros(1, inputs).bfloat16())


@needs_onednn
@pytest.mark.parametrize("tied", [True, False])
def test_every_layer_is_ordered_in_bfloat16_on_a_cpu(tmp_path, tied):
    """The head too; a tied one is a copy, and the embedding stays as it is stored."""
    source = folder_of(tmp_path / "in", tied=tied)
    decoder = (network := llava_min.load(source, dtype="bfloat16", device="cpu").network).decoder
    layers = [layer for layer in network.modules() if isinstance(layer, packed.CpuLinear)]
    assert layers and all(layer.weight.is_mkldnn for layer in layers)
    assert not [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]
    stored = load_file(source / "model.safetensors")
    embedding = stored["language_model.model.embed_tokens.weight"]
    assert torch.equal(decoder.embedding.weight, embedding)
    head = embedding if tied else stored["language_model.lm_head.weight"]
    hidden = torch.eye(head.shape[1]).bfloat16()
    assert torch.equal(decoder.logits(hidden[None])[0], head.float().T)


@needs_onednn
def test_a_batch_in_bfloat16_answers_as_each_question_alone():
    """oneDNN's product of a row is the same among others, in sums as short as the toy's."""
    model = llava_min.load(dtype="bfloat16", device="cpu")
    texts = ["What is this?", "Where is the star?", "Is there a circle?", "Describe the picture."]
    asked = [{"question": text, "images": [small.picture(90, 60)], "max_tokens": 12,
              "ignore_eos": True} for text in texts]  # fmt: skip
    together = model.generate_batch(asked)
    assert [one.token_ids for one in together] == [model.generate(**q).token_ids for q in asked]


@needs_onednn
@pytest.mark.parametrize("outputs, ordered", [(1024, True), (1023, False)])
def test_large_layers_are_ordered_in_float32(outputs, ordered):
    """From 4 MB on; of smaller ones a core's cache holds what a row needs."""
    network, decoder = torch.nn.Module(), torch.nn.Module()
    decoder.embedding, decoder.head = torch.nn.Embedding(outputs, 1024), None
    network.decoder = decoder
    for dtype in (torch.float32, torch.float16, torch.float64):
        network.add_module(str(dtype)[6:], torch.nn.Linear(1024, outputs, dtype=dtype))
    packed.ready(network)
    assert isinstance(network.float32, packed.CpuLinear) == ordered
    assert isinstance(decoder.head, packed.CpuLinear) == ordered
    assert type(network.float16) is type(network.float64) is torch.nn.Linear


def test_other_numbers_keep_their_layers():
    network = llava_min.load(dtype="float32", device="cpu").network
    assert not [layer for layer in network.modules() if isinstance(layer, packed.CpuLinear)]
    assert network.decoder.head is None


# The dtype where none was chosen ------------------------------------------------

CPUINFO = {
    # what Linux says of a CPU -> whether it multiplies in bfloat16
    "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile\n": True,
    "processor\t: 0\nmodel name\t: Sapphire\nflags\t\t: fpu avx512f amx_bf16\n": True,
    "processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n": True,
    "processor\t: 0\nflags\t\t: fpu avx2 avx512f\nbugs\t\t: avx512_bf16\n": False,
    "model name\t: avx512_bf16\nflags\t\t: fpu\n": False,
    "Features\t: fp asimd svebf16\n": False,
    "flags\n": False,
    "": False,
    None: False,  # no such file
}


@pytest.fixture(scope="module")
def medium(tmp_path_factory):
    """A folder, and how many weights it has."""
    folder = folder_of(tmp_path_factory.mktemp("medium") / "in")
    network = load.on_meta(layouts.read_config(folder))
    return folder, sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("text", CPUINFO)
@settings(max_examples=15, deadline=None)
@given(more=st.sampled_from([-(10**6), -1, 0, 1, 10**6]), bits=st.sampled_from([None, 4, 8]))
def test_loading_and_planning_choose_the_same_dtype(medium, text, more, bits):
    """bfloat16 for a model larger than the caches on a CPU that multiplies in it, quantised or not;
    float32 on any other.
    """
    folder, count = medium
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "CPUINFO", folder / "cpuinfo")
        (folder / "cpuinfo").unlink(missing_ok=True)
        if text is not None:
            (folder / "cpuinfo").write_text(text)
        patch.setattr(cpu, "SMALL", count + more)
        model = llava_min.load(folder, bits=bits, device="cpu")
        planned = llava_min.plan(folder, "Why?", bits=bits, device="cpu").storage
    assert model.storage == planned
    assert planned.dtype == ("bfloat16" if CPUINFO[text] and more < 0 else "float32")


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("capability", [None, (7, 5), (8, 0), (9, 0)])
@pytest.mark.parametrize("small", [0, 2**62])
def test_they_agree_on_every_device(medium, monkeypatch, device, capability, small):
    """A GPU before sm_80 gets float16; where there is none, a plan is for a newer one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(cpu, "SMALL", small)
    planned = llava_min.plan(medium[0], "Why?", device=device, memory=1.0).storage.dtype
    chosen = loading.pick_dtype("auto", device, large=small == 0)
    assert str(chosen) == f"torch.{planned}"
    if device == "cuda":
        assert planned == ("float16" if capability == (7, 5) else "bfloat16")


def test_loading_says_which_dtype_it_chose_and_why(caplog):
    """Where it was the user's choice there is nothing to say."""
    with caplog.at_level(logging.DEBUG, "llava_min"):
        llava_min.load(device="cpu", dtype="float32")
        assert "dtype" not in caplog.text
        llava_min.load(device="cpu")
    assert "dtype float32: the caches of a CPU hold so small a model" in caplog.text
