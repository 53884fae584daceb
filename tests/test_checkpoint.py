"""Loading is exact both ways: nothing missing, extra, misshapen or at random."""

import itertools
import json

import pytest
import small
import torch
from safetensors.torch import load_file, save_file

import llava_min
from llava_min.config import Quantization
from llava_min.errors import CheckpointError, NumericsError
from llava_min.families import layouts
from llava_min.families.fields import Fields
from llava_min.weights import index, names, quantize
from llava_min.weights.checkpoint import Checkpoint


@pytest.fixture
def folder(tmp_path):
    return small.small(tmp_path / "model", tied=False)


def edit(folder, change) -> None:
    """Apply `change` to the dictionary of tensors in the file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def wide(path, layout: str = "hf"):
    """A checkpoint wide enough to be quantised, tied."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    config = small.hf_config(**sizes, head_dim=32)
    tensors = small.tensors_of(small.random_model(config), layout)
    return small.write(path, config if layout == "hf" else small.original_config(config), tensors)


def edit_config(folder, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    for key, value in values.items():
        section, _, name = key.rpartition("__")
        (config[section] if section else config)[name] = value
    (folder / "config.json").write_text(json.dumps(config))


def test_every_parameter_gets_its_numbers(folder):
    """The filled model is the model that was written, fused tensors included."""
    written = small.random_model(small.hf_config(tied=False))
    loaded = llava_min.load(folder).network
    for name, tensor in written.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("tied", [True, False])
def test_original_layout_answers_identically(tmp_path, tied):
    """The same weights in both layouts: equal rows, logits and answers, with the same chat
    template.
    """
    hf = llava_min.load(small.small(tmp_path / "hf", "hf", tied=tied))
    original = llava_min.load(small.small(tmp_path / "original", "original", tied=tied))
    assert original.config.family == "llava_qwen" and original.config.grids == hf.config.grids
    pictures, clip = [small.picture(130, 90)], small.frames(3)
    for media in ({"images": pictures}, {"videos": [clip]}, {"images": pictures * 2}):
        assert torch.equal(hf.logits("What?", **media), original.logits("What?", **media))
        answers = [
            model.generate("What?", max_tokens=8, **media).token_ids for model in (hf, original)
        ]
        assert answers[0] == answers[1]


def test_shards_are_one_checkpoint(tmp_path):
    whole = llava_min.load(small.small(tmp_path / "whole"))
    for shards in (2, 7):
        parts = llava_min.load(small.small(tmp_path / str(shards), shards=shards))
        assert torch.equal(whole.logits("What?"), parts.logits("What?"))


@pytest.mark.parametrize(
    "name",
    [
        "image_newline",
        "language_model.model.layers.1.self_attn.k_proj.bias",
        "vision_tower.vision_model.embeddings.position_embedding.weight",
        "language_model.lm_head.weight",
    ],
)
def test_a_missing_tensor_is_named(folder, name):
    edit(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as error:
        llava_min.load(folder)
    assert error.value.exit_code == 3


def test_an_extra_tensor_is_named(folder):
    edit(folder, lambda tensors: tensors.update({"language_model.model.surprise": torch.ones(2)}))
    with pytest.raises(CheckpointError, match="surprise"):
        llava_min.load(folder)


def test_a_wrong_shape_is_named_with_both_shapes(folder):
    edit(folder, lambda tensors: tensors.update({"image_newline": torch.ones(47)}))
    with pytest.raises(
        CheckpointError, match=r"image_newline.*expected shape \[48\], found \[47\]"
    ):
        llava_min.load(folder)


def test_a_tensor_under_two_names_is_refused(folder):
    edit(folder, lambda tensors: tensors.update({"model.image_newline": torch.ones(48)}))
    with pytest.raises(CheckpointError, match="found again"):
        llava_min.load(folder)


def test_unused_parts_of_the_tower_are_dropped_by_name(folder):
    prefix = "vision_tower.vision_model."
    edit(
        folder,
        lambda tensors: tensors.update(
            {
                prefix + "head.probe": torch.ones(1, 1, 32),
                prefix + "embeddings.position_ids": torch.ones(1, 16),
                "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
            }
        ),
    )
    llava_min.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_found_at_load(folder, value):
    edit(
        folder,
        lambda tensors: (
            tensors["multi_modal_projector.linear_1.weight"].view(-1).__setitem__(5, value)
        ),
    )
    with pytest.raises(NumericsError, match=r"linear_1\.weight.*index 5") as error:
        llava_min.load(folder)
    assert error.value.exit_code == 7


def test_integer_weights_are_refused(folder):
    edit(
        folder, lambda tensors: tensors.update({"image_newline": torch.ones(48, dtype=torch.int8)})
    )
    with pytest.raises(CheckpointError, match="I8"):
        llava_min.load(folder)


HEAD = "language_model.lm_head.weight"


@pytest.mark.parametrize("outside", [True, False, None])
@pytest.mark.parametrize("inside", [True, False, None])
@pytest.mark.parametrize("held", ["no head", "the embedding", "a head of its own"])
def test_the_head_is_what_the_file_holds(tmp_path, caplog, outside, inside, held):
    """A merged LoRA has a head of its own and still says that it is tied."""
    folder = small.small(tmp_path / "model", tied=True)
    embedding = "language_model.model.embed_tokens.weight"
    config = json.loads((folder / "config.json").read_text())
    for section, tie in ((config, outside), (config["text_config"], inside)):
        section.pop("tie_word_embeddings")
        section |= {} if tie is None else {"tie_word_embeddings": tie}
    (folder / "config.json").write_text(json.dumps(config))
    stored = load_file(folder / "model.safetensors")[embedding]
    stored = stored + (held == "a head of its own")
    if held != "no head":
        edit(folder, lambda tensors: tensors.update({HEAD: stored.clone()}))
    if held == "no head" and not (outside or inside):
        with pytest.raises(CheckpointError, match="lm_head"):
            llava_min.load(folder)
        return
    decoder = llava_min.load(folder, dtype="float32").network.decoder
    assert torch.equal((decoder.head or decoder.embedding).weight, stored)
    says = held == "a head of its own" and bool(outside or inside)
    assert ("own head is used" in caplog.text) == says


def test_a_head_of_its_own_is_found_in_any_layout_and_among_shards(tmp_path):
    """In a dtype of its own, too."""
    layouts_of_head = (("hf", HEAD, torch.float32), ("original", "lm_head.weight", torch.float64))
    for layout, name, dtype in layouts_of_head:
        whole = small.small(tmp_path / layout, layout, tied=True)
        tensors = load_file(whole / "model.safetensors")
        embedding = next(name for name in tensors if "embed_tokens" in name)
        tensors[name] = 2 * tensors[embedding].to(dtype)
        config = json.loads((whole / "config.json").read_text())
        folder = small.write(tmp_path / f"{layout} in shards", config, tensors, shards=3)
        decoder = llava_min.load(folder, dtype="float32").network.decoder
        assert torch.equal(decoder.head.weight, 2 * decoder.embedding.weight)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_head_of_its_own_survives_quantising(tmp_path, bits):
    folder = wide(tmp_path / "model")
    embedding = load_file(folder / "model.safetensors")["language_model.model.embed_tokens.weight"]
    edit(folder, lambda tensors: tensors.update({HEAD: embedding.flip(0).contiguous()}))
    wanted = Quantization(bits=8, group=32, head=bits)
    made = quantize.quantize(str(folder), str(tmp_path / "packed"), wanted)
    ids, exact = [3, 4, 5], llava_min.load(folder, dtype="float32")
    packed = llava_min.load(made, dtype="float32").logits(ids)
    assert torch.nn.functional.cosine_similarity(packed, exact.logits(ids)).min() > 0.99


DROPPED = {
    "hf": ("vision_tower.vision_model.", "language_model.model."),
    "original": ("model.vision_tower.vision_tower.vision_model.", "model."),
}


@pytest.mark.parametrize("layout", DROPPED)
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_what_is_dropped_is_not_read_whatever_its_dtype(tmp_path, layout, shards, dtype):
    """CLIP's old files hold position_ids in int64; the quantised copy has none of it."""
    whole, (tower, text) = wide(tmp_path / "whole", layout), DROPPED[layout]
    tensors = load_file(whole / "model.safetensors")
    for name in (
        f"{tower}embeddings.position_ids",
        f"{tower}head.probe",
        f"{tower}encoder.layers.2.mlp.fc1.weight",
        f"{text}layers.0.self_attn.rotary_emb.inv_freq",
    ):
        tensors[name] = torch.ones(1, 16).to(dtype)
    config = json.loads((whole / "config.json").read_text())
    folder = small.write(tmp_path / "parts", config, tensors, shards)
    ids = [3, 4, 5]
    assert torch.equal(llava_min.load(folder).logits(ids), llava_min.load(whole).logits(ids))
    made = quantize.quantize(str(folder), str(tmp_path / "made"), Quantization(bits=8, group=32))
    assert not any("position_ids" in name for name in Checkpoint.open(made).names)


def test_a_tensor_that_is_used_keeps_its_dtype_check(folder):
    """Only what is dropped may be of any dtype."""
    name = "vision_tower.vision_model.embeddings.position_embedding.weight"
    edit(folder, lambda tensors: tensors.update({name: torch.ones(16, 32, dtype=torch.int64)}))
    with pytest.raises(CheckpointError, match="I64"):
        llava_min.load(folder)


def test_one_numbered_file_needs_no_index(tmp_path):
    folder = wide(tmp_path / "model")
    expected, lone = llava_min.load(folder).logits([3]), "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(folder / lone)
    assert torch.equal(llava_min.load(folder).logits([3]), expected)
    made = quantize.quantize(str(folder), str(tmp_path / "made"), Quantization(bits=8, group=32))
    llava_min.load(made)


def test_some_shards_without_their_index_are_refused(tmp_path):
    folder = small.small(tmp_path / "model", shards=2)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"found shards without their model\.safetensors\.index"
    ):
        llava_min.load(folder)
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="found shards without"):
        llava_min.load(folder)


