"""Weights that another program quantised are the numbers that the program itself would use."""

import json
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import llava_min
from llava_min.cache import Cache
from llava_min.errors import CheckpointError, LlavaMinError
from llava_min.families.folder import config_of
from llava_min.kernels import int4
from llava_min.weights import formulas, kept, packed
from llava_min.weights import load as loading
from llava_min.weights.checkpoint import Checkpoint
from llava_min.weights.foreign import ENDS, Foreign
from llava_min.weights.kept import with_kept_codes
from llava_min.weights.share import Share

LINEAR = re.compile(r".*language_model.*\.(q|k|v|o|gate|up|down)_proj\.weight")
QUESTION = list(range(5, 40))
Packed = dict[str, torch.Tensor]


@dataclass
class Form:
    """A format: quantization_config, and a matrix -> (the ends and values of its parts, the matrix
    that they stand for, by the program's own code or by a loop over its documented layout).
    """

    config: dict
    quantise: object


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [R C] -> int32 [R C*bits/32], the lowest bits first, one by one."""
    found = np.zeros((codes.shape[0], codes.shape[1] * bits // 32), np.uint32)
    for column in range(codes.shape[1]):
        at = column * bits
        found[:, at // 32] |= codes[:, column].astype(np.uint32) << np.uint32(at % 32)
    return found.view(np.int32)


def drawn(weight: torch.Tensor, group: int, bits: int, symmetric: bool):
    """Any codes [N K], zeros [N G] and scales [N G] of about the size of a matrix."""
    rng = np.random.default_rng(weight.numel())
    rows, columns = weight.shape
    groups = columns // group
    codes = rng.integers(0, 2**bits, (rows, columns))
    zeros = np.full((rows, groups), 2 ** (bits - 1))
    if not symmetric:
        zeros = rng.integers(1, 2**bits, (rows, groups))
    scales = rng.uniform(0.5, 1.5, (rows, groups)).astype(np.float16) / 2**bits / 4
    return codes, zeros, scales.astype(np.float16)


def gptq(bits: int, group: int, ordered: bool, symmetric: bool, version: int):
    """As GPTQModel documents its files."""

    def quantise(weight):
        size = weight.shape[1] if group == -1 else group
        codes, zeros, scales = drawn(weight, size, bits, symmetric)
        index = np.arange(weight.shape[1]) // size
        if ordered:
            index = np.random.default_rng(1).permutation(index)
        matrix = (codes - zeros[:, index]) * scales[:, index].astype(np.float32)
        stored = zeros - 1 if version == 1 else zeros
        parts = {
            "qweight": words(codes, bits).T,
            "qzeros": words(stored.T, bits),
            "scales": scales.T,
            "g_idx": index.astype(np.int32),
        }
        return parts, matrix

    names = {1: "gptq", 2: "gptq_v2"}
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": ordered}
    return Form(config | {"sym": symmetric, "checkpoint_format": names[version]}, quantise)


def awq(group: int):
    """As AutoAWQ packs: eight neighbours in the order 0 2 4 6 1 3 5 7."""

    def packed(columns):  # [K N] -> [K N/8]
        order = np.array([0, 2, 4, 6, 1, 3, 5, 7])
        return words(columns.reshape(len(columns), -1, 8)[..., order].reshape(columns.shape), 4)

    def quantise(weight):
        codes, zeros, scales = drawn(weight, group, 4, False)
        index = np.arange(weight.shape[1]) // group
        matrix = (codes - zeros[:, index]) * scales[:, index].astype(np.float32)
        return {
            "qweight": packed(codes.T),
            "qzeros": packed(zeros.T),
            "scales": np.ascontiguousarray(scales.T),
        }, matrix

    config = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True}
    return Form(config | {"version": "gemm"}, quantise)


def bitsandbytes(kind: str, nested: bool):
    """By the library's own code on a CPU."""

    def quantise(weight):
        functional = pytest.importorskip("bitsandbytes.functional")
        codes, state = functional.quantize_4bit(
            weight.float(), blocksize=64, compress_statistics=nested, quant_type=kind
        )
        parts = {f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}
        matrix = functional.dequantize_4bit(codes, state)
        return parts | {"weight": codes}, matrix

    return Form({"quant_method": "bitsandbytes", "load_in_4bit": True}, quantise)


