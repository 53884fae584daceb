"""The real checkpoints without their weights: each published configuration, built on meta, has the
tensors and bytes that its index lists. (Sizes as the hub shows them, in units of 10^9 bytes.)
"""

import pytest

from llava_min import segments
from llava_min.errors import CheckpointError
from llava_min.families import layouts, originals
from llava_min.families.aliases import ALIASES
from llava_min.weights import load, names

CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
QWEN2_7B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
}
QWEN2_05B = {
    **QWEN2_7B,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
QWEN15_05B = {
    **QWEN2_05B,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 152000,
}
GRID36 = [[384 * a, 384 * b] for a in range(1, 7) for b in range(1, 7)]
GRID5 = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ORIGINAL = {
    "architectures": ["LlavaQwenForCausalLM"],
    "model_type": "llava",
    "image_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": GRID36,
    "mm_hidden_size": 1152,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_type": "mlp2x_gelu",
    "mm_spatial_pool_mode": "bilinear",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
}


def flat(text: dict, **more) -> dict:
    """A configuration in the original layout."""
    return {
        **{key: value for key, value in text.items() if key != "model_type"},
        **ORIGINAL,
        **more,
    }


def hf(name: str, vision: dict, text: dict, **more) -> dict:
    layer, strategy = (-2, "default") if vision is CLIP else (-1, "full")
    return {
        "architectures": [name],
        "vision_config": vision,
        "text_config": text,
        "vision_feature_layer": layer,
        "vision_feature_select_strategy": strategy,
        **more,
    }


VICUNA = {
    "model_type": "llama",
    "vocab_size": 32064,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "rope_scaling": {"type": "linear", "factor": 2.5},
}
LLAVA, ONEVISION = "LlavaForConditionalGeneration", "LlavaOnevisionForConditionalGeneration"
NEXT = "LlavaNextForConditionalGeneration"
CHECKPOINTS = {
    # name: (configuration, bytes on the hub, family, context, frames)
    "long-llava-qwen2-7b": (
        hf(LLAVA, CLIP, {**QWEN2_7B, "max_position_embeddings": 224000, "rope_theta": 1e9}),
        16.48e9 - 0.62e9,
        "llava",
        224000,
        32,
    ),
    "llava-interleave-qwen-0.5b": (hf(LLAVA, SIGLIP, QWEN15_05B), 1.73e9, "llava", 32768, 16),
    "llava-video-7b-qwen2": (
        flat(QWEN2_7B, add_time_instruction=True, force_sample=True),
        16.06e9,
        "llava_qwen",
        32768,
        64,
    ),
    "llava-next-video-7b-hf": (
        hf("LlavaNextVideoForConditionalGeneration", CLIP, VICUNA, image_grid_pinpoints=GRID5),
        14.1e9,
        "llava_next_video",
        10240,
        8,
    ),
    "llava-onevision-7b-ov": (flat(QWEN2_7B), 16.06e9, "llava_qwen", 32768, 32),
    "llava-onevision-0.5b-ov-hf": (
        hf(ONEVISION, SIGLIP, {**QWEN2_05B, "vocab_size": 152000}, image_grid_pinpoints=GRID36),
        1.79e9,
        "llava_onevision",
        32768,
        32,
    ),
}


VICUNA_7B = {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096}
VICUNA_13B = {
    **VICUNA_7B,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}
MISTRAL_7B = {
    "model_type": "mistral",
    "vocab_size": 32064,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
}
LLAMA3_8B = {
    **MISTRAL_7B,
    "model_type": "llama",
    "vocab_size": 128320,
    "max_position_embeddings": 8192,
    "rope_theta": 5e5,
}
YI_34B = {
    **LLAMA3_8B,
    "vocab_size": 64064,
    "hidden_size": 7168,
    "intermediate_size": 20480,
    "num_hidden_layers": 60,
    "num_attention_heads": 56,
    "max_position_embeddings": 4096,
    "rope_theta": 5e6,
}
SIZES = {
    # alias: its class, its decoder
    "llava-1.5-7b": (LLAVA, VICUNA_7B),
    "llava-1.5-13b": (LLAVA, VICUNA_13B),
    "llava-1.6-vicuna-7b": (NEXT, VICUNA_7B),
    "llava-1.6-vicuna-13b": (NEXT, VICUNA_13B),
    "llava-1.6-mistral-7b": (NEXT, MISTRAL_7B),
    "llava-next-llama3-8b": (NEXT, LLAMA3_8B),
    "llava-1.6-34b": (NEXT, YI_34B),
}


FLAT = {
    "model_type": "llava",
    "image_aspect_ratio": "pad",
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "freeze_mm_mlp_adapter": False,
    "tune_mm_mlp_adapter": False,
    "use_mm_proj": True,
}
UNPAD = {
    **FLAT,
    "image_aspect_ratio": "anyres",
    "image_crop_resolution": 224,
    "image_grid_pinpoints": GRID5,
    "image_split_resolution": 224,
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_lr": None,
    "mm_vision_tower_lr": 2e-6,
    "tokenizer_model_max_length": 4096,
    "tokenizer_padding_side": "right",
    "unfreeze_mm_vision_tower": True,
}
ORIGINALS = {
    # name: its class, its decoder, the rest
    "llava-v1.5-7b": ("LlavaLlamaForCausalLM", VICUNA_7B, FLAT),
    "llava-v1.6-vicuna-7b": ("LlavaLlamaForCausalLM", VICUNA_7B, UNPAD),
    "llava-v1.6-mistral-7b": ("LlavaMistralForCausalLM", MISTRAL_7B, UNPAD),
}


def configuration(name: str) -> dict:
    """The config.json of a checkpoint, an alias, or an original folder."""
    if name in ORIGINALS:
        cls, text, more = ORIGINALS[name]
        return {**text, "vocab_size": 32000, **more, "architectures": [cls]}
    if name in SIZES:
        cls, text = SIZES[name]
        return hf(cls, CLIP, text, **({"image_grid_pinpoints": GRID5} if cls == NEXT else {}))
    return CHECKPOINTS[name][0]


@pytest.mark.parametrize(
    "name, rows, context",
    [
        ("llava-v1.5-7b", 576, 4096),
        ("llava-v1.6-vicuna-7b", 2340, 4096),
        ("llava-v1.6-mistral-7b", 2340, 32768),
    ],
)
def test_an_original_folder_is_read_from_its_names_alone(name, rows, context):
    """The tower, 23 of its 24 blocks, and every key that the file has."""
    config = layouts.parse_config(configuration(name))
    assert config.ignored == () and config.text.context == context
    assert (config.vision.num_layers, config.vision.num_positions) == (23, 577)
    mode = config.image_modes[0]
    assert segments.picture((640, 480), mode, config).tokens == rows
    stored = {
        n for own in load.on_meta(config).state_dict() for n, _ in names.theirs(own, "original")
    }
    assert ("model.image_newline" in stored) == (rows > 576)
    assert "model.vision_tower.vision_tower.vision_model.pre_layrnorm.weight" in stored


@pytest.mark.parametrize("alias", SIZES)
def test_an_alias_says_the_size_of_its_network(alias):
    """Counted from the shapes of its configuration, within 1%."""
    model = load.on_meta(layouts.parse_config(configuration(alias)))
    size = 2 * sum(parameter.numel() for parameter in model.parameters())
    assert ALIASES[alias][1] == pytest.approx(size / 1e9, rel=0.01)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_published_configuration_has_the_published_size(name):
    """Within 1%: shards also hold headers and the parts of the tower that are dropped."""
    values, published, family, context, frames = CHECKPOINTS[name]
    settings = layouts.parse_config(values)
    assert (settings.family, settings.text.context, settings.frames) == (family, context, frames)
    model = load.on_meta(settings)
    size = 2 * sum(parameter.numel() for parameter in model.parameters())
    assert all(parameter.is_meta for parameter in model.parameters())
    assert size == pytest.approx(published, rel=0.01)
    assert settings.ignored == ()


def test_a_clip_of_llava_video_has_64_frames_and_a_word_says_so(caplog):
    """Its sister Video-Only took 110, and says nothing that tells the two apart."""
    values = CHECKPOINTS["llava-video-7b-qwen2"][0]
    with caplog.at_level("INFO"):
        settings = layouts.parse_config(values)
    assert "64 frames" in caplog.text and "--frames 110" in caplog.text
    assert settings.frames == 64 and segments.clip([0.0] * 64, (9, 9), settings).tokens == 13440
    caplog.clear()
    layouts.parse_config({**values, "force_sample": False})
    assert not caplog.records


@pytest.mark.parametrize(
    "tower",
    [
        "siglip-so400m-patch14-384",
        "google/siglip-so400m-patch14-384",
        "someone/siglip-so400m-patch14-384/",
        "/data/models/siglip-so400m-patch14-384//",
        "C:\\models\\siglip-so400m-patch14-384\\",
    ],
)
def test_a_tower_is_known_by_the_last_part_of_its_path(tower):
    values = CHECKPOINTS["llava-onevision-7b-ov"][0]
    assert layouts.parse_config({**values, "mm_vision_tower": tower}) == layouts.parse_config(
        values
    )


def test_a_tower_that_is_only_named_has_the_sizes_of_one_that_is_described():
    described = {"siglip-so400m-patch14-384": SIGLIP, "clip-vit-large-patch14-336": CLIP}
    assert described == originals.NAMED_TOWERS


def test_an_original_file_may_leave_out_what_it_does_not_use():
    """What is false or null where it is missing may be so in words, and nothing else."""
    values = CHECKPOINTS["llava-onevision-7b-ov"][0]
    unused = (
        "mm_use_im_patch_token",
        "mm_use_im_start_end",
        "use_pos_skipping",
        "add_faster_video",
        "mm_resampler_type",
    )
    short = {key: value for key, value in values.items() if key not in unused}
    plain = layouts.parse_config(short)
    assert not (plain.time_instruction or plain.text.tied) and plain.frames == 32
    for key in unused:
        nothing = None if key == "mm_resampler_type" else False
        assert layouts.parse_config({**short, key: nothing}) == plain
        with pytest.raises(CheckpointError, match=key):
            layouts.parse_config({**short, key: "spatial" if nothing is None else True})
    short.pop("mm_vision_select_layer")
    for layer in (-1, -2):
        assert layouts.parse_config({**short, "mm_vision_select_layer": layer}) == plain
    for layer in (-3, 1, 2):
        with pytest.raises(CheckpointError, match="mm_vision_select_layer: expected -2 or -1"):
            layouts.parse_config({**short, "mm_vision_select_layer": layer})
    assert layouts.parse_config(short) == plain


@pytest.mark.parametrize(
    "tower",
    [
        "google/siglip-so400m-patch14-224",
        "/data/siglip-so400m-patch14-384/copy",
        "siglip-so400m-patch14-384-tuned",
        "",
        "/",
    ],
)
def test_another_tower_is_refused_with_the_way_out(tower):
    values = CHECKPOINTS["llava-onevision-7b-ov"][0]
    with pytest.raises(CheckpointError, match="--config mm_vision_tower=siglip-so400m") as error:
        layouts.parse_config({**values, "mm_vision_tower": tower})
    assert repr(tower) in str(error.value)


def test_llava_onevision_7b_has_765_tensors():
    """28 x 12 + 3 of text, 4 of the projector, the newline, 26 x 16 + 3 of the tower, and 2 that
    are dropped.
    """
    model = load.on_meta(layouts.parse_config(CHECKPOINTS["llava-onevision-7b-ov"][0]))
    stored = [name for own in model.state_dict() for name, _ in names.theirs(own, "original")]
    assert len(stored) == len(set(stored)) == 765 - 2


def test_23_of_24_blocks_of_clip_run():
    settings = layouts.parse_config(CHECKPOINTS["long-llava-qwen2-7b"][0])
    assert settings.vision.num_layers == 23 and settings.vision.num_positions == 577


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_original_code_cuts_what_transformers_rounds(name):
    """A column of tiles shows a picture that is a whole number of patches wide. The product of
    floats may be a bit less, and where it is cut a column on either side is lost.
    """
    settings = layouts.parse_config(CHECKPOINTS[name][0])
    if settings.image_modes[0] != "anyres":
        assert settings.family == "llava"
        return
    patches, differ = settings.vision.side, 0
    for width in range(100, 1100):
        height = width * patches // 3
        grid = segments.picture((width, height), "anyres", settings).grid
        rows, columns = grid.tiles[0] * patches, grid.tiles[1] * patches
        whole, cut = rows * width // height, int(width * (rows / height))
        kept = cut if settings.family == "llava_qwen" else whole
        assert grid.columns == slice((columns - kept) // 2, columns - (columns - kept) // 2)
        differ += (columns - cut) // 2 != (columns - whole) // 2
    assert differ


@pytest.mark.parametrize("order", [1, -1])
def test_a_grid_may_have_256_tiles_in_a_row_or_in_a_column(order):
    values, tile = CHECKPOINTS["llava-onevision-0.5b-ov-hf"][0], SIGLIP["image_size"]
    for tiles, allowed in ((256, True), (257, False)):
        sides = [tile, tile * tiles][::order]
        changed = {**values, "image_grid_pinpoints": [[tile, tile], sides]}
        if allowed:
            found = layouts.parse_config(changed).grids[1]
            assert max(found) == tiles and min(found) == 1
        else:
            with pytest.raises(CheckpointError, match="image_grid_pinpoints"):
                layouts.parse_config(changed)
