"""Each kernel at the real shapes of the five families, beside its peers in the same process.

Peers: torch's scaled_dot_product_attention with each backend forced, FlexAttention, torch's own
int4 product, the bfloat16 linear, and the eager and compiled formulas. Bytes and FLOPs are counted
here, by formula, so that they can be checked: attention 4 E FLOPs per score, half of the scores
where causal. The file is long because each operation's shapes and peers belong side by side.
Read next: plots.py.
"""

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from llava_min.cache import Layer
from llava_min.kernels import activation, attention, choose, decode_attention, int4, norm, rope

from . import measure

BACKENDS = {"sdpa cudnn": SDPBackend.CUDNN_ATTENTION, "sdpa flash": SDPBackend.FLASH_ATTENTION,
            "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION}  # fmt: skip
KINDS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}  # of a cache of 8 bits
TOWERS = {"SigLIP": (729, 72), "CLIP": (577, 64)}  # patches, head dimension; 16 heads
HEADS = {"7B": (28, 4, 128), "0.5B": (14, 2, 64), "Vicuna 7B": (32, 32, 128)}  # H, K, E
LINEARS = {
    "7B qkv": (4608, 3584),
    "7B output": (3584, 3584),
    "7B gate_up": (37888, 3584),
    "7B down": (3584, 18944),
    "7B head": (152064, 3584),
    "0.5B gate_up": (9728, 896),
}  # N, K


L2 = 60_000_000  # bytes of the second-level cache of an H200, where no GPU can be asked
Candidate = Callable[[int], object]  # call number -> what one call computes


@dataclass
class Bench:
    """Where the tensors live. `small` shrinks every shape so that a dry run ends; nothing of it is
    a result. `compiled`: with the peers that torch.compile makes, which takes seconds for each.
    """

    device: str
    dtype: torch.dtype
    small: bool
    compiled: bool = True

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=self.dtype, device=self.device)

    @property
    def l2(self) -> int:
        """Bytes of the second-level cache."""
        if self.device != "cuda":
            return L2
        return torch.cuda.get_device_properties(0).L2_cache_size or L2

    def copies(self, size: float) -> int:
        """How many inputs of `size` bytes to go through in turn: four times what the L2 cache
        holds, so that none is still there when its turn comes again.
        """
        return 2 if self.small else max(2, math.ceil(4 * self.l2 / size))

    def layer(self, kv_heads: int, seen: int, head_dim: int, kind: str = "") -> Layer:
        """A cache layer that is full up to its last token, in 16 bits, int8 or fp8 with scales."""
        keys, values = self.normal(2, 1, kv_heads, seen + 1, head_dim)
        lengths = torch.tensor([seen], dtype=torch.int32, device=self.device)
        arrived = torch.zeros(1, kv_heads, dtype=torch.int32, device=self.device)
        scales = None, None
        if kind:
            (keys, values), scales = zip(*(rope.quantise(x, KINDS[kind]) for x in (keys, values)))
        return Layer(keys, values, *scales, lengths, np.array([seen]), arrived)

    def prompt_layer(self, kv_heads: int, new: int, head_dim: int, seen: int = 0) -> Layer:
        """A layer that has seen `seen` tokens, with room for `new` ones that stand there."""
        layer = self.layer(kv_heads, seen + new - 1, head_dim)
        layer.host_lengths, layer.lengths = np.array([seen]), torch.full_like(layer.lengths, seen)
        return layer


@dataclass
class Case:
    """One shape: candidates by name, and what they must move and compute ("" for all that are not
    named). Call number i takes the i-th of `copies` inputs, in turn.
    """

    section: str
    shape: str
    size: float
    candidates: dict[str, Candidate]
    costs: dict[str, tuple[float, float]]
    copies: int = 1


def measured(case: Case, limits: dict[str, float], rounds: int) -> list[measure.Row]:
    """The rows of a case. Each candidate is timed in rounds through all copies of its inputs, and a
    row says what one call took.
    """

    def through_all(call: Candidate) -> Candidate:
        return lambda number: [call(number * case.copies + copy) for copy in range(case.copies)]

    rows = measure.rows_of(
        case.section,
        case.shape,
        case.size,
        {name: through_all(call) for name, call in case.candidates.items()},
        {name: tuple(case.copies * x for x in cost) for name, cost in case.costs.items()},
        limits,
        rounds,
    )
    one = 1 / case.copies
    return [
        replace(row, p20_ms=row.p20_ms * one, p50_ms=row.p50_ms * one, p80_ms=row.p80_ms * one,
                bytes=row.bytes * one, flops=row.flops * one)
        for row in rows
    ]  # fmt: skip


