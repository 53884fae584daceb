"""Whole decoders and the vision tower with random weights: a decode step, a prefill, and frames.

Speed does not need trained weights. Decoding is the product's own (llava_min/step.py): on CUDA one
graph over a static cache, and the choice of the token. transformers runs in the same process with
its static cache, compiled. Shapes are Qwen2-7B and Qwen2-0.5B, in bfloat16 and as `--int4` makes
them (the embedding stays bfloat16, the head has 8 bits), with a cache of bfloat16 and of int8.
Read next: plots.py.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from llava_min.cache import Cache
from llava_min.config import LlavaConfig, TextConfig, VisionConfig
from llava_min.decoder import Decoder
from llava_min.engine.step import decoding
from llava_min.families import layouts
from llava_min.model import Network
from llava_min.options import Sampling
from llava_min.sampling import next_id
from llava_min.segments import CHUNK
from llava_min.vision import VisionTower
from llava_min.weights import load as weights
from llava_min.weights import packed, quantize

from . import checkpoints, measure

COMMON = dict(
    vocab_size=152_064,
    norm_eps=1e-6,
    rope_theta=1e6,
    rope_factor=1.0,
    context=262_144,
    qkv_bias=True,
    eos_ids=(),
)
MODELS = {
    "7B": TextConfig(
        hidden_size=3584,
        intermediate_size=18944,
        num_layers=28,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        tied=False,
        **COMMON,
    ),
    "0.5B": TextConfig(
        hidden_size=896,
        intermediate_size=4864,
        num_layers=24,
        num_heads=14,
        num_kv_heads=2,
        head_dim=64,
        tied=True,
        **COMMON,
    ),
}
TOY = TextConfig(
    hidden_size=128,
    intermediate_size=256,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    tied=False,
    **COMMON | dict(vocab_size=64),
)
SIGLIP = VisionConfig(
    hidden_size=1152,
    intermediate_size=4304,
    num_layers=26,
    num_heads=16,
    image_size=384,
    patch_size=14,
    activation="gelu_pytorch_tanh",
    norm_eps=1e-6,
)
TOY_TOWER = VisionConfig(
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=2,
    image_size=28,
    patch_size=14,
    activation="gelu_pytorch_tanh",
    norm_eps=1e-6,
)


def settings_of(text: TextConfig, vision: VisionConfig = TOY_TOWER) -> LlavaConfig:
    """LLaVA-OneVision with a decoder and a tower of these shapes."""
    found = layouts.from_values(checkpoints.config_of("toy"))
    return replace(found, text=text, vision=vision)


def filled(module: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """A module from `meta`, with small random weights; codes are any bytes, buffers zero."""
    module = module.to(dtype).to_empty(device=device)
    for name, parameter in module.named_parameters():
        if parameter.dtype == torch.uint8:
            parameter.data.random_(0, 256)
        elif name.endswith("scale"):  # codes of four bits have a deviation of 4.6
            parameter.data.fill_(0.02 / 4.6)
        else:
            parameter.data.normal_(std=0.02)
    for buffer in module.buffers():
        buffer.zero_()
    return module.eval().requires_grad_(False)


def model_of(config: LlavaConfig, bits: int | None, device: str, dtype: torch.dtype) -> Network:
    """A model of random weights as load() makes it: in `dtype`, or its decoder in 4 or 8 bits."""
    if bits is not None:
        config = replace(config, quantization=quantize.on_load(config, bits))
    model = filled(weights.on_meta(config), device, dtype)
    packed.ready(model)
    return model


def decoder_of(config: TextConfig, quantised: bool, device: str, dtype: torch.dtype) -> Decoder:
    """A decoder of random weights, in int4 if `quantised`."""
    return model_of(settings_of(config), 4 if quantised else None, device, dtype).decoder


def network_of(decoder: Decoder) -> Network:
    """A model around a decoder; its tower has no memory."""
    network = weights.on_meta(settings_of(decoder.config))
    network.decoder = decoder
    return network


def timed(call: Callable[[], object], calls: int = 10, rounds: int = 7) -> list[float]:
    """Milliseconds of one call, sorted, from `rounds` samples of `calls` calls."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        times.append(1000 * (time.perf_counter() - start) / calls)
    return sorted(times)


