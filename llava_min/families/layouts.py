"""The parsed config.json of any layout becomes one LlavaConfig, strictly.

in:  config.json, in transformers' layouts or in the original one
out: one LlavaConfig, the same whatever the layout

There is one `from_*` function for each layout. A known key with a value that is not understood is
refused by name. An unknown key is listed in `ignored`. The layout is recognised from the keys
alone, never from a folder's name (and not from model_type, which says "llava" in files of three
families).
Read config.py first. Read next: families/templates.py.
It is long, because everything that is read from a config.json is read here.
Agrees with: the configuration classes of transformers; LlavaQwenConfig of LLaVA-NeXT.
"""

import math
import re
from dataclasses import replace
from pathlib import Path

from ..base.files import read_json
from ..config import LlavaConfig, Quantization, TextConfig, VisionConfig
from ..errors import CheckpointError, shown

MISSING = object()
MOST = {"max_position_embeddings": 2**31 - 1, "vocab_size": 2**24, "image_size": 2**13,
        "num_hidden_layers": 2**10, "head_dim": 2**10, "tiles": 2**8}  # fmt: skip


class Fields:
    """A JSON object that is read key by key, each with a type and its allowed values.

    Keys that are not read are `ignored`.
    """

    def __init__(self, values: dict, where: str):
        self.values, self.where, self.read = values, where, set()

    def get(self, key: str, kind, default=MISSING, choices=None):
        """The value of `key`, of type `kind`, among `choices` if given; else an error."""
        self.read.add(key)
        value = self.values.get(key, default)
        if value is MISSING:
            raise CheckpointError(
                "cannot read the configuration",
                self.where,
                f"the key {key!r}",
                "none",
                "Is the file complete?",
            )
        if value is None and default is None:
            return None
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (kind is int and value < 0):
            raise self.refused(key, f"a value of type {kind.__name__}", value)
        if choices is not None and value not in choices:
            raise self.refused(key, " or ".join(map(repr, choices)), value)
        return value

    def integer(self, key: str, default: int, choices: tuple[int, ...]) -> int:
        """A whole number, perhaps negative, among `choices`."""
        self.read.add(key)
        value = self.values.get(key, default)
        if type(value) is not int or value not in choices:
            raise self.refused(key, " or ".join(map(str, choices)), value)
        return value

    def size(self, key: str, default=MISSING) -> int:
        """A count from 1 on, small enough that no product of two overflows or takes forever."""
        value, most = self.get(key, int, default), MOST.get(key, 2**20)
        if not 1 <= value <= most:
            raise self.refused(key, f"a number from 1 to {most}", value)
        return value

    def positive(self, key: str, default=MISSING) -> float:
        """A finite number above 0."""
        value = self.get(key, float, default)
        if not 0 < value < math.inf:
            raise self.refused(key, "a finite number above 0", value)
        return value

    def section(self, key: str, default=MISSING) -> "Fields":
        return Fields(self.get(key, dict, default), f"{self.where}: {key}")

    def refused(self, key: str, expected: str, found) -> CheckpointError:
        return CheckpointError("not supported", f"{self.where}: {key}", expected, shown(found))


