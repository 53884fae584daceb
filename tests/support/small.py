"""Small random checkpoints on disk, for the tests: every tensor random, in any layout."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from llava_min.families import layouts
from llava_min.families.folder import EMBEDDED
from llava_min.model import Network
from llava_min.weights import names

TINY = EMBEDDED  # where it is in a clone without links, too
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.json",
    "generation_config.json",
    "processor_config.json",
)


def hf_config(tied: bool = True, **text) -> dict:
    """config.json of a small llava_onevision: tiles of 56 pixels, 4 x 4 patches."""
    return {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "model_type": "llava_onevision",
        "image_token_index": 510,
        "video_token_index": 511,
        "image_grid_pinpoints": [[56 * r, 56 * c] for r in range(1, 4) for c in range(1, 4)],
        "vision_aspect_ratio": "anyres_max_9",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": tied,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "text_config": {
            "model_type": "qwen2",
            "vocab_size": 512,
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rope_theta": 1e6,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": tied,
            "eos_token_id": 509,
            **text,
        },
    }


def original_config(hf: dict) -> dict:
    """The same model in the original layout: flat, with a vision_config block, grids as (width,
    height).
    """
    text = {key: value for key, value in hf["text_config"].items() if key != "model_type"}
    grids = [[columns, rows] for rows, columns in hf["image_grid_pinpoints"]]
    return {
        **text,
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava",
        "image_aspect_ratio": hf["vision_aspect_ratio"],
        "image_grid_pinpoints": grids,
        "mm_hidden_size": hf["vision_config"]["hidden_size"],
        "mm_newline_position": "one_token",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_spatial_pool_mode": "bilinear",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
        "tie_word_embeddings": hf["tie_word_embeddings"],
        "vision_config": hf["vision_config"],
    }


def random_model(config: dict, seed: int = 0, dtype=torch.float32) -> Network:
    """A model in which every parameter is random and no activation explodes."""
    model = Network(layouts.parse_config(config)).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.5 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            values = scale * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(values + 1 if name.endswith("norm.weight") else values)
    return model.eval().requires_grad_(False)


def tensors_of(model: Network, layout: str) -> dict[str, torch.Tensor]:
    """What a file of the layout holds, the unused final norm of the tower included."""
    prefix = {
        "hf": "vision_tower.vision_model",
        "original": "model.vision_tower.vision_tower.vision_model",
    }[layout]
    width = model.config.vision.hidden_size
    unused = {f"{prefix}.post_layernorm.{part}": torch.randn(width) for part in ("weight", "bias")}
    return {
        name: t.contiguous().clone() for name, t in names.published(model, layout).items()
    } | unused


def write(folder: Path, config: dict, tensors: dict, shards: int = 1) -> Path:
    """A checkpoint folder with the embedded tokenizer; several shards get an index."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TEXT_FILES:
        shutil.copy(TINY / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for index in range(shards):
        name = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(tensors.items())[index::shards])
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def small(
    folder: Path, layout: str = "hf", seed: int = 0, tied: bool = True, shards: int = 1
) -> Path:
    """A small random checkpoint; the same seed gives the same numbers in every layout."""
    config = hf_config(tied)
    tensors = tensors_of(random_model(config, seed), layout)
    return write(folder, config if layout == "hf" else original_config(config), tensors, shards)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture of noise with soft parts, so that resizing has something to do."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(
        (width, height)
    )
    noise = rng.integers(-40, 41, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8))


def frames(count: int, width: int = 60, height: int = 48, seed: int = 0) -> np.ndarray:
    """A clip of noise, uint8 [F H W 3]."""
    return np.stack(
        [np.asarray(picture(width, height, 100 * seed + index)) for index in range(count)]
    )
