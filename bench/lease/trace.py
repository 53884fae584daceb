"""Where the microseconds go: one decode step, one chunk of a prompt, one tile.

in:  a Place      out: rows for each kernel and each part of the model, and trace.html

The profiler says how long each kernel runs; how long everything takes together is timed without it,
and what is left is gaps between kernels. A linear layer has no name of its own on a GPU: it is
known by the kernels before and after it. A floor is what must be read, over the bandwidth of this
machine, or what must be computed, over its rate of products: whichever is longer.
Read next: page.py.

T new tokens, N patches, H query heads, K key/value heads, E head dimension.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from llava_min.cache import Cache
from llava_min.config import TextConfig, VisionConfig
from llava_min.vision import VisionTower

from .. import models, shapes
from . import page
from .place import Place

SECONDS = 40
ROOM = 128  # tokens that a trace may decode
PROFILED = 3  # calls under the profiler, of which the last counts
# What a kernel does, by a part of its name; the first that fits.
FAMILIES = (
    ("attention_kernel", "attention"),
    ("decode_kernel", "attention"),
    ("combine_kernel", "attention"),
    ("scaled_dot_product", "attention"),
    ("_norm", "norms"),
    ("write_kernel", "rope"),
    ("swiglu", "activation"),
    ("gelu", "activation"),
    ("silu", "activation"),
    ("linear_kernel", "linear"),
    ("bytes_kernel", "linear"),
    ("dequantise", "linear"),
    ("gemm", "linear"),
    ("gemv", "linear"),
    ("nvjet", "linear"),
    ("cutlass", "linear"),
    ("splitK", "linear"),
    ("cublas", "linear"),
    ("::mm", "linear"),
    ("addmm", "linear"),
)
REST = "additions and copies"
# The layer between two parts: (the part before, the part after), None where there is any or none.
LAYERS = (
    ("norms", "rope", "qkv"),
    ("norms", "attention", "qkv"),
    ("attention", None, "output"),
    ("norms", "activation", "gate_up"),
    ("activation", None, "down"),
    ("norms", None, "head"),
    (None, None, "patches"),
)


@dataclass
class Event:
    """One kernel that ran: its name and its microseconds."""

    name: str
    us: float


def tasks(place: Place) -> Iterator[tuple[str, Callable[[], Iterator[dict]]]]:
    text = shapes.TOY if place.dry else shapes.TEXTS["7B"]
    seen, chunk = (40, 24) if place.dry else (1024, 8192)
    yield "decode int4", lambda: decode(place, text, True, seen)
    yield "decode bf16", lambda: decode(place, text, False, seen)
    yield "prefill bf16", lambda: prefill(place, text, chunk)
    yield "one tile", lambda: tile(place)


@torch.inference_mode()
def decode(place: Place, config: TextConfig, quantised: bool, seen: int) -> Iterator[dict]:
    """One token of the 7B decoder as the product makes it: on CUDA a step that is replayed."""
    wake(place)
    decoder = models.decoder_of(config, quantised, place.device, place.dtypes[0])
    cache = models.full_cache(config, [seen], ROOM, place.dtypes[0], device=place.device)
    step = models.token_after_token(models.network_of(decoder), cache)
    name = f"decode 7B {'int4' if quantised else 'bf16'}, {seen:,} tokens seen"
    yield from traced(place, name, step, text_floors(place, decoder, 1, seen), 20)


@torch.inference_mode()
def prefill(place: Place, config: TextConfig, chunk: int) -> Iterator[dict]:
    """The first chunk of a prompt, and the logits of its last token."""
    wake(place)
    decoder = models.decoder_of(config, False, place.device, place.dtypes[0])
    cache = Cache.empty(config, 1, chunk, place.dtypes[0], device=place.device)
    rows = torch.randn(1, chunk, config.hidden_size, dtype=place.dtypes[0], device=place.device)
    call = lambda: decoder.logits(decoder(rows, cache)[:, -1:])
    floors = text_floors(place, decoder, chunk, 0)
    yield from traced(place, f"prefill 7B bf16, {chunk:,} tokens", call, floors, 3)


@torch.inference_mode()
def tile(place: Place) -> Iterator[dict]:
    """One tile of SigLIP's shape, from its bytes on the device to its features."""
    wake(place)
    config = shapes.TOY_TOWER if place.dry else shapes.TOWERS["SigLIP"]
    with torch.device("meta"):
        tower = VisionTower(config)
    tower = models.filled(tower, place.device, place.dtypes[0])
    size = (1, config.image_size, config.image_size, 3)
    pixels = torch.randint(0, 256, size, dtype=torch.uint8, device=place.device)
    floors = tower_floors(place, tower, config)
    yield from traced(place, "one tile of SigLIP", lambda: tower(pixels), floors, 20)


