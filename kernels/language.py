"""The kernel language: Triton where a kernel can run, a few lines in its place where it cannot.

in:  a kernel, a grid, its arguments
out: what the kernel writes

A kernel is a Python function that Triton compiles. It runs once for every cell of a `grid`,
thousands of times at once. Each run is a "program" that asks which cell it is (tl.program_id),
loads a tile of numbers through pointers, computes with whole tiles, and stores a tile. Names in
capitals annotated `tl.constexpr` are constants of the compiled code. Nothing else of the language
is needed to read this folder. Importing Triton takes a good part of a second. So a machine without
a CUDA device imports it only where TRITON_INTERPRET=1 asks for its interpreter (the tests do), or
where something else has imported it before.
Read kernels/paths.py first. Read next: kernels/choose.py.
"""

import functools
import importlib.util
import os
import sys
from collections import Counter
from types import SimpleNamespace

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
AVAILABLE = importlib.util.find_spec("triton") is not None and (
    INTERPRETED or "triton" in sys.modules or torch.cuda.is_available()
)

if AVAILABLE:
    import triton
    import triton.language as tl
else:
    # the decorator leaves a kernel as text that nobody runs
    triton = SimpleNamespace(jit=lambda function=None, **_: function or (lambda kernel: kernel))
    tl = SimpleNamespace(constexpr=lambda value: value)

COMPILED = tl.constexpr(not INTERPRETED)


@triton.jit
def begin():
    """The first line of every kernel: wait until what the kernel before it wrote is there.

    From sm_90 on a kernel starts while the one before it ends, so that none of the hundreds in a
    decode step waits for its launch. It lets the next one start in the same way.
    """
    if COMPILED:
        if tl.target_info.cuda_capability_geq(9, 0):
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()


MISSING = "neither a CUDA device nor TRITON_INTERPRET=1"  # which kernels need
launches: Counter = Counter()  # how often each kernel was launched, by name: tests read it


def launch(kernel, grid: tuple[int, ...], *arguments, **options) -> None:
    """Run `kernel` once for each cell of `grid`.

    `options` are its constants, num_warps and num_stages.
    """
    assert AVAILABLE, MISSING
    launches[getattr(kernel, "fn", kernel).__name__] += 1
    device = arguments[0].device
    capability = capability_of(device.index) if device.type == "cuda" else (0, 0)
    kernel[grid](*arguments, **always(capability), **options)


@functools.cache
def capability_of(index: int) -> tuple[int, int]:
    """The compute capability of a GPU, asked once."""
    return torch.cuda.get_device_capability(index)


def always(capability: tuple[int, int]) -> dict[str, bool]:
    """Options of every launch on such a GPU: see `begin`."""
    return {"enable_fp_fusion": True, "launch_pdl": capability >= (9, 0)}


def blocks(count: int, size: int) -> int:
    """How many blocks of `size` cover `count`.

    >>> blocks(729, 64)
    12
    """
    return -(-count // size)


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`: tiles have no other sizes.

    >>> power_of_two(72)
    128
    """
    return 1 << (count - 1).bit_length()