def bitsandbytes_int8():
    def quantise(weight):
        functional = pytest.importorskip("bitsandbytes.functional")
        codes, scale, _ = functional.int8_vectorwise_quant(weight.half())
        parts = {"weight": codes, "SCB": scale, "weight_format": torch.zeros((), dtype=torch.uint8)}
        return parts, functional.int8_vectorwise_dequant(codes, scale)

    return Form({"quant_method": "bitsandbytes", "load_in_8bit": True}, quantise)


def compressed(form: str, symmetric: bool = True, **arguments):
    """By the compressors of compressed-tensors."""
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": arguments | {"symmetric": symmetric}}
        },
        "ignore": ["lm_head"],
    }

    def quantise(weight):
        library = pytest.importorskip("compressed_tensors")
        from compressed_tensors.compressors import BaseCompressor

        args = library.quantization.QuantizationArgs(**arguments, symmetric=symmetric)
        scheme = library.quantization.QuantizationScheme(targets=["Linear"], weights=args)
        rows, columns = weight.shape
        groups = columns // arguments.get("group_size", columns)
        shape = (1,) if arguments["strategy"] == "tensor" else (rows, groups)
        generator = torch.Generator().manual_seed(0)
        largest = 448 if arguments["type"] == "float" else 2 ** (arguments["num_bits"] - 1)
        scale = (0.5 + torch.rand(shape, generator=generator)) * weight.abs().max() / largest
        zero = torch.zeros(shape, dtype=torch.int8)
        if not symmetric:
            zero = torch.randint(-4, 4, shape, generator=generator, dtype=torch.int8)
        given = {"weight": weight.float(), "weight_scale": scale, "weight_zero_point": zero}
        compressor = BaseCompressor.get_value_from_registry(form)
        parts = compressor.compress(given, scheme)
        matrix = compressor.decompress(dict(parts), scheme)["weight"]
        return {name: value for name, value in parts.items() if value is not None}, matrix

    return Form(config, quantise)


def fp8(block: list[int] | None, scale_name: str = "weight_scale_inv"):
    def quantise(weight):
        rows, columns = weight.shape
        high, wide = block or (rows, columns)
        matrix, scales = torch.zeros(rows, columns), []
        stored = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn)
        for top in range(0, rows, high):
            scales.append([])
            for left in range(0, columns, wide):
                place = slice(top, top + high), slice(left, left + wide)
                scale = weight[place].float().abs().max() / 448
                stored[place] = (weight[place].float() / scale).to(torch.float8_e4m3fn)
                matrix[place] = stored[place].float() * scale
                scales[-1].append(float(scale))
        found = torch.tensor(scales) if block else torch.tensor(scales).reshape(())
        return {"weight": stored, scale_name: found}, matrix

    config = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    return Form(config | ({"weight_block_size": block} if block else {}), quantise)


W4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
CHANNEL8 = {"num_bits": 8, "type": "int", "strategy": "channel"}
FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "channel"}
WHOLE8 = {"num_bits": 8, "type": "int", "strategy": "tensor"}
FORMS = {
    "GPTQ": gptq(4, 32, False, True, 1),
    "GPTQ asymmetric": gptq(4, 16, False, False, 1),
    "GPTQ act-order": gptq(4, 32, True, False, 1),
    "GPTQ v2, one group": gptq(4, -1, False, False, 2),
    "GPTQ 8 bits": gptq(8, 32, True, True, 1),
    "AWQ": awq(32),
    "nf4": bitsandbytes("nf4", False),
    "nf4 double quantised": bitsandbytes("nf4", True),
    "fp4 double quantised": bitsandbytes("fp4", True),
    "LLM.int8": bitsandbytes_int8(),
    "compressed-tensors W4A16": compressed("pack-quantized", **W4),
    "compressed-tensors W4A16 asymmetric": compressed("pack-quantized", False, **W4),
    "compressed-tensors W8A16": compressed("pack-quantized", **CHANNEL8),
    "compressed-tensors int8": compressed("int-quantized", **CHANNEL8),
    "compressed-tensors float8": compressed("float-quantized", **FLOAT8),
    "compressed-tensors int8 of one scale": compressed("int-quantized", **WHOLE8),
    "fp8 per tensor": fp8(None, "weight_scale"),
    "fp8 in blocks": fp8([32, 48]),
}
# inputs in whole blocks of 64: at others the CPU kernel of bitsandbytes multiplies out otherwise
# than it quantised
SHAPE = dict(hidden_size=64, intermediate_size=128)


