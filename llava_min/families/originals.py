"""The original layout: one flat config.json, in which the vision tower is only named.

in:  Fields of a config.json that the original code wrote
out: LlavaConfig

Two generations share it, and the tower tells them apart. With SigLIP it is LLaVA-OneVision or
LLaVA-Video. With CLIP it is older: LLaVA-1.5, one tile a picture ("flat"), or LLaVA-1.6, also
called LLaVA-NeXT, a grid of tiles without a cap ("spatial_unpad").
Read families/sections.py first. Read next: families/layouts.py.
Agrees with: llava_arch.py, mm_utils.py and the model classes of LLaVA and LLaVA-NeXT.
"""

import logging
import re

from ..config import LlavaConfig, TextConfig, VisionConfig
from .fields import Fields, ignored
from .sections import anyres_max, chat_of, eos_ids, grids, text_config, vision_config

log = logging.getLogger("llava_min")
NAMED_TOWERS: dict[str, dict[str, object]] = {
    # files in the original layout only name their tower, by its owner or by a path on a machine
    "siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 26,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
    "clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
    },
}
FIRST = (
    "So had the first LLaVA, before 1.5, whose published files are often a delta: differences to "
    "the weights of LLaMA, and no model by themselves."
)
SHORT = 6  # frames of 576 rows that fit, with a question, into the 4,096 tokens of LLaVA-1.5
KINDS = {
    # class of an original file: its decoder, a key of DECODERS
    "LlavaQwenForCausalLM": "qwen2",
    "LlavaLlamaForCausalLM": "llama",
    "LlavaMistralForCausalLM": "mistral",
}
CHATS = {
    # how a decoder was taught to chat: the renderer that writes what the original code writes
    "vicuna": "vicuna_v1",
    "yi": "chatml_direct",
    "llama3": "llava_llama_3",
    "mistral": "mistral_instruct",
    "qwen": "qwen",
}


def from_original(fields: Fields, kind: str) -> LlavaConfig:
    """The configuration of an original checkpoint, whose decoder is `kind`, a key of DECODERS."""
    projector = fields.get("mm_projector_type", str, "linear")
    if projector != "mlp2x_gelu":
        hint = FIRST if projector == "linear" else ""
        raise fields.refused("mm_projector_type", "'mlp2x_gelu'", projector, hint)
    fields.get("mm_vision_select_feature", str, "patch", choices=("patch",))
    fields.get("mm_resampler_type", str, None, choices=(None,))
    for key in (
        "mm_use_im_patch_token",
        "mm_use_im_start_end",
        "use_pos_skipping",
        "add_faster_video",
        "s2",
    ):
        fields.get(key, bool, False, choices=(False,))
    tower = original_tower(fields)
    tied = fields.get("tie_word_embeddings", bool, False)
    text = text_config(fields, kind, tied, eos_ids(fields.values))
    if not tower.class_token:
        return with_siglip(fields, tower, text, CHATS[chat_of(kind, text)])
    merge = fields.get("mm_patch_merge_type", str, "flat", choices=("flat", "spatial_unpad"))
    made = one_tile if merge == "flat" else several_tiles
    return made(fields, tower, text, CHATS[chat_of(kind, text)])


def with_siglip(
    fields: Fields, tower: VisionConfig, text: TextConfig, template: str
) -> LlavaConfig:
    """LLaVA-OneVision and LLaVA-Video.

    With force_sample, LLaVA-Video took 64 frames of a clip and its sister Video-Only 110; nothing
    in the files tells the two apart, so it is 64.
    """
    fields.get("mm_patch_merge_type", str, choices=("spatial_unpad",))
    aspect = fields.get("image_aspect_ratio", str)
    timed = fields.get("add_time_instruction", bool, False)
    forced = fields.get("force_sample", bool, False)
    if forced:
        log.info("a clip gives 64 frames; a Video-Only checkpoint was made for --frames 110")
    positions, pools = ("grid", "frame", "one_token", "no_token"), ("bilinear", "average", "max")
    position = "grid" if timed else "one_token"
    return LlavaConfig(
        family="llava_qwen",
        vision=tower,
        text=text,
        template=template,
        grids=grids(fields, "image_grid_pinpoints", tower.image_size, height_first=False),
        anyres_max=anyres_max(fields, "image_aspect_ratio", choices=("pad",)),
        image_modes=("pad", "anyres") if aspect == "pad" else ("anyres", "pad"),
        unpad_rounded=False,
        newline=True,
        newline_position=fields.get("mm_newline_position", str, position, choices=positions),
        pool_mode=fields.get("mm_spatial_pool_mode", str, "bilinear", choices=pools),
        time_instruction=timed,
        frames=64 if timed or forced else 32,
        ignored=ignored(fields),
    )


def one_tile(fields: Fields, tower: VisionConfig, text: TextConfig, template: str) -> LlavaConfig:
    """LLaVA-1.5: a picture is padded to a square, or its middle is cut out; a clip is frames."""
    aspect = fields.get("image_aspect_ratio", str, None, choices=(None, "square", "pad"))
    fields.asked.add("image_grid_pinpoints")  # which "anyres" alone needs
    mode = "pad" if aspect == "pad" else "crop"
    return LlavaConfig(
        family="llava_original",
        vision=tower,
        text=text,
        template=template,
        image_modes=(mode,),
        several_images=mode,
        frame_mode=mode,
        frames=SHORT,
        ignored=ignored(fields),
    )


def several_tiles(
    fields: Fields, tower: VisionConfig, text: TextConfig, template: str
) -> LlavaConfig:
    """LLaVA-1.6: every picture is a grid of tiles.

    It was not trained on clips; they are read as LLaVA-NeXT-Video, made from it, reads them.
    """
    return LlavaConfig(
        family="llava_original",
        vision=tower,
        text=text,
        template=template,
        grids=grids(fields, "image_grid_pinpoints", tower.image_size, height_first=False),
        anyres_max=anyres_max(fields, "image_aspect_ratio"),
        several_images="anyres",
        frame_mode="crop",
        unpad_rounded=False,
        newline=True,
        pool_mode="average",
        pool_before_projector=True,
        frames=8,
        sample_ends=False,
        ignored=ignored(fields),
    )


def original_tower(fields: Fields) -> VisionConfig:
    """The tower of an original file, from its vision_config if there is one, else by name.

    SigLIP's files hold the blocks that run, and mm_vision_select_layer says nothing of them.
    """
    key = "mm_vision_tower"
    named = fields.get(key, str)
    last = re.split(r"[/\\]", named.rstrip("/\\"))[-1]
    if "vision_config" in fields.values:
        vision = fields.section("vision_config")
    elif last in NAMED_TOWERS:
        vision = Fields(NAMED_TOWERS[last], f"the tower {last}")
    else:
        names = " or ".join(NAMED_TOWERS)
        hint = f"If it is a copy of one, say so: --config {key}={next(iter(NAMED_TOWERS))}."
        raise fields.refused(key, f"a name or path that ends in {names}", named, hint)
    layer = fields.integer("mm_vision_select_layer", -2, choices=(-2, -1))
    clip = vision.values.get("model_type") == "clip_vision_model"
    tower = vision_config(vision, layer if clip else -1)
    fields.get("mm_hidden_size", int, tower.hidden_size, choices=(tower.hidden_size,))
    return tower
