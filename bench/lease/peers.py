"""Each kernel at a few shapes of worth, beside its peers in the same process.

in:  a Place      out: the rows of bench/kernels.py, as dictionaries
The most important shapes come first. Peers that torch.compile makes take seconds each, so they come
last, once more beside our kernel.
Read before: ../kernels.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial

import torch

from .. import kernels, measure
from ..kernels import Bench, Case
from .place import Place

SECONDS = 60
ROUNDS = 7  # turns of each candidate
COMPILED = ("llava_min", "FlexAttention", "compiled")
Make = Callable[[Bench], Case]
Task = tuple[str, Callable[[], Iterator[dict]]]


def cases() -> dict[str, Make]:
    """How to make the case of each shape, by name, in the order of worth."""
    prefill, decode = kernels.prefill_case, kernels.decode_case
    chunk, vision, int4 = kernels.chunk_case, kernels.vision_case, kernels.int4_case
    pointwise, rope = kernels.pointwise_case, kernels.rope_case
    wanted = [
        (decode, "7B", 131072), (prefill, "7B", 8192), (prefill, "7B", 32768),
        (int4, "7B gate_up", 1), (decode, "7B", 1024), (decode, "7B", 32768),
        (vision, "SigLIP", 64), (vision, "SigLIP", 8), (int4, "7B down", 1), (int4, "7B head", 1),
        (int4, "7B gate_up", 16), (int4, "7B gate_up", 64), (chunk, "7B", 2048, 6144),
        (chunk, "7B", 2048, 30720), (prefill, "0.5B", 8192), (int4, "7B gate_up", 4096),
        (pointwise, "add_rms_norm", 1), (pointwise, "swiglu", 1), (rope, 1),
        (pointwise, "add_rms_norm", 8192), (pointwise, "swiglu", 8192), (rope, 8192),
        (pointwise, "layer_norm", 8192), (pointwise, "gelu", 8192), (vision, "SigLIP", 1),
        (vision, "CLIP", 64), (vision, "CLIP", 8), (vision, "CLIP", 1), (decode, "0.5B", 1024),
        (int4, "0.5B gate_up", 1), (int4, "7B down", 16), (int4, "7B head", 16),
        (int4, "7B down", 64), (int4, "7B head", 64), (int4, "7B down", 4096),
    ]  # fmt: skip
    return {
        f"{make.__name__.removesuffix('_case')} {' '.join(map(str, sizes))}":
        lambda bench, make=make, sizes=sizes: make(bench, *sizes)
        for make, *sizes in wanted
    }  # fmt: skip


LAST = ("add_rms_norm 8192", "swiglu 8192", "rope 8192", "add_rms_norm 1", "prefill 7B 8192",
        "vision SigLIP 8")  # fmt: skip  # of these the compiled peers, in this order


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
    found = kernels.measured(case, limits, 1 if bench.small else ROUNDS)
    print(measure.table(found))
    for row in found:
        yield {key: None if value != value else value for key, value in asdict(row).items()}
    del case
    if bench.device == "cuda":
        torch.cuda.empty_cache()
        torch.compiler.reset()
