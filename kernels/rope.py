"""RoPE: turn each query and key by an angle that grows with its position, and fill the cache.

in:  qkv [B T (H+2K)E] of the fused projection, angles [2 B T E] float32, one layer of the cache
out: query [B T H E], rotated; keys (rotated) and values are then in the cache, at positions
     lengths .. lengths+T

A pair is (x[i], x[i + E/2]), the "half-split" form of Qwen2 and LLaMA. Angles are float32 at least:
at position 255 a bfloat16 angle is already wrong by half a radian.
The kernel reads qkv once and writes every number once, the keys and values straight into the cache.
The cache may hold 8 bits (int8, or fp8 as e4m3) with one float32 scale for each head of each token:
2 bytes read and 2 (or 1) written per number.
Read kernels/activation.py first. Read next: kernels/attention.py.
Agrees with: apply_rotary_pos_emb of transformers; arXiv 2104.09864.

B batch, T new tokens, H query heads, K key/value heads, E head dimension.
"""

import torch
from torch import Tensor

from .choose import triton_for
from .language import begin, blocks, launch, power_of_two, tl, triton
from .norm import wide

TOKENS = 16  # tokens per program
WIDE = 2**17  # numbers of an 8-bit cache that are float32 at a time: 512 KB on a CPU
DEVICE_WIDE = 2**22  # the same on other devices, where each operator costs a launch; not measured
TINY = 1e-30  # a vector of zeros has scale zero
SCALES = ["key_scales", "value_scales"]  # a row of a batch begins anywhere in them
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}  # of the 8-bit kinds of a cache


def angles(
    positions: Tensor, theta: float, head_dim: int, factor: float = 1.0, dtype=torch.float32
):
    """Cosine and sine, [2 B T E], for every number of a vector at positions [B T].

    The first half's sines are negative. `factor` is linear position scaling.

    >>> angles(torch.tensor([[1]]), theta=10_000.0, head_dim=2)[:, 0, 0]
    tensor([[ 0.5403,  0.5403],
            [-0.8415,  0.8415]])
    """
    half = torch.arange(0, head_dim, 2, device=positions.device, dtype=dtype) / head_dim
    inverse_frequency = 1.0 / theta**half
    angle = positions.to(dtype)[..., None] / factor * inverse_frequency
    cosine, sine = angle.cos(), angle.sin()
    return torch.stack([torch.cat([cosine, cosine], -1), torch.cat([-sine, sine], -1)])


