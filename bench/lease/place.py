"""What a stage of the lease is told, and the journal that everything it finds goes into.

in:  rows of a stage, and what became of its tasks      out: rows.jsonl, one JSON line each

A line without "line" is a row: what was measured. The others keep the books: "header" (where and
with what), "begun" and "done" (a task), "cut" (its time was up), "missed" (never begun, for want
of time), "end" (of a stage). Each line is given to the system before the next thing is done, so a
process that is killed loses the task under way and nothing else; the disk is waited for once a
second, because waiting for it three times a task would be a good part of a stage.
Read next: child.py.
"""

import json
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROWS = "rows.jsonl"
WAIT = 1.0  # seconds between two waits for the disk
BETWEEN = ""  # the key of a stage while it is between two tasks


@dataclass
class Place:
    """Where a stage runs, how large its tensors may be, and until when."""

    device: str  # "cuda", or "cpu" in a dry run
    dtypes: tuple[torch.dtype, ...]
    dry: bool  # toy sizes: the figures mean nothing
    out: Path
    rows: list[dict]  # of all stages so far
    deadline: float  # time.monotonic() when this stage's time is up
    seed: int = 0

    def of(self, stage: str) -> list[dict]:
        """The rows of one stage so far."""
        return [row for row in self.rows if row["stage"] == stage]

    def limits(self) -> dict[str, float]:
        """The machine's limits as the stage ceilings found them.

        Bytes per second of a "copy" and a "read", operations per second of "matmul" and, where the
        device has it, "fp8". Empty where that stage did not find the first three.
        """
        return limits_of(self.rows)


def limits_of(rows: list[dict]) -> dict[str, float]:
    """The limits among some rows; empty where one is missing that everything needs."""
    found = {row["limit"]: row["per_second"] for row in rows if "limit" in row}
    return found if {"copy", "read", "matmul"} <= found.keys() else {}


def plain(value: object) -> object:
    """A number of torch or numpy as Python's, and anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


class Journal:
    """The file rows.jsonl of one folder, open for more lines."""

    def __init__(self, folder: Path):
        self.path = folder / ROWS
        self.file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self.file).st_size
        if size and os.pread(self.file, 1, size - 1) != b"\n":  # a line that was cut short
            os.write(self.file, b"\n")
        self.written, self.waited = 0, 0.0

    def write(self, **line) -> None:
        """Append one line."""
        text = (json.dumps(line, default=plain) + "\n").encode()
        os.write(self.file, text)
        self.written += len(text)
        if time.monotonic() - self.waited > WAIT:
            os.fsync(self.file)
            self.waited = time.monotonic()


def lines_of(text: bytes) -> list[dict]:
    """The JSON lines of a text; what was cut short is left out.

    >>> lines_of(b'{"a": 1}\\n{"b"')
    [{'a': 1}]
    """
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # not JSON, or not UTF-8: half a line
            continue
    return found


@dataclass
class Found:
    """What a journal holds: rows in the order of their tasks, and what became of each task."""

    headers: list[dict] = field(default_factory=list)
    tasks: dict[tuple[str, str], list[dict]] = field(default_factory=dict)  # (stage, key) -> rows
    done: set[tuple[str, str]] = field(default_factory=set)
    cut: Counter = field(default_factory=Counter)  # how often a task's time was up
    missed: list[tuple[str, str]] = field(default_factory=list)
    begun: set[str] = field(default_factory=set)  # stages
    ends: dict[str, str] = field(default_factory=dict)  # stage -> "complete", or why not

    @property
    def rows(self) -> list[dict]:
        """All rows, in the order in which their tasks began."""
        return [row for rows in self.tasks.values() for row in rows]

    def add(self, line: dict) -> None:
        """Take in one line. A task that begins again replaces its rows."""
        kind, task = line.get("line"), (line.get("stage"), line.get("key"))
        if kind is None:
            self.tasks.setdefault(task, []).append(line)
        elif kind == "header":
            self.headers.append(line)
        elif kind == "begun":
            self.begun.add(line["stage"])
            self.tasks.pop(task, None)
            self.missed = [other for other in self.missed if other != task]
        elif kind == "done":
            self.done.add(task)
        elif kind == "cut":
            self.cut[task] += 1
        elif kind == "missed" and task not in self.missed:
            self.missed.append(task)
        elif kind == "end":
            self.ends[line["stage"]] = line["why"]


def read(folder: Path) -> Found:
    """The journal of a folder; empty where there is none."""
    path, found = folder / ROWS, Found()
    for line in lines_of(path.read_bytes()) if path.exists() else ():
        found.add(line)
    return found
