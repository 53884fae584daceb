"""What this CPU says of itself: the dtype of a model where none was chosen, vectors, cores.

in:  /proc/cpuinfo and a quota of cgroups, which Linux has
out: the name of a dtype, and the reason; torch's name for its vector instructions; its cores

No torch here: a plan, made before torch is imported, must say what loading will do.
Read next: planning/forecast.py.
"""

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of work, and of time
BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")  # instructions that multiply it; the last is Arm's
SMALL = 2**25  # weights that a CPU's caches hold: half their bytes would gain nothing


def bfloat16_instructions() -> str | None:
    """The instructions of this CPU that multiply in bfloat16, by Linux's name for them.

    None where it has none, or does not tell.
    """
    return next((known for known in BFLOAT16 if known in flags()), None)


def flags() -> list[str]:
    """The names of this CPU's instructions, by Linux; none elsewhere."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for name, _, value in (line.partition(":") for line in lines):
        if name.strip() in ("flags", "Features"):  # x86, Arm; all cores of a machine agree
            return value.split()
    return []


def cores() -> tuple[int, str] | None:
    """(how many cores this process may use, why so many), None where the system does not tell.

    Two threads of one core share its multipliers and its way to the memory: together they are no
    faster than one. A container may have less than the machine has.
    """
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
        allowed = os.sched_getaffinity(0)
    except (OSError, AttributeError):  # the second: not on macOS and Windows
        return None
    found, numbers = set(), dict[str, str]()
    for name, _, value in (line.partition(":") for line in [*lines, ""]):
        if name.strip():
            numbers[name.strip()] = value.strip()
        elif "core id" in numbers and int(numbers["processor"]) in allowed:
            found.add((numbers.get("physical id"), numbers["core id"]))
            numbers = {}
    if not found:
        return None
    share = quota()
    if share is not None and share < len(found):
        return share, "a quota of cgroups"
    return len(found), "physical cores"


def quota() -> int | None:
    """The CPUs that a container's processes may keep busy, rounded up; None without a limit."""
    try:
        work, time = map(int, QUOTA.read_text(encoding="utf-8").split())
    except (OSError, ValueError):  # the second: "max", no limit
        return None
    return max(1, -(-work // time))


def vector_instructions() -> str | None:
    """What torch calls this CPU's vector instructions: "AVX512", "AVX2", or None for others.

    Where the system does not tell, an x86 processor is taken for one with AVX2, as since 2013 they
    are.
    """
    found = flags()
    if not found:
        return "AVX2" if platform.machine().lower() in ("x86_64", "amd64") else None
    named = {"avx512f": "AVX512", "avx2": "AVX2"}
    return next((name for flag, name in named.items() if flag in found), None)


def default_dtype(large: bool) -> tuple[str, str]:
    """(dtype, reason) of a model on this CPU; `large`: a CPU's caches do not hold its weights.

    A large model gains from half the bytes where the CPU multiplies in bfloat16. Without such
    instructions it would convert every number, which costs more than it gains.
    """
    if not large:
        return "float32", "the caches of a CPU hold so small a model"
    found = bfloat16_instructions()
    if found is None:
        return "float32", "this CPU names no instructions that multiply in bfloat16"
    return "bfloat16", f"this CPU multiplies in bfloat16 ({found})"