TOWERS = {
    # model_type: what the tower's class fixes, and what its missing keys default to
    "siglip_vision_model": dict(activation="gelu_pytorch_tanh", norm_eps=1e-6, patch_bias=True,
             class_token=False, pre_norm=False, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "clip_vision_model": dict(activation="quick_gelu", norm_eps=1e-5, patch_bias=False,
             class_token=True, pre_norm=True, mean=(0.48145466, 0.4578275, 0.40821073),
             std=(0.26862954, 0.26130258, 0.27577711)),
}  # fmt: skip
NAMED_TOWERS = {
    # files in the original layout only name their tower
    "google/siglip-so400m-patch14-384": dict(model_type="siglip_vision_model", hidden_size=1152,
             intermediate_size=4304, num_hidden_layers=26, num_attention_heads=16,
             image_size=384, patch_size=14),
    "openai/clip-vit-large-patch14-336": dict(model_type="clip_vision_model", hidden_size=1024,
             intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
             image_size=336, patch_size=14),
}  # fmt: skip


def vision_config(fields: Fields, layer: int) -> VisionConfig:
    """A tower whose features are the output of block `layer`, from the end: -1 is the last stored.

    Google's SigLIP has 27 blocks. LLaVA takes the output of the 26th, feature layer -2 of 27. Its
    checkpoints store only these 26, of which that is layer -1. SigLIP's pooling head and CLIP's
    projection, where stored, are not run.
    """
    kind = fields.get("model_type", str, choices=tuple(TOWERS))
    tower = TOWERS[kind]
    activation = tower["activation"]
    fields.get("num_channels", int, 3, choices=(3,))
    fields.get("vision_use_head", bool, True)
    fields.get("projection_dim", int, 0)
    stored = fields.size("num_hidden_layers", 12)
    width, heads = fields.size("hidden_size", 768), fields.size("num_attention_heads", 12)
    if width % heads:
        raise fields.refused("num_attention_heads", f"a divisor of hidden_size {width}", heads)
    if stored + 1 + layer < 1:
        raise fields.refused(
            "num_hidden_layers", f"enough blocks for feature layer {layer}", stored
        )
    side = fields.size("image_size")
    if fields.size("patch_size") > side:
        raise fields.refused(
            "patch_size", f"at most image_size {side}", fields.get("patch_size", int)
        )
    return VisionConfig(
        hidden_size=width, intermediate_size=fields.size("intermediate_size", 3072),
        num_layers=stored + 1 + layer, num_heads=heads, image_size=side,
        patch_size=fields.size("patch_size"),
        activation=fields.get("hidden_act", str, activation, choices=(activation,)),
        norm_eps=fields.positive("layer_norm_eps", tower["norm_eps"]),
        **{name: tower[name] for name in ("patch_bias", "class_token", "pre_norm", "mean", "std")}
    )  # fmt: skip


def rope_settings(fields: Fields) -> tuple[float, float]:
    """(theta, linear factor) from rope_theta and rope_scaling, or from rope_parameters.

    transformers 5 writes rope_parameters.
    """
    theta = fields.positive("rope_theta", 10_000.0)
    scaling = fields.get("rope_parameters", dict, None) or fields.get("rope_scaling", dict, None)
    if scaling is None:
        return theta, 1.0
    scaling = Fields(scaling, f"{fields.where}: rope scaling")
    theta = scaling.positive("rope_theta", theta)
    kind = scaling.get("rope_type", str, None) or scaling.get("type", str, "default")
    if kind not in ("default", "linear"):
        raise scaling.refused("rope_type", "'default' or 'linear'", kind)
    return theta, scaling.positive("factor") if kind == "linear" else 1.0


TEXTS = {
    # model_type: what its missing keys default to, as the published files rely on it
    "qwen2": dict(qkv_bias=True, eos=(), hidden_size=4096, intermediate_size=22016,
             num_hidden_layers=32, num_attention_heads=32, max_position_embeddings=32768,
             vocab_size=151936),
    "llama": dict(qkv_bias=False, eos=(2,), hidden_size=4096, intermediate_size=11008,
             num_hidden_layers=32, num_attention_heads=32, max_position_embeddings=2048,
             vocab_size=32000),
}  # fmt: skip


def text_config(fields: Fields, kind: str, tied: bool, eos: tuple[int, ...]) -> TextConfig:
    """A decoder of `kind`, a key of TEXTS."""
    missing = TEXTS[kind]
    fields.get("hidden_act", str, "silu", choices=("silu",))
    for key in ("use_sliding_window", "attention_bias", "mlp_bias"):
        fields.get(key, bool, False, choices=(False,))
    width = fields.size("hidden_size", missing["hidden_size"])
    heads = fields.size("num_attention_heads", missing["num_attention_heads"])
    kv_heads = fields.size("num_key_value_heads", 32 if kind == "qwen2" else heads)
    if width % heads:
        raise fields.refused("num_attention_heads", f"a divisor of hidden_size {width}", heads)
    if heads % kv_heads:
        raise fields.refused("num_key_value_heads", f"a divisor of the {heads} heads", kv_heads)
    head = width // heads if fields.values.get("head_dim") is None else fields.size("head_dim")
    if head % 2:
        raise fields.refused("head_dim", "an even number", head)
    theta, factor = rope_settings(fields)
    context = fields.size("max_position_embeddings", missing["max_position_embeddings"])
    return TextConfig(
        vocab_size=fields.size("vocab_size", missing["vocab_size"]), hidden_size=width,
        intermediate_size=fields.size("intermediate_size", missing["intermediate_size"]),
        num_layers=fields.size("num_hidden_layers", missing["num_hidden_layers"]), num_heads=heads,
        num_kv_heads=kv_heads, head_dim=head,
        norm_eps=fields.positive("rms_norm_eps", 1e-6), rope_theta=theta, rope_factor=factor,
        context=int(min(context * factor, 2**31 - 1)), tied=tied, qkv_bias=missing["qkv_bias"],
        eos_ids=eos or missing["eos"]
    )  # fmt: skip


def eos_ids(values: dict) -> tuple[int, ...]:
    """The ids that end an answer: eos_token_id may be one id, a list, or missing."""
    found = values.get("eos_token_id")
    found = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int for token in found):
        raise CheckpointError("not supported", "eos_token_id", "token ids", shown(found))
    return tuple(found)