def test_null_key_value_heads_are_as_many_as_heads(tmp_path):
    config = small.hf_config(num_key_value_heads=4)
    model = small.random_model(config)
    folder = small.write(tmp_path / "model", config, small.tensors_of(model, "hf"))
    expected = llava_min.load(folder).logits([3])
    edit_config(folder, text_config__num_key_value_heads=None)
    assert torch.equal(llava_min.load(folder).logits([3]), expected)
    assert llava_min.load(folder).config.text.num_kv_heads == 4


@pytest.mark.parametrize("value, blocks", [(-1, 2), ([-1], 2), (2, 2), ([2], 2), (-2, 1), (1, 1)])
def test_the_feature_layer_in_every_form(value, blocks):
    """Of 2 blocks: from the end, from the front, alone in a list."""
    settings = layouts.parse_config({**small.hf_config(), "vision_feature_layer": value})
    assert settings.vision.num_layers == blocks


@pytest.mark.parametrize("value", [0, 3, -3, [-1, -2], [], [[-1]], "-1", None, True, 1.0])
def test_another_feature_layer_is_refused_by_name(value):
    with pytest.raises(CheckpointError, match="vision_feature_layer"):
        layouts.parse_config({**small.hf_config(), "vision_feature_layer": value})


@pytest.mark.parametrize(
    "settings, listed",
    [
        ({"eos_token_id": 509, "do_sample": False, "temperature": 1.0, "top_k": 50}, ()),
        ({"_from_model_config": True, "pad_token_id": 3, "transformers_version": "5"}, ()),
        (
            {"repetition_penalty": 1.05, "do_sample": True, "temperature": 0.7, "top_p": None},
            ("repetition_penalty 1.05", "do_sample True", "temperature 0.7"),
        ),
        ({"no_repeat_ngram_size": 3}, ("no_repeat_ngram_size 3",)),
    ],
)
def test_what_generation_config_asks_for_is_listed(folder, settings, listed):
    """It is not applied: the answers are those of the options."""
    (folder / "generation_config.json").write_text(json.dumps(settings))
    found = llava_min.load(folder).details
    assert found == tuple(f"generation_config.json: {setting}" for setting in listed)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"vision_aspect_ratio": "anyres_min_3"}, "vision_aspect_ratio"),
        ({"vision_feature_layer": 3}, "vision_feature_layer"),
        ({"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act"),
        ({"architectures": ["LlavaPhiForCausalLM"]}, "LlavaPhi"),
        ({"text_config__use_sliding_window": True}, "use_sliding_window"),
        ({"text_config__hidden_act": "gelu"}, "hidden_act"),
        ({"text_config__num_attention_heads": 5}, "num_attention_heads"),
        ({"text_config__hidden_size": -48}, "hidden_size"),
        ({"text_config__hidden_size": "48"}, "hidden_size"),
        ({"text_config__rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"text_config": []}, "text_config"),
        ({"vision_config__model_type": "dinov2"}, "dinov2"),
        ({"image_grid_pinpoints": [[56, 57]]}, "image_grid_pinpoints"),
    ],
)
def test_values_that_are_not_understood_are_refused_by_name(folder, change, named):
    edit_config(folder, **change)
    with pytest.raises(CheckpointError, match=named):
        llava_min.load(folder)


def test_every_form_that_is_written_is_read():
    ways = {"bits": (4, 8), "group": (32, 64, 128), "head": (4, 8, 16), "method": ("rtn", "mse")}
    for values in itertools.product(*ways.values()):
        given = dict(zip(ways, values)) | {"quant_method": "llava_min", "format": 2}
        config = layouts.parse_config(small.hf_config() | {"quantization_config": given})
        assert config.quantization == Quantization(**dict(zip(ways, values)))
    for key, wrong in {"bits": 5, "group": 33, "head": 5, "method": "awq", "format": 3}.items():
        given[key], right = wrong, given[key]
        with pytest.raises(CheckpointError, match=f"{key}: expected"):
            layouts.parse_config(small.hf_config() | {"quantization_config": given})
        given[key] = right


@pytest.mark.parametrize("bits, head", [(4, 16), (4, 4), (4, 8), (8, 16)])
def test_the_first_format_has_no_8_bits(bits, head):
    """A config.json without a format is of the first one."""
    given = {"quant_method": "llava_min", "bits": bits, "group": 32, "head": head, "method": "rtn"}
    for more in ({}, {"format": 1}):
        values = small.hf_config() | {"quantization_config": given | more}
        if 8 in (bits, head):
            with pytest.raises(CheckpointError, match="format: expected 2, found 1"):
                layouts.parse_config(values)
        else:
            assert layouts.parse_config(values).quantization.bits == bits


@pytest.mark.parametrize("found", [[], ["A", "A"], ["A", "B"], "B", ["B"], [["A"]], None, 5])
def test_a_file_names_one_class(found):
    """In a list or alone. A: a class that is read."""
    known = "LlavaOnevisionForConditionalGeneration"
    values, expected = small.hf_config(), layouts.parse_config(small.hf_config())
    for alone in (known, [known]):
        assert layouts.parse_config(values | {"architectures": alone}) == expected
    named = [known if one == "A" else one for one in found] if isinstance(found, list) else found
    with pytest.raises(CheckpointError, match="architectures: expected one of LlavaOnevision"):
        layouts.parse_config(values | {"architectures": named})


def test_a_feature_layer_is_a_block_that_runs():
    """Of one block, too, what enters it is none of them."""
    for blocks in (1, 2, 3, 24):
        vision = Fields({"num_hidden_layers": blocks}, "")
        for layer in (*range(-3, blocks + 2), [-1], [blocks], [-1, -2], [], True, "-1", None):
            alone = layer[0] if isinstance(layer, list) and len(layer) == 1 else layer
            known = {-1: -1, -2: -2, blocks: -1, **({blocks - 1: -2} if blocks > 1 else {})}
            fields = Fields({"vision_feature_layer": layer}, "")
            if type(alone) is int and alone in known:
                assert layouts.feature_layer(fields, vision, -2) == known[alone]
            else:
                with pytest.raises(CheckpointError, match="vision_feature_layer: expected -1 or"):
                    layouts.feature_layer(fields, vision, -2)


def test_unknown_keys_are_listed_and_do_not_matter(folder):
    edit_config(folder, my_key=1, text_config__another=2)
    model = llava_min.load(folder)
    assert {"config.json: my_key", "config.json: text_config: another"} <= set(model.details)


def test_overrides_come_before_the_strict_parse(folder):
    assert (
        llava_min.load(folder, config={"vision_aspect_ratio": "anyres_max_4"}).config.anyres_max
        == 4
    )
    with pytest.raises(CheckpointError, match="vision_aspect_ratio"):
        llava_min.load(folder, config={"vision_aspect_ratio": "square"})


@pytest.mark.parametrize(
    "prepare, found",
    [
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text("{"), "expected JSON"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "expected JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "JSON object"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "safetensors file"),
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:-1]
            ),
            "as its header says",
        ),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "found both"),
    ],
)
def test_broken_folders_are_refused(folder, prepare, found):
    prepare(folder)
    with pytest.raises(CheckpointError, match=found):
        llava_min.load(folder)