def rotate(vectors: Tensor, angles: Tensor) -> Tensor:
    """Rotate every pair of [B T heads E] by its angle: x[i] meets its partner by rolling halfway.

    >>> quarter_turn = torch.tensor([[0.0, 0.0], [-1.0, 1.0]]).reshape(2, 1, 1, 2)
    >>> rotate(torch.tensor([3.0, 4.0]).reshape(1, 1, 1, 2), quarter_turn).flatten()
    tensor([-4.,  3.])
    """
    cosine, sine = angles.unsqueeze(-2)
    values = wide(vectors)
    turned = values * cosine + values.roll(values.shape[-1] // 2, dims=-1) * sine
    return turned.to(vectors.dtype)


def split(qkv: Tensor, num_heads: int, num_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B T (H+2K)E] -> query [B T H E], key and value [B T K E], as views."""
    heads = qkv.unflatten(-1, (num_heads + 2 * num_kv_heads, -1))
    return heads.split([num_heads, num_kv_heads, num_kv_heads], dim=2)


def quantise(vectors: Tensor, kind: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """[... E] -> 8 bits [... E] and float32 scales [...].

    The largest number of a vector becomes the largest of `kind`, 127 or 448.

    >>> quantise(torch.tensor([[0.5, -1.27, 0.0]]))
    (tensor([[  50, -127,    0]], dtype=torch.int8), tensor([0.0100]))
    """
    vectors, largest = wide(vectors), LARGEST[kind]
    scales = (vectors.abs().amax(-1) / largest).float()
    steps = vectors / scales.clamp(min=TINY)[..., None]
    steps = torch.floor(steps + 0.5) if kind == torch.int8 else steps
    return steps.clamp(-largest, largest).to(kind), scales


def dequantise(steps: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """8 bits [... E] and scales [...] -> [... E] of `dtype`, multiplied in float32 at least."""
    return steps.to(torch.promote_types(dtype, torch.float32)).mul_(scales[..., None]).to(dtype)


def dequantise_cache(steps: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """8 bits [B K S E] and scales [B K S] -> [B K S E] of `dtype`.

    Only some tokens at a time are wide, so that these stay in a processor's cache.
    """
    found = steps.new_empty(steps.shape, dtype=dtype)
    for some in parts(steps):
        found[:, :, some] = dequantise(steps[:, :, some], scales[:, :, some], dtype)
    return found


def parts(steps: Tensor) -> list[slice]:
    """The tokens of [B K S E] in runs of about WIDE numbers, or DEVICE_WIDE."""
    wide_at_once = WIDE if steps.device.type == "cpu" else DEVICE_WIDE
    count, tokens = steps.shape[2], max(1, wide_at_once * steps.shape[2] // max(1, steps.numel()))
    return [slice(start, min(start + tokens, count)) for start in range(0, count, tokens)]


def write_torch(qkv: Tensor, angles: Tensor, layer) -> Tensor:
    """Rotate, store keys and values after what the cache layer holds, and return the query."""
    _, kv_heads, _, head_dim = layer.keys.shape
    heads = qkv.unflatten(-1, (-1, head_dim))
    turned = rotate(heads[:, :, :-kv_heads], angles)
    layer.store(turned[:, :, -kv_heads:], heads[:, :, -kv_heads:])
    return turned[:, :, :-kv_heads]


@triton.jit
def store_vectors(cache, scales, first, second, base, row, inside, HEAD_DIM: tl.constexpr):
    """Write both halves of vectors base + row, in 8 bits where there are scales (`quantise`)."""
    if scales is not None:
        largest = tl.maximum(tl.max(tl.abs(first), axis=1), tl.max(tl.abs(second), axis=1))
        largest += 0.0 * (tl.sum(first, axis=1) + tl.sum(second, axis=1))  # a maximum ignores NaN
        LARGEST: tl.constexpr = 127.0 if cache.dtype.element_ty == tl.int8 else 448.0
        # divided as torch does, bit for bit
        scale = tl.div_rn(largest, tl.full(largest.shape, LARGEST, tl.float32))[:, None]
        tl.store(scales + base + row, scale, mask=inside)
        divisor = tl.broadcast_to(tl.maximum(scale, 1e-30), first.shape)
        first, second = tl.div_rn(first, divisor), tl.div_rn(second, divisor)
        if cache.dtype.element_ty == tl.int8:
            first, second = tl.floor(first + 0.5), tl.floor(second + 0.5)
        first = tl.minimum(tl.maximum(first, -LARGEST), LARGEST)
        second = tl.minimum(tl.maximum(second, -LARGEST), LARGEST)
    half = tl.arange(0, HEAD_DIM // 2)[None, :]
    target = cache + base * HEAD_DIM + row * HEAD_DIM + half
    tl.store(target, first.to(cache.dtype.element_ty), mask=inside)
    tl.store(target + HEAD_DIM // 2, second.to(cache.dtype.element_ty), mask=inside)


@triton.jit(
    do_not_specialize=["new", "key_row", "key_head"],
    do_not_specialize_on_alignment=["lengths", *SCALES],
)
def write_kernel(
    qkv,
    cosine,
    sine,
    lengths,
    query,
    keys,
    values,
    key_scales,
    value_scales,
    new,
    key_row,
    key_head,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """One program: one head (of query, keys or values) of TOKENS tokens of one row of the batch.

    The two halves of a vector are loaded apart, so that the partners of a pair meet in one
    register.
    """
    begin()
    HALF: tl.constexpr = HEAD_DIM // 2
    head, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    start = tl.program_id(1) * TOKENS
    row, half = tl.arange(0, TOKENS)[:, None], tl.arange(0, HALF)[None, :]
    inside = start + row < new
    token = batch * new + start
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * HEAD_DIM
    source += row * (HEADS + 2 * KV_HEADS) * HEAD_DIM + half
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    if head < HEADS + KV_HEADS:
        angle = token * HEAD_DIM + row * HEAD_DIM + HALF + half  # there the sine is positive
        cos = tl.load(cosine + angle, mask=inside, other=0.0)
        sin = tl.load(sine + angle, mask=inside, other=0.0)
        turned = first * cos - second * sin
        second = second * cos + first * sin
        first = turned
    place = batch * key_row + tl.load(lengths + batch) + start
    if head < HEADS:
        store_vectors(
            query, None, first, second, token * HEADS + head, row * HEADS, inside, HEAD_DIM
        )
    elif head < HEADS + KV_HEADS:
        place += (head - HEADS).to(tl.int64) * key_head
        store_vectors(keys, key_scales, first, second, place, row, inside, HEAD_DIM)
    else:
        place += (head - HEADS - KV_HEADS).to(tl.int64) * key_head
        store_vectors(values, value_scales, first, second, place, row, inside, HEAD_DIM)


def write_triton(qkv: Tensor, angles: Tensor, layer, tokens: int = TOKENS) -> Tensor:
    """write_torch as one kernel, in float32 where it rotates."""
    batch, new, width = qkv.shape
    _, kv_heads, capacity, head_dim = layer.keys.shape
    heads = width // head_dim - 2 * kv_heads
    assert head_dim == power_of_two(head_dim), head_dim
    room = not layer.counted or layer.longest + new <= capacity
    assert room, (layer.longest, new, capacity)
    assert layer.keys.stride() == layer.values.stride() and layer.keys.stride()[2:] == (head_dim, 1)
    cosine, sine = angles.float().contiguous()
    query = qkv.new_empty(batch, new, heads, head_dim)
    launch(
        write_kernel,
        (heads + 2 * kv_heads, blocks(new, tokens), batch),
        qkv.contiguous(),
        cosine,
        sine,
        layer.lengths,
        query,
        layer.keys,
        layer.values,
        *scales_of(layer),
        new,
        layer.keys.stride(0) // head_dim,
        layer.keys.stride(1) // head_dim,
        HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        TOKENS=tokens,
    )
    return query


def scales_of(layer) -> tuple[Tensor | None, Tensor | None]:
    """The scales [B K S] of an 8-bit layer's keys and values, laid out as these; or twice None."""
    scales = layer.key_scales, layer.value_scales
    if scales[0] is not None:
        per_vector = tuple(stride // layer.keys.shape[3] for stride in layer.keys.stride()[:3])
        assert scales[0].stride() == scales[1].stride() == per_vector, per_vector
    return scales


def write(qkv: Tensor, angles: Tensor, layer) -> Tensor:
    """Rotate queries and keys, write keys and values into the cache; return query [B T H E]."""
    return (write_triton if triton_for(qkv) else write_torch)(qkv, angles, layer)
