"""How a time is taken: calls in a CUDA graph, candidates in turns, and the machine's own limits.

in:  candidates (name -> function of a call number)      out: Row objects, one JSON line each
A kernel of 10 microseconds is shorter than Python's way to it, so each candidate's calls are
captured in one CUDA graph and the graph is timed. Candidates take turns (A B C A B C ...), because
a GPU's clock moves in the course of a minute; p20, p50 and p80 are over those turns. Inputs rotate
through copies larger than the L2 cache.
Read next: kernels/case.py.
"""

import datetime
import json
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
ROUNDS = 9  # turns of each candidate
SAMPLE_MS = 4.0  # a sample lasts about so long


@dataclass
class Row:
    """One candidate at one shape.

    Rates are of `bytes` and `flops`, which a formula counts and no profiler.
    """

    section: str
    shape: str
    size: float  # the axis of the plot: tokens, or rows
    name: str
    ours: bool
    p20_ms: float
    p50_ms: float
    p80_ms: float
    bytes: float
    flops: float
    gb_per_s: float
    tflop_per_s: float
    of_ceiling: float  # the time that the machine's copy or matmul rate allows, over p50
    of_best_peer: float  # best peer's p50 over p50: above 1 is faster


def no_device() -> str | None:
    """The one line to print where nothing can be measured."""
    if torch.cuda.is_available():
        return None
    return (
        "no CUDA device: kernels are timed on one. Here they are proven in the interpreter and "
        "compiled ahead of time: python -m pytest tests/test_attention.py tests/test_aot.py"
    )


def milliseconds(call: Callable[[int], object], calls: int) -> Callable[[], float]:
    """A function that runs `calls` calls once more and returns the milliseconds of one."""
    if not torch.cuda.is_available():  # a dry run

        def sample() -> float:
            start = time.perf_counter()
            call(0)
            return 1000 * (time.perf_counter() - start)

        return sample
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for number in range(calls):
            call(number)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample() -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / calls

    return sample


def warm(call: Callable[[int], object]) -> int:
    """Compile what a call needs; how many calls make a sample.

    On a stream of its own, as graph capture wants it.
    """
    if not torch.cuda.is_available():
        call(0)
        return 1
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(0)
        call(1)
        torch.cuda.synchronize()
        start = time.perf_counter()
        call(2)
        torch.cuda.synchronize()
        once = 1000 * (time.perf_counter() - start)
    torch.cuda.current_stream().wait_stream(stream)
    return max(1, min(200, round(SAMPLE_MS / once * 4) if once < SAMPLE_MS else 1))


def interleaved(candidates: dict[str, Callable], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Milliseconds of each candidate, sorted, from `rounds` turns.

    A peer that refuses the shape is left out; one of ours that does raises RuntimeError.
    """
    samples, times = {}, {}
    for name, call in candidates.items():
        try:
            samples[name] = milliseconds(call, warm(call))
        except RuntimeError as error:  # such as "No available kernel" of a backend of torch
            if name.startswith("llava_min"):
                raise
            print(f"    {name} refused: {str(error).splitlines()[0][:80]}", flush=True)
    for _ in range(rounds):
        for name, sample in samples.items():
            times.setdefault(name, []).append(sample())
    return {name: sorted(values) for name, values in times.items()}


def ceilings() -> dict[str, float]:
    """What this machine does at best: {"copy": bytes per second, "matmul": FLOPs per second}.

    The product is one of two square matrices in bfloat16. Without a GPU both are invented.
    """
    if not torch.cuda.is_available():
        return {"copy": 1e10, "matmul": 1e11}
    source, target = (torch.empty(2**29, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    square = [torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
    times = interleaved(
        {"copy": lambda _: target.copy_(source), "matmul": lambda _: square[0] @ square[1]}
    )
    return {
        "copy": 2 * 2**30 / times["copy"][ROUNDS // 2] * 1e3,
        "matmul": 2 * 8192**3 / times["matmul"][ROUNDS // 2] * 1e3,
    }


def rows_of(
    section: str,
    shape: str,
    size: float,
    candidates: dict[str, Callable],
    costs: dict[str, tuple[float, float]],
    limits: dict[str, float],
    rounds=ROUNDS,
) -> list[Row]:
    """The rows of one shape, whose candidates take turns.

    costs: name -> (bytes, flops), the key "" for all that are not named.
    """
    times, rows = interleaved(candidates, rounds), []
    middle = {name: values[len(values) // 2] for name, values in times.items()}
    peer = min(
        (ms for name, ms in middle.items() if not name.startswith("llava_min")),
        default=float("nan"),
    )
    for name, values in times.items():
        row = row_of(section, shape, size, name, values, *costs.get(name, costs[""]), limits)
        row.of_best_peer = peer / row.p50_ms
        rows.append(row)
    return rows


def row_of(
    section: str,
    shape: str,
    size: float,
    name: str,
    times: list[float],
    moved: float,
    flops: float,
    limits: dict[str, float],
) -> Row:
    """A row without a peer, from sorted milliseconds and what was moved (bytes) and computed."""
    p20, p50, p80 = (times[int(part * (len(times) - 1))] for part in (0.2, 0.5, 0.8))
    floor = 1e3 * max(moved / limits["copy"], flops / limits["matmul"])
    return Row(
        section,
        shape,
        size,
        name,
        ours=name.startswith("llava_min"),
        p20_ms=p20,
        p50_ms=p50,
        p80_ms=p80,
        bytes=moved,
        flops=flops,
        gb_per_s=moved / p50 / 1e6,
        tflop_per_s=flops / p50 / 1e9,
        of_ceiling=floor / p50,
        of_best_peer=float("nan"),
    )


def machine() -> dict[str, str]:
    """Where and with what: it goes into every line."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"{platform.machine()}, no CUDA",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "triton": triton_version(),
        "commit": commit,
        "date": datetime.date.today().isoformat(),
    }


def triton_version() -> str:
    """Of the package, which need not be importable."""
    from importlib import metadata

    return metadata.version("triton")


def resident(name: str) -> int:
    """Bytes of this process: "VmRSS" now, or "VmHWM", the most since `forget_peak`.

    0 where the system is not Linux.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def forget_peak() -> None:
    """Let VmHWM begin anew; Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


def save(rows: list[Row], limits: dict[str, float], path: Path) -> None:
    """One JSON line for each row, with the machine and its limits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    here = machine() | {
        "copy_gb_per_s": limits["copy"] / 1e9,
        "matmul_tflop_per_s": limits["matmul"] / 1e12,
    }
    path.write_text("".join(json.dumps(asdict(row) | here) + "\n" for row in rows))


def table(rows: list[Row]) -> str:
    """The rows as text; one column layout for all sections."""
    lines = [
        f"{'shape':34} {'candidate':24} {'p50 ms':>9} {'p20':>9} {'p80':>9} {'GB/s':>7} "
        f"{'TFLOP/s':>8} {'of limit':>8} {'x peer':>7}"
    ]
    for row in rows:
        lines.append(
            f"{row.shape:34} {row.name:24} {row.p50_ms:9.4f} {row.p20_ms:9.4f} {row.p80_ms:9.4f} "
            f"{row.gb_per_s:7.0f} {row.tflop_per_s:8.1f} {row.of_ceiling:8.0%} "
            f"{row.of_best_peer:7.2f}"
        )
    return "\n".join(lines)
