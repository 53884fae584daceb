"""What this machine does at best: memory, matrix products, launches, and its clocks as found.

in:  a Place      out: rows with "limit" and "per_second" (bytes or operations), or "us"

The later stages compare their times with these rates. No clock is set: clocks are read before and
after. A dry run goes through everything at toy size and invents the limits.
Read next: trace.py.
"""

import time
from collections.abc import Callable, Iterator

import torch

from llava_min.kernels.language import tl, triton

from .. import measure
from . import facts
from .place import Place

SECONDS = 15
BLOCK = 4096  # numbers that a program of read_kernel loads at a time
INVENTED = {"copy": 1e10, "read": 1e10, "matmul": 1e11, "fp8": 1e11}  # of a dry run


@triton.jit
def read_kernel(source, sums, each, BLOCK: tl.constexpr):
    """One program: the sum of `each` blocks of numbers, so that they must be read."""
    program = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float32)
    for block in range(each):
        place = (program * each + block) * BLOCK + tl.arange(0, BLOCK)
        total += tl.load(source + place).to(tl.float32)
    tl.store(sums + program, tl.sum(total, 0))


@triton.jit
def empty_kernel(target):
    """Nothing: what is left is the launch."""
    return


def tasks(place: Place) -> Iterator[tuple[str, Callable[[], Iterator[dict]]]]:
    yield "clocks before", lambda: clocks("clocks before")
    yield "memory", lambda: memory(place)
    yield "bf16 products", lambda: products(place)
    yield "fp8 products", lambda: products8(place)
    yield "launches", lambda: launches(place)
    yield "clocks after", lambda: clocks("clocks after")


def clocks(what: str) -> Iterator[dict]:
    """What the driver says of clocks, temperature and power; nothing without a driver."""
    if found := facts.smi():
        yield {"what": what} | found


def middle(name: str, call: Callable) -> float:
    """Milliseconds of a call: the middle of some turns."""
    times = measure.interleaved({f"llava_min {name}": call})[f"llava_min {name}"]
    return times[len(times) // 2]


def limit(place: Place, name: str, what: str, unit: str, amount: float, ms: float) -> dict:
    """The row of one limit: `amount` bytes or operations in `ms` milliseconds."""
    per_second = INVENTED[name] if place.dry else amount / ms * 1e3
    return {"what": what, "limit": name, "unit": unit, "per_second": per_second, "ms": ms}


def memory(place: Place) -> Iterator[dict]:
    """Copying and reading: a GiB of bfloat16 each way, far beyond any cache."""
    count = 2**14 if place.dry else 2**29
    source = torch.ones(count, dtype=place.dtypes[0], device=place.device)
    target = torch.empty_like(source)
    ms = middle("copy", lambda _: target.copy_(source))
    yield limit(place, "copy", "copy, read and written", "bytes", 4 * count, ms)
    programs = count // BLOCK // (1 if place.dry else 32)
    sums = torch.empty(programs, dtype=torch.float32, device=place.device)
    each = count // BLOCK // programs

    def read(_: int) -> None:
        read_kernel[(programs,)](source, sums, each, BLOCK=BLOCK, num_warps=8)

    ms = middle("read", read)
    if sums.sum().item() != count:
        raise ArithmeticError(f"read {sums.sum().item():.0f} of {count} numbers")
    yield limit(place, "read", "read alone", "bytes", 2 * count, ms)


def products(place: Place) -> Iterator[dict]:
    """Random numbers: products of zeros take less power and run at higher clocks."""
    size = 64 if place.dry else 8192
    dtype = torch.float32 if place.dry else torch.bfloat16
    left, right = (torch.randn(size, size, dtype=dtype, device=place.device) for _ in range(2))
    ms = middle("matmul", lambda _: left @ right)
    yield limit(place, "matmul", f"bf16 product of {size} x {size}", "operations", 2 * size**3, ms)


def products8(place: Place) -> Iterator[dict]:
    """The same in float8, where the device multiplies it."""
    if not place.dry and torch.cuda.get_device_capability() < (8, 9):
        return
    size = 64 if place.dry else 8192
    left, right = (
        torch.randn(size, size, device=place.device).to(torch.float8_e4m3fn) for _ in range(2)
    )
    one = torch.ones((), device=place.device)
    right = right.T  # the operator takes its right side column by column

    def product(_: int) -> torch.Tensor:
        return torch._scaled_mm(left, right, one, one, out_dtype=torch.bfloat16)

    ms = middle("fp8 matmul", product)
    yield limit(place, "fp8", f"fp8 product of {size} x {size}", "operations", 2 * size**3, ms)


def launches(place: Place) -> Iterator[dict]:
    """Microseconds of an empty kernel: launched by Python, and as one of many in a graph."""
    count = 10 if place.dry else 1000
    target = torch.empty(1, device=place.device)
    synchronise = torch.cuda.synchronize if place.device == "cuda" else lambda: None

    def empty(_: int = 0) -> None:
        empty_kernel[(1,)](target, num_warps=1)

    empty()
    synchronise()
    start = time.perf_counter()
    for _ in range(count):
        empty()
    synchronise()
    yield {"what": "launch by Python", "us": 1e6 * (time.perf_counter() - start) / count}
    sample = measure.milliseconds(empty, count)
    sample()
    yield {"what": f"launch in a graph of {count}", "us": 1e3 * sample()}
