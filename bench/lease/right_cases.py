"""Attention, the cache, norms and activations under test as Trials.

in:  a device, a dtype, sizes, a seed      out: Trial
Attention's queries are aimed: each is near twice the key that it should find, and that is the first
or the last key that it may see, the first that it may not, or one at the border of a block. So a
mask that is off by one key moves a result by its own size, also among thousands of keys.
Read right_rule.py first. Read next: right_weights.py.

T new tokens, S tokens seen before, H query heads, K key/value heads, E head dimension.
"""

import numpy as np
import torch
from torch import Tensor

from llava_min.cache import Layer
from llava_min.kernels import activation, attention, decode_attention, norm, rope

from .right_rule import Trial, same_bits

SCORES = 2**25  # scores of a formula that are kept at a time
EIGHT = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}


class Draw:
    """Random tensors of one seed on one device."""

    def __init__(self, device: str, dtype: torch.dtype, seed: int):
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal numbers with a deviation of `scale`."""
        values = torch.randn(shape, generator=self.generator, dtype=self.dtype, device=self.device)
        return values.mul_(scale) if scale != 1.0 else values

    def integers(self, most: int, *shape: int) -> Tensor:
        """Whole numbers from 0 to `most` - 1."""
        return torch.randint(most, shape, generator=self.generator, device=self.device)

    def layer(self, starts, new: int, kv_heads: int, head_dim: int, spare: int, kind: str) -> Layer:
        """A cache layer that is full up to starts + new, the second of two; all else is NaN."""
        shape = (2, len(starts), kv_heads, max(starts) + new + spare, head_dim)
        stored = EIGHT.get(kind, self.dtype)
        keys, values = (self.nothing(shape, stored) for _ in range(2))
        scales = [None, None]
        if kind in EIGHT:
            scales = [self.nothing(shape[:4], torch.float32)[1] for _ in range(2)]
        for row, start in enumerate(starts):
            for steps, scale in ((keys[1, row], scales[0]), (values[1, row], scales[1])):
                vectors = self.normal(kv_heads, start + new, head_dim)
                if scale is not None:
                    vectors, scale[row, :, : start + new] = rope.quantise(vectors, stored)
                steps[:, : start + new] = vectors
        lengths = torch.tensor(starts, dtype=torch.int32, device=self.device)
        return Layer(keys[1], values[1], *scales, lengths, np.array(starts))

    def nothing(self, shape, dtype: torch.dtype) -> Tensor:
        """A tensor of NaN, or of 127 where integers know no NaN."""
        tensor = torch.empty(shape, dtype=dtype, device=self.device)
        if tensor.element_size() == 1:  # 127 is NaN as fp8
            tensor.view(torch.uint8).fill_(127)
            return tensor
        return tensor.fill_(torch.nan)


# Attention ---------------------------------------------------------------------


def mix(query: Tensor, key: Tensor, value: Tensor, seen: int | None) -> Tensor:
    """Attention of query [T H E] over key and value [K N E] by plain torch; causal after `seen`.

    Scores are float32 at least, as in every fused attention: in 16 bits a score of 22 is off by 6%.
    """
    new, (kv_heads, count, head_dim) = len(query), key.shape
    folded = query.unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3)  # K G T E
    step, mixed = max(1, SCORES // (query.shape[1] * count)), torch.empty_like(folded)
    wide_key = norm.wide(key)[:, None]
    for first in range(0, new, step):
        scores = norm.wide(folded[:, :, first : first + step]) @ wide_key.mT / head_dim**0.5
        if seen is not None:
            last = seen + first + torch.arange(scores.shape[2], device=key.device)
            hidden = torch.arange(count, device=key.device) > last[:, None]
            scores = scores.masked_fill_(hidden, -torch.inf)
        mixed[:, :, first : first + step] = (
            torch.softmax(scores, -1).to(value.dtype) @ value[:, None]
        )
    return mixed.permute(2, 0, 1, 3).flatten(1, 2)


def multiplied(layer: Layer, row: int, stop: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The first keys and values [K stop E] of a row of a layer, 8 bits multiplied out."""
    found = []
    for steps, scales in ((layer.keys, layer.key_scales), (layer.values, layer.value_scales)):
        vectors = steps[row, :, :stop]
        if scales is not None:
            vectors = vectors.double() * scales[row, :, :stop, None]
        found.append(vectors.to(dtype))
    return tuple(found)


def over_the_cache(query: Tensor, layer: Layer, dtype: torch.dtype) -> Tensor:
    """Attention of query [B T H E] over a layer, by plain torch."""
    rows = []
    for row, start in enumerate(layer.host_lengths.tolist()):
        key, value = multiplied(layer, row, start + query.shape[1], dtype)
        rows.append(mix(query[row].to(dtype), key, value, start))
    return torch.stack(rows)


