"""The shapes at which kernels are tried: the common ones, borders of blocks, the largest, any.

out: Cases: a function of right_cases.py or right_weights.py and its sizes
In a dry run the interpreter takes milliseconds for each program, so every size has a small limit.
Read right_cases.py, right_weights.py first. Read next: right_model.py.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from ..shapes import TEXTS, heads_of
from .place import Place
from .right_cases import (
    Draw,
    add_rms_norm,
    both_ways,
    causal,
    decode,
    gelu,
    layer_norm,
    rms_norm,
    swiglu,
    write,
)
from .right_rule import Trial
from .right_weights import eight_bits, four_bits, layer_of_four

HEADS = {
    "7B": heads_of(TEXTS["7B"]),
    "0.5B": heads_of(TEXTS["0.5B"]),
    "Vicuna": heads_of(TEXTS["Vicuna 7B"]),
    "H72": (4, 4, 72),
    "H80": (4, 2, 80),
}
TOY_HEADS = {
    "7B": (2, 1, 16),
    "0.5B": (3, 1, 16),
    "Vicuna": (2, 2, 16),
    "H72": (1, 1, 40),
    "H80": (1, 1, 40),
}
TOY_SIZES = {  # of a dry run, at most
    "new": 17,
    "patches": 17,
    "count": 17,
    "width": 40,
    "outputs": 17,
    "inputs": 128,
    "spare": 3,
    "batch": 1,
}
TOY_SEEN = 18
KINDS = ("", "int8", "fp8")  # of a cache; "" is that of the queries

Sizes = dict[str, object]
Case = tuple[Callable[..., Trial], Sizes]


def shrunk(sizes: Sizes) -> Sizes:
    """The sizes of a dry run."""
    found = {
        name: min(value, TOY_SIZES[name]) if name in TOY_SIZES else value
        for name, value in sizes.items()
    }
    if "starts" in sizes:
        most = range(TOY_SEEN, 0, -5)  # rows of different lengths stay so
        found["starts"] = tuple(map(min, sizes["starts"], most))
    return found


def trial(place: Place, case: Case, dtype: torch.dtype, seed: int) -> Trial:
    """The Trial of a case, at toy sizes in a dry run."""
    make, sizes = case
    sizes = shrunk(sizes) if place.dry else dict(sizes)
    if place.dry and make is write and sizes.get("kind") == "fp8":
        sizes["kind"] = "int8"  # the interpreter loses a carry: 127 becomes 64 as fp8
    if "heads" in sizes:
        sizes["heads"] = (TOY_HEADS if place.dry else HEADS)[sizes["heads"]]
    return make(Draw(place.device, dtype, seed), **sizes)


def first() -> list[Case]:
    """One cheap case of every kernel, the most used first."""
    few = dict(starts=(129, 1000), heads="7B")
    return [
        (causal, dict(starts=(63, 700), new=129, heads="7B")),
        (decode, few | dict(new=1)),
        (write, few | dict(new=9)),
        (four_bits, dict(count=1, outputs=4608, inputs=3584)),
        (add_rms_norm, dict(count=9, width=3584)),
        (swiglu, dict(count=9, width=18944)),
        (both_ways, dict(batch=2, patches=729, heads="H72")),
        (layer_norm, dict(count=729, width=1152)),
        (gelu, dict(count=729, width=4304, which="gelu_pytorch_tanh")),
        (rms_norm, dict(count=1, width=3584)),
        (decode, few | dict(new=1, kind="int8")),
        (write, few | dict(new=9, kind="int8")),
        (four_bits, dict(count=100, outputs=3584, inputs=3584)),
        (layer_of_four, dict(count=1, outputs=4608, inputs=3584)),
        (eight_bits, dict(count=3, outputs=4608, inputs=3584)),
        (eight_bits, dict(count=100, outputs=4608, inputs=3584)),
        (eight_bits, dict(count=100, outputs=4608, inputs=3584, integers=True)),
        (both_ways, dict(batch=2, patches=577, heads="0.5B")),
        (gelu, dict(count=577, width=3584, which="gelu")),
        (gelu, dict(count=577, width=4096, which="quick_gelu")),
        (decode, few | dict(new=1, kind="fp8")),
        (write, few | dict(new=9, kind="fp8")),
        (causal, dict(starts=(64, 5), new=128, heads="0.5B")),
        (decode, dict(starts=(255,), new=8, heads="0.5B")),
        (four_bits, dict(count=17, outputs=896, inputs=896, group=32)),
        (four_bits, dict(count=64, outputs=896, inputs=4864, group=64)),
        (both_ways, dict(batch=1, patches=300, heads="H80")),
        (both_ways, dict(batch=1, patches=300, heads="Vicuna")),
        (causal, dict(starts=(17, 3), new=70, heads="H72")),
        (causal, dict(starts=(17, 3), new=70, heads="H80")),
    ]


BORDERS = dict(new=(1, 8, 9, 127, 128, 129, 2048), seen=(0, 1, 63, 64, 65, 255, 256, 4095))
TOY_BORDERS = dict(new=(1, 9), seen=(0, 15, 16))  # the interpreter's blocks have 16 keys


def borders(dry: bool) -> dict[str, list[Case]]:
    """By name: all lengths seen, for one number of new tokens and one kind of head."""
    found, lengths = {}, TOY_BORDERS if dry else BORDERS
    for new in lengths["new"]:
        for heads in ("7B", "0.5B"):
            for kind in KINDS if new in (1, 8) else ("",):
                sizes = [
                    dict(
                        starts=(seen, (5 * seen + 3) // 8), new=new, heads=heads, spare=3 + seen % 2
                    )
                    for seen in lengths["seen"]
                ]
                make = decode if new <= 8 else causal
                cases = [(make, one | (dict(kind=kind) if make is decode else {})) for one in sizes]
                found[f"{new} tokens, {heads}{kind and ', ' + kind}"] = cases
    counts = (1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65)
    for group in (128, 64, 32):
        sizes = [dict(count=count, outputs=1000, inputs=1024, group=group) for count in counts]
        found[f"int4, groups of {group}"] = [(four_bits, one) for one in sizes[:: 5 if dry else 1]]
    return found


def vast() -> list[Case]:
    """Places past 2^31 elements, the longest context, and the largest matrix.

    The cache has 3 x 32 x 262,144 x 128 numbers.
    """
    cache = dict(starts=(5, 70, 300), heads="Vicuna", spare=2**18)
    return [
        (causal, cache | dict(new=129)),
        (decode, cache | dict(new=1)),
        (write, cache | dict(new=9)),
        (decode, cache | dict(new=1, kind="int8")),
        (write, cache | dict(new=9, kind="int8")),
        (swiglu, dict(count=57_000, width=18_944)),
        (add_rms_norm, dict(count=600_000, width=3584)),
        (layer_norm, dict(count=1_900_000, width=1152)),
        (gelu, dict(count=500_000, width=4304, which="gelu_pytorch_tanh")),
        *((decode, dict(starts=(131_071,), new=1, heads="7B", kind=kind)) for kind in KINDS),
        (four_bits, dict(count=1, outputs=152_064, inputs=3584)),
    ]


ROUND = 8  # cases in which `ragged` comes to each of its kernels once


def ragged(seed: int) -> Iterator[Case]:
    """Shapes without end, from one generator."""
    rng = np.random.default_rng(seed)
    while True:
        starts = tuple(int(x) for x in rng.integers(0, 2500, rng.integers(1, 4)))
        cached = dict(
            starts=starts, heads=str(rng.choice(["7B", "0.5B"])), spare=int(rng.integers(0, 70))
        )
        count = int(rng.choice([rng.integers(1, 65), rng.integers(65, 3000)]))
        kind = str(rng.choice(KINDS))
        outputs, inputs = rng.integers(1, 5000), 128 * rng.choice([7, 28, 38])
        group = int(rng.choice([32, 64, 128]))
        yield (causal, cached | dict(new=int(rng.integers(9, 1200))))
        yield (decode, cached | dict(new=int(rng.integers(1, 9)), kind=kind))
        yield (write, cached | dict(new=int(rng.integers(1, 300)), kind=kind))
        yield (
            both_ways,
            dict(
                batch=int(rng.integers(1, 5)),
                patches=int(rng.integers(1, 900)),
                heads=str(rng.choice(["0.5B", "H72"])),
            ),
        )
        yield (four_bits, dict(count=count, outputs=int(outputs), inputs=int(inputs), group=group))
        for make, width in ((add_rms_norm, 3584), (layer_norm, 1152), (swiglu, 18_944)):
            yield (make, dict(count=count, width=width))
