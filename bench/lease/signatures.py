"""What is launched, and how it compiles, without a GPU: the product runs on tensors without memory.

in:  a GPU to pretend, and calls of the product      out: Launches, each of which can be compiled
Triton makes one machine code for each kernel, dtypes, constants, and numbers that it specialises on
(whether an address is a multiple of 16). So signatures are never written by hand: models on torch's
meta device run with their real shapes and strides, and Triton's own rules specialise what they
launch, through a driver that has no device. Addresses of such tensors begin at zero, as aligned as
those of torch's allocator on a GPU. Needs a process without TRITON_INTERPRET.
Read next: launches.py.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import triton  # before the kernels, which it then compiles
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from llava_min.kernels import (
    activation,
    attention,
    choose,
    decode_attention,
    int4,
    int4_packing,
    int8,
    language,
    norm,
    rope,
)
from llava_min.kernels.choose import Gpu

MODULES = (activation, attention, decode_attention, int4, int4_packing, int8, norm, rope)
SHARED_KB = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # one block may have
MULTIPROCESSORS = {75: 40, 80: 108, 86: 82, 89: 128, 90: 132, 100: 148, 120: 170}
GPUS = {
    number: Gpu((number // 10, number % 10), count) for number, count in MULTIPROCESSORS.items()
}
PRODUCTS = r"\b(HMMA|HGMMA|UTCHMMA|UTCQMMA|QGMMA)\b"
LOADS = r"\b(LDG|LDGSTS|UBLKCP|UTMALDG)\b"
WIDE = r"\b(LDG|LDGSTS)\.E.*\.128\b|UBLKCP|UTMALDG"
COUNTED = {
    # what is counted in the whole kernel, and again in its main loop as "..._in_loop"
    "spills": r"\b(LDL|STL)\b",
    "loads": LOADS,
    "wide_loads": WIDE,
    "single_loads": r"\bLDG\.E\.[US](8|16)\b",
    "products": PRODUCTS,
    "wgmma": r"\bHGMMA\b",
    "waits": r"\bWARPGROUP\.(DEPBAR|ARRIVE)",
    "shared_stores": r"\bSTS\b",
    "byte_loads": r"\bLDS\.U?8\b",
    "barriers": r"\bBAR\b",
}


class NoDevice:
    """A driver for Triton that knows which GPU to compile for and has none."""

    def __init__(self, number: int):
        self.target = GPUTarget("cuda", number, 32)

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self):
        return self.target


@contextmanager
def target(number: int) -> Iterator[None]:
    """Inside a `with` block Triton specialises and compiles for sm_`number`."""
    driver.set_active(NoDevice(number))
    try:
        yield
    finally:
        driver.set_active(None)


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch as it was asked for. Launches with the same `key` are the same machine code."""

    number: int  # of the GPU: 90 for sm_90
    kernel: object  # Triton's JITFunction
    grid: tuple[int, ...]
    arguments: tuple
    options: dict
    key: str

    @property
    def name(self) -> str:
        return self.kernel.__name__

    def compiled(self):
        """Triton's CompiledKernel, from its cache on disk where it is there."""
        with target(self.number):
            always = language.always(GPUS[self.number].capability)
            return self.kernel.warmup(*self.arguments, grid=self.grid, **always, **self.options)

    def dtype(self) -> str:
        """The type of the first argument: "bfloat16"."""
        return str(self.arguments[0].dtype).removeprefix("torch.")


def key_of(kernel, arguments: tuple, options: dict) -> str:
    """Everything that Triton specialises machine code on, as text, for the active driver."""
    *_, binder = kernel.device_caches[driver.active.get_current_device()]
    _, specialised, rest = binder(*arguments, **options)
    return f"{kernel.__name__} {specialised} {sorted(rest.items())}"


@contextmanager
def recording(number: int, take: Callable[[Launch], None]) -> Iterator[None]:
    """Inside a `with` block every launch of the product goes to `take`, and nothing runs."""

    def launch(kernel, grid, *arguments, **options):
        key = key_of(kernel, arguments, options)
        take(Launch(number, kernel, grid, arguments, options, key))

    before = [module.launch for module in MODULES]
    for module in MODULES:
        module.launch = launch
    try:
        with target(number), choose.pretending(GPUS[number]):
            yield
    finally:
        for module, old in zip(MODULES, before):
            module.launch = old


def described(cubin: bytes, *options: str) -> str:
    """What cuobjdump, which comes with Triton, says about a compiled kernel."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        return subprocess.run(
            [tool, *options, file], capture_output=True, text=True, check=True
        ).stdout


def resources(compiled) -> dict:
    """What a compiled kernel needs, by names as in pruned.jsonl.

    Registers of a thread, bytes of stack and of shared memory, warps; loads from global memory, and
    how many of them are of 128 bits.
    """
    text = described(compiled.asm["cubin"], "-res-usage")
    sizes = {name.lower(): int(size) for name, size in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    lines = compiled.asm["ptx"].splitlines()
    return sizes | {
        "shared": compiled.metadata.shared,
        "warps": compiled.metadata.num_warps,
        "loads": count(r"\bld\.global|cp\.async\.c[ag]", lines),
        "wide_loads": count(r"\bld\.global.*\.v4\.b32|cp\.async\.cg", lines),
    }


def machine_code(compiled) -> dict:
    """`resources`, and counts of machine instructions, in all and in the main loop."""
    text = described(compiled.asm["cubin"], "-sass")
    instructions = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", text, re.M)
    loop, texts = main_loop(instructions), [text for _, text in instructions]
    counts = {name: count(pattern, texts) for name, pattern in COUNTED.items()}
    counts |= {f"{name}_in_loop": count(pattern, loop) for name, pattern in COUNTED.items()}
    return resources(compiled) | {"instructions": len(texts), "loop": len(loop)} | counts


def count(pattern: str, texts: list[str]) -> int:
    """How many of the instructions match.

    >>> count(PRODUCTS, ["HGMMA.64x64x16.F32 R24", "@P0 BRA 0x10"])
    1
    """
    return sum(bool(re.search(pattern, text)) for text in texts)


def inner_loops(code: list[tuple[str, str]]) -> list[tuple[int, int]]:
    """(first address, last address) of the loops without another inside.

    A loop goes from the target of a backward jump to the jump. code: (address in hexadecimal,
    instruction).
    """
    loops = []
    for address, text in code:
        jump = re.search(r"\bBRA(?:\.U)?\b.*?(0x[0-9a-f]+)", text)
        if jump and int(jump[1], 16) < int(address, 16):
            loops.append((int(jump[1], 16), int(address, 16)))
    return [
        one
        for one in loops
        if not any(one != other and one[0] <= other[0] and other[1] <= one[1] for other in loops)
    ]


def main_loop(code: list[tuple[str, str]]) -> list[str]:
    """The instructions of the inner loop with the most matrix products.

    Among equals the shortest one: a masked loop, or one at a border, is longer.
    """
    bodies = [
        [text for address, text in code if first <= int(address, 16) <= last and "NOP" not in text]
        for first, last in inner_loops(code)
    ]
    return max(bodies, key=lambda body: (count(PRODUCTS, body), -len(body)), default=[])