def forced(backend: SDPBackend, *tensors: torch.Tensor, **options) -> Candidate:
    """scaled_dot_product_attention [B H T E] on one backend, or a RuntimeError where it refuses."""

    def call(_: int) -> torch.Tensor:
        with sdpa_kernel([backend]):
            return F.scaled_dot_product_attention(*tensors, **options)

    return call


def flex(query, key, value, causal: bool) -> Candidate:
    """FlexAttention with a compiled block mask."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    new, total = query.shape[2], key.shape[2]
    mask = create_block_mask(lambda b, h, q, k: k <= q + (total - new), None, None, new, total,
                             device=query.device) if causal else None  # fmt: skip
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda _: compiled(
        query, key, value, block_mask=mask, enable_gqa=query.shape[1] != key.shape[1]
    )


def rotating(calls: list[Candidate]) -> Candidate:
    """One of some calls after the other."""
    return lambda number: calls[number % len(calls)](number)


# Attention ---------------------------------------------------------------------


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
    key, value = layer.read(new, bench.dtype)
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
    key, value = layer.read(new, bench.dtype)
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
    patches, head_dim = TOWERS[tower]
    frames, patches = (1, 20) if bench.small else (frames, patches)
    fused = bench.normal(frames, patches, 3, 16, head_dim)
    ours = {"llava_min": lambda _: attention.bidirectional(*fused.unbind(2))}
    peers = peers_of(bench, *(x.transpose(1, 2).contiguous() for x in fused.unbind(2)), False)
    moved = 2 * 4 * 16 * frames * patches * head_dim
    flops = 4 * head_dim * 16 * frames * patches**2
    shape = f"{tower} {frames} frames of {patches}"
    return Case(f"vision {tower}", shape, frames, ours | peers, {"": (moved, flops)})


def vision_cases(bench: Bench) -> Iterator[Case]:
    for tower in TOWERS:
        for frames in (1, 8, 64) if not bench.small else (1,):
            yield vision_case(bench, tower, frames)


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


# Packed weights ----------------------------------------------------------------


def int4_case(bench: Bench, name: str, count: int, weights: list | None = None) -> Case:
    """A linear layer of some rows; `weights`: what `int4_weights` made of its shape before."""
    outputs, inputs = (64, 256) if bench.small else LINEARS[name]
    moved = outputs * inputs * (0.5 + 2 / 128)
    weights = weights or int4_weights(bench, name)
    rows = bench.normal(count, inputs)
    calls = {
        "llava_min": lambda w: int4.linear(rows, *w.words, None, None, w.arrived),
        "linear bf16": lambda w: F.linear(rows, w.weight),
    }
    if weights[0].peer is not None and count <= 256:
        calls["_weight_int4pack_mm"] = lambda w: torch._weight_int4pack_mm(
            rows, w.peer[0], 128, w.peer[1]
        )
    candidates = {key: rotating([lambda _, call=call, w=w: call(w) for w in weights])
                  for key, call in calls.items()}  # fmt: skip
    flops, ends = 2 * count * outputs * inputs, 2 * count * (outputs + inputs)
    costs = {"": (moved + ends, flops), "linear bf16": (2 * outputs * inputs + ends, flops)}
    shape = f"{name} {outputs}x{inputs}, {count} rows"
    return Case(f"int4 {name}", shape, count, candidates, costs, len(weights))


@dataclass
class Weights:
    """One linear layer: in 16 bits, as `int4.linear` takes it, and in torch's own packing where
    there is a GPU for it.
    """

    weight: torch.Tensor
    words: tuple[torch.Tensor, torch.Tensor]
    arrived: torch.Tensor
    peer: tuple[torch.Tensor, torch.Tensor] | None


def int4_weights(bench: Bench, name: str) -> list[Weights]:
    """As many copies of a layer as do not fit into the L2 cache, packed, four times over."""
    outputs, inputs = (64, 256) if bench.small else LINEARS[name]
    found = []
    for _ in range(bench.copies(outputs * inputs * (0.5 + 2 / 128))):
        weight, peer = bench.normal(outputs, inputs), None
        q, scales, _ = int4.quantise(weight)
        words = int4.pack(q)
        if bench.device == "cuda":
            halves = (q[:, ::2] << 4 | q[:, 1::2]).contiguous()  # the even input in the high nibble
            both = torch.stack([scales, torch.zeros_like(scales)], dim=-1).bfloat16()
            peer = torch._convert_weight_to_int4pack(halves, 8), both
        layer = (words, scales.to(bench.dtype))
        found.append(Weights(weight, layer, int4.counter(words), peer))
    return found


def int4_cases(bench: Bench) -> Iterator[Case]:
    for name in LINEARS:
        weights = int4_weights(bench, name)
        for count in (1, 4, 16, 64, 256, 4096) if not bench.small else (1, 40):
            yield int4_case(bench, name, count, weights)


# Rows --------------------------------------------------------------------------


def add_rms_norm_formula(rows, update, weight):
    total = rows + update
    return total, norm.rms_norm_torch(total, weight, 1e-6)


POINTWISE = {
    # name: (width, bytes moved for each number in bfloat16, ours, formula)
    "add_rms_norm": (3584, 8, lambda x, y, w: norm.add_rms_norm(x, y, w, 1e-6),
                     add_rms_norm_formula),
    "layer_norm": (1152, 4, lambda x, y, w: norm.layer_norm(x, w, w, 1e-6),
                   lambda x, y, w: norm.layer_norm_torch(x, w, w, 1e-6)),
    "gelu": (4304, 4, lambda x, y, w: activation.gelu(x, "gelu_pytorch_tanh"),
             lambda x, y, w: activation.gelu_torch(x, "gelu_pytorch_tanh")),
    "swiglu": (37888, 3, lambda x, y, w: activation.swiglu(x),
               lambda x, y, w: activation.swiglu_torch(x)),
}  # fmt: skip


def pointwise_case(bench: Bench, name: str, rows: int) -> Case:
    """One operation on rows that were just written, as in a model: few rows are in the L2 cache."""
    (width, per_number, ours, formula), rows = POINTWISE[name], 3 if bench.small else rows
    moved = rows * width * per_number
    inputs = [(bench.normal(rows, width), bench.normal(rows, width), bench.normal(width))
              for _ in range(min(4, bench.copies(moved)))]  # fmt: skip
    candidates = {"llava_min": lambda i: ours(*inputs[i % len(inputs)]),
                  "eager": lambda i: formula(*inputs[i % len(inputs)])}  # fmt: skip
    if bench.compiled:
        compiled = torch.compile(formula, dynamic=False)
        candidates["compiled"] = lambda i: compiled(*inputs[i % len(inputs)])
    shape, costs = f"{rows} rows of {width}", {"": (moved, 0.0)}
    return Case(name, shape, rows, candidates, costs, len(inputs))


def pointwise_cases(bench: Bench) -> Iterator[Case]:
    for rows in (1, 2048, 8192, 32768) if not bench.small else (3,):
        for name in POINTWISE:
            yield pointwise_case(bench, name, rows)


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

    candidates = {"llava_min": lambda _: rope.write(qkv, angles, layer),
                  "eager": lambda _: formula()}  # fmt: skip
    if bench.compiled:
        compiled = torch.compile(formula, dynamic=False)
        candidates["compiled"] = lambda _: compiled()
    moved = 2 * 2 * qkv.numel() + 4 * angles.numel()
    return Case("rope.write", f"7B {new} tokens", new, candidates, {"": (moved, 0.0)})


def rope_cases(bench: Bench) -> Iterator[Case]:
    for new in (1, 2048, 8192, 32768) if not bench.small else (3,):
        yield rope_case(bench, new)


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
    bench = Bench("cuda", torch.bfloat16, False)
    if dry:
        bench = Bench("cpu", torch.float32, True, compiled=False)
    limits, rows = measure.ceilings(), []
    print(f"copy {limits['copy'] / 1e9:.0f} GB/s, matmul {limits['matmul'] / 1e12:.0f} TFLOP/s"
          + (" (invented: a dry run)" if dry else ""), flush=True)  # fmt: skip
    with choose.using("auto"), torch.inference_mode():
        for section in sections:
            for case in SECTIONS[section](bench):
                found = measured(case, limits, rounds)
                rows += found
                print(measure.table(found), file=sys.stdout, flush=True)
                if not dry:
                    torch.compiler.reset()
    return rows, limits