@pytest.fixture(scope="module")
def base():
    """(config.json, tensors in HF's names) of a small random checkpoint."""
    config = small.hf_config(False, **SHAPE)
    return config, small.tensors_of(small.random_model(config), "hf")


def torch_tensor(value) -> torch.Tensor:
    found = (
        value if isinstance(value, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(value))
    )
    return found.contiguous()


def written(folder, base, form: Form, change=lambda parts: parts):
    """(the folder as the program writes it, the matrices that it stands for)."""
    config, tensors = base
    whole, stored = {}, {}
    for name, tensor in tensors.items():
        if not LINEAR.fullmatch(name):
            whole[name] = stored[name] = tensor
            continue
        parts, matrix = form.quantise(tensor)
        stem = name.removesuffix(".weight")
        for end, value in change(dict(parts)).items():
            stored[f"{stem}.{end}"] = torch_tensor(value)
        whole[name] = torch_tensor(matrix).float()
    folder.mkdir()
    for name in small.TEXT_FILES:
        if (small.TINY / name).exists():
            (folder / name).write_bytes((small.TINY / name).read_bytes())
    values = config | {"quantization_config": form.config}
    (folder / "config.json").write_text(json.dumps(values))
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, whole


@pytest.mark.parametrize("name", FORMS)
def test_logits_are_those_of_the_formats_own_numbers(tmp_path, base, name):
    folder, whole = written(tmp_path / "quantised", base, FORMS[name])
    plain = small.write(tmp_path / "plain", base[0], whole)
    found = llava_min.load(folder, dtype="float32").logits(QUESTION)
    expected = llava_min.load(plain, dtype="float32").logits(QUESTION)
    assert (found - expected).abs().max() < 5e-5


def test_the_awq_order_is_that_of_an_independent_reader():
    """compressed-tensors has a converter of AutoAWQ's files."""
    library = pytest.importorskip("compressed_tensors.entrypoints.convert")
    parts, matrix = awq(32).quantise(torch.zeros(64, 96))
    tensors = {f"m.{end}": torch_tensor(value) for end, value in parts.items()}
    converter = library.AutoAWQConverter.from_autoawq_config(awq(32).config, targets=["re:.*"])
    found = converter.process(dict(tensors))
    read = Foreign("compressed-tensors", 4, (1, 32))
    stems = {name.removeprefix("m."): tensor for name, tensor in found.items()}
    again = formulas.compressed(read, stems)
    ours = formulas.awq(Foreign("awq", 4, (1, 32)), {n[2:]: t for n, t in tensors.items()})
    assert (again - ours).abs().max() == 0 and np.abs(ours.numpy() - matrix).max() < 1e-6


def test_int4_is_made_of_them(tmp_path, base):
    """--int4 of a quantised checkpoint, as of its numbers in 16 bits."""
    config = small.hf_config(False, hidden_size=128, intermediate_size=128)
    tensors = small.tensors_of(small.random_model(config), "hf")
    folder, whole = written(tmp_path / "quantised", (config, tensors), FORMS["GPTQ act-order"])
    plain = small.write(tmp_path / "plain", config, whole)
    found, expected = (llava_min.load(f, dtype="float32", bits=4) for f in (folder, plain))
    assert torch.equal(found.logits(QUESTION), expected.logits(QUESTION))


WIDE = dict(hidden_size=128, intermediate_size=256)  # whole blocks of inputs
KEPT = ("GPTQ", "compressed-tensors W4A16")


@pytest.fixture(scope="module")
def wide():
    config = small.hf_config(False, **WIDE)
    return config, small.tensors_of(small.random_model(config), "hf")


def packed_layers(model) -> int:
    return sum(isinstance(layer, packed.Packed) for layer in model.network.modules())


