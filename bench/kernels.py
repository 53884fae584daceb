"""Each kernel at the real shapes of the five families, beside its peers in the same process.

Peers: torch's scaled_dot_product_attention with each backend forced, FlexAttention, torch's own
int4 product, the bfloat16 linear, and the eager and compiled formulas. Bytes and FLOPs are counted
here, by formula, so that they can be checked: attention 4 E FLOPs per score, half of the scores
where causal.
Read next: plots.py.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from llava_min.cache import Layer
from llava_min.kernels import activation, attention, choose, decode_attention, int4, norm, rope

from . import measure

BACKENDS = {"sdpa cudnn": SDPBackend.CUDNN_ATTENTION, "sdpa flash": SDPBackend.FLASH_ATTENTION,
            "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION}  # fmt: skip
HEADS = {"7B": (28, 4, 128), "0.5B": (14, 2, 64), "Vicuna 7B": (32, 32, 128)}  # H, K, E
LINEARS = {
    "7B qkv": (4608, 3584),
    "7B output": (3584, 3584),
    "7B gate_up": (37888, 3584),
    "7B down": (3584, 18944),
    "7B head": (152064, 3584),
    "0.5B gate_up": (9728, 896),
}  # N, K


@dataclass
class Bench:
    """Where the tensors live. `small` shrinks every shape so that a dry run ends; nothing of it is
    a result.
    """

    device: str
    dtype: torch.dtype
    small: bool

    def sizes(self, *sizes: int) -> tuple[int, ...]:
        return sizes[:1] if not self.small else (24,)

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=self.dtype, device=self.device)

    def copies(self, size: int) -> int:
        """How many copies of `size` bytes of inputs do not fit into the L2 cache together."""
        return 2 if self.small else max(2, min(32, round(measure.ROTATE / max(size, 1)) + 1))

    def layer(self, kv_heads: int, seen: int, head_dim: int, bits: int = 16) -> Layer:
        """A cache layer that is full up to its last token, in 16 bits or in 8 with scales."""
        keys, values = self.normal(2, 1, kv_heads, seen + 1, head_dim)
        lengths = torch.tensor([seen], dtype=torch.int32, device=self.device)
        scales = None, None
        if bits == 8:
            (keys, values), scales = zip(rope.quantise(keys), rope.quantise(values))
        return Layer(keys, values, *scales, lengths, np.array([seen]))


@dataclass
class Case:
    """One shape: candidates by name, and what they must move and compute ("" for all that are not
    named).
    """

    section: str
    shape: str
    size: float
    candidates: dict[str, Callable[[int], object]]
    costs: dict[str, tuple[float, float]]


def forced(backend: SDPBackend, *tensors: torch.Tensor, **options) -> Callable[[int], torch.Tensor]:
    """scaled_dot_product_attention [B H T E] on one backend, or a RuntimeError where it refuses."""

    def call(_: int) -> torch.Tensor:
        with sdpa_kernel([backend]):
            return F.scaled_dot_product_attention(*tensors, **options)

    return call


def flex(query, key, value, causal: bool) -> Callable[[int], torch.Tensor]:
    """FlexAttention with a compiled block mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    new, total = query.shape[2], key.shape[2]
    mask = create_block_mask(lambda b, h, q, k: k <= q + (total - new), None, None, new, total,
                             device=query.device) if causal else None  # fmt: skip
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda _: compiled(
        query, key, value, block_mask=mask, enable_gqa=query.shape[1] != key.shape[1]
    )


def peers_of(bench: Bench, query, key, value, causal: bool) -> dict[str, Callable]:
    """Peers at their best: keys already repeated for the backends that do not share heads."""
    groups = query.shape[1] // key.shape[1]
    wide = [x.repeat_interleave(groups, dim=1) for x in (key, value)]
    peers = {
        name: forced(backend, query, *wide, is_causal=causal) for name, backend in BACKENDS.items()
    }
    if not bench.small:
        peers["FlexAttention"] = flex(query, key, value, causal)
    return peers


def prefill_cases(bench: Bench) -> Iterator[Case]:
    for family, (heads, kv_heads, head_dim) in HEADS.items():
        for new in (1024, 4096, 8192, 16384, 32768) if not bench.small else (24,):
            query = bench.normal(1, new, heads, head_dim)
            layer = bench.layer(kv_heads, new - 1, head_dim)
            layer.starts, layer.lengths = np.array([0]), torch.zeros_like(layer.lengths)
            ours = {"llava_min": lambda _, q=query, at=layer: attention.prefill(q, at)}
            key, value = layer.read(new, bench.dtype)
            peers = peers_of(bench, query.transpose(1, 2).contiguous(), key, value, True)
            moved = 2 * (2 * heads + 2 * kv_heads) * new * head_dim
            yield Case(
                f"prefill {family}",
                f"{family} {heads}/{kv_heads}x{head_dim}, {new} tokens",
                new,
                ours | peers,
                {"": (moved, 4 * head_dim * heads * new * (new + 1) / 2)},
            )


