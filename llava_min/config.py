"""What a checkpoint is: frozen dataclasses, built strictly from config.json.

in:  the parsed config.json of either layout      out: one LlavaConfig, the same whatever the layout
One `from_*` function for each layout; a known key with a value that is not understood is refused by
name, an unknown key is listed in `ignored`. The layout is recognised from the keys alone, never
from a folder's name (and not from model_type, which says "llava" in files of three families).
Read first. Read next: anyres.py.
Agrees with: LlavaOnevisionConfig and Qwen2Config of transformers; LlavaQwenConfig of LLaVA-NeXT.
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from .errors import CheckpointError, shown
from .files import read_json

MISSING = object()


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower. `num_layers` are the blocks that run; `stored_layers` may be one more."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    stored_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    activation: str
    norm_eps: float
    patch_bias: bool = True
    class_token: bool = False
    pre_norm: bool = False
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def side(self) -> int:
        """Patches along one side of a tile; a remainder of pixels is dropped."""
        return self.image_size // self.patch_size

    @property
    def num_positions(self) -> int:
        return self.side**2 + self.class_token


@dataclass(frozen=True)
class TextConfig:
    """The decoder. `context` is the longest sequence; `rope_factor` divides positions."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    rope_factor: float
    context: int
    tied: bool
    qkv_bias: bool
    eos_ids: tuple[int, ...]


@dataclass(frozen=True)
class LlavaConfig:
    """A whole checkpoint.

    grids: (rows, columns) of tiles that "anyres" may choose. one_image, several_images: how a
    picture that comes alone, and pictures that come together, become tiles: "anyres" or "pad".
    frames: how many are sampled from a clip.
    """

    family: str
    vision: VisionConfig
    text: TextConfig
    template: str
    grids: tuple[tuple[int, int], ...] = ()
    max_tiles: int | None = None
    one_image: str = "anyres"
    several_images: str = "pad"
    unpad_rounded: bool = True
    newline: bool = False
    newline_position: str = "no_token"
    pool_mode: str | None = None
    frames: int = 32
    ignored: tuple[str, ...] = field(default=(), compare=False)

    @property
    def tile(self) -> int:
        """The side of a tile in pixels."""
        return self.vision.image_size


class Fields:
    """A JSON object that is read key by key: each with a type and its allowed values; what is left
    is `ignored`.
    """

    def __init__(self, values: dict, where: str):
        self.values, self.where, self.read = values, where, set()

    def get(self, key: str, kind, default=MISSING, choices=None):
        """The value of `key`, of type `kind`, among `choices` if given; else an error."""
        self.read.add(key)
        value = self.values.get(key, default)
        if value is MISSING:
            raise CheckpointError(
                f"cannot read the configuration: {self.where}: expected the key {key!r}, "
                "found none. Is the file complete?"
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
        """A count that must be at least 1 and at most 2^31."""
        value = self.get(key, int, default)
        if not 1 <= value < 2**31:
            raise self.refused(key, "a number from 1 to 2147483647", value)
        return value

    def section(self, key: str, default=MISSING) -> "Fields":
        return Fields(self.get(key, dict, default), f"{self.where}: {key}")

    def refused(self, key: str, expected: str, found) -> CheckpointError:
        return CheckpointError(
            f"not supported: {self.where}: {key}: expected {expected}, found {shown(found)}."
        )


TOWERS = {
    "siglip_vision_model": dict(activation="gelu_pytorch_tanh", norm_eps=1e-6),
}  # what a tower's class fixes or defaults to
NAMED_TOWERS = {
    "google/siglip-so400m-patch14-384": dict(
        model_type="siglip_vision_model",
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=26,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    ),
}  # original files only name their tower


def vision_config(fields: Fields) -> VisionConfig:
    """SigLIP. Its 27th block and its attention-pool head, where stored, are not run."""
    kind = fields.get("model_type", str, choices=tuple(TOWERS))
    defaults = TOWERS[kind]
    fields.get("num_channels", int, 3, choices=(3,))
    fields.get("vision_use_head", bool, True)  # stored or not, the head is never run
    stored = fields.size("num_hidden_layers")
    width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    if width % heads:
        raise fields.refused("num_attention_heads", f"a divisor of hidden_size {width}", heads)
    return VisionConfig(
        hidden_size=width,
        intermediate_size=fields.size("intermediate_size"),
        num_layers=min(stored, 26),
        stored_layers=stored,
        num_heads=heads,
        image_size=fields.size("image_size"),
        patch_size=fields.size("patch_size"),
        activation=fields.get(
            "hidden_act", str, defaults["activation"], choices=(defaults["activation"],)
        ),
        norm_eps=fields.get("layer_norm_eps", float, defaults["norm_eps"]),
    )


def rope_settings(fields: Fields) -> tuple[float, float]:
    """(theta, linear factor) from rope_theta and rope_scaling, or from rope_parameters as
    transformers 5 writes.
    """
    theta = fields.get("rope_theta", float, 10_000.0)
    scaling = fields.get("rope_parameters", dict, None) or fields.get("rope_scaling", dict, None)
    if scaling is None:
        return theta, 1.0
    scaling = Fields(scaling, f"{fields.where}: rope scaling")
    theta = scaling.get("rope_theta", float, theta)
    kind = scaling.get("rope_type", str, None) or scaling.get("type", str, "default")
    if kind not in ("default", "linear"):
        raise scaling.refused("rope_type", "'default' or 'linear'", kind)
    return theta, scaling.get("factor", float) if kind == "linear" else 1.0


def text_config(fields: Fields, tied: bool, eos_ids: tuple[int, ...]) -> TextConfig:
    """Qwen2. Missing keys take the defaults of Qwen2Config, as the published files rely on them."""
    fields.get("hidden_act", str, "silu", choices=("silu",))
    fields.get("use_sliding_window", bool, False, choices=(False,))
    width, heads = fields.size("hidden_size", 4096), fields.size("num_attention_heads", 32)
    kv_heads = fields.size("num_key_value_heads", 32)
    if width % heads:
        raise fields.refused("num_attention_heads", f"a divisor of hidden_size {width}", heads)
    if heads % kv_heads:
        raise fields.refused(
            "num_key_value_heads", f"a divisor of num_attention_heads {heads}", kv_heads
        )
    theta, factor = rope_settings(fields)
    return TextConfig(
        vocab_size=fields.size("vocab_size"),
        hidden_size=width,
        intermediate_size=fields.size("intermediate_size"),
        num_layers=fields.size("num_hidden_layers", 32),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=fields.get("head_dim", int, None) or width // heads,
        norm_eps=fields.get("rms_norm_eps", float, 1e-6),
        rope_theta=theta,
        rope_factor=factor,
        context=int(fields.size("max_position_embeddings", 32768) * factor),
        tied=tied,
        qkv_bias=True,
        eos_ids=eos_ids,
    )


def eos_ids(values: dict) -> tuple[int, ...]:
    """The ids that end an answer: eos_token_id may be one id, a list, or missing."""
    found = values.get("eos_token_id")
    found = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int for token in found):
        raise CheckpointError(
            f"not supported: eos_token_id: expected token ids, found {shown(found)}."
        )
    return tuple(found)