def grids(fields: Fields, key: str, tile: int, height_first: bool) -> tuple[tuple[int, int], ...]:
    """image_grid_pinpoints as (rows, columns).

    They are a list of sizes in pixels, or a range such as "(1x1),...,(6x6)".
    """
    kind = str if isinstance(fields.values.get(key), str) else list
    value = fields.get(key, kind, [])
    if isinstance(value, str):
        pairs = [tuple(map(int, pair)) for pair in re.findall(r"\((\d{1,4})x(\d{1,4})\)", value)]
        if len(pairs) < 2:
            raise fields.refused(key, "a range such as '(1x1),...,(6x6)'", value)
        (first_a, first_b), (last_a, last_b) = pairs[0], pairs[-1]
        check_tiles(fields, key, last_a * last_b)
        return tuple((b, a) for a in range(first_a, last_a + 1) for b in range(first_b, last_b + 1))
    check_tiles(fields, key, len(value))
    for pair in value:
        if not (
            isinstance(pair, list)
            and len(pair) == 2
            and all(type(x) is int and x > 0 for x in pair)
        ):
            raise fields.refused(key, "pairs of positive numbers", pair)
        if pair[0] % tile or pair[1] % tile:
            raise fields.refused(key, f"multiples of the tile's side {tile}", pair)
        check_tiles(fields, key, pair[0] * pair[1] // tile**2)
    pairs = [(a // tile, b // tile) for a, b in value]
    return tuple(pairs if height_first else [(b, a) for a, b in pairs])


def check_tiles(fields: Fields, key: str, tiles: int) -> None:
    if not 1 <= tiles <= MOST["tiles"]:
        raise fields.refused(key, f"1 to {MOST['tiles']} grids of as many tiles at most", tiles)


ANYRES = re.compile(r"anyres(?:_max_([1-9]\d{0,2}))?")


def max_tiles(
    fields: Fields, key: str, default=MISSING, choices: tuple[str, ...] = ()
) -> int | None:
    """9 for "anyres_max_9", None for plain "anyres" and for any of `choices`."""
    aspect = fields.get(key, str, default)
    if aspect in choices:
        return None
    match = ANYRES.fullmatch(aspect)
    if match is None:
        allowed = ", ".join(map(repr, ("anyres", "anyres_max_<n>", *choices)))
        raise fields.refused(key, f"one of {allowed}", aspect)
    return int(match[1]) if match[1] else None


NOT_READ = (
    "architectures", "dtype", "torch_dtype", "transformers_version", "bos_token_id",
    "eos_token_id", "pad_token_id", "use_cache", "attention_dropout", "initializer_range",
    "max_window_layers", "sliding_window", "auto_map", "layer_types", "image_seq_length",
    "video_seq_length", "ignore_index", "_name_or_path", "pretraining_tp", "dropout",
    "initializer_factor", "model_type",
)  # fmt: skip  # these change nothing in what is computed here


def hf_parts(fields: Fields) -> tuple[Fields, Fields, TextConfig]:
    """(text section, vision section, decoder) of any HF layout, its common keys checked."""
    text, vision = fields.section("text_config"), fields.section("vision_config")
    kind = text.get("model_type", str, "llama", choices=tuple(TEXTS))
    fields.get("projector_hidden_act", str, "gelu", choices=("gelu",))
    fields.get("multimodal_projector_bias", bool, True, choices=(True,))
    for key in ("image_token_index", "video_token_index", "image_token_id", "video_token_id"):
        fields.get(key, int, None)  # where a visual goes is decided by its piece, not by an id
    tied = fields.get("tie_word_embeddings", bool, False)
    tied = text.get("tie_word_embeddings", bool, tied)
    eos = eos_ids(text.values) + eos_ids(fields.values)
    return text, vision, text_config(text, kind, tied, eos)


def hf_tower(fields: Fields, vision: Fields, layer: int) -> VisionConfig:
    """The tower of an HF layout: SigLIP gives all its rows, CLIP all but the class token.

    The files call the first "full" and the second "default".
    """
    layer = fields.integer("vision_feature_layer", layer, choices=(-1, -2))
    tower = vision_config(vision, layer)
    strategy = "default" if tower.class_token else "full"
    fields.get("vision_feature_select_strategy", str, strategy, choices=(strategy,))
    return tower


def from_hf_onevision(fields: Fields) -> LlavaConfig:
    """HF layout `llava_onevision`: anyres pictures, clips pooled to a quarter.

    One newline follows each clip.
    """
    text, vision, decoder = hf_parts(fields)
    tower = hf_tower(fields, vision, -1)
    fields.get("use_image_newline_parameter", bool, True, choices=(True,))
    return LlavaConfig(
        family="llava_onevision", vision=tower, text=decoder, template="onevision",
        grids=grids(fields, "image_grid_pinpoints", tower.image_size, height_first=True),
        max_tiles=max_tiles(fields, "vision_aspect_ratio", "anyres_max_9"), newline=True,
        newline_position="one_token", pool_mode="bilinear", ignored=ignored(fields, text, vision)
    )  # fmt: skip


def from_hf_llava(fields: Fields) -> LlavaConfig:
    """HF layout `llava`: one tile a picture, cropped for CLIP and squeezed for SigLIP.

    A clip is its frames.
    """
    text, vision, decoder = hf_parts(fields)
    tower = hf_tower(fields, vision, -2)
    qwen = decoder.qkv_bias
    mode = "crop" if tower.class_token else "square"
    return LlavaConfig(
        family="llava", vision=tower, text=decoder,
        template=("long_llava" if tower.class_token else "interleave") if qwen else "vicuna",
        image_modes=(mode,), several_images=mode, frame_mode=mode,
        frames=32 if tower.class_token else 16, ignored=ignored(fields, text, vision)
    )  # fmt: skip


def from_hf_next(fields: Fields) -> LlavaConfig:
    """HF layouts `llava_next` and `llava_next_video`: anyres without a cap.

    Clips are averaged before the projector.
    """
    text, vision, decoder = hf_parts(fields)
    tower = hf_tower(fields, vision, -2)
    fields.get("use_image_newline_parameter", bool, True, choices=(True,))
    fields.get("spatial_pool_mode", str, "average", choices=("average",))
    fields.get("spatial_pool_stride", int, 2, choices=(2,))
    fields.get("spatial_pool_out_channels", int, 1024)
    return LlavaConfig(
        family="llava_next_video", vision=tower, text=decoder, template="vicuna",
        grids=grids(fields, "image_grid_pinpoints", tower.image_size, height_first=True),
        image_modes=("anyres",), several_images="anyres", frame_mode="crop", newline=True,
        pool_mode="average", pool_before_projector=True, frames=8, sample_ends=False,
        ignored=ignored(fields, text, vision)
    )  # fmt: skip


def from_original(fields: Fields) -> LlavaConfig:
    """Original layout `llava_qwen`: one flat object, in which the tower is only named.

    A vision_config may describe the tower instead.
    """
    fields.get("mm_projector_type", str, choices=("mlp2x_gelu",))
    fields.get("mm_patch_merge_type", str, choices=("spatial_unpad",))
    fields.get("mm_vision_select_feature", str, "patch", choices=("patch",))
    fields.integer(
        "mm_vision_select_layer", -2, choices=(-2, -1)
    )  # either way SigLIP's last stored block
    fields.get("mm_resampler_type", str, None, choices=(None,))
    for key in (
        "mm_use_im_patch_token",
        "mm_use_im_start_end",
        "use_pos_skipping",
        "add_faster_video",
    ):
        fields.get(key, bool, False, choices=(False,))
    tower = original_tower(fields)
    aspect = fields.get("image_aspect_ratio", str)
    timed = fields.get("add_time_instruction", bool, False)
    forced = fields.get("force_sample", bool, False)
    tied = fields.get("tie_word_embeddings", bool, False)
    return LlavaConfig(
        family="llava_qwen",
        vision=tower,
        text=text_config(fields, "qwen2", tied, eos_ids(fields.values)),
        template="qwen",
        grids=grids(fields, "image_grid_pinpoints", tower.image_size, height_first=False),
        max_tiles=max_tiles(fields, "image_aspect_ratio", choices=("pad",)),
        image_modes=("pad", "anyres") if aspect == "pad" else ("anyres", "pad"),
        unpad_rounded=False,
        newline=True,
        newline_position=fields.get(
            "mm_newline_position", str, "grid" if timed else "one_token",
            choices=("grid", "frame", "one_token", "no_token")),
        pool_mode=fields.get(
            "mm_spatial_pool_mode", str, "bilinear", choices=("bilinear", "average", "max")),
        time_instruction=timed,
        frames=110 if forced else 64 if timed else 32,
        ignored=ignored(fields),
    )  # fmt: skip


def original_tower(fields: Fields) -> VisionConfig:
    """The tower of an original file, from its vision_config if there is one, else by name."""
    named = fields.get("mm_vision_tower", str)
    if "vision_config" in fields.values:
        vision = fields.section("vision_config")
    elif named in NAMED_TOWERS:
        vision = Fields(NAMED_TOWERS[named], f"the tower {named}")
    else:
        raise fields.refused("mm_vision_tower", " or ".join(map(repr, NAMED_TOWERS)), named)
    tower = vision_config(vision, -1)
    if tower.class_token:
        raise fields.refused("mm_vision_tower", "SigLIP in the original layout", named)
    fields.get("mm_hidden_size", int, tower.hidden_size, choices=(tower.hidden_size,))
    return tower


def ignored(*sections: Fields) -> tuple[str, ...]:
    """The keys that were not read and are not known to change nothing."""
    return tuple(f"{section.where}: {key}" for section in sections for key in section.values
                 if key not in section.read and key not in NOT_READ)  # fmt: skip


LAYOUTS = {
    "LlavaOnevisionForConditionalGeneration": from_hf_onevision,
    "LlavaForConditionalGeneration": from_hf_llava,
    "LlavaNextForConditionalGeneration": from_hf_next,
    "LlavaNextVideoForConditionalGeneration": from_hf_next,
    "LlavaQwenForCausalLM": from_original,
}


def quantization(fields: Fields) -> Quantization | None:
    """How the weights are quantised: as `python -m llava_min.weights quantize` says, or not."""
    if fields.get("quantization_config", dict, None) is None:
        return None
    given = fields.section("quantization_config")
    given.get("quant_method", str, choices=("llava_min",))
    known = ("quant_method", "bits", "group", "head", "method")
    if unknown := sorted(set(given.values) - set(known)):
        raise given.refused(unknown[0], "no such key", given.values[unknown[0]])
    return Quantization(
        bits=given.get("bits", int, choices=(4, 8)),
        group=given.get("group", int, choices=(32, 64, 128)),
        head=given.get("head", int, choices=(4, 8, 16)),
        method=given.get("method", str, choices=("rtn", "mse")))  # fmt: skip


def from_values(values: dict, where: str = "config.json") -> LlavaConfig:
    """The configuration of any layout, recognised from the class that the file names."""
    fields = Fields(values, where)
    classes = values.get("architectures")
    name = classes[0] if isinstance(classes, list) and len(classes) == 1 else classes
    if not isinstance(name, str) or name not in LAYOUTS:
        raise fields.refused("architectures", "one of " + ", ".join(LAYOUTS), name)
    quantised = quantization(fields)
    return replace(LAYOUTS[name](fields), quantization=quantised)


def read(folder: Path, overrides: dict | None = None) -> LlavaConfig:
    """The configuration of a checkpoint folder; `overrides` replace keys of its config.json.

    The ids of generation_config.json that end an answer count too. A video preprocessor may say how
    many frames it samples.
    """
    config = from_values(
        {**read_json(folder / "config.json", "configuration"), **(overrides or {})}
    )
    if (folder / "generation_config.json").exists():
        more = eos_ids(read_json(folder / "generation_config.json", "generation settings"))
        all_ids = tuple(dict.fromkeys(config.text.eos_ids + more))
        config = replace(config, text=replace(config.text, eos_ids=all_ids))
    if (folder / "video_preprocessor_config.json").exists():
        frames = read_json(folder / "video_preprocessor_config.json", "video preprocessor").get(
            "num_frames"
        )
        config = replace(config, frames=frames) if type(frames) is int and frames > 0 else config
    return config