@pytest.mark.parametrize("name", FORMS)
def test_codes_on_our_own_grid_are_kept(tmp_path, wide, name):
    """The same numbers, and four bits in memory and in the plan; all else is multiplied out."""
    folder, whole = written(tmp_path / "quantised", wide, FORMS[name])
    plain = small.write(tmp_path / "plain", wide[0], whole)
    model = llava_min.load(folder, dtype="float32")
    found, expected = (
        model.logits(QUESTION),
        llava_min.load(plain, dtype="float32").logits(QUESTION),
    )
    assert (found - expected).abs().max() < 5e-5
    stays = name in KEPT
    assert packed_layers(model) == (8 if stays else 0)
    plan = llava_min.plan(folder, QUESTION, dtype="float32")
    assert model.storage.bits == plan.storage.bits == (4 if stays else None)


@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("name", FORMS)
def test_a_share_of_the_heads_is_that_of_the_numbers(tmp_path, name, head):
    """Codes lie in orders of their own, so a rank's part is cut from what they stand for."""
    fields = small.hf_config(False, hidden_size=256, intermediate_size=256)
    base = fields, small.tensors_of(small.random_model(fields), "hf")
    folder, whole = written(tmp_path / "quantised", base, FORMS[name])
    plain = small.write(tmp_path / "plain", fields, whole)
    logits = []
    for path in (folder, plain):
        config = with_kept_codes(config_of(path, {}, None), path)
        checkpoint = Checkpoint.open(path)
        if config.quantization is not None:
            checkpoint = checkpoint.keeping_codes()
        share = Share(config.text, 0, config.text.num_layers, head, 2)
        network = loading.on_meta(share.local(config))
        loading.fill(network, checkpoint, torch.float32, "cpu", share=share)
        packed.ready(network)
        decoder, cache = network.decoder, Cache.empty(network.config.text, 1, 8)
        with torch.inference_mode():
            logits.append(decoder.logits(decoder(decoder.embed(torch.tensor([[5, 6, 7]])), cache)))
    assert (logits[0] - logits[1]).abs().max() < 5e-5


@pytest.mark.parametrize(
    "more", [{"bits": 8}, {"adapter": "lora"}, {}], ids=["int8", "an adapter", "a linear without"]
)
def test_codes_are_multiplied_out_where_they_cannot_stay(tmp_path, wide, more):
    config, tensors = wide
    folder, whole = written(tmp_path / "quantised", wide, FORMS["GPTQ"])
    if not more:  # one linear that is not quantised
        stored = load_file(folder / "model.safetensors")
        stem = next(name for name in stored if name.endswith("up_proj.qweight")).removesuffix(
            ".qweight"
        )
        stored = {name: t for name, t in stored.items() if not name.startswith(f"{stem}.")}
        stored[f"{stem}.weight"] = whole[f"{stem}.weight"]
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    if "adapter" in more:
        target = re.compile(r".*layers\.0\.mlp\.down_proj\.weight")
        name = next(name for name in tensors if target.fullmatch(name))
        lora = {
            f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight": torch.ones(2, 256),
            f"base_model.model.{name.removesuffix('.weight')}.lora_B.weight": torch.ones(128, 2),
        }
        (tmp_path / "lora").mkdir()
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["down_proj"]}
        (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(settings))
        save_file(lora, tmp_path / "lora" / "adapter_model.safetensors")
        more = {"adapter": tmp_path / "lora"}
    model = llava_min.load(folder, dtype="float32", **more)
    plan = llava_min.plan(folder, QUESTION, dtype="float32", **more)
    assert model.storage.bits == plan.storage.bits == more.get("bits")
    assert packed_layers(model) == {None: 0, 4: 9, 8: 19}[more.get("bits")]  # 8: tower too


def test_a_grid_that_says_it_is_symmetric_and_is_not_is_refused(tmp_path, wide):
    form = gptq(4, 32, False, False, 1)
    folder, _ = written(tmp_path / "wrong", wide, Form(form.config | {"sym": True}, form.quantise))
    with pytest.raises(CheckpointError, match="zeros of 8"):
        llava_min.load(folder)


GPTQ, AWQ = {"quant_method": "gptq", "bits": 4}, {"quant_method": "awq"}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
FP8 = {"quant_method": "fp8"}


def grouped(*ways: dict) -> dict:
    """config_groups of compressed-tensors, whose weights are quantised in these ways."""
    groups = {f"group_{number}": {"weights": way} for number, way in enumerate(ways)}
    return COMPRESSED | {"config_groups": groups}


