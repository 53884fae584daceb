"""Nine minutes of one GPU, spent once: the stages in turn, each in a process of its own.

in:  minutes, a folder, whether to go on where a run was cut off
out: rows.jsonl, log.txt, table.txt, trace.html in that folder; the table is printed last

A stage may work until its deadline, the start plus all budgets up to its own, so what an early
stage leaves over goes to the later ones. Stages are forked: torch, triton and numpy are imported
once, here, which is seconds for each stage. A fork can use CUDA only where its parent never did, so
nothing in this process asks for a device; even the question whether there is one goes to a child.
Read next: watch.py.
"""

import argparse
import importlib
import importlib.util
import json
import os
import re
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from . import child, facts, table
from .place import BETWEEN, Journal, Place, lines_of, read
from .watch import Log, Stage

STAGES = {
    name: f"bench.lease.{name}"
    for name in ("compile", "ceilings", "right", "sweep", "peers", "whole", "trace")
}
MINUTES = 9.0
GRACE = 5.0  # seconds that a task may go on past the deadline of its stage
PATIENCE = 10.0  # seconds that a driver may take to let go of a process that was ended
CRASHES = 5  # tasks in a row that may end their process, before a stage is given up
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass
class Budget:
    """Seconds of a stage, and the most of them that one task may take before it is stopped."""

    seconds: float
    task: float


def budget(module: str) -> Budget:
    """The budget of a stage as its source states it, which is not imported here.

    SECONDS, and TASK_SECONDS where half a minute or half of the stage is not the right limit for a
    task.
    """
    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        spec = None
    source = Path(spec.origin).read_text() if spec and spec.origin else ""
    stated = dict(re.findall(r"^(SECONDS|TASK_SECONDS) = ([\d.]+)", source, re.M))
    seconds = float(stated.get("SECONDS", 0))
    return Budget(seconds, float(stated.get("TASK_SECONDS", max(30.0, seconds / 2))))


def scaled(budgets: dict[str, Budget], minutes: float) -> dict[str, Budget]:
    """The budgets of the stages that are left, so that they fill the minutes.

    Where little is left, no stage gets more than its share of a whole run.
    """
    whole = sum(each.seconds for each in budgets.values())
    factor = min(60 * minutes / whole, max(1.0, minutes / MINUTES)) if whole else 0.0
    return {
        name: Budget(each.seconds * factor, each.task * factor) for name, each in budgets.items()
    }


class Lease:
    """One run over the stages, as the parent sees it."""

    def __init__(self, out: Path, dry: bool, stages: dict[str, str], start: float):
        self.out, self.dry, self.stages, self.start = out, dry, stages, start
        self.journal, self.log = Journal(out), Log(out / "log.txt", start)
        self.signal, self.device = 0, "cpu"

    def stop(self, number: int, frame) -> None:
        """React to a signal: the first one is kept, and ends the run."""
        self.signal = self.signal or number

    def run(self, minutes: float) -> None:
        """All stages that are not complete, each until its deadline."""
        ends = read(self.out).ends
        left = {
            name: budget(module)
            for name, module in self.stages.items()
            if ends.get(name) != "complete"
        }
        deadline = self.start
        for name, each in scaled(left, minutes).items():
            deadline += each.seconds
            self.stage(name, deadline, each.task)
            self.write_table()
            if self.signal:
                return

    def stage(self, name: str, deadline: float, limit: float) -> None:
        """One stage, started again after each task that ended its process."""
        crashes = 0
        self.log.say(f"{name}: until {deadline - self.start:.1f} s")
        while True:
            running = self.started(name, deadline)
            code, why = self.watch(running, deadline, limit)
            running.close(self.log)
            if self.signal or code == 0:
                return
            crashes = 1 if running.clean else crashes + 1
            again = self.blame(running, code, why) and time.monotonic() < deadline
            if not again:
                return
            if crashes >= CRASHES:
                self.journal.write(
                    stage=name,
                    key=BETWEEN,
                    ok=False,
                    device=self.device,
                    error=f"given up after {crashes} crashes in a row",
                )
                return

    def started(self, name: str, deadline: float) -> Stage:
        """A stage in a new process, which goes on where the journal ends."""
        dtypes = (torch.bfloat16, torch.float16)
        if self.dry:  # the interpreter does not multiply bfloat16
            dtypes = (torch.float16, torch.float32)
        assert not torch.cuda.is_initialized()  # or no child could use it
        found = read(self.out)
        device = "cpu" if self.dry else "cuda"
        place = Place(device, dtypes, self.dry, self.out, found.rows, deadline)
        return Stage(name, self.stages[name], place, found, self.device)

    def watch(self, running: Stage, deadline: float, limit: float) -> tuple[int | None, str]:
        """Follow a stage to its end: its exit code, or None where it was ended here, and why."""
        why, patience = "", float("inf")
        while time.monotonic() < patience:
            running.follow(self.log)
            if (code := running.ended()) is not None:
                running.follow(self.log)
                return (None if why else code), why
            now = time.monotonic()
            if self.signal:
                why = why or signal.Signals(self.signal).name
            elif now > deadline + GRACE:
                why = why or "time"
            elif running.key != BETWEEN and now - running.since > limit:
                why = why or f"stopped after {limit:.0f} s"
            if why and patience == float("inf"):
                if not self.signal:
                    running.tell(self.log)
                running.kill()
                patience = now + PATIENCE
        return None, why

    def blame(self, running: Stage, code: int | None, why: str) -> bool:
        """Write down what ended the process of a stage; whether its other tasks can go on."""
        task = {"stage": running.name, "key": running.key}
        if why == "time":
            self.journal.write(line="end", stage=running.name, why="time")
            if running.key == BETWEEN:
                return False
            if not read(self.out).cut[running.name, running.key]:
                self.journal.write(line="cut", **task)
                return False
            why = "its time was up twice"
        if code == child.STICKY:  # it said itself what was wrong
            return True
        how = f"signal {signal.Signals(-code).name}" if (code or 0) < 0 else f"exit code {code}"
        if running.key == BETWEEN and code == 1:  # a traceback, of which the row is written
            return False
        error = why or f"the process ended with {how}"
        dry = {"dry": True} if self.dry else {}
        row = task | {"ok": False, "error": error, "device": self.device} | dry
        self.journal.write(**row)
        self.log.say(f"{running.name}: WRONG: {table.wrong(row)}")
        if running.key != BETWEEN:
            self.journal.write(line="done", broken=error, **task)
        return running.key != BETWEEN

    def write_table(self) -> str:
        """table.txt from what is in the journal; its text."""
        text = table.text(read(self.out), list(self.stages))
        fresh = self.out / "table.txt.new"
        fresh.write_text(text)
        fresh.replace(self.out / "table.txt")
        return text


