"""Checkpoints of random weights in real shapes, written once to a cache folder.

Speed and memory do not need trained weights. Layout: HF llava_onevision, so that transformers loads
the same folder; tokenizer files are the embedded checkpoint's. LLAVA_MIN_BENCH_CACHE says where.
"""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from llava_min import config as configuration
from llava_min.families import layouts
from llava_min.families.folder import EMBEDDED
from llava_min.weights import load, names

CACHE = Path(os.environ.get("LLAVA_MIN_BENCH_CACHE", "~/.cache/llava_min/bench")).expanduser()
SHARD = 2**30  # weights of one file
COMMON = {"vocab_size": 152_000, "max_position_embeddings": 32_768}
TEXT = {
    # hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads
    "0.5B": (896, 4864, 24, 14, 2),
    "7B": (3584, 18944, 28, 28, 4),
    "toy": (256, 512, 4, 4, 2),
}
VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,
    "num_attention_heads": 16,
    "image_size": 384,
}


def config_of(shape: str) -> dict:
    """config.json of LLaVA-OneVision in a shape, a key of TEXT."""
    config = json.loads((EMBEDDED / "config.json").read_text())
    if shape == "toy":
        return config
    tile = VISION["image_size"]
    config["image_grid_pinpoints"] = [
        [tile * r, tile * c] for r in range(1, 7) for c in range(1, 7)
    ]
    config["vision_config"] |= VISION
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads")  # fmt: skip
    config["text_config"] |= COMMON | dict(zip(keys, TEXT[shape]))
    tied = shape != "7B"
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = tied
    return config


def folder_of(shape: str) -> Path:
    """The folder of a shape's checkpoint, written first where it is missing."""
    folder = CACHE / f"onevision-{shape}"
    if (folder / "config.json").exists():
        return folder
    part = CACHE / f"{folder.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for path in EMBEDDED.glob("*.json"):
        shutil.copyfile(path, part / path.name)
    config = config_of(shape)
    write(layouts.from_values(config), part)
    (part / "config.json").write_text(json.dumps(config, indent=1))
    os.rename(part, folder)
    return folder


def write(config: configuration.LlavaConfig, folder: Path) -> None:
    """Random weights, a file for every SHARD of them; matrices keep the size of what they carry."""
    noise = torch.randn(2**24 + 1).bfloat16()  # drawing each number would take minutes
    held, weight_map, count, files = {}, {}, 0, 0

    def flush():
        nonlocal held, count, files
        name = f"model-{files:05}.safetensors"
        save_file(held, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(held, name))
        held, count, files = {}, 0, files + 1

    meta = load.on_meta(config)
    for name, tensor in names.published(meta).items():
        size = tensor.numel()
        values = noise.repeat(size // len(noise) + 1)[:size].view(tensor.shape)
        scale = 0.02 if tensor.ndim == 1 else tensor[0].numel() ** -0.5
        values = values * scale + (1 if "norm" in name and name.endswith("weight") else 0)
        held[name] = values.contiguous()
        count += size
        if count > SHARD:
            flush()
    flush()
    unused = "vision_tower.vision_model.post_layernorm"
    held = {
        f"{unused}.{part}": torch.ones(config.vision.hidden_size) for part in ("weight", "bias")
    }
    flush()
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