def row(
    section: str,
    shape: str,
    size: float,
    name: str,
    times: list[float],
    moved: float,
    flops: float,
    limits: dict[str, float],
) -> measure.Row:
    p20, p50, p80 = (times[int(part * (len(times) - 1))] for part in (0.2, 0.5, 0.8))
    floor = 1e3 * max(moved / limits["copy"], flops / limits["matmul"])
    return measure.Row(
        section,
        shape,
        size,
        name,
        name.startswith("llava_min"),
        p20,
        p50,
        p80,
        moved,
        flops,
        moved / p50 / 1e6,
        flops / p50 / 1e9,
        floor / p50,
        float("nan"),
    )


def size_of(decoder: nn.Module) -> float:
    """Bytes that one decode step reads: everything but an embedding that is not also the head."""
    tensors = [t for m in decoder.modules() for t in (*m._parameters.values(), *vars(m).values())
               if isinstance(t, torch.Tensor)]  # fmt: skip
    total = sum(t.numel() * t.element_size() for t in tensors)
    embedding = decoder.embedding.weight
    return total - (0 if decoder.head is None else embedding.numel() * embedding.element_size())


def cost(config: TextConfig, new: int, seen: int) -> tuple[float, float]:
    """Bytes of the cache that are read, and FLOPs of all linears and scores, for `new` tokens
    behind `seen`.
    """
    width, heads, head_dim = config.hidden_size, config.num_heads, config.head_dim
    linears = (
        width * head_dim * (2 * heads + 2 * config.num_kv_heads)
        + 3 * width * config.intermediate_size
    )
    scores = new * seen + new * (new + 1) / 2
    cache = 2 * 2 * config.num_kv_heads * head_dim * (seen + new)
    flops = 2 * linears * new + 4 * head_dim * heads * scores
    return config.num_layers * cache, config.num_layers * flops + 2 * width * config.vocab_size


def full_cache(
    config: TextConfig, seen: int, more: int, dtype, kv_dtype=None, device: str = "cpu"
) -> Cache:
    """A cache of one row that has seen so many tokens, with room for `more`: any numbers, of 8 bits
    1, scales below 1.
    """
    cache = Cache.empty(config, 1, seen + more, dtype, kv_dtype, device)
    for tensor in cache.stored(lambda tensor: tensor):
        if tensor is not None and tensor.element_size() == 1:
            tensor.fill_(1)
        elif tensor is not None:
            tensor.uniform_()
    cache.advance(seen)
    return cache


def token_after_token(network: Network, cache: Cache) -> Callable[[], None]:
    """A function that makes one more greedy token, as the product's loop does."""
    known = network.config.text.vocab_size
    make, ids = decoding(network, cache, known), [7]

    def step() -> None:
        (logits,), likely = make(ids)
        ids[0] = next_id(logits, [], 0, Sampling(), known, likely and likely[0])

    return step


def decode_row(
    decoder, name: str, model: str, seen: int, limits, device: str, dtype, kv_dtype=None
) -> measure.Row:
    """One greedy token after another, as the product makes them, the choice included."""
    config = decoder.config
    cache = full_cache(config, seen, 128, dtype, kv_dtype, device)
    step = token_after_token(network_of(decoder), cache)
    step()
    moved, flops = cost(config, 1, seen)
    if kv_dtype is not None:
        moved *= (config.head_dim + 4) / (2 * config.head_dim)
    return row(
        f"decode {model}",
        f"{model} {name}, {seen} seen",
        seen,
        f"llava_min {name}",
        timed(step),
        moved + size_of(decoder),
        flops,
        limits,
    )


def prefill_row(
    decoder, name: str, model: str, tokens: int, limits, device: str, dtype
) -> measure.Row:
    config = decoder.config
    cache = Cache.empty(config, 1, tokens, dtype, device=device)
    rows = torch.randn(1, min(CHUNK, tokens), config.hidden_size, dtype=dtype, device=device)

    def prefill():
        for start in range(0, tokens, CHUNK):
            hidden = decoder(rows[:, : tokens - start], cache)
            cache.advance(hidden.shape[1])
        decoder.logits(hidden[:, -1:])
        cache.rewind(tokens)

    prefill()
    _, flops = cost(config, tokens, 0)
    return row(f"prefill {model}", f"{model} {name}, {tokens} tokens", tokens, f"llava_min {name}",
               timed(prefill, 1, 3), size_of(decoder), flops, limits)  # fmt: skip


