"""Files of results that grow: one JSON line a row; a row measured again replaces the old one.

So a benchmark can be run in parts, and be broken off.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from . import measure


def cpu_name(described: str) -> str:
    """The name of a CPU as /proc/cpuinfo describes it; a cloud's names do not tell generations.

    >>> cpu_name("cpu family\\t: 25\\nmodel\\t\\t: 17\\nmodel name\\t: AMD EPYC\\n")
    'AMD EPYC (family 25, model 17)'
    """
    lines = (line.split(":", 1) for line in described.splitlines() if ":" in line)
    said = {key.strip(): value.strip() for key, value in lines}
    name = said.get("model name", platform.processor() or platform.machine())
    if {"cpu family", "model"} <= said.keys():
        name += f" (family {said['cpu family']}, model {said['model']})"
    return name


def here() -> dict:
    """This machine, with what decides a CPU's speed."""
    described = Path("/proc/cpuinfo")
    found = measure.machine()
    return {
        "cpu": cpu_name(described.read_text() if described.exists() else ""),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": os.environ.get("ONEDNN_MAX_CPU_ISA", "all"),
        "threads": torch.get_num_threads(),
        **{key: found[key] for key in ("torch", "python", "commit", "date")},
    }


KEYS = ("section", "shape", "context", "format", "name", "capability")


def read(path: Path) -> list[dict]:
    """The rows of a file; none where it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def keep(path: Path, rows: list[dict]) -> None:
    """Add rows to a file; each replaces the one with the same KEYS."""
    machine = here()
    rows = [row | machine for row in rows]
    fresh = {tuple(map(row.get, KEYS)) for row in rows}
    old = [row for row in read(path) if tuple(map(row.get, KEYS)) not in fresh]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("".join(json.dumps(row) + "\n" for row in old + rows))
    os.replace(part, path)


def in_turns(calls: dict[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Seconds of each turn of each call, taken in turns after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(turns + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float]) -> tuple[float, float, float]:
    """The 20th, 50th and 80th percentile.

    >>> spread([3.0, 1.0, 2.0])
    (1.0, 2.0, 3.0)
    """
    ordered = sorted(values)
    return tuple(ordered[round(part * (len(ordered) - 1))] for part in (0.2, 0.5, 0.8))