def asked_card() -> dict | None:
    """The CUDA device as a child finds it; None where there is none or it does not answer."""
    reading, writing = os.pipe()
    process = child.fork(lambda: print("\n" + json.dumps(facts.card())), writing)
    os.close(writing)
    data, until = b"", time.monotonic() + 60
    while (left := until - time.monotonic()) > 0 and select.select([reading], [], [], left)[0]:
        if not (more := os.read(reading, 65536)):
            break
        data += more
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    os.close(reading)
    found = [line for line in lines_of(data) if isinstance(line, dict)]
    return found[-1] if found else None


def prepare(dry: bool) -> None:
    """Import what children need and would each import again.

    Triton comes before anything that asks whether it may be imported: that question would go to
    CUDA.
    """
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # is_available() without starting CUDA
    if dry:
        os.environ.setdefault("TRITON_INTERPRET", "1")
    for name in ("triton", "numpy"):
        if importlib.util.find_spec(name):
            importlib.import_module(name)


def refusal(settings: argparse.Namespace) -> str | None:
    """Why nothing can be run with these settings, in one line."""
    out = settings.out
    if out.exists() and not out.is_dir():
        return f"--out {out} is not a folder"
    if not settings.minutes > 0:
        return f"--minutes must be above 0, found {settings.minutes:g}"
    headers = read(out).headers
    if headers and not settings.resume:
        return f"{out} holds results: add --resume to go on there, or name another folder"
    if headers and bool(headers[-1].get("dry")) != settings.dry_run:
        return f"{out} holds results {'of' if headers[-1].get('dry') else 'without'} --dry-run"
    return None


def main(settings: argparse.Namespace, stages: dict[str, str] = STAGES) -> int:
    """Run the stages; the exit code.

    0 where everything ran and was right, 1 where not, 2 where nothing can run, 128 and the signal's
    number where a signal ended it.
    """
    start = time.monotonic()
    if why := refusal(settings):
        print(f"bench: {why}", file=sys.stderr)
        return 2
    prepare(settings.dry_run)
    card = {"device": "cpu, dry run"} if settings.dry_run else asked_card()
    if card is None:
        print("bench: no CUDA device: --dry-run rehearses the lease on a CPU", file=sys.stderr)
        return 2
    settings.out.mkdir(parents=True, exist_ok=True)
    lease = Lease(settings.out, settings.dry_run, stages, start)
    before = [signal.signal(number, lease.stop) for number in SIGNALS]
    try:
        lease.device = card["device"]
        header = facts.machine() | card | {"minutes": settings.minutes}
        header |= {"dry": True} if settings.dry_run else {}
        lease.journal.write(line="header", **header)
        lease.run(settings.minutes)
        text = lease.write_table()
        with suppress(OSError):
            print(text, end="", flush=True)
    finally:
        for number, handler in zip(SIGNALS, before):
            signal.signal(number, handler)
    if lease.signal:
        return 128 + lease.signal
    return 0 if table.good(read(settings.out), list(stages)) else 1
