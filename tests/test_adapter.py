"""A merged adapter is what PEFT merges, whatever the layout, and everything else is named."""

import json
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import small
import torch
from safetensors.torch import load_file, save_file

import llava_min
from llava_min.errors import CheckpointError, LlavaMinError

peft = pytest.importorskip("peft", reason="peft is not installed")
transformers = pytest.importorskip("transformers")
QUESTION = list(range(5, 40))
WAYS = {
    # a kind of LoRA -> arguments of LoraConfig
    "plain": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "all linears": {"target_modules": "all-linear"},
    "rank-stabilised": {"target_modules": ["k_proj", "up_proj"], "use_rslora": True},
    "DoRA": {"target_modules": ["q_proj", "o_proj", "gate_proj"], "use_dora": True},
    "patterns": {
        "target_modules": ["q_proj", "k_proj", "v_proj"],
        "rank_pattern": {"v_proj": 2, r"layers\.1\.self_attn\.q_proj": 7},
        "alpha_pattern": {"k_proj": 3, "layers.0.self_attn.q_proj": 20},
    },
    "modules to save": {
        "target_modules": ["q_proj"],
        "modules_to_save": ["multi_modal_projector", "lm_head", "norm"],
    },
    "an embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "biases": {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only"},
    "the tower": {"target_modules": r".*vision_tower.*(fc1|k_proj|out_proj)"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random checkpoint with a head of its own."""
    return small.small(tmp_path_factory.mktemp("base"), tied=False)


def adapted(folder, target, **given):
    """The logits of transformers' model with a random adapter that PEFT wrote to `target`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(folder)
        config = peft.LoraConfig(r=4, lora_alpha=12, **given)
        model = peft.get_peft_model(base.float(), config).eval()
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:  # those that PEFT would train, and saves
                parameter.data += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(target)
        with torch.no_grad():
            return model(input_ids=torch.tensor([QUESTION])).logits[0]


@pytest.mark.parametrize("way", WAYS)
def test_a_merged_adapter_is_what_peft_computes(folder, tmp_path, way):
    expected = adapted(folder, tmp_path / "adapter", **WAYS[way])
    model = llava_min.load(folder, dtype="float32", adapter=tmp_path / "adapter")
    logits = model.logits(QUESTION)
    plain = llava_min.load(folder, dtype="float32").logits(QUESTION)
    assert (logits - expected).abs().max() < 5e-5
    changed = (plain - expected).abs().max()
    assert changed > 1e-2 or way == "the tower"


def test_an_adapter_of_the_tower_changes_the_picture(folder, tmp_path):
    adapted(folder, tmp_path / "adapter", **WAYS["the tower"])
    picture, rows = small.picture(80, 60), []
    for adapter in (None, tmp_path / "adapter"):
        model = llava_min.load(folder, dtype="float32", adapter=adapter)
        rows.append(model.embed("What?", images=[picture]))
    assert (rows[0] - rows[1]).abs().max() > 1e-3


@pytest.mark.parametrize("layout", ["original", "hf"])
def test_names_of_any_layout_fit(folder, tmp_path, layout):
    """The adapter's names are of one layout, the checkpoint's of another."""
    adapted(folder, tmp_path / "hf", **WAYS["plain"])
    tensors = load_file(tmp_path / "hf" / "adapter_model.safetensors")
    if layout == "original":
        tensors = {k.replace(".language_model.layers", ".layers"): v for k, v in tensors.items()}
        assert any("model.model.layers.0" in name for name in tensors)
    other = tmp_path / "other"
    other.mkdir()
    save_file(tensors, other / "adapter_model.safetensors")
    (other / "adapter_config.json").write_bytes(
        (tmp_path / "hf" / "adapter_config.json").read_bytes()
    )
    one, two = (
        llava_min.load(folder, adapter=a).logits(QUESTION) for a in (tmp_path / "hf", other)
    )
    assert torch.equal(one, two)


def test_int4_is_made_of_the_merged_weights(tmp_path):
    """As of a folder into which the adapter was merged before."""
    config = small.hf_config(False, hidden_size=128, intermediate_size=128)
    tensors = small.tensors_of(small.random_model(config), "hf")
    folder = small.write(tmp_path / "base", config, tensors)
    adapted(folder, tmp_path / "adapter", **WAYS["plain"])
    merged = llava_min.load(folder, dtype="float32", adapter=tmp_path / "adapter")
    whole = small.write(tmp_path / "whole", config, small.tensors_of(merged.network, "hf"))
    found = llava_min.load(folder, dtype="float32", adapter=tmp_path / "adapter", bits=4)
    expected = llava_min.load(whole, dtype="float32", bits=4)
    assert torch.equal(found.logits(QUESTION), expected.logits(QUESTION))


def test_a_projector_alone_takes_the_place_of_the_checkpoints(folder, tmp_path):
    """mm_projector.safetensors, with the names of LLaVA's own training."""
    model = llava_min.load(folder, dtype="float32")
    names = {"linear_1": "0", "linear_2": "2"}
    tensors = {
        f"model.mm_projector.{names[own.split('.')[0]]}.{own.split('.')[1]}": 2 * tensor.clone()
        for own, tensor in model.network.projector.named_parameters()
    }
    save_file(tensors, tmp_path / "mm_projector.safetensors")
    changed = llava_min.load(folder, dtype="float32", adapter=tmp_path)
    for own, tensor in model.network.projector.named_parameters():
        assert torch.equal(2 * tensor, changed.network.projector.get_parameter(own))


def rewritten(folder, target, config=None, tensors=None, drop=()):
    """An adapter with other values in its config, and other tensors."""
    target.mkdir()
    values = json.loads((folder / "adapter_config.json").read_text()) | (config or {})
    (target / "adapter_config.json").write_text(json.dumps(values))
    held = load_file(folder / "adapter_model.safetensors") | (tensors or {})
    held = {name: tensor for name, tensor in held.items() if not name.endswith(drop or "\0")}
    save_file(held, target / "adapter_model.safetensors")
    return target


NAME = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
WRONG = {
    "not LoRA": ({"config": {"peft_type": "IA3"}}, "peft_type.*LORA.*IA3"),
    "PiSSA": ({"config": {"init_lora_weights": "pissa_niter_4"}}, "init_lora_weights.*plain LoRA"),
    "other tokens": ({"config": {"trainable_token_indices": [1]}}, "trainable_token_indices"),
    "another rank": ({"config": {"r": 8}}, "r: expected 4, the rank of"),
    "a slow pattern": (
        {"config": {"rank_pattern": {"(a+)+$": 4}}},
        "rank_pattern.*names of modules",
    ),
    "half a pair": ({"drop": ("layers.0.self_attn.q_proj.lora_B.weight",)}, "lora_A and lora_B"),
    "NaN": ({"tensors": {f"{NAME}.lora_A.weight": torch.full((4, 48), torch.nan)}}, "found nan"),
    "another width": (
        {"tensors": {f"{NAME}.lora_A.weight": torch.ones(4, 50)}},
        r"shape \[48, 48\]",
    ),
    "another layer": (
        {"tensors": {NAME.replace("0", "9") + f".lora_{x}.weight": torch.ones(4, 4) for x in "AB"}},
        "layers.9.*a tensor of the checkpoint",
    ),
    "an unknown tensor": ({"tensors": {"base_model.model.odd": torch.ones(2)}}, "odd"),
}


@pytest.fixture(scope="module")
def right(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("right")
    adapted(folder, target, **WAYS["plain"])
    return target


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_named(folder, right, tmp_path, what):
    given, message = WRONG[what]
    with pytest.raises(LlavaMinError) as caught:
        llava_min.load(folder, adapter=rewritten(right, tmp_path / "wrong", **given))
    assert re.search(message, str(caught.value)), caught.value


def test_the_documented_command_converts_a_pickle(folder, tmp_path):
    """LLaVA's non_lora_trainables.bin, whose names begin with base_model.model."""
    text = (Path(__file__).parents[1] / "docs" / "using.md").read_text()
    lines = re.search(r"    python (-c .*?)FOLDER", text, re.S)[1].replace("\\\n", "")
    path = tmp_path / "non_lora_trainables.bin"
    model = llava_min.load(folder, dtype="float32")
    bias = model.network.projector.linear_1.bias
    torch.save({"base_model.model.model.mm_projector.0.bias": bias + 1}, path)
    subprocess.run([sys.executable, *shlex.split(lines), str(path)], check=True)
    path.unlink()
    changed = llava_min.load(folder, dtype="float32", adapter=tmp_path)
    assert torch.equal(changed.network.projector.linear_1.bias, bias + 1)


@pytest.mark.parametrize("name", ["adapter_model.bin", "mm_projector.bin"])
def test_pickles_stay_closed(folder, right, tmp_path, name):
    (tmp_path / "adapter_config.json").write_bytes((right / "adapter_config.json").read_bytes())
    if name.startswith("mm"):
        (tmp_path / "adapter_config.json").unlink()
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(CheckpointError, match="a pickle, which could run code"):
        llava_min.load(folder, adapter=tmp_path)


def test_folders_that_are_no_adapter_or_no_checkpoint_are_told_apart(folder, right, tmp_path):
    with pytest.raises(CheckpointError, match="expected adapter_config.json and"):
        llava_min.load(folder, adapter=tmp_path)
    with pytest.raises(CheckpointError, match="cannot open the adapter: .*nosuch"):
        llava_min.load(folder, adapter=tmp_path / "nosuch")
    with pytest.raises(CheckpointError, match="an adapter without its base.*--lora"):
        llava_min.load(right)


def test_a_tied_head_and_the_embedding_stay_one(tmp_path):
    folder = small.small(tmp_path / "base")
    adapted(folder, tmp_path / "adapter", **WAYS["an embedding"])
    with pytest.raises(CheckpointError, match="a head of its own"):
        llava_min.load(folder, adapter=tmp_path / "adapter")
