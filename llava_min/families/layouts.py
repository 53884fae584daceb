"""The parsed config.json of any layout becomes one LlavaConfig, strictly.

in:  config.json, in transformers' layouts or in the original one
out: one LlavaConfig, the same whatever the layout

There is one `from_*` function for each layout. A known key with a value that is not understood is
refused by name. An unknown key is listed in `ignored`. The layout is recognised from the keys
alone, never from a folder's name (and not from model_type, which says "llava" in files of three
families).
Read families/originals.py, families/processors.py first. Read next: families/templates.py.
Agrees with: the configuration classes of transformers.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..base.files import read_json
from ..config import LlavaConfig, Quantization, TextConfig, VisionConfig
from ..errors import shown
from . import processors
from .fields import NOT_READ, Fields, ignored
from .originals import KINDS, SHORT, from_original
from .sections import DECODERS, anyres_max, chat_of, eos_ids, grids, text_config, vision_config

CHATS = {
    # how a decoder was taught to chat: the renderer that writes what transformers' template writes
    "vicuna": "vicuna",
    "yi": "onevision_si",
    "llama3": "llama3",
    "mistral": "mistral",
    "qwen": "qwen",
}
NEUTRAL: dict[str, object] = {
    # settings of generation_config.json that ask for nothing: the greedy answer, as long as it is
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "num_beams": 1,
    "num_return_sequences": 1,
}


def hf_parts(fields: Fields) -> tuple[Fields, Fields, TextConfig]:
    """(text section, vision section, decoder) of any HF layout, its common keys checked."""
    text, vision = fields.section("text_config"), fields.section("vision_config")
    kind = text.get("model_type", str, "llama", choices=tuple(DECODERS))
    fields.get("projector_hidden_act", str, "gelu", choices=("gelu",))
    fields.get("multimodal_projector_bias", bool, True, choices=(True,))
    for key in ("image_token_index", "video_token_index", "image_token_id", "video_token_id"):
        fields.get(key, int, None)  # where a visual goes is decided by its piece, not by an id
    # what either says; weights/tied.py looks whether the file has a head of its own
    tied = [section.get("tie_word_embeddings", bool, False) for section in (fields, text)]
    eos = eos_ids(text.values) + eos_ids(fields.values)
    return text, vision, text_config(text, kind, any(tied), eos)


def hf_tower(fields: Fields, vision: Fields, layer: int) -> VisionConfig:
    """The tower of an HF layout: SigLIP gives all its rows, CLIP all but the class token.

    The files call the first "full" and the second "default".
    """
    tower = vision_config(vision, feature_layer(fields, vision, layer))
    strategy = "default" if tower.class_token else "full"
    fields.get("vision_feature_select_strategy", str, strategy, choices=(strategy,))
    return tower


def feature_layer(fields: Fields, vision: Fields, default: int) -> int:
    """The block whose output is taken, from the end: -1 or -2.

    A file may count it from the front, where 0 is what enters the first block, or have it alone in
    a list.
    """
    key = "vision_feature_layer"
    found = fields.values.get(key, default)
    alone = found[0] if isinstance(found, list) and len(found) == 1 else found
    if type(alone) is int and alone > 0:
        alone -= vision.size("num_hidden_layers", 12) + 1
    if type(alone) is not int or alone not in (-1, -2):
        raise fields.refused(key, "-1 or -2", found)
    fields.asked.add(key)
    return alone


def from_hf_onevision(fields: Fields) -> LlavaConfig:
    """HF layout `llava_onevision`: anyres pictures, clips pooled to a quarter.

    One newline follows each clip.
    """
    text, vision, decoder = hf_parts(fields)
    tower = hf_tower(fields, vision, -1)
    fields.get("use_image_newline_parameter", bool, True, choices=(True,))
    return LlavaConfig(
        family="llava_onevision",
        vision=tower,
        text=decoder,
        template="onevision",
        grids=grids(fields, "image_grid_pinpoints", tower.image_size, height_first=True),
        anyres_max=anyres_max(fields, "vision_aspect_ratio", "anyres_max_9"),
        newline=True,
        newline_position="one_token",
        pool_mode="bilinear",
        ignored=ignored(fields, text, vision),
    )


def from_hf_llava(fields: Fields) -> LlavaConfig:
    """HF layout `llava`: one tile a picture, cropped for CLIP and squeezed for SigLIP.

    A clip is its frames.
    """
    text, vision, decoder = hf_parts(fields)
    tower = hf_tower(fields, vision, -2)
    clip, chat = tower.class_token, chat_of(text.get("model_type", str, "llama"), decoder)
    mode = "crop" if clip else "square"
    of_qwen = "long_llava" if clip else "interleave"
    return LlavaConfig(
        family="llava",
        vision=tower,
        text=decoder,
        template=of_qwen if chat == "qwen" else CHATS[chat],
        image_modes=(mode,),
        several_images=mode,
        frame_mode=mode,
        frames=(32 if clip else 16) if chat == "qwen" else SHORT,
        ignored=ignored(fields, text, vision),
    )


def from_hf_next(fields: Fields) -> LlavaConfig:
    """HF layouts `llava_next` and `llava_next_video`: anyres without a cap.

    Clips are averaged before the projector.
    """
    text, vision, decoder = hf_parts(fields)
    tower = hf_tower(fields, vision, -2)
    fields.get("use_image_newline_parameter", bool, True, choices=(True,))
    fields.get("spatial_pool_mode", str, "average", choices=("average",))
    fields.get("spatial_pool_stride", int, 2, choices=(2,))
    fields.get("spatial_pool_out_channels", int, None)  # of poolers that no checkpoint has
    return LlavaConfig(
        family="llava_next_video",
        vision=tower,
        text=decoder,
        template=CHATS[chat_of(text.get("model_type", str, "llama"), decoder)],
        grids=grids(fields, "image_grid_pinpoints", tower.image_size, height_first=True),
        image_modes=("anyres",),
        several_images="anyres",
        frame_mode="crop",
        newline=True,
        pool_mode="average",
        pool_before_projector=True,
        frames=8,
        sample_ends=False,
        ignored=ignored(fields, text, vision),
    )


LAYOUTS: dict[str, Callable[[Fields], LlavaConfig]] = {
    "LlavaOnevisionForConditionalGeneration": from_hf_onevision,
    "LlavaForConditionalGeneration": from_hf_llava,
    "LlavaNextForConditionalGeneration": from_hf_next,
    "LlavaNextVideoForConditionalGeneration": from_hf_next,
    **{name: partial(from_original, kind=kind) for name, kind in KINDS.items()},
}
OTHERS = {
    # a class that is refused: what differs
    "LlavaMptForCausalLM": "Its decoder is MPT, which knows places by ALiBi and not by rotation.",
    "LlavaGemmaForCausalLM": "Its decoder is Gemma, whose norms, embeddings and MLP differ.",
    "LlavaPhiForCausalLM": "Its decoder is Phi, which runs attention and MLP side by side.",
    "BunnyPhiForCausalLM": "Its decoder is Phi, which runs attention and MLP side by side.",
    "LlavaMixtralForCausalLM": "Its decoder is Mixtral: each token goes to two of eight experts.",
    "LlavaQwenMoeForCausalLM": "Its decoder sends each token to a few of many experts.",
    "VipLlavaForConditionalGeneration": "Its projector takes five blocks of the tower at once.",
    "VideoLlavaForConditionalGeneration": "It has a second tower, for clips.",
    "LLaVAOneVision1_5_ForConditionalGeneration": (
        "LLaVA-OneVision-1.5 has another tower, RICE, which rotates queries and keys and merges "
        "its patches, and Qwen3 as its decoder."
    ),
}


FORMAT = 2  # of our own quantised folders: in the first one eight bits had a scale for each group
FOREIGN = ("gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8")


def quantization(fields: Fields) -> Quantization | None:
    """How the weights are quantised: as `python -m llava_min.weights quantize` says, or not.

    What another program quantised is seen to by weights/kept.py.
    """
    if fields.get("quantization_config", dict, None) is None:
        return None
    given = fields.section("quantization_config")
    if given.get("quant_method", str, choices=("llava_min", *FOREIGN)) in FOREIGN:
        return None
    known = ("quant_method", "format", "bits", "group", "head", "method")
    if unknown := sorted(set(given.values) - set(known)):
        raise given.refused(unknown[0], "no such key", given.values[unknown[0]])
    found = Quantization(
        bits=given.get("bits", int, choices=(4, 8)),
        group=given.get("group", int, choices=(32, 64, 128)),
        head=given.get("head", int, choices=(4, 8, 16)),
        method=given.get("method", str, choices=("rtn", "mse")),
    )
    written = given.get("format", int, 1, choices=(1, FORMAT))
    if written < FORMAT and 8 in (found.bits, found.head):
        raise given.refused("format", str(FORMAT), written, "Quantise the checkpoint again.")
    return found


def parse_config(values: dict[str, object], where: str = "config.json") -> LlavaConfig:
    """The configuration of any layout, recognised from the class that the file names."""
    fields = Fields(values, where)
    classes = values.get("architectures")
    name = classes[0] if isinstance(classes, list) and len(classes) == 1 else classes
    if isinstance(name, str) and name in OTHERS:
        expected = "a LLaVA on Qwen2, LLaMA or Mistral, with SigLIP or CLIP"
        raise fields.refused("architectures", expected, name, OTHERS[name])
    if not isinstance(name, str) or name not in LAYOUTS:
        raise fields.refused("architectures", "one of " + ", ".join(LAYOUTS), name)
    quantised = quantization(fields)
    return replace(LAYOUTS[name](fields), quantization=quantised)


def read_config(folder: Path, overrides: Mapping[str, object] | None = None) -> LlavaConfig:
    """The configuration of a checkpoint folder; `overrides` replace keys of its config.json.

    The ids of generation_config.json that end an answer count too. What else it asks for, such as a
    temperature or a repetition penalty, is listed in `ignored`: answers are greedy unless options
    say otherwise.
    """
    values, given = read_json(folder / "config.json", "configuration"), overrides or {}
    config = processors.as_files_say(parse_config({**values, **given}), folder, given)
    if not (folder / "generation_config.json").exists():
        return config
    values = read_json(folder / "generation_config.json", "generation settings")
    all_ids = tuple(dict.fromkeys(config.text.eos_ids + eos_ids(values)))
    asked = tuple(
        f"generation_config.json: {key} {shown(value)}"
        for key, value in values.items()
        if key not in NOT_READ and not key.startswith("_")
        if value is not None and value != NEUTRAL.get(key)
    )
    text = replace(config.text, eos_ids=all_ids)
    return replace(config, text=text, ignored=config.ignored + asked)
