"""The one rule that chooses a Triton kernel or plain torch, and the switch that overrides it.

Tensors on a CUDA device of compute capability 8.0 or newer go to Triton; everything else takes the
torch path of the same file: float64, whatever needs a gradient (no kernel here has a backward
pass), machines without a Triton wheel. Nothing is ever chosen by catching an exception.
Read next: norm.py.
"""

from contextlib import contextmanager

import torch

from . import language

CHOICES = ("auto", "reference", "triton")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_choice = "auto"


def use(choice: str) -> None:
    """Override the rule for the whole process: "auto", "reference" (torch) or "triton"."""
    global _choice
    assert choice in CHOICES, choice
    assert choice != "triton" or language.AVAILABLE, "neither a CUDA device nor TRITON_INTERPRET=1"
    _choice = choice


@contextmanager
def using(choice: str):
    """Override the rule inside a `with` block."""
    before = _choice
    use(choice)
    try:
        yield
    finally:
        use(before)


def triton_for(tensor: torch.Tensor) -> bool:
    """Whether an operation on `tensor` runs as a Triton kernel. float64 never does."""
    if _choice == "auto" and not tensor.is_cuda:
        return False
    if _choice == "reference" or tensor.dtype not in DTYPES:
        return False
    if _choice == "triton":
        return True
    return language.AVAILABLE and not tensor.requires_grad and capability(tensor) >= (8, 0)


def capability(tensor: torch.Tensor) -> tuple[int, int]:
    return torch.cuda.get_device_capability(tensor.device)


def part(tensor: torch.Tensor) -> str:
    """The row of a table of block sizes that fits the device of `tensor`.

    "163 KB" of shared memory and more: sm_80, 90, 100; "99 KB": sm_86, 89, 120 and what is not
    known; "interpreter": a CPU, where small blocks make small tests take every branch.
    """
    if not tensor.is_cuda:
        return "interpreter"
    major, minor = capability(tensor)
    return "163 KB" if major in (9, 10) or (major, minor) == (8, 0) else "99 KB"