SAID = [
    # quantization_config, (bits, block, offset, whether ordered and symmetric)
    (GPTQ | {"group_size": 128}, (4, (1, 128), 1, False, False)),
    (GPTQ, (4, (1, -1), 1, False, False)),
    (GPTQ | {"bits": 8, "group_size": 1, "desc_act": True}, (8, (1, 1), 1, True, False)),
    (GPTQ | {"sym": True, "checkpoint_format": "gptq_v2"}, (4, (1, -1), 0, False, True)),
    (AWQ, (4, (1, -1), 0, False, False)),
    (AWQ | {"w_bit": 4, "q_group_size": 64}, (4, (1, 64), 0, False, False)),
    (AWQ | {"bits": 4, "group_size": 32, "version": "GEMM"}, (4, (1, 32), 0, False, False)),
    ({"quant_method": "bitsandbytes"}, (8, (1, -1), 0, False, False)),
    (grouped(W4), (4, (1, 32), 0, False, True)),
    (grouped(W4, W4), (4, (1, 32), 0, False, True)),
    (grouped(W4 | {"symmetric": False}), (4, (1, 32), 0, False, False)),
    (grouped(CHANNEL8), (8, (1, -1), 0, False, True)),
    (grouped(FLOAT8), (8, (1, -1), 0, False, False)),
    (grouped(WHOLE8), (8, (-1, -1), 0, False, True)),
    (grouped(W4 | {"strategy": "block", "block_structure": [2, 8]}), (4, (2, 8), 0, False, True)),
    *((grouped(W4 | {"actorder": how}), (4, (1, 32), 0, False, True))
      for how in (None, False, "static", "weight")),
    *((grouped(W4 | {"actorder": how}), (4, (1, 32), 0, True, True))
      for how in (True, "group", "dynamic")),
    (FP8, (8, (-1, -1), 0, False, False)),
    (FP8 | {"weight_block_size": [32, 48]}, (8, (32, 48), 0, False, False)),
]  # fmt: skip


@pytest.mark.parametrize("config, expected", SAID, ids=str)
def test_what_a_configuration_says(config, expected):
    """And what it means where it leaves a key out."""
    found = Foreign.of({"quantization_config": config})
    assert found == Foreign(str(config["quant_method"]), *expected)


def test_missing_keys_are_those_of_the_library():
    theirs = pytest.importorskip("compressed_tensors.quantization").QuantizationArgs(num_bits=8)
    way = {"num_bits": 8, "strategy": "channel"}
    ours = Foreign.of({"quantization_config": grouped(way)})
    named = {name: getattr(theirs, name) for name in ("symmetric", "actorder")}
    way |= named | {"type": theirs.type.value}
    assert ours == Foreign.of({"quantization_config": grouped(way)})


@pytest.mark.parametrize(
    "config, key",
    [
        *((GPTQ | {"group_size": size}, "group_size") for size in (0, -2, True, 32.0, "32")),
        (COMPRESSED | {"config_groups": {}}, "config_groups"),
        (grouped(W4, W4 | {"group_size": 64}), "config_groups"),
        (grouped(W4, W4, CHANNEL8), "config_groups"),
        (AWQ | {"bits": 8}, "bits"),
    ],
    ids=str,
)
def test_what_a_configuration_cannot_say_is_refused(config, key):
    with pytest.raises(CheckpointError, match=f"quantization_config.*{key}"):
        Foreign.of({"quantization_config": config})


@pytest.mark.parametrize("method", ENDS)
def test_a_part_is_named_after_its_matrix(method):
    for end in ENDS[method]:
        assert Foreign(method).split(f"a.b.{end}") == ("a.b", end)
    assert Foreign(method).split("a.b.bias") == ("a.b.bias", "")


@pytest.mark.parametrize("group, own", [(32, 32), (64, 64), (128, 128), (16, None), (-1, None)])
def test_our_own_grid_has_groups_of_three_sizes(group, own):
    """And four bits, a zero in the middle, and inputs in their order."""
    how = Foreign("gptq", 4, (1, group), 1, False, True)
    assert how.own_group == own
    for other in ({"bits": 8}, {"symmetric": False}, {"ordered": True}):
        assert replace(how, **other).own_group is None


