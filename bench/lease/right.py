"""Is everything right on this device? Kernels, whole models, tests, memory.

in:  a Place      out: rows {kernel, dtype, check, shape, size, ok, error, allowed}
In the order of worth: every kernel once by the 2x rule, with NaN, and for the same bits in each
run; whole models; lengths around the borders of blocks; places past 2^31 elements; the tests
marked gpu; compute-sanitizer; random shapes until the time is up. A check that could not be made
has "skipped" in place of "ok". A dry run goes through toy sizes in the interpreter.
Read right_children.py first.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import llava_min
from llava_min.kernels import choose

from .. import models
from ..shapes import TOY
from . import right_children as children
from . import right_model as model
from . import right_rule as rule
from . import right_shapes as shapes
from .place import Place

SECONDS = 90
AHEAD = 8  # processes that compile early
RUNS = 20  # that must give the same bits
Task = tuple[str, Callable[[], Iterable[dict]]]


def tasks(place: Place) -> Iterator[Task]:
    """Every check, in the order of worth. What needs a process of its own begins at once."""
    expected = model.CpuAnswers(4 if place.dry else model.SCENES, 1 if place.dry else 4)
    tests, memory = children.MarkedTests(), children.MemoryCheck(place.dry)
    early = [] if place.dry else children.ahead(AHEAD, place.seed)
    try:
        yield from kernel_tasks(place)
        yield from model_tasks(place, expected)
        yield from border_tasks(place)
        for child in early:  # its memory is needed now
            child.end()
        yield from vast_tasks(place)
        yield "tests marked gpu", lambda: tests.rows(left(place), place.dry)
        yield "memcheck", lambda: memory.rows(left(place))
        yield from ragged_tasks(place)
    finally:
        for child in (expected, tests, memory, *early):
            child.end()


def left(place: Place) -> float:
    """Seconds that a check may wait for a process: half of what is left."""
    return max(1.0, (place.deadline - time.monotonic()) / 2)


def with_kernels(place: Place, check: Callable[[], Iterable[dict]]) -> Callable[[], Iterator[dict]]:
    """A check in which the kernels run also on a CPU, in the interpreter."""

    def run() -> Iterator[dict]:
        with choose.using("triton" if place.dry else "auto"):
            yield from check()
        if place.device == "cuda":
            torch.cuda.empty_cache()

    return run


def seed_of(place: Place, number: int) -> int:
    """The seed of one of a run's checks: another one for each run and check."""
    return 1000 * place.seed + number


def in_turn(place: Place, number: int) -> tuple[torch.dtype, ...]:
    """The dtypes of a check: all of them, in a dry run one or the other."""
    return (place.dtypes[number % len(place.dtypes)],) if place.dry else place.dtypes


# Kernels -----------------------------------------------------------------------


def thorough(place: Place, case: shapes.Case, dtype: torch.dtype, seed: int) -> Iterator[dict]:
    """The three questions about one kernel at one shape."""
    with torch.inference_mode():
        trial = shapes.trial(place, case, dtype, seed)
        yield rule.is_right(trial)
        yield rule.shows_nan(trial)
        yield rule.is_steady(trial, 2 if place.dry else RUNS)


def exact_enough(place: Place, some: list[shapes.Case], dtype, seed: int) -> Iterator[dict]:
    """The 2x rule at several shapes."""
    with torch.inference_mode():
        for number, case in enumerate(some):
            yield rule.is_right(shapes.trial(place, case, dtype, seed + number))


def kernel_tasks(place: Place) -> Iterator[Task]:
    """Every kernel once, in each dtype."""
    for number, case in enumerate(shapes.first()):
        make, sizes = case
        words = ", ".join(f"{name}={value}" for name, value in sizes.items())
        for dtype in in_turn(place, number):
            check = partial(thorough, place, case, dtype, seed_of(place, number))
            key = f"{make.__name__}({words}) {rule.name_of(dtype)}"
            yield key, with_kernels(place, check)


def border_tasks(place: Place) -> Iterator[Task]:
    """Lengths around the borders of blocks."""
    for number, (name, some) in enumerate(shapes.borders(place.dry).items()):
        for dtype in in_turn(place, number):
            check = partial(exact_enough, place, some, dtype, seed_of(place, 100 + 10 * number))
            yield f"borders: {name} {rule.name_of(dtype)}", with_kernels(place, check)


def vast_tasks(place: Place) -> Iterator[Task]:
    """The largest shapes, in the first dtype."""
    for number, case in enumerate(shapes.vast()):
        make, sizes = case
        check = partial(exact_enough, place, [case], place.dtypes[0], seed_of(place, 500 + number))
        yield f"vast {number}: {make.__name__} {sizes.get('kind', '')}", with_kernels(place, check)


def ragged_tasks(place: Place) -> Iterator[Task]:
    """Random shapes until the time is nearly up; in a dry run one round of the kernels."""
    for number, case in enumerate(shapes.ragged(place.seed)):
        if time.monotonic() > place.deadline - 2 or (place.dry and number == shapes.ROUND):
            return
        dtype = place.dtypes[number // shapes.ROUND % len(place.dtypes)]
        check = partial(exact_enough, place, [case], dtype, seed_of(place, 1000 + number))
        yield f"ragged {number}: {case[0].__name__}", with_kernels(place, check)


# Whole models ------------------------------------------------------------------


def model_tasks(place: Place, expected: model.CpuAnswers) -> Iterator[Task]:
    """Steps, answers, batches."""
    for number, kind in enumerate(model.KINDS):
        for dtype in in_turn(place, number):
            check = partial(steps, place, dtype, kind)
            yield f"step {kind} {rule.name_of(dtype)}", with_kernels(place, check)
    for dtype in (torch.float32, place.dtypes[0]):
        check = partial(answers, place, expected, dtype)
        yield f"embedded answers {rule.name_of(dtype)}", with_kernels(place, check)
    for dtype in in_turn(place, 0):
        count = 1 if place.dry else 8
        check = partial(model.batches, place.device, dtype, not place.dry, count)
        yield f"rows of a batch {rule.name_of(dtype)}", with_kernels(place, check)


def steps(place: Place, dtype: torch.dtype, kind: str) -> Iterator[dict]:
    """Recorded steps of the embedded checkpoint, in a dry run of a smaller decoder."""
    if place.dry:
        text = replace(TOY, num_layers=1)
        decoder = models.decoder_of(text, False, place.device, dtype)
        return model.recorded_steps(models.network_of(decoder), dtype, kind, [3, 9], 1)
    network = llava_min.load(device=place.device, dtype=rule.name_of(dtype)).network
    return model.recorded_steps(network, dtype, kind, [9, 20], RUNS)


def answers(place: Place, expected: model.CpuAnswers, dtype: torch.dtype) -> Iterator[dict]:
    """The embedded checkpoint's answers.

    A dry run answers by torch: a tower takes minutes in the interpreter.
    """
    texts = expected.get(place.deadline - time.monotonic())
    with choose.using("auto"):
        yield from model.answers_equal(
            place.device, texts, dtype, model.TOGETHER, required=dtype == torch.float32
        )


def ahead(part: int, parts: int, seed: int) -> None:
    """Run every `parts`th fixed check, so that its kernels are compiled."""
    dtypes = (torch.bfloat16, torch.float16)
    place = Place("cuda", dtypes, False, Path(), [], time.monotonic() + SECONDS, seed)
    some = [*kernel_tasks(place), *border_tasks(place)][part::parts]
    for _, check in some:
        for _ in check():
            pass


if __name__ == "__main__":
    ahead(*map(int, sys.argv[1:4]))