def test_pickles_stay_unopened(folder, tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="pickled"):
        llava_min.load(folder)
    assert not (tmp_path / "touched").exists()


def test_only_an_original_folder_of_pickles_is_told_where_they_are_whole(folder):
    """Which its config.json says; no file of weights is needed for it, and no config.json."""
    (folder / "model.safetensors").rename(folder / "pytorch_model-00001-of-00002.bin")
    for values in ({}, {"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, None):
        path = folder / "config.json"
        path.unlink() if values is None else path.write_text(json.dumps(values))
        with pytest.raises(CheckpointError, match="pickled files only") as caught:
            index.index(folder)
        assert ("llava-hf/llava-1.5-7b-hf" in str(caught.value)) == bool(values)
        assert ("Convert them first" in str(caught.value)) == (not values)


@pytest.mark.parametrize(
    "shard", ["../outside.safetensors", "/abs.safetensors", "a\\b", "", "x\0y", 5, None, ".."]
)
def test_shards_must_lie_in_the_folder(tmp_path, shard):
    folder = small.small(tmp_path / "model", shards=2)
    index = folder / "model.safetensors.index.json"
    listing = json.loads(index.read_text())
    listing["weight_map"][next(iter(listing["weight_map"]))] = shard
    index.write_text(json.dumps(listing))
    with pytest.raises(CheckpointError, match="plain file name"):
        llava_min.load(folder)


@pytest.mark.parametrize("weight_map", [{}, [], ["a"], "x", 5, None])
def test_an_index_lists_tensors(tmp_path, weight_map):
    folder = small.small(tmp_path / "model", shards=2)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="expected a weight_map, found none"):
        llava_min.load(folder)


def test_names_are_exact_inverses():
    """Every parameter of the model, written in a layout and read back, fills itself, whole."""
    model = small.random_model(small.hf_config(tied=False))
    for layout in ("original", "hf"):
        for own in model.state_dict():
            for name, piece in names.theirs(own, layout):
                assert names.ours(name) == (own, piece)


WRITTEN = {
    "original": {
        "model.vision_tower.vision_tower.vision_model.",
        "model.mm_projector.0.",
        "model.mm_projector.2.",
        "model.image_newline",
        "lm_head.",
        "model.layers.",
        "model.embed_tokens.",
        "model.norm.",
    },
    "hf": {
        "vision_tower.vision_model.",
        "multi_modal_projector.",
        "image_newline",
        "language_model.lm_head.",
        "language_model.model.",
    },
}


@pytest.mark.parametrize("layout", WRITTEN)
def test_names_are_written_as_the_published_files_have_them(layout):
    model = small.random_model(small.hf_config(tied=False))
    written = [name for own in model.state_dict() for name, _ in names.theirs(own, layout)]
    begin = [{prefix for prefix in WRITTEN[layout] if name.startswith(prefix)} for name in written]
    assert all(len(found) == 1 for found in begin) and set().union(*begin) == WRITTEN[layout]


@pytest.mark.parametrize("extra", [True, False])
def test_one_tensor_that_the_index_does_not_list_is_named(tmp_path, extra):
    """And one that it lists in a shard that does not hold it."""
    folder = small.small(tmp_path / "model", shards=2)
    index = folder / "model.safetensors.index.json"
    listing = json.loads(index.read_text())
    shards = listing["weight_map"]
    if extra:
        shards["another"] = next(iter(shards.values()))
    else:
        shards.pop("image_newline")
    index.write_text(json.dumps(listing))
    named = "another" if extra else "image_newline"
    with pytest.raises(CheckpointError, match=f"found a difference at '?{named}"):
        llava_min.load(folder)


def test_the_embedded_checkpoint_is_whole_and_small():
    checkpoint = Checkpoint.open(small.TINY)
    size = (small.TINY / "model.safetensors").stat().st_size
    assert size <= 8 << 20 and len(checkpoint.names) > 100
    assert layouts.read_config(small.TINY).ignored == ()