def test_zeros_are_as_they_are_stored_unless_an_offset_is_told():
    """As there is one scale for all inputs unless a block is."""
    parts, matrix = gptq(4, 32, False, False, 2).quantise(torch.zeros(64, 96))
    parts = {end: torch_tensor(value) for end, value in parts.items()}
    found = formulas.gptq(Foreign("gptq", 4, (1, 32)), parts)
    assert np.abs(found.numpy() - matrix).max() < 1e-6
    assert (found - formulas.gptq(Foreign("gptq", 4, (1, 32), 1), parts)).abs().max() > 1e-3
    codes, scale = torch.ones(3, 5, dtype=torch.int8), torch.tensor([[1.0], [2.0], [4.0]])
    parts = {"weight": codes, "weight_scale": scale}
    found = formulas.compressed(Foreign("compressed-tensors"), parts)
    assert torch.equal(found, scale.expand(3, 5))


def test_the_block_of_a_plan_is_that_of_the_kernel():
    assert kept.BLOCK == int4.BLOCK


def without(end: str):
    return lambda parts: {name: value for name, value in parts.items() if name != end}


def changed(end: str, change):
    return lambda parts: parts | {end: change(torch_tensor(parts[end]))}


CONFIG = "config.json: quantization_config"
WRONG = {
    "no scales": ("GPTQ", without("scales"), {}, "the part scales, found none"),
    "no zeros": ("GPTQ", without("qzeros"), {}, "the part qzeros, found none"),
    "act-order without g_idx": ("GPTQ act-order", without("g_idx"), {}, "the part g_idx"),
    "another group size": ("GPTQ", dict, {"group_size": 16}, "scales or zeros"),
    "act-order with scales of other outputs": (
        "GPTQ act-order",
        changed("scales", lambda t: t[:, :-8]),
        {},
        "zeros and scales for [",
    ),
    "act-order with zeros of other outputs": (
        "GPTQ act-order",
        changed("qzeros", lambda t: t[:, :-1]),
        {},
        "zeros and scales for [",
    ),
    "groups too many": ("GPTQ act-order", changed("g_idx", lambda t: t + 9), {}, "groups from 0"),
    "3 bits": ("GPTQ", dict, {"bits": 3}, f"{CONFIG}: bits"),
    "marlin": ("GPTQ", dict, {"checkpoint_format": "marlin"}, "checkpoint_format"),
    "gemv": ("AWQ", dict, {"version": "gemv"}, "version"),
    "no state": ("nf4", without("weight.quant_state.bitsandbytes__nf4"), {}, "bitsandbytes__nf4"),
    "no absmax": ("nf4", without("weight.absmax"), {}, "the part weight.absmax"),
    "a state that lies": (
        "nf4",
        changed("weight.absmax", lambda t: t[:5]),
        {},
        "a state of bitsandbytes",
    ),
    "another packing": ("compressed-tensors W4A16", dict, {"format": "nvfp4"}, "format"),
    "a sparse form": (
        "compressed-tensors W4A16",
        dict,
        {"sparsity_config": {"format": "sparse-24"}},
        "sparsity_config",
    ),
    "fewer scales": (
        "compressed-tensors int8",
        changed("weight_scale", lambda t: t[:3]),
        {},
        "64 x 1 scales",
    ),
    "no scale": ("compressed-tensors W4A16", without("weight_scale"), {}, "weight_scale"),
    "another block": ("fp8 in blocks", dict, {"weight_block_size": [16, 16]}, "scales or zeros"),
    "a block of one side": (
        "fp8 in blocks",
        dict,
        {"weight_block_size": [32]},
        "weight_block_size",
    ),
    "a block of three": (
        "fp8 in blocks",
        dict,
        {"weight_block_size": [32, 48, 1]},
        "weight_block_size",
    ),
    "a block in words": (
        "fp8 in blocks",
        dict,
        {"weight_block_size": ["32", 48]},
        "weight_block_size",
    ),
    "a block that is no list": (
        "fp8 in blocks",
        dict,
        {"weight_block_size": 32},
        "weight_block_size",
    ),
    "a method of nobody": ("fp8 in blocks", dict, {"quant_method": "aqlm"}, "quant_method"),
    "codes in a row": (
        "compressed-tensors W4A16",
        changed("weight_packed", lambda t: t.flatten()),
        {},
        "words of 32 bits",
    ),
    "a form for another card": (
        "LLM.int8",
        lambda parts: parts | {"weight_format": np.array(1, np.uint8)},
        {},
        "the format 1",
    ),
    "more outputs than codes": (
        "compressed-tensors W4A16",
        changed("weight_shape", lambda t: t + torch.tensor([1, 0])),
        {},
        "codes for [",
    ),
    "more inputs than codes": (
        "compressed-tensors W4A16",
        changed("weight_shape", lambda t: t + torch.tensor([0, 1])),
        {},
        "codes for [",
    ),
    "words of 64 bits": ("GPTQ", changed("qweight", lambda t: t.long()), {}, "words of 32 bits"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_named(tmp_path, base, what):
    name, change, config, message = WRONG[what]
    form = Form(FORMS[name].config | config, FORMS[name].quantise)
    folder, _ = written(tmp_path / "wrong", base, form, change)
    with pytest.raises(LlavaMinError) as caught:
        llava_min.load(folder)
    assert isinstance(caught.value, CheckpointError) and message in str(caught.value), caught.value


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.booleans(), st.booleans())
def test_an_fp8_matrix_has_one_scale_or_one_for_each_output(rows, columns, whole, flat):
    """Square ones too, in which a scale for each input would fit as well."""
    codes = torch.randint(-8, 8, (rows, columns), generator=torch.Generator().manual_seed(rows))
    scale = torch.ones(1, 1) / 4 if whole else torch.arange(1.0, rows + 1)[:, None] / 4
    parts = {
        "weight": codes.to(torch.float8_e4m3fn),
        "weight_scale": scale.flatten() if flat else scale,
    }
    found = formulas.fp8(Foreign("fp8", 8, (-1, -1)), parts)
    assert torch.equal(found, codes * scale)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5))