def transformers_of(config: TextConfig, device: str, dtype: torch.dtype):
    """The peer, Qwen2ForCausalLM of random weights, with sdpa."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    theirs = Qwen2Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_heads,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=config.tied,
    )
    with torch.device("meta"):
        peer = Qwen2ForCausalLM(theirs)
    return filled(peer, device, dtype)


def transformers_step(peer, call: Callable, seen: int) -> Callable[[], object]:
    """One decode step of the peer over a static cache that has seen so many tokens, by `call`: its
    forward, as it is or compiled.
    """
    from transformers import StaticCache

    cache = StaticCache(config=peer.config, max_cache_len=seen + 64)
    prompt = torch.zeros(1, min(seen, CHUNK), dtype=torch.long, device=peer.device)
    for start in range(0, seen, CHUNK):  # fill it, so that its own length is right
        peer(prompt[:, : seen - start], past_key_values=cache, use_cache=True, logits_to_keep=1)
    return lambda: call(prompt[:, :1], past_key_values=cache, use_cache=True)


def transformers_rows(
    config: TextConfig, model: str, lengths, limits, device: str, dtype
) -> list[measure.Row]:
    """The peer with its step compiled (on a CPU as it is)."""
    peer, found = transformers_of(config, device, dtype), []
    call = peer.forward
    if torch.cuda.is_available():
        call = torch.compile(peer.forward, mode="reduce-overhead")
    for seen in lengths:
        step = transformers_step(peer, call, seen)
        for _ in range(3):
            step()
        moved, flops = cost(config, 1, seen)
        found.append(
            row(
                f"decode {model}",
                f"{model} transformers, {seen} seen",
                seen,
                "transformers",
                timed(step, 5, 7),
                moved + 2 * sum(p.numel() for p in peer.parameters()),
                flops,
                limits,
            )
        )
    return found


def vision_rows(limits, device: str, dtype, toy: bool) -> list[measure.Row]:
    config, found = TOY_TOWER if toy else SIGLIP, []
    with torch.device("meta"):
        tower = VisionTower(config)
    tower = filled(tower, device, dtype)
    weights = sum(p.numel() for p in tower.parameters())
    for frames in (1,) if toy else (1, 64, 256):
        tiles = torch.randint(
            0,
            256,
            (min(frames, 32), config.image_size, config.image_size, 3),
            dtype=torch.uint8,
            device=device,
        )

        def encode(frames=frames, tiles=tiles):
            for _ in range(0, frames, 32):
                tower(tiles)

        encode()
        scores = 4 * config.hidden_size * config.num_positions**2 * config.num_layers
        flops = frames * (2 * weights * config.num_positions + scores)
        found.append(
            row(
                "vision tower",
                f"SigLIP, {frames} frames",
                frames,
                "llava_min bf16",
                timed(encode, 2, 5),
                2 * weights,
                flops,
                limits,
            )
        )
    return found


@torch.inference_mode()
def run(models: list[str], dry: bool) -> tuple[list[measure.Row], dict[str, float]]:
    """Everything for each model, printing as it goes; a dry run takes toy sizes on a CPU."""
    device, dtype = ("cpu", torch.float32) if dry else ("cuda", torch.bfloat16)
    limits, rows = measure.ceilings(), []
    lengths, prompts = ((16,), (24,)) if dry else ((1024, 32768, 131072), (8192, 32768, 131072))
    for model in models:
        config = TOY if dry else MODELS[model]
        for name, quantised in (("bf16", False), ("int4", True)):
            decoder = decoder_of(config, quantised, device, dtype)
            rows += [
                decode_row(decoder, name, model, seen, limits, device, dtype) for seen in lengths
            ]
            rows += [
                decode_row(
                    decoder, f"{name} int8 cache", model, seen, limits, device, dtype, torch.int8
                )
                for seen in lengths
            ]
            rows += [
                prefill_row(decoder, name, model, tokens, limits, device, dtype)
                for tokens in prompts
            ]
            del decoder
            print(
                measure.table(rows[-2 * len(lengths) - len(prompts) :]), file=sys.stdout, flush=True
            )
        rows += transformers_rows(config, model, lengths, limits, device, dtype)
        print(measure.table(rows[-len(lengths) :]), flush=True)
    rows += vision_rows(limits, device, dtype, dry)
    for one in rows:
        peers = [
            other.p50_ms
            for other in rows
            if not other.ours and (other.section, other.size) == (one.section, one.size)
        ]
        one.of_best_peer = min(peers, default=float("nan")) / one.p50_ms
    print(measure.table(rows[-3:]), flush=True)
    return rows, limits
