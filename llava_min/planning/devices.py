"""What a model gets on a device where the user chose nothing: its dtype, and a path of kernels.

in:  a device by name
out: a dtype or a path, and the reason

No torch here, unless a GPU must be asked what it is. Where there is none to ask, it is a new one.
Read base/cpu.py, kernels/paths.py first. Read next: planning/forecast.py.
"""

import importlib.util
import shutil
from pathlib import Path

from ..base import cpu
from ..kernels import paths

NAMES = ("cpu", "cuda", "mps", "xpu")


def capability() -> tuple[int, int] | None:
    """The compute capability of the CUDA device, None where there is none to ask."""
    import torch

    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def default_device() -> str:
    """The device where none was chosen: a GPU where its driver is, on Linux, Windows or WSL."""
    has_driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")
    return "cuda" if has_driver else "cpu"


def default_dtype(device: str, large: bool) -> tuple[str, str]:
    """(dtype, reason) where none was chosen, for load() and plan() alike."""
    if device == "cpu":
        return cpu.default_dtype(large)
    if device == "cuda" and (capability() or paths.LEAST) < paths.LEAST:
        return "float16", "a GPU before sm_80 does not multiply in bfloat16"
    if device == "mps":
        return "float16", "the first of Apple's GPUs do not multiply in bfloat16"
    return "bfloat16", "half the bytes of float32, and its range"


def threads(chosen: int | None, usual: int) -> tuple[int, str]:
    """(threads on a CPU, reason): those chosen, or what torch takes, but no more than cores.

    usual: what torch takes by itself: cores as Intel's library counts them, or every thread of
    each core, or OMP_NUM_THREADS.

    >>> threads(3, usual=2)
    (3, '--threads 3')
    """
    if chosen is not None:
        return chosen, f"--threads {chosen}"
    found = cpu.cores()
    if found is not None and found[0] < usual:
        return found
    return usual, "as torch takes by itself"


def path(device: str, choice: str = "auto") -> tuple[str, str]:
    """(path, reason) by the rule of kernels/paths.py, from what the machine says without torch."""
    found = capability() if device == "cuda" else None
    has_triton = found is None or importlib.util.find_spec("triton") is not None
    vectors = cpu.vector_instructions() if device == "cpu" else None
    return paths.path(choice, device, vectors, found, has_triton)