def test_a_scale_goes_to_each_weight_of_its_block(rows, columns, high, wide):
    """By a loop over all weights; blocks at the border are smaller."""
    blocks = -(-rows // high), -(-columns // wide)
    scale = torch.arange(blocks[0] * blocks[1], dtype=torch.float32)
    found = formulas.spread(scale, (rows, columns), (high, wide))
    for row in range(rows):
        for column in range(columns):
            assert found[row, column] == row // high * blocks[1] + column // wide
    assert found.shape == (rows, columns)


@pytest.mark.parametrize("shape", [(4, 2), (3, 2), (2, 4), (4, 3), (8,)])
def test_scales_of_our_grid_are_one_for_each_output_and_group(shape):
    how, codes = Foreign("gptq", 4, (1, 32)), torch.zeros(4, 64, dtype=torch.int32)
    if shape == (4, 2):
        packed_codes, scale = formulas.on_grid(how, codes, torch.ones(shape))
        assert packed_codes.shape == (4, 32) and scale.shape == shape
    else:
        with pytest.raises(formulas.Misfit, match="4 x 2 scales"):
            formulas.on_grid(how, codes, torch.ones(shape))


@pytest.mark.parametrize("groups", [[0, 0, 0], [0, 1, 2], [2, 0, 1], [-1, 0, 1], [0, 1, 3]])
def test_groups_by_index_are_those_that_there_are(groups):
    values = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    index = torch.tensor(groups, dtype=torch.int32)
    if {-1, 3} & set(groups):
        with pytest.raises(formulas.Misfit, match="groups from 0 to 2"):
            formulas.by_index(values, index)
    else:
        assert torch.equal(formulas.by_index(values, index), values[:, groups])
    assert formulas.by_index(values, index[:0]).shape == (2, 0)


def test_memory_is_that_of_one_matrix(tmp_path, base):
    """Parts are let go when their matrix is made."""
    held, most = 0, 0

    class Counted(dict):
        pass

    names = [f"{stem}.{end}" for stem in "abcd" for end in ("qweight", "qzeros", "scales", "g_idx")]
    parts, _ = FORMS["GPTQ"].quantise(torch.zeros(64, 96))

    def tensors():
        nonlocal held, most
        for name in names:
            held += 1
            most = max(most, held)
            yield name, torch_tensor(parts[name.split(".")[1]])

    how = Foreign("gptq", 4, (1, 32), 1)
    for name, matrix in formulas.multiplied_out(how, names, tensors()):
        assert name.endswith(".weight") and matrix.shape == (64, 96)
        held -= 4
    assert most == 4 and held == 0