def vision_cases(bench: Bench) -> Iterator[Case]:
    for tower, patches, head_dim in (("SigLIP", 729, 72), ("CLIP", 577, 64)):
        for frames in (1, 8, 64) if not bench.small else (1,):
            patches = patches if not bench.small else 20
            fused = bench.normal(frames, patches, 3, 16, head_dim)
            query, key, value = fused.unbind(2)
            ours = {"llava_min": lambda _, x=fused: attention.bidirectional(*x.unbind(2))}
            peers = peers_of(
                bench, *(x.transpose(1, 2).contiguous() for x in (query, key, value)), False
            )
            costs = (
                2 * 4 * 16 * frames * patches * head_dim,
                4 * head_dim * 16 * frames * patches**2,
            )
            yield Case(
                f"vision {tower}",
                f"{tower} {frames} frames of {patches}",
                frames,
                ours | peers,
                {"": costs},
            )


def decode_cases(bench: Bench) -> Iterator[Case]:
    for family, (heads, kv_heads, head_dim) in HEADS.items():
        for seen in (1024, 8192, 32768, 131072) if not bench.small else (40,):
            moved = 2 * 2 * kv_heads * (seen + 1) * head_dim
            number = bench.copies(moved)
            layers = [bench.layer(kv_heads, seen, head_dim) for _ in range(number)]
            bytes8 = [bench.layer(kv_heads, seen, head_dim, bits=8) for _ in range(number)]
            query = bench.normal(1, 1, heads, head_dim)
            candidates = {
                "llava_min": lambda i, a=layers, q=query: decode_attention.decode_attention(
                    q, a[i % len(a)]
                ),
                "llava_min 8-bit": lambda i, a=bytes8, q=query: decode_attention.decode_attention(
                    q, a[i % len(a)]
                ),
            } | decode_peers(bench, query.transpose(1, 2), layers)
            flops = 4 * head_dim * heads * (seen + 1)
            costs = {"": (moved, flops), "llava_min 8-bit": (moved / 2 * (1 + 4 / head_dim), flops)}
            yield Case(
                f"decode {family}",
                f"{family} {heads}/{kv_heads}x{head_dim}, {seen} seen",
                seen,
                candidates,
                costs,
            )


def decode_peers(bench: Bench, query, layers: list[Layer]) -> dict[str, Callable]:
    """One query over each layer in turn; every backend is offered the shared heads as they are."""

    def rotating(calls: list[Callable]) -> Callable:
        return lambda number: calls[number % len(calls)](number)

    peers = {}
    for name, backend in BACKENDS.items():
        peers[name] = rotating(
            [forced(backend, query, layer.keys, layer.values, enable_gqa=True) for layer in layers]
        )
    if not bench.small:
        peers["FlexAttention"] = rotating(
            [flex(query, layer.keys, layer.values, False) for layer in layers]
        )
    return peers


def int4_cases(bench: Bench) -> Iterator[Case]:
    for name, (outputs, inputs) in LINEARS.items():
        if bench.small:
            outputs, inputs = 64, 256
        moved = outputs * inputs * (0.5 + 2 / 128)
        weights, peers = int4_weights(bench, outputs, inputs, bench.copies(moved))
        for count in (1, 4, 16, 64, 256, 4096) if not bench.small else (1, 40):
            rows = bench.normal(count, inputs)
            candidates = {
                "llava_min": lambda i, x=rows, w=weights: int4.linear(x, *w[i % len(w)][1:])
            }
            candidates["linear bf16"] = lambda i, x=rows, w=weights: F.linear(x, w[i % len(w)][0])
            if peers and count <= 256:
                candidates["_weight_int4pack_mm"] = lambda i, x=rows, w=peers: (
                    torch._weight_int4pack_mm(x, w[i % len(w)][0], 128, w[i % len(w)][1])
                )
            flops, ends = 2 * count * outputs * inputs, 2 * count * (outputs + inputs)
            costs = {"": (moved + ends, flops), "linear bf16": (2 * outputs * inputs + ends, flops)}
            yield Case(
                f"int4 {name}", f"{name} {outputs}x{inputs}, {count} rows", count, candidates, costs
            )


def int4_weights(bench: Bench, outputs: int, inputs: int, number: int):
    """`number` copies of (weight, words, scales), and of torch's own packing where there is a GPU
    for it.
    """
    weights, peers = [], []
    for _ in range(min(number, 8)):
        weight = bench.normal(outputs, inputs)
        q, scales, _ = int4.quantise(weight)
        weights.append((weight, int4.pack(q), scales.to(bench.dtype)))
        if bench.device == "cuda":
            halves = (q[:, ::2] << 4 | q[:, 1::2]).contiguous()  # the even input in the high nibble
            both = torch.stack([scales, torch.zeros_like(scales)], dim=-1).bfloat16()
            peers.append((torch._convert_weight_to_int4pack(halves, 8), both))
    return weights, peers


