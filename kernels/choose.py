"""The one rule that chooses between a Triton kernel and plain torch, and the switch that overrides it.

Tensors on a CUDA device of compute capability 8.0 or newer go to Triton; everything else takes the
torch path of the same file. Nothing is ever chosen by catching an exception.
Read next: attention.py.
"""

from contextlib import contextmanager

import torch

CHOICES = ("auto", "reference", "triton")
_choice = "auto"


def use(choice: str) -> None:
    """Override the rule for the whole process: "auto", "reference" (torch) or "triton"."""
    global _choice
    assert choice in CHOICES, choice
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
    """Whether an operation on `tensor` runs as a Triton kernel."""
    if _choice != "auto":
        return _choice == "triton"
    return tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) >= (8, 0)
