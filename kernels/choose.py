"""The rule of paths.py asked about a tensor, and the switch that overrides it.

in:  a tensor
out: the path of its operation, whether it runs as a Triton kernel, and with which block sizes

On the Triton path some operations take plain torch all the same: those in float64, those that need
a gradient (no kernel here has a backward pass) unless Triton was asked for, and matrix products of
float32. Nothing is ever chosen by catching an exception.
Read kernels/paths.py, kernels/language.py first. Read next: kernels/norm.py.
"""

import functools
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from . import language, paths
from .paths import CHOICES

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_choice = "auto"
_pretended = None


def use(choice: str) -> None:
    """Override the rule for the whole process: "auto", "reference" (torch) or "triton"."""
    global _choice
    assert choice in CHOICES, choice
    assert choice != "triton" or language.AVAILABLE, language.MISSING
    _choice = choice


def chosen() -> str:
    """The rule's override, "auto" where there is none."""
    return _choice


@contextmanager
def using(choice: str):
    """Override the rule inside a `with` block."""
    before = _choice
    use(choice)
    try:
        yield
    finally:
        use(before)


@dataclass(frozen=True)
class Gpu:
    """What block sizes depend on: compute capability, and the number of multiprocessors."""

    capability: tuple[int, int]
    multiprocessors: int

    @property
    def part(self) -> str:
        """The rows of the tables of block sizes that fit this GPU.

        They are named by the shared memory of a block: "227 KB" is sm_90 and 100, "163 KB" sm_80,
        "99 KB" sm_86, 89, 120 and any unknown one.

        >>> Gpu((9, 0), 132).part, Gpu((8, 6), 82).part
        ('227 KB', '99 KB')
        """
        if self.capability[0] in (9, 10):
            return "227 KB"
        return "163 KB" if self.capability == (8, 0) else "99 KB"


@functools.cache
def gpu_at(index: int) -> Gpu:
    """The GPU of a number, asked once: each launch wants to know it."""
    found = torch.cuda.get_device_properties(index)
    return Gpu((found.major, found.minor), found.multi_processor_count)


def gpu_of(tensor: torch.Tensor) -> Gpu | None:
    """The GPU of a tensor; None on a CPU, where only the interpreter runs kernels."""
    if _pretended is not None:
        return _pretended
    if not tensor.is_cuda:
        return None
    return gpu_at(tensor.device.index)


@contextmanager
def pretending(gpu: Gpu):
    """Inside a `with` block, treat every tensor as one on `gpu`.

    Kernels are compiled ahead of time for what is launched there. Nothing can run.
    """
    global _pretended
    before, _pretended = _pretended, gpu
    try:
        yield
    finally:
        _pretended = before


@functools.cache
def decided(choice: str, device: str, gpu: Gpu | None, has_triton: bool) -> tuple[str, str]:
    """The rule of paths.py, kept: a decode step asks for it more than a hundred times."""
    vectors = torch.backends.cpu.get_cpu_capability() if device == "cpu" else None
    capability = None if gpu is None else gpu.capability
    return paths.path(choice, device, vectors, capability, has_triton)


def rule(device: str, gpu: Gpu | None) -> tuple[str, str]:
    """(path, reason) of operations on a type of device, by paths.py; `gpu` where it is a GPU."""
    return decided(_choice, device, gpu, language.AVAILABLE)


def explained(device: torch.device) -> tuple[str, str]:
    """(path, reason) of operations on a device."""
    return rule(device.type, gpu_at(device.index or 0) if device.type == "cuda" else None)


def path_of(tensor: torch.Tensor) -> str:
    """The path of an operation on `tensor`: "triton", "cpu" or "reference"."""
    if _pretended is not None:
        return "reference" if _choice == "reference" else "triton"
    gpu = gpu_of(tensor)
    return rule(tensor.device.type if gpu is None else "cuda", gpu)[0]


def triton_for(tensor: torch.Tensor) -> bool:
    """Whether an operation on `tensor` runs as a Triton kernel. float64 never does."""
    if tensor.dtype not in DTYPES or path_of(tensor) != "triton":
        return False
    return _choice == "triton" or _pretended is not None or not tensor.requires_grad


def triton_multiplies(tensor: torch.Tensor) -> bool:
    """Whether a matrix product of `tensor` runs as a Triton kernel: on a GPU in 16 bits only.

    Blocks of float32 in these sizes overflow the shared memory of an A100 and the registers of an
    H100.
    """
    return triton_for(tensor) and (gpu_of(tensor) is None or tensor.element_size() == 2)


def part(tensor: torch.Tensor) -> str:
    """The rows of a table of block sizes for `tensor`: those of its GPU.

    On a CPU they are those of "interpreter", where small blocks make small tests take every branch.
    """
    gpu = gpu_of(tensor)
    return "interpreter" if gpu is None else gpu.part
