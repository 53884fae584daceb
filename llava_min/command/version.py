"""What --version prints: with -v, all that a report of an error needs.

in:  nothing
out: lines of text

Only with -v is torch imported: to name the GPU.
"""

import importlib.metadata
import platform

from .. import __version__
from ..planning import devices

PACKAGES = (
    "torch",
    "triton",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "numpy",
    "pillow",
    "av",
)
OPTIONAL = ("starlette", "uvicorn", "llguidance", "transformers", "lmms_eval")  # shown if present
MISSING = "not installed"


def version(everything: bool) -> str:
    """The version of the package; with `everything`, those of Python, packages and machine too."""
    if not everything:
        return f"llava_min {__version__}"
    rows = {"llava_min": __version__, "Python": platform.python_version()}
    rows |= {name: installed(name) for name in PACKAGES}
    rows |= {name: found for name in OPTIONAL if (found := installed(name)) != MISSING}
    path, reason = devices.path(devices.default_device())
    rows |= {"platform": platform.platform(), "device": device(), "kernels": f"{path}: {reason}"}
    return "\n".join(f"{name} {value}" for name, value in rows.items())


def installed(name: str) -> str:
    """The version of a package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return MISSING


def device() -> str:
    """The GPU that torch would use, or the CPU and its threads."""
    import torch

    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        return f"{torch.cuda.get_device_name()}, sm_{major}{minor}, CUDA {torch.version.cuda}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"cpu, {torch.get_num_threads()} threads, {capability}"