def aimed(draw: Draw, layer: Layer, new: int, heads: int) -> Tensor:
    """Queries [B T H E], each near twice the key that it should find."""
    query = draw.normal(len(layer.host_lengths), new, heads, layer.keys.shape[3], scale=0.2)
    groups = heads // layer.keys.shape[1]
    for row, start in enumerate(layer.host_lengths.tolist()):
        keys = multiplied(layer, row, start + new, draw.dtype)[0]
        own = start + torch.arange(new, device=draw.device)
        borders = own // 64 * 64  # of blocks of 16, 32 and 64 keys
        targets = torch.stack([own, own + 1, 0 * own, borders, borders - 1])
        choice = torch.arange(new, device=draw.device) % len(targets)
        at = targets.gather(0, choice[None])[0].clamp(0, start + new - 1)
        query[row] += 2 * keys[:, at].repeat_interleave(groups, 0).transpose(0, 1)
    return query


def attending(kernel: str, attend, draw: Draw, layer: Layer, new: int, heads: int) -> Trial:
    """A trial of `attend`, a public function of attention over a cache."""
    query, head_dim = aimed(draw, layer, new, heads), layer.keys.shape[3]
    tensors = [x for x in vars(layer).values() if isinstance(x, Tensor)]
    starts, capacity = layer.host_lengths.tolist(), layer.keys.shape[2]
    shape = f"{new} after {starts} of {capacity}, {heads}/{layer.keys.shape[1]}x{head_dim}"

    def call() -> list[Tensor]:
        return [attend(query, layer)]

    def formula(double: bool) -> list[Tensor]:
        return [over_the_cache(query, layer, torch.float64 if double else draw.dtype)]

    size = layer.keys.numel()
    return Trial(
        kernel, draw.dtype, shape, size, call, [query, *tensors], formula, 4 * head_dim**0.5
    )


def causal(draw: Draw, starts, new: int, heads, spare: int = 3) -> Trial:
    """Prefill: T new tokens after what each row has seen."""
    layer = draw.layer(starts, new, *heads[1:], spare, "")
    return attending("attention causal", attention.prefill, draw, layer, new, heads[0])


def decode(draw: Draw, starts, new: int, heads, spare: int = 3, kind: str = "") -> Trial:
    """One to eight new tokens over a cache of 16 bits, int8 or fp8."""
    layer = draw.layer(starts, new, *heads[1:], spare, kind)
    kernel, attend = f"decode {kind or 'plain'}", decode_attention.decode_attention
    return attending(kernel, attend, draw, layer, new, heads[0])


def both_ways(draw: Draw, batch: int, patches: int, heads) -> Trial:
    """The tower's attention: query, key and value are views of one tensor."""
    fused = draw.normal(batch, patches, 3, heads[0], heads[2])

    def formula(double: bool) -> list[Tensor]:
        wide = fused.double() if double else fused
        frames = [[x.transpose(0, 1) for x in frame.unbind(1)] for frame in wide]  # H N E
        return [torch.stack([mix(q.transpose(0, 1), k, v, None) for q, k, v in frames])]

    shape = f"{batch} of {patches}, {heads[0]}x{heads[2]}"

    def call() -> list[Tensor]:
        return [attention.bidirectional(*fused.unbind(2))]

    return Trial("attention both ways", draw.dtype, shape, fused.numel(), call, [fused], formula, 4)


# The cache ---------------------------------------------------------------------


def write(draw: Draw, starts, new: int, heads, spare: int = 3, kind: str = "") -> Trial:
    """rope.write: the rotated query, keys and values; nothing else of the cache changes."""
    (count, kv_heads, head_dim), total = heads, heads[0] + 2 * heads[1]
    layer = draw.layer(starts, new, kv_heads, head_dim, spare, kind)
    qkv = draw.normal(len(starts), new, total * head_dim)
    positions = layer.lengths[:, None] + torch.arange(new, device=draw.device)
    angles = rope.angles(positions, 1e6, head_dim)
    tensors = [x for x in list(vars(layer).values())[:4] if x is not None]
    before = [x.clone() for x in tensors]

    def call() -> list[Tensor]:
        return [rope.write(qkv, angles, layer), *written(layer, new)]

    def formula(double: bool) -> list[Tensor]:
        wide = torch.float64 if double else draw.dtype
        stored = wide if double else before[0].dtype
        room = [(*x.shape[:2], max(starts) + new, *x.shape[3:]) for x in before]
        fresh = [torch.empty(size, dtype=stored, device=draw.device) for size in room[:2]]
        scales = [torch.empty(size, device=draw.device) for size in room[2:]]
        fresh += [None, None] if double or not scales else scales
        other = Layer(*fresh, layer.lengths, layer.host_lengths)
        turns = angles.to(torch.promote_types(wide, torch.float32))
        return [rope.write_torch(qkv.to(wide), turns, other), *written(other, new)]

    def changed() -> str:
        same = all(same_elsewhere(*both, starts, new) for both in zip(before, tensors))
        return "" if same else "the cache was changed elsewhere"

    token = new // 2 * total * head_dim  # NaN in its first query, and in its first key
    spoilt = token, token + count * head_dim
    shape = f"{new} after {list(starts)} of {layer.keys.shape[2]}, {count}/{kv_heads}x{head_dim}"
    return Trial(
        f"rope.write {kind or 'plain'}",
        draw.dtype,
        shape,
        qkv.numel(),
        call,
        [qkv, angles],
        formula,
        spoilt=spoilt,
        changed=changed,
    )


