"""Whole decoders and the vision tower with random weights: a decode step, a prefill, and frames.

in:  names of shapes
out: measure.Rows: ours in bfloat16 and as `--int4` makes it, with a cache of 16 and 8 bits; a peer

What runs is the product itself: on CUDA one graph over a static cache, and the choice of the token.
transformers runs in the same process with its static cache, compiled.
Read models.py first. Read next: plots.py.
"""

import time
from collections.abc import Callable

import torch

from llava_min.cache import Cache
from llava_min.config import TextConfig
from llava_min.segments import CHUNK, Plan, Text
from llava_min.vision import VisionTower

from . import measure, models, shapes


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


def decode_row(
    decoder, name: str, model: str, seen: int, limits, device: str, dtype, kv_dtype=None
) -> measure.Row:
    """One greedy token after another, as the product makes them, the choice included."""
    config = decoder.config
    cache = models.full_cache(config, [seen], 128, dtype, kv_dtype, device)
    step = models.token_after_token(models.network_of(decoder), cache)
    step()
    moved, flops = models.cost(config, 1, seen)
    if kv_dtype is not None:
        moved *= (config.head_dim + 4) / (2 * config.head_dim)
    return measure.row_of(
        f"decode {model}",
        f"{model} {name}, {seen} seen",
        seen,
        f"llava_min {name}",
        timed(step),
        moved + models.size_of(decoder),
        flops,
        limits,
    )


def prefill_row(
    decoder, name: str, model: str, tokens: int, limits, device: str, dtype
) -> measure.Row:
    """A prompt of text in the product's chunks, up to the logits of its last token."""
    config, network = decoder.config, models.network_of(decoder)
    cache = Cache.empty(config, 1, tokens, dtype, device=device)
    plan = Plan((Text((7,) * tokens),), config.context)

    def prefill() -> None:
        network.prefill(plan, [], cache)
        cache.rewind(tokens)

    prefill()
    _, flops = models.cost(config, tokens, 0)
    return measure.row_of(
        f"prefill {model}",
        f"{model} {name}, {tokens} tokens",
        tokens,
        f"llava_min {name}",
        timed(prefill, 1, 3),
        models.size_of(decoder),
        flops,
        limits,
    )


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
    return models.filled(peer, device, dtype)


def transformers_step(peer, call: Callable, seen: int) -> Callable[[], object]:
    """One decode step of the peer over a static cache that has seen so many tokens.

    call: its forward, as it is or compiled.
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
        moved, flops = models.cost(config, 1, seen)
        found.append(
            measure.row_of(
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


def vision_row(tower: VisionTower, frames: int, limits, device: str) -> measure.Row:
    """The tower over some frames, 32 at a time."""
    config = tower.config
    size = min(frames, 32), config.image_size, config.image_size, 3
    tiles = torch.randint(0, 256, size, dtype=torch.uint8, device=device)

    def encode() -> None:
        for _ in range(0, frames, 32):
            tower(tiles)

    encode()
    weights = sum(parameter.numel() for parameter in tower.parameters())
    scores = 4 * config.hidden_size * config.num_positions**2 * config.num_layers
    flops = frames * (2 * weights * config.num_positions + scores)
    return measure.row_of(
        "vision tower",
        f"SigLIP, {frames} frames",
        frames,
        "llava_min bf16",
        timed(encode, 2, 5),
        2 * weights,
        flops,
        limits,
    )


def model_rows(model: str, limits, device: str, dtype, dry: bool) -> list[measure.Row]:
    """Decode steps and prefills of one shape, ours and the peer's, printing as it goes."""
    config = shapes.TOY if dry else shapes.TEXTS[model]
    lengths, prompts = ((16,), (24,)) if dry else ((1024, 32768, 131072), (8192, 32768, 131072))
    rows = []
    for name in ("bf16", "int4"):
        decoder = models.decoder_of(config, name == "int4", device, dtype)
        about = limits, device, dtype
        found = [decode_row(decoder, name, model, seen, *about) for seen in lengths]
        eight = f"{name} int8 cache"
        found += [decode_row(decoder, eight, model, seen, *about, torch.int8) for seen in lengths]
        found += [prefill_row(decoder, name, model, tokens, *about) for tokens in prompts]
        del decoder
        print(measure.table(found), flush=True)
        rows += found
    found = transformers_rows(config, model, lengths, limits, device, dtype)
    print(measure.table(found), flush=True)
    return rows + found


@torch.inference_mode()
def run(names: list[str], dry: bool) -> tuple[list[measure.Row], dict[str, float]]:
    """Everything for each model, printing as it goes; a dry run takes toy sizes on a CPU."""
    device, dtype = ("cpu", torch.float32) if dry else ("cuda", torch.bfloat16)
    limits, rows = measure.ceilings(), []
    for model in names:
        rows += model_rows(model, limits, device, dtype, dry)
    with torch.device("meta"):
        tower = VisionTower(shapes.TOY_TOWER if dry else shapes.TOWERS["SigLIP"])
    tower = models.filled(tower, device, dtype)
    found = [
        vision_row(tower, frames, limits, device) for frames in ((1,) if dry else (1, 64, 256))
    ]
    print(measure.table(found), flush=True)
    rows += found
    for one in rows:
        one.of_best_peer = best_peer(one, rows) / one.p50_ms
    return rows, limits


def best_peer(one: measure.Row, rows: list[measure.Row]) -> float:
    """Milliseconds of the fastest peer at the same shape, NaN where there is none."""
    peers = [
        other.p50_ms
        for other in rows
        if not other.ours and (other.section, other.size) == (one.section, one.size)
    ]
    return min(peers, default=float("nan"))
