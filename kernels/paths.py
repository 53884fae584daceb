"""The one rule: on which of three paths an operation runs on a device, and why.

in:  what was asked for, the device's type, and what it has
out: the name of a path, and the reason

    triton     the kernels of this folder: CUDA from compute capability 8.0 on, with Triton
    cpu        plain torch, with what torch has for x86 processors alone: products with weights in
               oneDNN's order, products with packed weights, attention that tells its sum
    reference  plain torch, with operators that every device has: an older GPU, mps, xpu, a
               processor of another kind

No torch here: a plan, made before torch is imported, must say what loading will do.
This is the first file of the folder. Read next: kernels/language.py.
"""

CHOICES = ("auto", "reference", "triton")
LEAST = (8, 0)  # compute capabilities below it take the reference path
LARGE = 2**20  # weights in float32 that a CPU puts into oneDNN's order: 4 MB (onednn.py)
VECTORS = ("AVX512", "AVX2")  # what torch calls the instructions for which it has such operators


def path(
    choice: str,
    device: str,
    vectors: str | None = None,
    capability: tuple[int, int] | None = None,
    has_triton: bool = True,
) -> tuple[str, str]:
    """(path, reason) of operations on a device of this type.

    `vectors` are the instructions of a CPU by torch's name, `capability` is that of a CUDA device,
    None where it is not known and may be new.

    >>> path("auto", "cuda", capability=(7, 5))
    ('reference', 'compute capability 7.5 is below 8.0')
    >>> path("auto", "cpu", vectors="AVX512")
    ('cpu', 'torch has operators of its own for AVX512')
    """
    if choice != "auto":
        return choice, f"--kernels {choice}"
    if device == "cpu":
        if vectors in VECTORS:
            return "cpu", f"torch has operators of its own for {vectors}"
        return "reference", "a processor without AVX2"
    if device != "cuda":
        return "reference", f"no kernels for {device}"
    if capability is not None and capability < LEAST:
        found, least = (".".join(map(str, one)) for one in (capability, LEAST))
        return "reference", f"compute capability {found} is below {least}"
    if not has_triton:
        return "reference", "Triton is not installed"
    return "triton", "a GPU that the kernels are made for"
