"""Where and with what a lease ran: the facts of its header.

in:  nothing      out: a flat dict, None for what is not there

Nothing here touches CUDA in the process that asks: the driver is asked through nvidia-smi, and
`card` runs in a child.
Read next: ceilings.py.
"""

import datetime
import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("torch", "triton", "numpy", "transformers", "pytest", "hypothesis")
SMI = (
    "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw,power.limit"
)


def output(*command: str) -> str | None:
    """What a command prints, or None where it is absent, fails, or takes ten seconds."""
    try:
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=10, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def version(package: str) -> str | None:
    """Of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def smi() -> dict[str, str]:
    """Driver, clocks, temperature and power as they are; nothing is set. Empty without a driver."""
    values = output("nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader")
    if not values:
        return {}
    names = [name.replace(".", "_") for name in SMI]
    return dict(zip(names, (value.strip() for value in values.splitlines()[0].split(","))))


def ptxas() -> str | None:
    """The assembler that Triton would use."""
    if "TRITON_PTXAS_PATH" in os.environ:
        return os.environ["TRITON_PTXAS_PATH"]
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return shutil.which("ptxas")
    own = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "ptxas"
    return str(own) if own.exists() else shutil.which("ptxas")


def sanitizer() -> str | None:
    """compute-sanitizer, on the path or where the CUDA toolkit puts it."""
    usual = Path("/usr/local/cuda/bin/compute-sanitizer")
    return shutil.which("compute-sanitizer") or (str(usual) if usual.exists() else None)


def named(path: str | None) -> str | None:
    """The last part of a path: the rest of it is nobody's business.

    >>> named("/usr/bin/gcc"), named(None)
    ('gcc', None)
    """
    return Path(path).name if path else None


def machine() -> dict:
    """Versions, compiler, tools, processor, commit, date."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return {
        "date": datetime.datetime.now().isoformat(timespec="seconds"),
        "commit": output("git", "rev-parse", "--short", "HEAD"),
        "changed": bool(output("git", "status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "cuda": torch.version.cuda,
        "compiler": named(shutil.which(os.environ.get("CC", "gcc")) or shutil.which("clang")),
        "python_header": named(str(header) if header.exists() else None),
        "ptxas": named(ptxas()),
        "sanitizer": named(sanitizer()),
        "cores": os.cpu_count(),
    } | smi()


def card() -> dict | None:
    """The first CUDA device: it starts CUDA in this process. None where there is no device."""
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return {
        "device": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "cache_bytes": found.L2_cache_size,
    }
