"""One stage of the lease, in a process of its own.

in:  a stage's module and a Place      out: its lines in the journal

An error of one task is a row, and the next task goes on. After an error on CUDA the process asks
the device whether it still answers; if not, nothing in this process can run any more: it ends with
STICKY, and its parent starts the stage again with the tasks that are left.
Read next: run.py.
"""

import ctypes
import faulthandler
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

import torch

from .place import BETWEEN, Found, Journal, Place

STICKY = 70  # exit code of a process whose device answers no more
WHERE = signal.SIGUSR1  # a process prints where it is
LISTING = 2.0  # seconds for naming the tasks that were not reached
NAMED = 500  # of them at most
STAGE_BYTES = 5 * 2**20  # lines of one stage, so that all fit into a file of 16 MiB


def fork(function: Callable[[], object], output: int) -> int:
    """Run a function in a forked process that prints into the file `output`; its process id.

    The process leads a group of its own, and ends when its parent does.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        end_with(parent)
        settle(output)
        code = function() or 0
    except BaseException:  # whatever it was, no frame of the parent may go on in this process
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def settle(output: int) -> None:
    """Give a forked process its own output and the usual reactions to signals.

    When it crashes, or is asked with WHERE, it prints where it is.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    faulthandler.enable(sys.stderr)
    faulthandler.register(WHERE, sys.stderr)


def end_with(parent: int) -> None:
    """Ask Linux to kill this process when its parent ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1: PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it ended before the question
            os._exit(1)


def stage(name: str, module: str, place: Place, found: Found, device: str) -> int:
    """Run the tasks of a stage that are not done; the exit code of this process."""
    journal = Journal(place.out)
    journal.write(line="begun", stage=name, key=BETWEEN)
    torch.manual_seed(place.seed)
    if place.dry:  # toy sizes: threads would wait for each other
        torch.set_num_threads(1)
    always = {"device": device} | ({"dry": True} if place.dry else {})
    why, until, named = "complete", 0.0, 0
    if not place.dry:
        follow(journal, name, place)
    try:
        for key, measure in importlib.import_module(module).tasks(place):
            if (name, key) in found.done:
                continue
            over = "time" if time.monotonic() >= place.deadline else ""
            over = over or ("full" if journal.written > STAGE_BYTES else "")
            if not over:
                task(journal, place, name, key, measure, always)
                continue
            why, until = over, until or time.monotonic() + LISTING
            journal.write(line="missed", stage=name, key=key)
            named += 1
            if time.monotonic() > until or named == NAMED:
                break
    except Exception as error:
        traceback.print_exc()
        journal.write(stage=name, key=BETWEEN, **always, **failure(error))
        return 1
    journal.write(line="end", stage=name, why=why)
    return 0


def follow(journal: Journal, name: str, place: Place) -> None:
    """Use what the sweep found, and write down each kernel that is compiled in this stage.

    The stage compile should have compiled it.
    """
    from . import compile, sweep

    sweep.use(place.rows)
    if name != "compile":
        compile.watch(lambda row: journal.write(stage=name, key=BETWEEN, **row))


def task(journal: Journal, place: Place, name: str, key: str, measure: Callable, always: dict):
    """Run one task, writing each row as it comes."""
    journal.write(line="begun", stage=name, key=key)
    start = time.monotonic()

    def keep(row: dict) -> None:
        row = {"stage": name, "key": key} | row | always
        journal.write(**row)
        place.rows.append(row)

    print(f"-- {name}: {key}", flush=True)
    try:
        for row in measure() or ():
            keep(row)
    except Exception as error:
        traceback.print_exc()
        keep(failure(error))
        if not answers():
            journal.write(line="done", stage=name, key=key, broken="the device answers no more")
            print("the device answers no more: this process ends", flush=True)
            sys.stdout.flush()
            os._exit(STICKY)
    journal.write(line="done", stage=name, key=key, seconds=round(time.monotonic() - start, 3))


def failure(error: BaseException) -> dict:
    """The row of an error: its kind, its first line, and where in this project it was raised."""
    first = (str(error).strip().splitlines() or [""])[0][:300]
    frames = traceback.extract_tb(error.__traceback__)
    here = next(
        (frame for frame in reversed(frames) if "site-packages" not in frame.filename), frames[-1]
    )
    place = f"{os.path.basename(here.filename)}:{here.lineno}"
    return {"ok": False, "error": f"{type(error).__name__}: {first} ({place})"}


def answers() -> bool:
    """Whether the device still runs what it is given; true where none was used."""
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device="cuda").item()
    except RuntimeError:
        return False
    return True
