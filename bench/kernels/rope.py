"""Rotating queries and keys and filling the cache, beside the formula, eager and compiled.

in:  a Bench      out: Cases

Read case.py first.
"""

from collections.abc import Iterator

import torch

from llava_min.kernels import rope

from .case import HEADS, Bench, Case


def rope_case(bench: Bench, new: int) -> Case:
    """Rotating queries and keys, and filling the cache."""
    (heads, kv_heads, head_dim), new = HEADS["7B"], 3 if bench.small else new
    layer = bench.prompt_layer(kv_heads, new, head_dim)
    qkv = bench.normal(1, new, (heads + 2 * kv_heads) * head_dim)
    angles = rope.angles(torch.arange(new, device=bench.device)[None], 1e6, head_dim)

    def formula() -> torch.Tensor:
        query, key, value = rope.split(qkv, heads, kv_heads)
        layer.keys[:, :, :new] = rope.rotate(key, angles).transpose(1, 2)
        layer.values[:, :, :new] = value.transpose(1, 2)
        return rope.rotate(query, angles)

    candidates = {
        "llava_min": lambda _: rope.write(qkv, angles, layer),
        "eager": lambda _: formula(),
    }
    if bench.compiled:
        compiled = torch.compile(formula, dynamic=False)
        candidates["compiled"] = lambda _: compiled()
    moved = 2 * 2 * qkv.numel() + 4 * angles.numel()
    return Case("rope.write", f"7B {new} tokens", new, candidates, {"": (moved, 0.0)})


def rope_cases(bench: Bench) -> Iterator[Case]:
    for new in (1, 2048, 8192, 32768) if not bench.small else (3,):
        yield rope_case(bench, new)
