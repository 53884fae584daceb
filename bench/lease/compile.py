"""Everything that will be launched, compiled into Triton's cache on disk before anything is timed.

in:  a Place      out: a row for each kernel: seconds, registers, bytes of shared memory, of stack
A kernel takes a second to compile, and there are some hundreds: one process for each core takes one
after another, the most used first. No process here starts CUDA: what the cache is asked for depends
on the compute capability alone. Triton 3.6 also builds a stub in C for each signature, and so does
this stage. What is compiled later all the same is seen by `watch`.
Read launches.py, candidates.py first. Read next: ceilings.py.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait

import triton  # before the kernels, which it then compiles
from triton.backends.nvidia import driver as nvidia

from . import candidates, facts, launches
from .place import Place
from .signatures import GPUS, Launch, resources
from .sweep_cases import CASES

SECONDS = 45
TASK_SECONDS = 60
WORKERS = max(1, min(14, (os.cpu_count() or 2) - 2))
_waiting: list[Launch] = []  # what forked processes inherit: a Launch cannot be sent


def tasks(place: Place) -> Iterator[tuple[str, Callable[[], Iterable[dict]]]]:
    """The product's launches, then the candidates that are left."""
    if place.dry:
        yield "two kernels", rehearsal
        return
    number = capability()
    yield "product", lambda: compiled(list(launches.product(number).values()), place.deadline)
    if number == candidates.NUMBER:
        yield "candidates", lambda: compiled(promising(), place.deadline)


def capability() -> int:
    """90 for sm_90, from the driver's own tool: this process must not start CUDA."""
    found = facts.output("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
    number = int((found or "").splitlines()[0].replace(".", "")) if found else candidates.NUMBER
    if number not in GPUS:
        raise ValueError(f"sm_{number}: expected one of {', '.join(map(str, GPUS))}")
    return number


def promising() -> list[Launch]:
    """The launches of the candidates that were not dropped, the most promising first."""
    found: dict[str, Launch] = {}
    for case in CASES:
        for candidate in candidates.kept(case):
            launch = candidates.launch_of(case, candidate)
            found.setdefault(launch.key, launch)
    return list(found.values())


def compiled(some: list[Launch], deadline: float) -> Iterator[dict]:
    """Compile in processes side by side, and yield a row for each kernel as it is done."""
    _waiting[:] = some
    rest = list(range(len(some)))[::-1]
    pool = ProcessPoolExecutor(WORKERS, multiprocessing.get_context("fork"))
    running = {pool.submit(one, rest.pop()) for _ in range(min(2 * WORKERS, len(rest)))}
    while running:
        done, running = wait(running, max(0.0, deadline - time.monotonic()), FIRST_COMPLETED)
        for future in done:
            yield future.result() if future.exception() is None else wrong(future.exception())
            if rest and time.monotonic() < deadline:
                running.add(pool.submit(one, rest.pop()))
        if not done:  # the time is up; the runner ends what is left of this process
            break
    pool.shutdown(wait=False, cancel_futures=True)
    if rest or running:
        yield {"what": "not compiled for want of time", "count": len(rest) + len(running)}


def wrong(error: BaseException) -> dict:
    """The row of a launch that did not compile."""
    return {"ok": False, "error": f"{type(error).__name__}: {str(error).strip()[-300:]}"}


def one(index: int) -> dict:
    """Compile one launch in this process: its row."""
    launch, start = _waiting[index], time.perf_counter()
    code = launch.compiled()
    stub(code)
    seconds = round(time.perf_counter() - start, 3)
    needs = resources(code)
    return {
        "kernel": launch.name,
        "dtype": launch.dtype(),
        "seconds": seconds,
        "registers": needs["reg"],
        "shared": needs["shared"],
        "spills": needs["stack"],
        "options": launch.options,
    }


def stub(code) -> None:
    """Build what Triton 3.6 builds in C to launch a signature.

    Later versions need none, and without the driver's library there is nothing to link it with.
    """
    if hasattr(nvidia, "make_launcher") and has_driver():
        if not hasattr(nvidia.CudaUtils, "instance"):
            nvidia.CudaUtils()
        nvidia.CudaLauncher(code.src, code.metadata)


def has_driver() -> bool:
    """Whether Triton finds libcuda."""
    try:
        return bool(nvidia.libcuda_dirs())
    except AssertionError:
        return False


def watch(report: Callable[[dict], None]) -> None:
    """Tell `report` of every kernel that this process compiles from now on, with its seconds.

    What lies in the cache on disk is not told.
    """

    def listen(src, times, cache_hit: bool, **_) -> None:
        if not cache_hit:
            report({"late": src.name, "seconds": round(times.total / 1e6, 3)})

    triton.knobs.compilation.listener = listen


def rehearsal() -> Iterator[dict]:
    """Two kernels for sm_90 in a process of its own, where kernels are not interpreted."""
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.lease.compile"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    yield from map(json.loads, run.stdout.splitlines())


def main() -> None:
    """Compile what the product launches for SigLIP and CLIP, and print their rows."""
    for case in CASES:
        if case.module == "attention" and not case.row[1]:
            launch = candidates.launch_of(case, candidates.present(case))
            _waiting[:] = [launch]
            print(json.dumps(one(0)), flush=True)


if __name__ == "__main__":
    main()