def same_elsewhere(before: Tensor, after: Tensor, starts, new: int) -> bool:
    """Whether two states [B K S ...] of a cache differ in no bit but in the newest tokens."""
    return all(
        same_bits(before[row, :, part], after[row, :, part])
        for row, start in enumerate(starts)
        for part in (slice(0, start), slice(start + new, None))
    )


def written(layer: Layer, new: int) -> list[Tensor]:
    """The keys and the values [B*K T E] of the newest tokens of each row, in float64."""
    rows = [
        multiplied(layer, row, start + new, torch.float64)
        for row, start in enumerate(layer.host_lengths.tolist())
    ]
    return [torch.cat([part[:, -new:] for part in parts]) for parts in zip(*rows)]


# Rows --------------------------------------------------------------------------

ENDS = 64  # rows at each end of a large tensor that are compared


def by_row(kernel: str, draw: Draw, inputs: list[Tensor], call, formula) -> Trial:
    """A trial of an operation on each of some rows.

    inputs: rows [count width], and after them weights [width]. Of many rows the first ENDS and the
    last ENDS are compared.
    """
    count = len(inputs[0])
    few = torch.arange(count, device=draw.device)
    few = few if count <= 4 * ENDS else torch.cat([few[:ENDS], few[-ENDS:]])

    def expected(double: bool) -> list[Tensor]:
        some = [x[few] if x.ndim == 2 else x for x in inputs]
        return formula(*(x.double() for x in some)) if double else formula(*some)

    shape = f"{count} rows of {inputs[0].shape[1]}"
    return Trial(
        kernel,
        draw.dtype,
        shape,
        inputs[0].numel(),
        lambda: [x[few] for x in call()],
        inputs,
        expected,
        spoilt=(few[-1].item() * inputs[0].shape[1],),
    )


def rms_norm(draw: Draw, count: int, width: int) -> Trial:
    rows, weight = draw.normal(count, width), draw.normal(width)
    return by_row(
        "rms_norm",
        draw,
        [rows, weight],
        lambda: [norm.rms_norm(rows, weight, 1e-6)],
        lambda x, w: [norm.rms_norm_torch(x, w, 1e-6)],
    )


def add_rms_norm(draw: Draw, count: int, width: int) -> Trial:
    """The sum is rounded before it is normalised, in the kernel as in the formula."""
    rows, update, weight = draw.normal(count, width), draw.normal(count, width), draw.normal(width)

    def formula(x: Tensor, y: Tensor, w: Tensor) -> list[Tensor]:
        total = (x + y).to(draw.dtype).to(x.dtype)
        return [total, norm.rms_norm_torch(total, w, 1e-6)]

    return by_row(
        "add_rms_norm",
        draw,
        [rows, update, weight],
        lambda: list(norm.add_rms_norm(rows, update, weight, 1e-6)),
        formula,
    )


def layer_norm(draw: Draw, count: int, width: int) -> Trial:
    rows, weight, bias = draw.normal(count, width), draw.normal(width), draw.normal(width)
    return by_row(
        "layer_norm",
        draw,
        [rows, weight, bias],
        lambda: [norm.layer_norm(rows, weight, bias, 1e-6)],
        lambda x, w, b: [norm.layer_norm_torch(x, w, b, 1e-6)],
    )


def swiglu(draw: Draw, count: int, width: int) -> Trial:
    gate_up = draw.normal(count, 2 * width, scale=3.0)
    return by_row(
        "swiglu",
        draw,
        [gate_up],
        lambda: [activation.swiglu(gate_up)],
        lambda x: [activation.swiglu_torch(x)],
    )


def gelu(draw: Draw, count: int, width: int, which: str = "gelu") -> Trial:
    rows = draw.normal(count, width, scale=3.0)
    return by_row(
        which,
        draw,
        [rows],
        lambda: [activation.gelu(rows, which)],
        lambda x: [activation.gelu_torch(x, which)],
    )
