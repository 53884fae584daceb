"""Norms and activations of rows beside their formulas, eager and compiled.

in:  a Bench      out: Cases

Read case.py, norm.py, activation.py first. Read next: rope.py.
"""

from collections.abc import Iterator

import torch

from . import activation, norm
from .case import Bench, Case

OPERATIONS = norm.OPERATIONS | activation.OPERATIONS


def pointwise_case(bench: Bench, name: str, rows: int) -> Case:
    """One operation on rows that were just written, as in a model: few rows are in the L2 cache."""
    (width, per_number, ours, formula), rows = OPERATIONS[name], 3 if bench.small else rows
    moved = rows * width * per_number
    inputs = [
        (bench.normal(rows, width), bench.normal(rows, width), bench.normal(width))
        for _ in range(min(4, bench.copies(moved)))
    ]
    candidates = {
        "llava_min": lambda i: ours(*inputs[i % len(inputs)]),
        "eager": lambda i: formula(*inputs[i % len(inputs)]),
    }
    if bench.compiled:
        compiled = torch.compile(formula, dynamic=False)
        candidates["compiled"] = lambda i: compiled(*inputs[i % len(inputs)])
    shape, costs = f"{rows} rows of {width}", {"": (moved, 0.0)}
    return Case(name, shape, rows, candidates, costs, len(inputs))


def pointwise_cases(bench: Bench) -> Iterator[Case]:
    for rows in (1, 2048, 8192, 32768) if not bench.small else (3,):
        for name in OPERATIONS:
            yield pointwise_case(bench, name, rows)