def pointwise_cases(bench: Bench) -> Iterator[Case]:
    for rows in (1, 2048, 8192, 32768) if not bench.small else (3,):
        yield pointwise(
            bench,
            "add_rms_norm",
            rows,
            3584,
            8,
            lambda x, y, w: norm.add_rms_norm(x, y, w, 1e-6),
            lambda x, y, w: (x + y, norm.rms_norm_reference(x + y, w, 1e-6)),
        )
        yield pointwise(
            bench,
            "layer_norm",
            rows,
            1152,
            4,
            lambda x, y, w: norm.layer_norm(x, w, w, 1e-6),
            lambda x, y, w: norm.layer_norm_reference(x, w, w, 1e-6),
        )
        yield pointwise(
            bench,
            "gelu",
            rows,
            4304,
            4,
            lambda x, y, w: activation.gelu(x, "gelu_pytorch_tanh"),
            lambda x, y, w: activation.gelu_reference(x, "gelu_pytorch_tanh"),
        )
        yield pointwise(bench, "swiglu", rows, 37888, 3, lambda x, y, w: activation.swiglu(x),
                        lambda x, y, w: activation.swiglu_reference(x))  # fmt: skip


def pointwise(
    bench: Bench, name: str, rows: int, width: int, per_number: int, ours, formula
) -> Case:
    """One operation on rows [rows width], which moves `per_number` bytes for each of their numbers
    in bfloat16.
    """
    moved = rows * width * per_number
    inputs = [(bench.normal(rows, width), bench.normal(rows, width), bench.normal(width))
              for _ in range(min(4, bench.copies(moved)))]  # fmt: skip
    candidates = {"llava_min": lambda i: ours(*inputs[i % len(inputs)]),
                  "eager": lambda i: formula(*inputs[i % len(inputs)])}  # fmt: skip
    if not bench.small:
        compiled = torch.compile(formula, dynamic=False)
        candidates["compiled"] = lambda i: compiled(*inputs[i % len(inputs)])
    return Case(name, f"{rows} rows of {width}", rows, candidates, {"": (moved, 0.0)})


def rope_cases(bench: Bench) -> Iterator[Case]:
    heads, kv_heads, head_dim = HEADS["7B"]
    for new in (1, 2048, 8192, 32768) if not bench.small else (3,):
        layer = bench.layer(kv_heads, new - 1, head_dim)
        layer.starts, layer.lengths = np.array([0]), torch.zeros_like(layer.lengths)
        qkv = bench.normal(1, new, (heads + 2 * kv_heads) * head_dim)
        angles = rope.angles(torch.arange(new, device=bench.device)[None], 1e6, head_dim)

        def formula(qkv, angles, layer=layer, new=new):
            query, key, value = rope.split(qkv, heads, kv_heads)
            layer.keys[:, :, :new] = rope.rotate(key, angles).transpose(1, 2)
            layer.values[:, :, :new] = value.transpose(1, 2)
            return rope.rotate(query, angles)

        candidates = {"llava_min": lambda _, x=qkv, a=angles, at=layer: rope.write(x, a, at),
                      "eager": lambda _, x=qkv, a=angles, f=formula: f(x, a)}  # fmt: skip
        if not bench.small:
            compiled = torch.compile(formula, dynamic=False)
            candidates["compiled"] = lambda _, x=qkv, a=angles, f=compiled: f(x, a)
        moved = 2 * 2 * qkv.numel() + 4 * angles.numel()
        yield Case("rope.write", f"7B {new} tokens", new, candidates, {"": (moved, 0.0)})


SECTIONS = {
    "prefill": prefill_cases,
    "vision": vision_cases,
    "decode": decode_cases,
    "int4": int4_cases,
    "pointwise": pointwise_cases,
    "rope": rope_cases,
}


def run(sections: list[str], dry: bool, rounds: int) -> tuple[list[measure.Row], dict[str, float]]:
    """Measure the sections, printing each shape as it ends. A dry run goes through everything at
    toy size.
    """
    bench = Bench("cpu", torch.float32, True) if dry else Bench("cuda", torch.bfloat16, False)
    limits, rows = measure.ceilings(), []
    print(f"copy {limits['copy'] / 1e9:.0f} GB/s, matmul {limits['matmul'] / 1e12:.0f} TFLOP/s"
          + (" (invented: a dry run)" if dry else ""), flush=True)  # fmt: skip
    with choose.using("auto"), torch.inference_mode():
        for section in sections:
            for case in SECTIONS[section](bench):
                found = measure.rows_of(
                    case.section, case.shape, case.size, case.candidates, case.costs, limits, rounds
                )
                rows += found
                print(measure.table(found), file=sys.stdout, flush=True)
                if not dry:
                    torch.compiler.reset()
    return rows, limits
