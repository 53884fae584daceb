"""Each kernel at a few shapes of worth, beside its peers in the same process.

in:  a Place      out: the rows of bench/kernels/, as dictionaries
The most important shapes come first. Peers that torch.compile makes take seconds each, so they come
last, once more beside our kernel.
Read ../kernels/__init__.py first.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial

import torch

from .. import measure
from ..kernels import attention, decode_attention, int4, pointwise, rope
from ..kernels.case import Bench, Case, measured
from .place import Place

SECONDS = 80
ROUNDS = 7  # turns of each candidate
COMPILED = ("llava_min", "FlexAttention", "compiled")
Make = Callable[[Bench], Case]
Task = tuple[str, Callable[[], Iterator[dict]]]


WANTED = (  # in the order of worth
    (decode_attention.decode_case, "7B", 131072),
    (attention.prefill_case, "7B", 8192),
    (attention.prefill_case, "7B", 32768),
    (int4.int4_case, "7B gate_up", 1),
    (decode_attention.decode_case, "7B", 1024),
    (decode_attention.decode_case, "7B", 32768),
    (attention.vision_case, "SigLIP", 64),
    (attention.vision_case, "SigLIP", 8),
    (int4.int4_case, "7B down", 1),
    (int4.int4_case, "7B head", 1),
    (int4.int4_case, "7B gate_up", 16),
    (int4.int4_case, "7B gate_up", 64),
    (attention.chunk_case, "7B", 2048, 6144),
    (attention.chunk_case, "7B", 2048, 30720),
    (attention.prefill_case, "0.5B", 8192),
    (int4.int4_case, "7B gate_up", 4096),
    (pointwise.pointwise_case, "add_rms_norm", 1),
    (pointwise.pointwise_case, "swiglu", 1),
    (rope.rope_case, 1),
    (pointwise.pointwise_case, "add_rms_norm", 8192),
    (pointwise.pointwise_case, "swiglu", 8192),
    (rope.rope_case, 8192),
    (pointwise.pointwise_case, "layer_norm", 8192),
    (pointwise.pointwise_case, "gelu", 8192),
    (attention.vision_case, "SigLIP", 1),
    (attention.vision_case, "CLIP", 64),
    (attention.vision_case, "CLIP", 8),
    (attention.vision_case, "CLIP", 1),
    (decode_attention.decode_case, "0.5B", 1024),
    (int4.int4_case, "0.5B gate_up", 1),
    (int4.int4_case, "7B down", 16),
    (int4.int4_case, "7B head", 16),
    (int4.int4_case, "7B down", 64),
    (int4.int4_case, "7B head", 64),
    (int4.int4_case, "7B down", 4096),
)
LAST = (  # of these the compiled peers, in this order
    "add_rms_norm 8192",
    "swiglu 8192",
    "rope 8192",
    "add_rms_norm 1",
    "prefill 7B 8192",
    "vision SigLIP 8",
)


def cases() -> dict[str, Make]:
    """How to make the case of each shape, by name."""
    found = {}
    for make, *sizes in WANTED:
        name = " ".join(map(str, (make.__name__.removesuffix("_case"), *sizes)))
        found[name] = lambda bench, make=make, sizes=sizes: make(bench, *sizes)
    return found


def tasks(place: Place) -> Iterator[Task]:
    """All shapes, then some once more beside the peers that have to be compiled."""
    bench = Bench(place.device, place.dtypes[0], place.dry, compiled=False)
    limits = place.limits() or measure.ceilings()
    found = cases()
    for name, make in found.items():
        yield name, partial(rows, bench, make, limits)
    if place.dry:
        return
    compiling = replace(bench, compiled=True)
    for name in LAST:
        make = next(make for key, make in found.items() if key.endswith(name))
        yield f"compiled: {name}", partial(rows, compiling, make, limits, COMPILED)


@torch.inference_mode()
def rows(bench: Bench, make: Make, limits: dict[str, float], names=()) -> Iterator[dict]:
    """The rows of one shape, of the candidates whose names begin with one of `names` if given."""
    case = make(bench)
    if names:
        kept = {name: call for name, call in case.candidates.items() if name.startswith(names)}
        case = replace(case, candidates=kept)
    found = measured(case, limits, 1 if bench.small else ROUNDS)
    print(measure.table(found))
    for row in found:
        yield {key: None if value != value else value for key, value in asdict(row).items()}
    del case
    if bench.device == "cuda":
        torch.cuda.empty_cache()
        torch.compiler.reset()