def grids(fields: Fields, key: str, tile: int, height_first: bool) -> tuple[tuple[int, int], ...]:
    """image_grid_pinpoints as (rows, columns): a list of sizes in pixels, or a range such as
    "(1x1),...,(6x6)".
    """
    value = fields.get(key, type(fields.values.get(key, [])), [])
    if isinstance(value, str):
        pairs = [tuple(map(int, pair)) for pair in re.findall(r"\((\d+)x(\d+)\)", value)]
        if len(pairs) < 2:
            raise fields.refused(key, "a range such as '(1x1),...,(6x6)'", value)
        (first_a, first_b), (last_a, last_b) = pairs[0], pairs[-1]
        return tuple((b, a) for a in range(first_a, last_a + 1) for b in range(first_b, last_b + 1))
    for pair in value:
        if not (
            isinstance(pair, list)
            and len(pair) == 2
            and all(type(x) is int and x > 0 for x in pair)
        ):
            raise fields.refused(key, "pairs of positive numbers", pair)
        if pair[0] % tile or pair[1] % tile:
            raise fields.refused(key, f"multiples of the tile's side {tile}", pair)
    pairs = [(a // tile, b // tile) for a, b in value]
    return tuple(pairs if height_first else [(b, a) for a, b in pairs])


def max_tiles(aspect: str) -> int | None:
    """9 for "anyres_max_9", None for plain "anyres"."""
    return int(aspect.removeprefix("anyres_max_")) if aspect.startswith("anyres_max_") else None


ANYRES = re.compile(r"anyres(_max_[1-9]\d{0,2})?")
NOT_READ = (
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "use_cache",
    "attention_dropout",
    "initializer_range",
    "max_window_layers",
    "sliding_window",
    "auto_map",
    "layer_types",
)  # change nothing in what is computed here


def from_hf_onevision(fields: Fields) -> LlavaConfig:
    """HF layout `llava_onevision`: text_config and vision_config side by side."""
    text, vision = fields.section("text_config"), fields.section("vision_config")
    text.get("model_type", str, "qwen2", choices=("qwen2",))
    fields.get("model_type", str, choices=("llava_onevision",))
    fields.get("projector_hidden_act", str, "gelu", choices=("gelu",))
    fields.get("multimodal_projector_bias", bool, True, choices=(True,))
    fields.get("vision_feature_select_strategy", str, "full", choices=("full",))
    fields.get("use_image_newline_parameter", bool, True, choices=(True,))
    for key in ("image_token_index", "video_token_index", "image_token_id", "video_token_id"):
        fields.get(key, int, None)  # where a visual goes is decided by its piece, not by an id
    fields.integer("vision_feature_layer", -1, choices=(-1,))
    aspect = fields.get("vision_aspect_ratio", str, "anyres_max_9")
    if not ANYRES.fullmatch(aspect):
        raise fields.refused("vision_aspect_ratio", "'anyres' or 'anyres_max_<n>'", aspect)
    tied = fields.get("tie_word_embeddings", bool, False)
    tied = text.get("tie_word_embeddings", bool, tied)
    tower = vision_config(vision)
    return LlavaConfig(
        family="llava_onevision",
        vision=tower,
        text=text_config(text, tied, eos_ids(text.values) + eos_ids(fields.values)),
        template="onevision",
        grids=grids(fields, "image_grid_pinpoints", tower.image_size, height_first=True),
        max_tiles=max_tiles(aspect),
        unpad_rounded=True,
        newline=True,
        newline_position="one_token",
        pool_mode="bilinear",
        ignored=ignored(fields, text, vision),
    )


def from_original(fields: Fields) -> LlavaConfig:
    """Original layout `llava_qwen`: one flat object, the tower only named (or described in a
    vision_config).
    """
    fields.get("model_type", str, choices=("llava", "llava_qwen"))
    fields.get("mm_projector_type", str, choices=("mlp2x_gelu",))
    fields.get("mm_patch_merge_type", str, choices=("spatial_unpad",))
    fields.get("mm_vision_select_feature", str, "patch", choices=("patch",))
    fields.integer(
        "mm_vision_select_layer", -2, choices=(-2, -1)
    )  # SigLIP's rows come from its last block all the same
    fields.get("mm_resampler_type", str, None, choices=(None,))
    for key in (
        "mm_use_im_patch_token",
        "mm_use_im_start_end",
        "use_pos_skipping",
        "add_faster_video",
    ):
        fields.get(key, bool, False, choices=(False,))
    aspect = fields.get("image_aspect_ratio", str)
    if aspect != "pad" and not ANYRES.fullmatch(aspect):
        raise fields.refused("image_aspect_ratio", "'anyres', 'anyres_max_<n>' or 'pad'", aspect)
    named = fields.get("mm_vision_tower", str)
    if "vision_config" in fields.values:
        vision = fields.section("vision_config")
    elif named in NAMED_TOWERS:
        vision = Fields(NAMED_TOWERS[named], f"the tower {named}")
    else:
        raise fields.refused("mm_vision_tower", " or ".join(map(repr, NAMED_TOWERS)), named)
    tower = vision_config(vision)
    fields.get("mm_hidden_size", int, tower.hidden_size, choices=(tower.hidden_size,))
    timed = fields.get("add_time_instruction", bool, False)
    return LlavaConfig(
        family="llava_qwen",
        vision=tower,
        text=text_config(
            fields, fields.get("tie_word_embeddings", bool, False), eos_ids(fields.values)
        ),
        template="qwen",
        grids=grids(fields, "image_grid_pinpoints", tower.image_size, height_first=False),
        max_tiles=max_tiles(aspect),
        one_image="pad" if aspect == "pad" else "anyres",
        unpad_rounded=False,
        newline=True,
        newline_position=fields.get(
            "mm_newline_position",
            str,
            "grid" if timed else "one_token",
            choices=("grid", "frame", "one_token", "no_token"),
        ),
        pool_mode=fields.get(
            "mm_spatial_pool_mode", str, "bilinear", choices=("bilinear", "average", "max")
        ),
        ignored=ignored(fields, vision),
    )


def ignored(*sections: Fields) -> tuple[str, ...]:
    """The keys that were not read and are not known to change nothing."""
    return tuple(f"{section.where}: {key}" for section in sections for key in section.values
                 if key not in section.read and key not in NOT_READ)  # fmt: skip


def from_values(values: dict, where: str = "config.json") -> LlavaConfig:
    """The configuration of either layout, recognised from its keys."""
    fields = Fields(values, where)
    if "mm_vision_tower" in values:
        return from_original(fields)
    if values.get("model_type") == "llava_onevision":
        return from_hf_onevision(fields)
    raise CheckpointError(
        f"not supported: {where}: model_type: expected llava_onevision, or an original LLaVA with "
        f"mm_vision_tower, found {shown(values.get('model_type'))}."
    )


def read(folder: Path, overrides: dict | None = None) -> LlavaConfig:
    """The configuration of a checkpoint folder; `overrides` replace keys of config.json before it
    is parsed.

    The ids of generation_config.json that end an answer count too; a video preprocessor may say how
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
