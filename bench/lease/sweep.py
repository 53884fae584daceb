"""Which block sizes are fastest: every candidate that the compiler left, on this GPU.

in:  a Place, pruned.jsonl      out: rows {kernel, case, shape, block, variant, ms, present_ms, ok}
The rows of the tables in the order of their worth, each for its share of the time; candidates in
the order of promise. Each must be right first, by the 2x rule at a ragged shape. Then it takes
turns with the product's present row over inputs that do not fit into the L2 cache, some candidates
at a time: `present_ms` is the present row's time in the same turns.
Read candidates.py first. Read next: apply.py.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator

import torch

from bench import measure
from bench.kernels.case import Bench
from llava_min.kernels import attention, choose

from . import candidates, right_cases, right_rule, right_weights, sweep_cases
from .candidates import Candidate
from .place import Place
from .sweep_cases import CASES, Case, Where

SECONDS = 120
TASK_SECONDS = 150
ROUNDS = 5  # turns of each candidate
TOGETHER = 6  # candidates that take turns with the present row
COPIES = 96  # of the inputs, at most
ENOUGH = 1.02  # a gain below it is noise
WORTH = {
    # (module, row): shares of the time
    ("decode_attention", (16,)): 5,
    ("int4", (16,)): 5,
    ("attention", (128, True)): 5,
    ("attention", (80, False)): 3,
    ("attention", (64, False)): 3,
    ("attention", (64, True)): 2,
    ("decode_attention", (8,)): 3,
    ("int4", (32,)): 2,
    ("int4", (64,)): 2,
    ("norm", ("TILE",)): 1,
    ("activation", ("TILE",)): 1,
    ("rope", ("TOKENS",)): 1,
}
CHECKS = {
    # a ragged shape for each row, and the same for a toy
    ("decode_attention", (16,)): (right_cases.decode, dict(starts=[1000, 77], new=1)),
    ("decode_attention", (8,)): (right_cases.decode, dict(starts=[1000, 77], new=1)),
    ("attention", (128, True)): (right_cases.causal, dict(starts=[70, 131], new=333)),
    ("attention", (64, True)): (right_cases.causal, dict(starts=[70, 131], new=333)),
    ("attention", (80, False)): (right_cases.both_ways, dict(batch=2, patches=333)),
    ("attention", (64, False)): (right_cases.both_ways, dict(batch=2, patches=333)),
    ("int4", (16,)): (right_weights.four_bits, dict(count=3, outputs=1000, inputs=3584)),
    ("int4", (32,)): (right_weights.four_bits, dict(count=21, outputs=1000, inputs=3584)),
    ("int4", (64,)): (right_weights.four_bits, dict(count=63, outputs=1000, inputs=3584)),
    ("norm", ("TILE",)): (right_cases.add_rms_norm, dict(count=77, width=3584)),
    ("activation", ("TILE",)): (right_cases.swiglu, dict(count=77, width=4304)),
    ("rope", ("TOKENS",)): (right_cases.write, dict(starts=[70, 131], new=333)),
}
HEADS = {128: (28, 4, 128), 80: (4, 4, 72), 64: (14, 2, 64), 16: (28, 4, 128), 8: (28, 4, 128)}
TOYS = dict(starts=[9, 4], new=20, patches=20, outputs=72, inputs=256, width=96)
CHUNKS = (2048, 4096, 8192)  # tokens of a prompt at a time
PROMPT = 32768
Task = tuple[str, Callable[[], Iterable[dict]]]


def tasks(place: Place) -> Iterator[Task]:
    """A task for each row of a table, the most valuable first, then the chunks of a prompt."""
    rows = list(WORTH)
    for number, row in enumerate(rows):
        rest = sum(WORTH[other] for other in rows[number:]) + 1
        share = WORTH[row] / rest
        yield f"{row[0]} {row[1]}", lambda row=row, share=share: compared(place, row, share)
    yield "chunks of a prompt", lambda: chunks(place)


def compared(place: Place, row: tuple, share: float) -> Iterator[dict]:
    """Every candidate of one row of a table, until its share of the time that is left is over."""
    start = time.monotonic()
    until = start + share * (place.deadline - start)
    cases = [case for case in CASES if (case.module, case.row) == row]
    some = candidates.kept(cases[0])
    if place.dry:
        some = toys(some)
    with choose.using("triton" if place.dry else "auto"), torch.inference_mode():
        timed = [(case, copies(place, case)) for case in cases]
        now, *others = some
        wrong = unfit(place, cases[0], now)
        if wrong:
            yield about(place, cases[0], now) | {"current": True, "ok": False, "problem": wrong}
            return
        while time.monotonic() < until:
            group, others = others[:TOGETHER], others[TOGETHER:]
            right = [now]
            for candidate in group:
                wrong = unfit(place, cases[0], candidate)
                if wrong:
                    yield about(place, cases[0], candidate) | {"ok": None, "problem": wrong}
                else:
                    right.append(candidate)
            for case, calls in timed:
                yield from turns(place, case, calls, right)
            if not others:
                break
    if others:
        yield about(place, cases[0], now) | {"what": "not reached", "count": len(others)}


def toys(some: list[Candidate]) -> list[Candidate]:
    """The present row and two others, one of them a variant if there is one: a rehearsal."""
    plain = [candidate for candidate in some[1:] if not candidate.variant]
    return [some[0], *plain[:1], *[candidate for candidate in some if candidate.variant][:1]]


def copies(place: Place, case: Case) -> list[Callable[[], object]]:
    """Calls on inputs that do not fit into the L2 cache together."""
    where = Where(place.device, place.dtypes[0], place.dry)
    bench = Bench(place.device, place.dtypes[0], place.dry)
    number = min(COPIES, bench.copies(case.unit)) if case.unit else 1
    return case.make(where, 1 if place.dry else number)


def about(place: Place, case: Case, candidate: Candidate) -> dict:
    """The part of a row that says what was tried."""
    return {
        "kernel": case.module,
        "case": list(case.row),
        "shape": case.shape,
        "block": list(candidate.block),
        "variant": candidate.variant,
        "dtype": right_rule.name_of(place.dtypes[0]),
    }


def trial(place: Place, case: Case) -> right_rule.Trial:
    """The check of a row."""
    make, sizes = CHECKS[case.module, case.row]
    if "starts" in sizes or "patches" in sizes:
        heads = HEADS.get(case.row[0], HEADS[128])
        sizes = sizes | {"heads": heads if not place.dry else (2, 1, 16)}
        if make is right_cases.both_ways:
            sizes |= {"heads": heads if not place.dry else (2, 2, 16 if case.row[0] != 80 else 40)}
    if case.row == (8,):
        sizes = sizes | {"kind": "int8"}
    if place.dry:
        sizes |= {name: value for name, value in TOYS.items() if name in sizes}
        if sizes.get("new") == TOYS["new"] and make is right_cases.decode:
            sizes |= {"new": 1}
    return make(right_cases.Draw(place.device, place.dtypes[0], place.seed), **sizes)


def unfit(place: Place, case: Case, candidate: Candidate) -> str:
    """Why a candidate cannot be used, or "": it does not launch, or its results are not right."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources

    try:
        with candidates.setting(case, candidate):
            found = right_rule.is_right(trial(place, case))
    except (OutOfResources, CompilationError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
    if found["ok"]:
        return ""
    return found.get("problem") or f"error {found['error']:.3g} of {found['allowed']:.3g}"


def turns(place: Place, case: Case, calls: list[Callable], some: list[Candidate]) -> Iterator[dict]:
    """Time the present row and others in turns: a row for each."""

    def using(candidate: Candidate) -> Callable[[int], object]:
        def call(number: int) -> object:
            with candidates.setting(case, candidate):
                return calls[number % len(calls)]()

        return call

    names = {f"llava_min {index}": candidate for index, candidate in enumerate(some)}
    times = measure.interleaved(
        {name: using(candidate) for name, candidate in names.items()}, 1 if place.dry else ROUNDS
    )
    middle = {name: values[len(values) // 2] for name, values in times.items()}
    first = middle["llava_min 0"]
    for name, candidate in names.items():
        yield about(place, case, candidate) | {
            "ms": middle[name],
            "present_ms": first,
            "current": candidate == some[0],
            "ok": True,
        }


def chunks(place: Place) -> Iterator[dict]:
    """Attention of a whole prompt of the 7B in chunks, and of its last chunk by a library.

    The library takes what was seen and what is new apart, and both are merged by their sums.
    """
    where = Where(place.device, place.dtypes[0], place.dry)
    prompt = where.scaled(PROMPT, 48)
    with choose.using("triton" if place.dry else "auto"), torch.inference_mode():
        for chunk in (where.scaled(size, 24) for size in CHUNKS):
            parts = [
                sweep_cases.prompts(28, 4, 128, chunk, seen) for seen in range(0, prompt, chunk)
            ]
            calls = [part(where, 1)[0] for part in parts]
            times = measure.interleaved({"llava_min": lambda _, c=calls: [one() for one in c]}, 3)
            yield {
                "kernel": "attention",
                "case": "chunks",
                "ms": times["llava_min"][1],
                "shape": f"7B 28/4x128, {prompt} tokens in chunks of {chunk}",
            }
        yield from library(where, prompt)


def library(where: Where, prompt: int) -> Iterator[dict]:
    """The last chunk of a prompt, here and by two calls of a library."""
    new = where.scaled(CHUNKS[-1], 24)
    heads, kv_heads, head_dim = where.heads(28, 4, 128)
    query = where.normal(1, new, heads, head_dim)
    at = sweep_cases.layer(where, kv_heads, prompt - 1, head_dim, "16")
    at.lengths = torch.full_like(at.lengths, prompt - new)
    keys, values = at.keys, at.values
    times = measure.interleaved(
        {
            "llava_min": lambda _: attention.attention_triton(query, keys, values, at.lengths),
            "attention_merged": lambda _: attention.attention_merged(query, keys, values),
        }
    )
    for name, values in times.items():
        yield {
            "kernel": "attention",
            "case": "merged",
            "variant": name,
            "shape": f"7B 28/4x128, {new} after {prompt - new}",
            "ms": values[len(values) // 2],
        }


# What follows --------------------------------------------------------------------


def gains(rows: Iterable[dict]) -> dict[tuple, dict[Candidate, float]]:
    """{(kernel, case): {candidate: how many times faster than the present row}}.

    The geometric mean over shapes, of candidates that were measured at every shape and right.
    """
    found: dict[tuple, dict[Candidate, dict[str, float]]] = {}
    for row in rows:
        if row.get("ok") and row.get("present_ms") and isinstance(row["case"], list):
            candidate = Candidate(tuple(row["block"]), row["variant"])
            table = found.setdefault((row["kernel"], tuple(row["case"])), {})
            table.setdefault(candidate, {})[row["shape"]] = row["present_ms"] / row["ms"]
    result = {}
    for key, table in found.items():
        most = max(map(len, table.values()))
        result[key] = {
            candidate: math.prod(shapes.values()) ** (1 / most)
            for candidate, shapes in table.items()
            if len(shapes) == most
        }
    return result


def best(rows: Iterable[dict], variants: bool = False) -> dict[tuple, Candidate]:
    """{(kernel, case): the fastest candidate} where it gains 2% on the present row at least.

    A table can hold blocks only: variants of kernels are left out unless they are asked for.

    >>> row = dict(kernel="int4", case=[16], shape="", variant="", ok=True, present_ms=1.0)
    >>> rows = [row | dict(block=[128, 4, 4, 2], ms=1.0), row | dict(block=[64, 4, 4, 2], ms=0.8)]
    >>> best(rows)
    {('int4', (16,)): Candidate(block=(64, 4, 4, 2), variant='')}
    """
    winners = {}
    for key, table in gains(rows).items():
        allowed = {c: gain for c, gain in table.items() if variants or not c.variant}
        if allowed and (gain := max(allowed.values())) >= ENOUGH:
            winners[key] = next(c for c in allowed if allowed[c] == gain)
    return winners


def use(rows: Iterable[dict]) -> None:
    """Set the tables of this process to the winners, for the stages that follow.

    Rows of a dry run mean nothing and change nothing.
    """
    measured = [row for row in rows if row.get("stage") == "sweep" and not row.get("dry")]
    for (name, row), candidate in best(measured).items():
        candidates.assign(name, row, candidate)
