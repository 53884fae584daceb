"""The original layout on CLIP against transformers' classes of the same numbers: LLaVA-1.5, 1.6.

Small random models in float32. They are transformers' own, saved under the names and in the flat
config.json of the original code, whose grids are pairs of (width, height).
"""

import json
from dataclasses import replace

import pytest
import small
import torch
from test_families import (
    FAMILIES,
    LLAMA,
    MISTRAL,
    QWEN,
    SIDE,
    TILE,
    Family,
    check,
    clip_processor,
    decoder,
)

import llava_min
from llava_min import segments as plans
from llava_min.errors import CheckpointError
from llava_min.families import layouts
from llava_min.weights import hub

GRIDS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]  # (width, height)
SWAPPED = [[height, width] for width, height in GRIDS]
LLAMA3 = decoder("llama", rope_theta=5e5)
FLAT = {
    # what the files of LLaVA-1.5 say besides
    "image_aspect_ratio": "pad",
    "mm_hidden_size": 32,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "tune_mm_mlp_adapter": False,
    "freeze_mm_mlp_adapter": False,
    "use_mm_proj": True,
}
UNPAD = {
    # and those of LLaVA-1.6
    **FLAT,
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": GRIDS,
    "mm_patch_merge_type": "spatial_unpad",
    "unfreeze_mm_vision_tower": True,
    "image_crop_resolution": 224,
    "mm_vision_tower_lr": 2e-6,
    "tokenizer_model_max_length": 4096,
}
VIDEO = {**FAMILIES["next_video"], "image_grid_pinpoints": SWAPPED}
WITH = {
    # name: (class in the file, transformers' configuration of the same numbers, the file's rest)
    "original_1_5": ("LlavaLlamaForCausalLM", FAMILIES["llava_1_5"], FLAT),
    "original_1_6": ("LlavaLlamaForCausalLM", {**VIDEO, "text_config": decoder("llama")}, UNPAD),
    "original_scaled": ("LlavaLlamaForCausalLM", {**VIDEO, "text_config": LLAMA}, UNPAD),
    "original_llama_3": ("LlavaLlamaForCausalLM", {**VIDEO, "text_config": LLAMA3}, UNPAD),
    "original_mistral": ("LlavaMistralForCausalLM", {**VIDEO, "text_config": MISTRAL}, UNPAD),
    "original_qwen": ("LlavaQwenForCausalLM", {**VIDEO, "text_config": QWEN}, UNPAD),
}
TILED = [name for name in WITH if name != "original_1_5"]


class Original(Family):
    """The same as the original code saves it."""

    known = {name: settings for name, (_, settings, _) in WITH.items()}

    def config(self) -> dict:
        return flat(next(name for name in WITH if self.settings is WITH[name][1]))

    @staticmethod
    def stored_name(name: str) -> str:
        for new, old in (
            ("model.language_model.", "model."),
            ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
            ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
            ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ):
            if name.startswith(new):
                return old + name[len(new) :].removeprefix("vision_model.")
        return name


def flat(name: str, **changes) -> dict:
    """The config.json of an original checkpoint, with a block that describes its small tower."""
    cls, settings, more = WITH[name]
    text = {key: value for key, value in settings["text_config"].items() if key != "model_type"}
    own = {"architectures": [cls], "model_type": "llava"}
    return {**text, **own, **more, "vision_config": settings["vision_config"], **changes}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    return {name: Original(name, folder / name) for name in WITH}


def padded(pictures) -> torch.Tensor:
    """One tile for each picture, padded to a square before it is resized."""
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    size = {"shortest_edge": TILE}, {"height": TILE, "width": TILE}
    processor = LlavaImageProcessorPil(do_pad=True, size=size[0], crop_size=size[1])
    return processor(pictures, return_tensors="pt")["pixel_values"]


def tiled(pictures) -> dict[str, torch.Tensor]:
    """The tiles of each picture, and its size, with the grids tried in the original's order."""
    from transformers.models.llava_next import image_processing_pil_llava_next as pil

    processor = pil.LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=SWAPPED,
    )
    return dict(processor(pictures, return_tensors="pt"))


@pytest.mark.parametrize(
    "sizes", [[(90, 60)], [(57, 56), (56, 81)], [(30, 200), (339, 336), (56, 56)]], ids=str
)
def test_1_5_pads_its_pictures(originals, sizes):
    family, pictures = originals["original_1_5"], [small.picture(*size) for size in sizes]
    ids = family.expanded("What?", {"images": pictures}, 510)
    assert ids.count(510) == SIDE**2 * len(pictures)
    theirs = family.logits(ids, pixel_values=padded(pictures))
    check(family.ours.logits("What?", images=pictures), theirs)


