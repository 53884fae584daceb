"""Attention of one new token over a full cache, in 16 bits and in 8, beside its peers.

in:  a Bench      out: Cases

Read attention.py first. Read next: int4.py.
"""

from collections.abc import Iterator
from functools import partial

import torch

from llava_min.cache import Layer
from llava_min.kernels import decode_attention

from .attention import BACKENDS, flex, forced
from .case import HEADS, KINDS, Bench, Candidate, Case, rotating


def decode_case(bench: Bench, family: str, seen: int) -> Case:
    """One new token over a full cache, in 16 bits and in 8."""
    (heads, kv_heads, head_dim), seen = HEADS[family], 40 if bench.small else seen
    moved = 2 * 2 * kv_heads * (seen + 1) * head_dim
    flops, query = 4 * head_dim * heads * (seen + 1), bench.normal(1, 1, heads, head_dim)
    costs, candidates, copies = {"": (moved, flops)}, {}, bench.copies(moved)
    for kind in ("", *kinds_of(bench)):
        number = copies if not kind else 2 * copies  # half the bytes each
        layers = [bench.layer(kv_heads, seen, head_dim, kind) for _ in range(number)]
        calls = [partial(decoded, query, layer) for layer in layers]
        candidates[f"llava_min {kind}".strip()] = rotating(calls)
        costs[f"llava_min {kind}"] = (moved / 2 * (1 + 4 / head_dim), flops)
        if not kind:
            candidates |= decode_peers(bench, query.transpose(1, 2), layers)
    shape = f"{family} {heads}/{kv_heads}x{head_dim}, {seen} seen"
    return Case(f"decode {family}", shape, seen, candidates, costs, 2 * copies)


def decoded(query, layer: Layer, _: int) -> torch.Tensor:
    return decode_attention.decode_attention(query, layer)


def kinds_of(bench: Bench) -> list[str]:
    """The 8-bit kinds of a cache that the device knows: fp8 from compute capability 8.9 on."""
    old = bench.device == "cuda" and torch.cuda.get_device_capability() < (8, 9)
    return ["int8"] if old else list(KINDS)


def decode_peers(bench: Bench, query, layers: list[Layer]) -> dict[str, Candidate]:
    """One query over each layer in turn; every backend is offered the shared heads as they are."""
    peers = {}
    for name, backend in BACKENDS.items():
        calls = [forced(backend, query, x.keys, x.values, enable_gqa=True) for x in layers]
        peers[name] = rotating(calls)
    if bench.compiled:
        calls = [flex(query, x.keys, x.values, False) for x in layers]
        peers["FlexAttention"] = rotating(calls)
    return peers


def decode_cases(bench: Bench) -> Iterator[Case]:
    for family in HEADS:
        for seen in (1024, 8192, 32768, 131072) if not bench.small else (40,):
            yield decode_case(bench, family, seen)
