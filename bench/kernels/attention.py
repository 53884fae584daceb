"""Attention over many queries beside its peers: whole prompts, a chunk of one, tiles of a tower.

in:  a Bench      out: Cases

Peers: torch's scaled_dot_product_attention with each backend forced, and FlexAttention. Attention
costs 4 E FLOPs per score, half of the scores where causal.
Read case.py first. Read next: decode_attention.py.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from llava_min.kernels import attention

from .. import shapes
from .case import HEADS, Bench, Candidate, Case

BACKENDS = {
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}
TOWERS = ("SigLIP", "CLIP")


def forced(backend: SDPBackend, *tensors: torch.Tensor, **options) -> Candidate:
    """scaled_dot_product_attention [B H T E] on one backend, or a RuntimeError where it refuses."""

    def call(_: int) -> torch.Tensor:
        with sdpa_kernel([backend]):
            return F.scaled_dot_product_attention(*tensors, **options)

    return call


def flex(query, key, value, causal: bool) -> Candidate:
    """FlexAttention with a compiled block mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    new, total, mask = query.shape[2], key.shape[2], None
    if causal:
        sees = lambda b, h, q, k: k <= q + (total - new)
        mask = create_block_mask(sees, None, None, new, total, device=query.device)
    compiled = torch.compile(flex_attention, dynamic=False)
    shared = query.shape[1] != key.shape[1]
    return lambda _: compiled(query, key, value, block_mask=mask, enable_gqa=shared)


def peers_of(bench: Bench, query, key, value, causal: bool) -> dict[str, Candidate]:
    """Peers at their best: keys already repeated for the backends that do not share heads."""
    groups = query.shape[1] // key.shape[1]
    wide = [x.repeat_interleave(groups, dim=1) for x in (key, value)]
    peers = {
        name: forced(backend, query, *wide, is_causal=causal) for name, backend in BACKENDS.items()
    }
    if bench.compiled:
        peers["FlexAttention"] = flex(query, key, value, causal)
    return peers


def prefill_case(bench: Bench, family: str, new: int) -> Case:
    """A whole prompt at once."""
    (heads, kv_heads, head_dim), new = HEADS[family], 24 if bench.small else new
    query = bench.normal(1, new, heads, head_dim)
    layer = bench.prompt_layer(kv_heads, new, head_dim)
    key, value = layer.keys_and_values(new, bench.dtype)
    ours = {"llava_min": lambda _: attention.prefill(query, layer)}
    peers = peers_of(bench, query.transpose(1, 2).contiguous(), key, value, True)
    moved = 2 * (2 * heads + 2 * kv_heads) * new * head_dim
    shape = f"{family} {heads}/{kv_heads}x{head_dim}, {new} tokens"
    costs = {"": (moved, 4 * head_dim * heads * new * (new + 1) / 2)}
    return Case(f"prefill {family}", shape, new, ours | peers, costs)


def chunk_case(bench: Bench, family: str, new: int, seen: int) -> Case:
    """A chunk of a prompt after what the cache holds already."""
    heads, kv_heads, head_dim = HEADS[family]
    new, seen = (24, 16) if bench.small else (new, seen)
    query = bench.normal(1, new, heads, head_dim)
    layer = bench.prompt_layer(kv_heads, new, head_dim, seen)
    key, value = layer.keys_and_values(new, bench.dtype)
    candidates = {
        "llava_min": lambda _: attention.prefill(query, layer),
        "two sdpa calls": lambda _: attention.attention_merged(query, key, value).transpose(1, 2),
    }
    moved = 2 * head_dim * (2 * heads * new + 2 * kv_heads * (seen + new))
    flops = 4 * head_dim * heads * (new * seen + new * (new + 1) / 2)
    shape = f"{family}, {new} tokens after {seen}"
    return Case(f"chunk {family}", shape, seen + new, candidates, {"": (moved, flops)})


def prefill_cases(bench: Bench) -> Iterator[Case]:
    for family in HEADS:
        for new in (1024, 4096, 8192, 16384, 32768) if not bench.small else (24,):
            yield prefill_case(bench, family, new)
    for seen in (6144, 30720) if not bench.small else (16,):
        yield chunk_case(bench, "7B", 2048, seen)


def vision_case(bench: Bench, tower: str, frames: int) -> Case:
    """The attention of a tower over some frames."""
    config = shapes.TOWERS[tower]
    heads, head_dim = config.num_heads, config.hidden_size // config.num_heads
    frames, patches = (1, 20) if bench.small else (frames, config.num_positions)
    fused = bench.normal(frames, patches, 3, heads, head_dim)
    ours = {"llava_min": lambda _: attention.bidirectional(*fused.unbind(2))}
    peers = peers_of(bench, *(x.transpose(1, 2).contiguous() for x in fused.unbind(2)), False)
    moved = 2 * 4 * heads * frames * patches * head_dim
    flops = 4 * head_dim * heads * frames * patches**2
    shape = f"{tower} {frames} frames of {patches}"
    return Case(f"vision {tower}", shape, frames, ours | peers, {"": (moved, flops)})


def vision_cases(bench: Bench) -> Iterator[Case]:
    for tower in TOWERS:
        for frames in (1, 8, 64) if not bench.small else (1,):
            yield vision_case(bench, tower, frames)