def test_1_5_reads_a_clip_as_its_frames(originals):
    family, frames = originals["original_1_5"], small.frames(3)
    ids = family.expanded("What?", {"videos": [frames]}, 510)
    from PIL import Image

    theirs = family.logits(ids, pixel_values=padded([Image.fromarray(each) for each in frames]))
    check(family.ours.logits("What?", videos=[frames]), theirs)


@pytest.mark.parametrize("name", TILED)
@pytest.mark.parametrize(
    "sizes",
    [[(56, 56)], [(100, 60)], [(60, 100)], [(300, 40)], [(50, 50), (57, 113)], [(300, 300)]],
    ids=str,
)
def test_1_6_cuts_every_picture_into_tiles(originals, name, sizes):
    """300 x 300 fits two grids equally well: the first in the file is taken."""
    family, pictures = originals[name], [small.picture(*size) for size in sizes]
    ids = family.expanded("What?", {"images": pictures}, 510)
    check(family.ours.logits("What?", images=pictures), family.logits(ids, **tiled(pictures)))


@pytest.mark.parametrize("name", ["original_1_6", "original_mistral"])
def test_1_6_reads_a_clip_as_next_video_does(originals, name):
    family, frames = originals[name], small.frames(5)
    pixels = clip_processor()(list(frames), return_tensors="pt")["pixel_values"][None]
    ids = family.expanded("What?", {"videos": [frames]}, 511)
    assert ids.count(511) == 5 * (SIDE // 2) ** 2
    theirs = family.logits(ids, pixel_values_videos=pixels)
    check(family.ours.logits("What?", videos=[frames]), theirs)


def test_what_the_files_say(originals):
    ours = {name: family.ours.config for name, family in originals.items()}
    assert all(config.vision.num_layers == 2 for config in ours.values())  # of 3
    assert all(not config.ignored for config in ours.values())
    assert not ours["original_1_5"].newline and ours["original_1_6"].newline
    assert {name: config.template for name, config in ours.items()} == {
        **dict.fromkeys(("original_1_5", "original_1_6"), "vicuna_v1"),
        **dict.fromkeys(("original_scaled", "original_llama_3"), "vicuna_v1"),
        "original_mistral": "mistral_instruct",
        "original_qwen": "qwen",
    }


def test_the_rest_is_as_in_transformers_layouts(originals):
    """Frames, pools, newlines and grids; another rounding, and words of the original code."""
    ours = {name: family.ours.config for name, family in originals.items()}
    for name in TILED:
        theirs = layouts.parse_config(WITH[name][1])
        own = {"family": "llava_original", "template": ours[name].template}
        modes = {"image_modes": ("anyres", "pad"), "unpad_rounded": False}
        assert replace(theirs, **own, **modes) == ours[name]
    theirs = layouts.parse_config(FAMILIES["llava_1_5"])
    modes = {"image_modes": ("pad",), "several_images": "pad", "frame_mode": "pad"}
    own = {"family": "llava_original", "template": "vicuna_v1"}
    assert replace(theirs, **own, **modes) == ours["original_1_5"]


@pytest.mark.parametrize("values", [FAMILIES["llava_1_5"], flat("original_1_5")], ids=str)
def test_the_frames_of_a_clip_fit_into_1_5(values):
    """With 512 tokens for the answer and 100 for words, at the real size of its tiles."""
    tower = {**values["vision_config"], "image_size": 336}
    config = layouts.parse_config({**values, "vision_config": tower})
    clip = plans.clip([0.0] * config.frames, (640, 480), config)
    assert clip.tokens == config.frames * 576
    assert clip.tokens + 512 + 100 <= config.text.context < clip.tokens + 2 * 576


@pytest.mark.parametrize(
    "rows, original, hf",
    [
        (32000, "vicuna_v1", "vicuna"),
        (32064, "vicuna_v1", "vicuna"),
        (64000, "chatml_direct", "onevision_si"),
        (128256, "llava_llama_3", "llama3"),
    ],
)
def test_a_vocabulary_tells_how_llama_was_taught_to_chat(rows, original, hf):
    assert layouts.parse_config(flat("original_1_6", vocab_size=rows)).template == original
    settings = {**FAMILIES["next"], "text_config": decoder("llama", vocab_size=rows)}
    assert layouts.parse_config(settings).template == hf


@pytest.mark.parametrize("layer, blocks", [(-1, 3), (-2, 2)])
def test_the_feature_layer_counts_with_clip(layer, blocks):
    config = layouts.parse_config(flat("original_1_5", mm_vision_select_layer=layer))
    assert config.vision.num_layers == blocks


@pytest.mark.parametrize("timed", [False, True, ...])
@pytest.mark.parametrize("forced", [False, True, ...])
def test_a_clip_gives_64_frames_where_it_is_timed_or_forced(timed, forced, caplog):
    """How many others were made for is told of those that are forced. ...: the key is missing."""
    given = {"add_time_instruction": timed, "force_sample": forced, "mm_newline_position": ...}
    values = {**small.original_config(small.hf_config()), **given}
    with caplog.at_level("INFO", "llava_min"):
        config = layouts.parse_config({key: x for key, x in values.items() if x is not ...})
    assert config.frames == (64 if True in (timed, forced) else 32)
    assert config.time_instruction == (timed is True)
    assert config.newline_position == ("grid" if timed is True else "one_token")
    assert ("--frames 110" in caplog.text) == (forced is True)


@pytest.mark.parametrize("aspect, mode", [("pad", "pad"), ("square", "crop"), (None, "crop")])
def test_without_padding_the_middle_is_cut_out(aspect, mode):
    config = layouts.parse_config(flat("original_1_5", image_aspect_ratio=aspect))
    assert (config.image_modes, config.several_images) == ((mode,), mode)
    assert config.frame_mode == mode


@pytest.mark.parametrize("name", WITH)
def test_a_processor_file_says_how_a_tile_is_made_after_padding(originals, name, tmp_path):
    """CLIP's own file, which crops: the original code hands it squares, or tiles."""
    family = originals[name]
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": TILE},
        "crop_size": {"height": TILE, "width": TILE},
    }
    (tmp_path / "config.json").write_text(json.dumps(flat(name)))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert layouts.read_config(tmp_path) == layouts.parse_config(flat(name)), family
    settings["image_mean"] = [0.1, 0.2, 0.3]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert layouts.read_config(tmp_path).vision.mean == (0.1, 0.2, 0.3)


