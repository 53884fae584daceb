"""Shapes of the published checkpoints' decoders and towers, and of toys for dry runs.

in:  nothing
out: TextConfigs and VisionConfigs by name

Speed, memory and machine code depend on these sizes alone, so weights may be random.
Read next: models.py, checkpoints.py.
Agrees with: the config.json of each checkpoint, as tests/test_real_sizes.py has them.
"""

from llava_min.config import TextConfig, VisionConfig


def text(
    vocabulary: int,
    width: int,
    inner: int,
    layers: int,
    heads: int,
    kv_heads: int,
    tied: bool = False,
) -> TextConfig:
    """A Qwen2 decoder; `inner` is the width of its MLP."""
    return TextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=width // heads,
        norm_eps=1e-6,
        rope_theta=1e6,
        rope_factor=1.0,
        context=32_768,
        tied=tied,
        qkv_bias=True,
        eos_ids=(),
    )


def siglip(width: int, inner: int, layers: int, heads: int, tile: int) -> VisionConfig:
    """A SigLIP tower for tiles of `tile` pixels a side."""
    return VisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        image_size=tile,
        patch_size=14,
        activation="gelu_pytorch_tanh",
        norm_eps=1e-6,
    )


CLIP = VisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_layers=23,
    num_heads=16,
    image_size=336,
    patch_size=14,
    activation="quick_gelu",
    norm_eps=1e-5,
    patch_bias=False,
    class_token=True,
    pre_norm=True,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
TEXTS = {
    # vocabulary, width, width of the MLP, layers, heads, key/value heads
    "7B": text(152_064, 3584, 18_944, 28, 28, 4),
    "0.5B": text(152_000, 896, 4864, 24, 14, 2, tied=True),
    "72B": text(152_064, 8192, 29_568, 80, 64, 8),
    "Vicuna 7B": text(32_064, 4096, 11_008, 32, 32, 32),  # Qwen1.5-7B's, which has the biases
    "Qwen1.5 0.5B": text(152_000, 1024, 2816, 24, 16, 16),
    "embedded": text(512, 256, 512, 4, 4, 2, tied=True),
}
TOWERS = {
    # width, width of the MLP, layers, heads, pixels along a tile's side
    "SigLIP": siglip(1152, 4304, 26, 16, 384),
    "CLIP": CLIP,
    "embedded": siglip(128, 512, 4, 2, 84),
}
TOY = text(64, 128, 256, 2, 4, 2)
TOY_TOWER = siglip(64, 128, 2, 2, 28)


def heads_of(config: TextConfig) -> tuple[int, int, int]:
    """H query heads, K key/value heads, E head dimension."""
    return config.num_heads, config.num_kv_heads, config.head_dim


def linears_of(config: TextConfig) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of the linear layers of a block, and of the head."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, both = config.num_heads * config.head_dim, 2 * config.num_kv_heads * config.head_dim
    return {
        "qkv": (queries + both, width),
        "output": (width, queries),
        "gate_up": (2 * inner, width),
        "down": (width, inner),
        "head": (config.vocab_size, width),
    }
