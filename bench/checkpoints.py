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

from . import shapes

CACHE = Path(os.environ.get("LLAVA_MIN_BENCH_CACHE", "~/.cache/llava_min/bench")).expanduser()
SHARD = 2**30  # weights of one file


def config_of(shape: str) -> dict:
    """config.json of LLaVA-OneVision in a shape, a key of shapes.TEXTS."""
    config = json.loads((EMBEDDED / "config.json").read_text())
    if shape == "embedded":
        return config
    text, tower = shapes.TEXTS[shape], shapes.TOWERS["SigLIP"]
    tile, grid = tower.image_size, range(1, 7)
    config["image_grid_pinpoints"] = [[tile * r, tile * c] for r in grid for c in grid]
    config["tie_word_embeddings"] = text.tied
    config["vision_config"] |= {
        "hidden_size": tower.hidden_size,
        "intermediate_size": tower.intermediate_size,
        "num_hidden_layers": tower.num_layers,
        "num_attention_heads": tower.num_heads,
        "image_size": tile,
    }
    config["text_config"] |= {
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_layers,
        "num_attention_heads": text.num_heads,
        "num_key_value_heads": text.num_kv_heads,
        "tie_word_embeddings": text.tied,
    }
    return config


def folder_of(shape: str) -> Path:
    """The folder of a shape's checkpoint; its weights are written first where they are missing."""
    folder = CACHE / f"onevision-{shape}"
    if not (folder / "config.json").exists():
        part = CACHE / f"{folder.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write(layouts.parse_config(config_of(shape)), part)
        describe(shape, part)
        os.rename(part, folder)
    describe(shape, folder)
    return folder


def describe(shape: str, folder: Path) -> None:
    """All but the weights: the embedded checkpoint's files, with this shape's sizes."""
    config = config_of(shape)
    tile, patch = (config["vision_config"][name] for name in ("image_size", "patch_size"))
    sizes = {
        "size": {"height": tile, "width": tile},
        "image_grid_pinpoints": config["image_grid_pinpoints"],
        "num_image_tokens": (tile // patch) ** 2,
    }
    for path in EMBEDDED.glob("*.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        if "processor" in path.name:
            values |= {name: size for name, size in sizes.items() if name in values}
        text = json.dumps(config if path.name == "config.json" else values, indent=1)
        (folder / path.name).write_text(text, encoding="utf-8")


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