def wake(place: Place) -> None:
    """Start the profiler before any graph is recorded, so that it sees into the graph."""
    if place.device == "cuda":
        os.environ |= {"DISABLE_CUPTI_LAZY_REINIT": "1", "TEARDOWN_CUPTI": "0"}
        torch.cuda.empty_cache()
        events(lambda: torch.zeros(1, device="cuda"), "cuda")


def traced(
    place: Place, name: str, call: Callable, floors: dict[str, float], calls: int
) -> Iterator[dict]:
    """The rows of one trace; then the page is written again with them."""
    call()
    us = together(call, place.device, 1 if place.dry else calls)
    found = events(lambda: [call() for _ in range(PROFILED)], place.device)
    yield from rows_of(name, found[-(len(found) // PROFILED) :], us, floors)
    (place.out / page.NAME).write_text(page.html(place.of("trace"), place.limits(), place.dry))


def together(call: Callable, device: str, calls: int) -> float:
    """Microseconds of one of some calls, the profiler off; the last of three turns."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        wait()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        us = 1e6 * (time.perf_counter() - start) / calls
    return us


def events(call: Callable, device: str) -> list[Event]:
    """The kernels that a call runs, in order; on a CPU torch's innermost operators."""
    cuda = device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as found:
        call()
        if cuda:
            torch.cuda.synchronize()
    kind = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    kept = [
        each
        for each in found.events()
        if each.device_type == kind
        and not each.cpu_children
        and not getattr(each, "is_user_annotation", False)
    ]
    kept.sort(key=lambda each: each.time_range.start)
    return alone(kept)


def alone(ran: list) -> list[Event]:
    """Kernels in the order of their starts, each with the time after the one before has ended.

    Where a kernel starts early and waits (kernels/language.py), the wait is not its own.
    """
    found, free = [], float("-inf")
    for each in ran:
        start, end = each.time_range.start, each.time_range.end
        found.append(Event(each.name, max(0.0, end - max(start, free))))
        free = max(free, end)
    return found


def family(name: str) -> str:
    """What a kernel does, by its name.

    >>> family("rms_norm_kernel"), family("nvjet_hsh_64x8_64x16_1x1_h_bz_TNT"), family("Memset")
    ('norms', 'linear', 'additions and copies')
    """
    return next((kind for part, kind in FAMILIES if part in name), REST)


def parts(names: list[str]) -> list[str]:
    """The part of the model that each kernel belongs to, by those before and after it.

    >>> parts(["rms_norm_kernel", "gemm", "write_kernel", "decode_kernel", "gemv", "add"])
    ['norms', 'qkv', 'rope', 'attention', 'output', 'additions and copies']
    """
    kinds = [family(name) for name in names]
    after, following = [], None  # the next kernel that is neither a product nor the rest
    for kind in reversed(kinds):
        after.append(following)
        following = following if kind in ("linear", REST) else kind
    found, before = [], None
    for kind, follows in zip(kinds, reversed(after)):
        if kind == "linear":
            kind = next(
                layer
                for one, other, layer in LAYERS
                if one in (None, before) and other in (None, follows)
            )
        elif kind != REST:
            before = kind
        found.append(kind)
    return found


def rows_of(name: str, found: list[Event], us: float, floors: dict[str, float]) -> Iterator[dict]:
    """A row for each part of the model, gaps included, and one for each kernel of each part."""
    kinds = parts([event.name for event in found])
    running = sum(event.us for event in found)
    gaps = max(0.0, us - running)
    whole = {"trace": name, "us_together": us, "us_kernels": running, "kernels": len(found)}
    sums: dict[tuple[str, str | None], list[float]] = {}
    for event, kind in zip(found, kinds):
        for key in ((kind, None), (kind, event.name)):
            sums.setdefault(key, []).append(event.us)
    sums["gaps between kernels", None] = [gaps] if gaps else []
    for (part, kernel), times in sorted(sums.items(), key=lambda item: -sum(item[1])):
        row = {
            "part": part,
            "calls": len(times),
            "us": sum(times),
            "share": sum(times) / (running + gaps),
        }
        floor = {"floor_us": floors.get(part)} if kernel is None else {"kernel": kernel[:200]}
        yield whole | row | floor


def bytes_of(*modules: nn.Module) -> int:
    """Bytes of all tensors of some modules, whether they are parameters or not."""
    tensors = {}
    for module in (each for some in modules for each in some.modules()):
        for values in (module._parameters, module._buffers, vars(module)):
            for value in values.values():
                if isinstance(value, torch.Tensor):
                    tensors[id(value)] = value.numel() * value.element_size()
    return sum(tensors.values())


class Floors:
    """Microseconds that a part needs at least, where memory and products are at their limits."""

    def __init__(self, place: Place):
        self.limits, self.us = place.limits(), {}

    def add(self, part: str, moved: float, operations: float, times: int = 1) -> None:
        """`times` operations, each of which moves some bytes and computes."""
        if self.limits:
            each = max(moved / self.limits["read"], operations / self.limits["matmul"])
            self.us[part] = self.us.get(part, 0.0) + 1e6 * times * each


def text_floors(place: Place, decoder: nn.Module, new: int, seen: int) -> dict[str, float]:
    """Of a decoder's step over T = `new` tokens of 16 bits, `seen` tokens before them."""
    config, floors, block = decoder.config, Floors(place), decoder.blocks[0]
    width, hidden, layers = config.hidden_size, config.intermediate_size, config.num_layers
    query, both = config.num_heads * config.head_dim, 2 * config.num_kv_heads * config.head_dim
    linears = (
        ("qkv", width, query + both),
        ("output", query, width),
        ("gate_up", width, 2 * hidden),
        ("down", hidden, width),
    )
    for part, inputs, outputs in linears:
        moved = bytes_of(getattr(block, part)) + 2 * new * (inputs + outputs)
        floors.add(part, moved, 2 * new * inputs * outputs, layers)
    scores = new * seen + new * (new + 1) / 2
    floors.add("attention", 2 * both * (seen + new) + 4 * new * query, 4 * query * scores, layers)
    floors.add("rope", 4 * new * (query + both), 0, layers)
    floors.add("norms", 2 * new * width * 6, 0, layers)
    floors.add("activation", 2 * new * hidden * 3, 0, layers)
    head = decoder.embedding if decoder.head is None else decoder.head
    floors.add("head", bytes_of(head), 2 * width * config.vocab_size)
    return floors.us


def tower_floors(place: Place, tower: nn.Module, config: VisionConfig) -> dict[str, float]:
    """Of one tile of N patches in 16 bits."""
    floors, block, count = Floors(place), tower.blocks[0], config.num_positions
    width, hidden, layers = config.hidden_size, config.intermediate_size, config.num_layers
    for part, layer, inputs, outputs in (
        ("qkv", block.qkv, width, 3 * width),
        ("output", block.output, width, width),
        ("gate_up", block.up, width, hidden),
        ("down", block.down, hidden, width),
    ):
        moved = bytes_of(layer) + 2 * count * (inputs + outputs)
        floors.add(part, moved, 2 * count * inputs * outputs, layers)
    floors.add("attention", 8 * count * width, 4 * width * count**2, layers)
    floors.add("norms", 2 * count * width * 4, 0, layers)
    floors.add("activation", 2 * count * hidden * 2, 0, layers)
    inputs = 3 * config.patch_size**2
    floors.add("patches", bytes_of(tower.patch_embedding), 2 * count * inputs * width)
    return floors.us
