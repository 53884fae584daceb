"""The sections that every layout of config.json has: the tower, the decoder, the grids of tiles.

in:  Fields of a section
out: VisionConfig, TextConfig, grids, what ends an answer

Towers are SigLIP and CLIP, decoders Qwen2, LLaMA and Mistral. A missing key gets the default of its
class in transformers, on which the published files rely.
Read families/fields.py first. Read next: families/originals.py, families/processors.py.
Agrees with: the configuration classes of transformers.
"""

import re
from dataclasses import dataclass
from types import EllipsisType

from ..config import TextConfig, VisionConfig
from ..errors import CheckpointError, shown
from .fields import Fields

MOST_TILES = 2**8  # of a grid, and grids of a file


@dataclass(frozen=True)
class TowerClass:
    """What the class of a vision tower fixes; the sizes are in the file."""

    activation: str
    norm_eps: float
    patch_bias: bool
    class_token: bool
    pre_norm: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


TOWERS = {
    # by model_type: what its class fixes
    "siglip_vision_model": TowerClass(
        activation="gelu_pytorch_tanh",
        norm_eps=1e-6,
        patch_bias=True,
        class_token=False,
        pre_norm=False,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    "clip_vision_model": TowerClass(
        activation="quick_gelu",
        norm_eps=1e-5,
        patch_bias=False,
        class_token=True,
        pre_norm=True,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
}


def vision_config(fields: Fields, layer: int) -> VisionConfig:
    """A tower whose features are the output of block `layer`, from the end: -1 is the last stored.

    Google's SigLIP has 27 blocks. LLaVA takes the output of the 26th, feature layer -2 of 27. Its
    checkpoints store only these 26, of which that is layer -1. SigLIP's pooling head and CLIP's
    projection, where stored, are not run.
    """
    kind = fields.get("model_type", str, choices=tuple(TOWERS))
    tower = TOWERS[kind]
    fields.get("num_channels", int, 3, choices=(3,))
    fields.get("vision_use_head", bool, None)
    fields.get("projection_dim", int, None)
    stored = fields.size("num_hidden_layers", 12)
    width, heads = fields.size("hidden_size", 768), fields.size("num_attention_heads", 12)
    if width % heads:
        raise fields.refused("num_attention_heads", f"a divisor of hidden_size {width}", heads)
    if stored + 1 + layer < 1:
        raise fields.refused(
            "num_hidden_layers", f"enough blocks for feature layer {layer}", stored
        )
    side, patch = fields.size("image_size"), fields.size("patch_size")
    if patch > side:
        raise fields.refused("patch_size", f"at most image_size {side}", patch)
    return VisionConfig(
        hidden_size=width,
        intermediate_size=fields.size("intermediate_size", 3072),
        num_layers=stored + 1 + layer,
        num_heads=heads,
        image_size=side,
        patch_size=patch,
        activation=fields.get("hidden_act", str, tower.activation, choices=(tower.activation,)),
        norm_eps=fields.positive("layer_norm_eps", tower.norm_eps),
        patch_bias=tower.patch_bias,
        class_token=tower.class_token,
        pre_norm=tower.pre_norm,
        mean=tower.mean,
        std=tower.std,
    )


def rope_scaling(fields: Fields) -> tuple[float, float]:
    """(theta, linear factor) from rope_theta and rope_scaling, or from rope_parameters.

    transformers 5 writes rope_parameters.
    """
    theta = fields.positive("rope_theta", 10_000.0)
    found = fields.get("rope_parameters", dict, None) or fields.get("rope_scaling", dict, None)
    if found is None:
        return theta, 1.0
    scaling = Fields(found, f"{fields.where}: rope scaling")
    theta = scaling.positive("rope_theta", theta)
    kind = scaling.get("rope_type", str, None) or scaling.get("type", str, "default")
    if kind not in ("default", "linear"):
        raise scaling.refused("rope_type", "'default' or 'linear'", kind)
    return theta, scaling.positive("factor") if kind == "linear" else 1.0


@dataclass(frozen=True)
class DecoderClass:
    """What the class of a decoder fixes, and what its missing keys default to.

    num_key_value_heads: None for as many as there are heads. sliding_window: how many tokens a
    token looks back, None for all.
    """

    qkv_bias: bool
    eos_ids: tuple[int, ...]
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None
    max_position_embeddings: int
    vocab_size: int
    sliding_window: int | None = None


DECODERS = {
    # by model_type
    "qwen2": DecoderClass(
        qkv_bias=True,
        eos_ids=(),
        hidden_size=4096,
        intermediate_size=22016,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=32768,
        vocab_size=151936,
    ),
    "llama": DecoderClass(
        qkv_bias=False,
        eos_ids=(2,),
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=None,
        max_position_embeddings=2048,
        vocab_size=32000,
    ),
    "mistral": DecoderClass(
        qkv_bias=False,
        eos_ids=(2,),
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        vocab_size=32000,
        sliding_window=4096,
    ),
}


def text_config(fields: Fields, kind: str, tied: bool, eos: tuple[int, ...]) -> TextConfig:
    """A decoder of `kind`, a key of DECODERS."""
    missing = DECODERS[kind]
    fields.get("hidden_act", str, "silu", choices=("silu",))
    for key in ("use_sliding_window", "attention_bias", "mlp_bias"):
        fields.get(key, bool, False, choices=(False,))
    width = fields.size("hidden_size", missing.hidden_size)
    heads = fields.size("num_attention_heads", missing.num_attention_heads)
    kv_heads = heads  # null means as many as heads
    if fields.values.get("num_key_value_heads", ...) is not None:
        kv_heads = fields.size("num_key_value_heads", missing.num_key_value_heads or heads)
    fields.asked.add("num_key_value_heads")
    if width % heads:
        raise fields.refused("num_attention_heads", f"a divisor of hidden_size {width}", heads)
    if heads % kv_heads:
        raise fields.refused("num_key_value_heads", f"a divisor of the {heads} heads", kv_heads)
    head = width // heads if fields.values.get("head_dim") is None else fields.size("head_dim")
    if head % 2:
        raise fields.refused("head_dim", "an even number", head)
    theta, factor = rope_scaling(fields)
    context = fields.size("max_position_embeddings", missing.max_position_embeddings)
    if missing.sliding_window is not None:
        check_window(fields, missing.sliding_window, context)
    return TextConfig(
        vocab_size=fields.size("vocab_size", missing.vocab_size),
        hidden_size=width,
        intermediate_size=fields.size("intermediate_size", missing.intermediate_size),
        num_layers=fields.size("num_hidden_layers", missing.num_hidden_layers),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head,
        norm_eps=fields.positive("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_factor=factor,
        context=int(min(context * factor, 2**31 - 1)),
        tied=tied,
        qkv_bias=missing.qkv_bias,
        eos_ids=eos or missing.eos_ids,
    )


def chat_of(kind: str, text: TextConfig) -> str:
    """How a decoder of `kind` was taught to chat.

    Files do not say it. Vicuna, Yi and LLaMA-3 are all LLaMA to them, told apart by their
    vocabularies: 32,000, 64,000 and 128,256 words, and a few more for padding.
    """
    if kind != "llama":
        return {"qwen2": "qwen", "mistral": "mistral"}[kind]
    if text.vocab_size >= 128_000:
        return "llama3"
    return "yi" if text.vocab_size >= 64_000 else "vicuna"


def check_window(fields: Fields, missing: int, context: int) -> None:
    """CheckpointError where a token would not look back at the whole context."""
    key = "sliding_window"
    fields.asked.add(key)
    if fields.values.get(key, missing) is not None and fields.size(key, missing) < context:
        expected = f"null, or at least the context of {context}"
        hint = f"A missing key means {missing}."
        raise fields.refused(key, expected, fields.values.get(key, missing), hint)


def eos_ids(values: dict[str, object]) -> tuple[int, ...]:
    """The ids that end an answer: eos_token_id may be one id, a list, or missing."""
    found = values.get("eos_token_id")
    given = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(token) is int for token in given):
        raise CheckpointError("not supported", "eos_token_id", "token ids", shown(given))
    return tuple(given)


def grids(fields: Fields, key: str, tile: int, height_first: bool) -> tuple[tuple[int, int], ...]:
    """image_grid_pinpoints as (rows, columns).

    They are a list of sizes in pixels, or a range such as "(1x1),...,(6x6)".
    """
    if isinstance(fields.values.get(key), str):
        value = fields.get(key, str)
        ends = re.findall(r"\((\d{1,4})x(\d{1,4})\)", value)
        if len(ends) < 2:
            raise fields.refused(key, "a range such as '(1x1),...,(6x6)'", value)
        (first_a, first_b), (last_a, last_b) = map(int, ends[0]), map(int, ends[-1])
        check_tiles(fields, key, last_a * last_b)
        return tuple((b, a) for a in range(first_a, last_a + 1) for b in range(first_b, last_b + 1))
    pairs = fields.get(key, list, [])
    check_tiles(fields, key, len(pairs))
    for pair in pairs:
        if not (
            isinstance(pair, list)
            and len(pair) == 2
            and all(type(x) is int and x > 0 for x in pair)
        ):
            raise fields.refused(key, "pairs of positive numbers", pair)
        if pair[0] % tile or pair[1] % tile:
            raise fields.refused(key, f"multiples of the tile's side {tile}", pair)
        check_tiles(fields, key, pair[0] * pair[1] // tile**2)
    counts = [(a // tile, b // tile) for a, b in pairs]
    return tuple(counts if height_first else [(b, a) for a, b in counts])


def check_tiles(fields: Fields, key: str, tiles: int) -> None:
    """CheckpointError where a file has too many tiles, or none."""
    if not 1 <= tiles <= MOST_TILES:
        raise fields.refused(key, f"1 to {MOST_TILES} grids of as many tiles at most", tiles)


ANYRES = re.compile(r"anyres(?:_max_([1-9]\d{0,2}))?")


def anyres_max(
    fields: Fields, key: str, default: str | EllipsisType = ..., choices: tuple[str, ...] = ()
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
