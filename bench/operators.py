"""The operators of a token and of a prompt, each by itself, beside what this machine can do.

    python -m bench generate --device cpu --context 1500 --only operators

A product is timed over all blocks, so that no weight waits in a cache for its next turn. The limits
are measured too: bytes of memory that the cores read in a second, and operations a second of
products in bfloat16 and in bytes. An operator takes at least as long as its bytes are read, and as
long as its products are multiplied. What is left of a whole step or prompt is the rest: norms,
RoPE, activations, and Python.
Read cpu.py first.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from llava_min.cache import Cache
from llava_min.kernels import attention, int8_cpu, onednn
from llava_min.kernels.decode_attention import decode_attention

from . import ledger

if TYPE_CHECKING:
    from .cpu import Ours

PRODUCTS = ("qkv", "output", "gate_up", "down")
ROWS = (1, 4)  # of a step; a prompt has as many as the context
MEMORY = 2**30  # bytes that are read to find how fast that is
SIDES = 1024, 1024, 8192  # rows, inputs and outputs of the products that show how fast they are
BITS = {"float32": 32, "bf16": 16, "int8": 8, "int4": 4}  # of a weight, without its scales


@dataclass
class Work:
    """Something to time, the bytes that it must read, and the operations of its products."""

    call: Callable[[], object]
    bytes: float
    operations: float


def limits() -> dict[str, Work]:
    """What shows how fast memory and products are."""
    rows, inputs, outputs = SIDES
    some = torch.randn(rows, inputs).bfloat16()
    weight = onednn.reorder(torch.randn(outputs, inputs).bfloat16())
    eight = int8_cpu.prepack(torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8))
    numbers, scales = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8), torch.ones(outputs)
    in_bytes = lambda: int8_cpu.product(numbers, eight, scales, torch.bfloat16)
    operations = 2.0 * rows * inputs * outputs
    return {
        "memory": Work(torch.ones(MEMORY // 4).sum, MEMORY, 0),
        "bf16": Work(lambda: onednn.linear(some, weight, None), 0, operations),
        "int8": Work(in_bytes, 0, operations),
    }


def operators(ours: "Ours", form: str, count: int, context: int) -> dict[str, Work]:
    """Those of all blocks for `count` rows: a whole prompt, or a step after `context` tokens."""
    decoder, config = ours.network.decoder, ours.network.config.text
    prompt, layers, heads = count == context, config.num_layers, config.num_heads * config.head_dim
    dtype = decoder.embedding.weight.dtype
    gate, up = torch.randn(2, 1, count, config.intermediate_size).unbind()
    rows = dict.fromkeys(PRODUCTS, torch.randn(1, count, config.hidden_size).to(dtype))
    rows["output"] = torch.randn(1, count, heads).to(dtype)
    rows["down"] = (F.silu(gate) * up).to(dtype)  # far from even
    found = {}
    for name in PRODUCTS:
        some, each = rows[name], [block.get_submodule(name) for block in decoder.blocks]
        weights = layers * some.shape[-1] * each[0](some[:, :1]).shape[-1]
        call = lambda some=some, each=each: deque((layer(some) for layer in each), maxlen=0)
        found[name] = Work(call, weights * BITS[form] / 8, 2 * weights * count)
    if not prompt:
        bits = BITS["int8" if form == "int4" else form]
        weights = config.hidden_size * config.vocab_size
        head = lambda: decoder.logits(rows["qkv"])
        found["head"] = Work(head, weights * bits / 8, 2 * weights * count)
    cache = Cache.empty(config, 1 if prompt else count, context + 1, dtype)
    cache.keys.normal_(), cache.values.normal_()
    cache.advance(0 if prompt else context)
    query = torch.randn(
        len(cache.lengths), context if prompt else 1, config.num_heads, config.head_dim
    )
    query, attend = query.to(dtype), attention.prefill if prompt else decode_attention
    read = 2 * layers * count * context * config.num_kv_heads * config.head_dim
    found["attention"] = Work(
        lambda: deque((attend(query, layer) for layer in cache.layers()), maxlen=0),
        0 if prompt else read * 2,
        layers * heads * (2 * context**2 if prompt else 4 * context * count),
    )
    return found


def timed(work: dict[str, Work], turns: int) -> dict[str, float]:
    """Median seconds of each, taken in turns."""
    seconds = ledger.in_turns({name: one.call for name, one in work.items()}, turns)
    return {name: ledger.spread(times)[1] for name, times in seconds.items()}


@torch.inference_mode()
def measured(shape: str, context: int, models: dict[str, "Ours"], turns: int) -> list[dict]:
    """A row for each limit, and one for each operator of each format and number of rows.

    `least` is what the limits leave an operator, in seconds.
    """
    common = {"section": "operators", "shape": shape, "context": context, "turns": turns}
    known = limits()
    rate = {
        name: (known[name].bytes or known[name].operations) / seconds
        for name, seconds in timed(known, turns).items()
    }
    found = [common | {"name": f"limit {name}", "per_second": each} for name, each in rate.items()]
    for form, ours in models.items():
        for count in (*ROWS, context):
            work = operators(ours, form, count, context)
            for name, seconds in timed(work, turns).items():
                multiplied = rate["int8" if form == "int8" and name != "attention" else "bf16"]
                one = work[name]
                least = max(one.bytes / rate["memory"], one.operations / multiplied)
                row = {"name": f"{name} x{count}", "operator": name, "format": form, "rows": count}
                found.append(common | row | {"seconds": seconds, "least": least})
    return found


def text_of(rows: list[dict]) -> str:
    """The rows as text."""
    lines = []
    for row in rows:
        if "per_second" in row:
            lines.append(f"{row['name']:13} {row['per_second'] / 1e9:9,.1f} G/s")
        else:
            what = f"{row['name']:15} {row['format']:5}"
            times = f"{1e3 * row['seconds']:9.2f} ms, at least {1e3 * row['least']:.2f}"
            lines.append(f"{what} {times}")
    return "\n".join(lines)