# What is refused -----------------------------------------------------------------


@pytest.mark.parametrize(
    "name, changes, named",
    [
        ("original_1_5", {"mm_projector_type": "linear"}, "delta: differences"),
        ("original_1_5", {"mm_projector_type": ...}, "delta: differences"),
        ("original_1_5", {"image_aspect_ratio": "anyres"}, "image_aspect_ratio"),
        ("original_1_5", {"mm_patch_merge_type": "spatial"}, "mm_patch_merge_type"),
        ("original_1_5", {"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature"),
        ("original_1_5", {"mm_vision_select_layer": -3}, "mm_vision_select_layer"),
        ("original_1_5", {"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ("original_1_5", {"s2": True}, "s2"),
        ("original_1_6", {"mm_resampler_type": "spatial_pool"}, "mm_resampler_type"),
        ("original_1_6", {"image_aspect_ratio": "pad"}, "image_aspect_ratio"),
        ("original_1_6", {"image_grid_pinpoints": []}, "image_grid_pinpoints"),
        ("original_mistral", {"sliding_window": 4095}, "context of 4096, found 4095"),
        (
            "original_mistral",
            {"sliding_window": ..., "max_position_embeddings": 4097},
            "found 4096",
        ),
    ],
    ids=str,
)
def test_a_value_that_changes_the_result_is_refused(name, changes, named):
    values = {**flat(name), **changes}
    with pytest.raises(CheckpointError, match=named):
        layouts.parse_config({key: value for key, value in values.items() if value is not ...})


@pytest.mark.parametrize("window", [None, 4096, 8192, ...])
def test_a_window_that_holds_the_context_changes_nothing(window):
    values = {**flat("original_mistral"), "sliding_window": window}
    given = {key: value for key, value in values.items() if value is not ...}
    assert layouts.parse_config(given) == layouts.parse_config(flat("original_mistral"))


@pytest.mark.parametrize("name", layouts.OTHERS)
def test_what_differs_is_said_of_each_class_that_is_refused(name):
    with pytest.raises(CheckpointError) as refused:
        layouts.parse_config({"architectures": [name]})
    said = str(refused.value)
    assert name in said and said.endswith(layouts.OTHERS[name]) and len(said) < 300
    assert layouts.OTHERS[name].endswith(".") and "LlavaQwenForCausalLM" not in said


def test_weights_without_a_tower_say_where_they_are_whole(originals, tmp_path):
    """As LLaVA-1.5's files, which only name their tower; and theirs are pickles."""
    from safetensors.torch import load_file, save_file

    family = originals["original_1_5"]
    (tmp_path / "config.json").write_text(json.dumps(flat("original_1_5")))
    whole = {family.stored_name(key): value for key, value in family.model.state_dict().items()}
    part = {key: value.clone() for key, value in whole.items() if "vision_tower" not in key}
    save_file(part, tmp_path / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors").keys() < whole.keys()
    with pytest.raises(CheckpointError, match="llava-hf/llava-1.5-7b-hf"):
        llava_min.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="pickled files only.*llava-hf/llava-1.5-7b-hf"):
        llava_min.load(tmp_path)
    assert "llava-hf/llava-1.5-7b-hf" in {repository for repository, _ in hub.ALIASES.values()}
