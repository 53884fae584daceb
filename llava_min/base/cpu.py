"""The dtype of a model on this CPU where none was chosen, by what the CPU says of itself.

in:  /proc/cpuinfo, which Linux has
out: the name of a dtype, and the reason

No torch here: a plan, made before torch is imported, must say what loading will do.
Read next: planning/forecast.py.
"""

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")  # instructions that multiply it; the last is Arm's
SMALL = 2**25  # weights that a CPU's caches hold: half their bytes would gain nothing


def bfloat16_instructions() -> str | None:
    """The instructions of this CPU that multiply in bfloat16, by Linux's name for them.

    None where it has none, or does not tell.
    """
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return None
    for name, _, value in (line.partition(":") for line in lines):
        if name.strip() in ("flags", "Features"):  # x86, Arm; all cores of a machine agree
            return next((known for known in BFLOAT16 if known in value.split()), None)
    return None


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
