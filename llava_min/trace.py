"""see(): states a tensor's axes where it is made.

in:  a name, a tensor, its axes such as "B N D"
out: the same tensor

    patches = see("patches", patches, "B N D")

It reads as a comment, checks the number of axes, and prints under --trace. Without an observer it
costs an assertion. This observer is one of the package's two globals; the other is the kernel
choice in kernels/choose.py.
"""

import sys
import time
from contextlib import contextmanager
from pathlib import Path

_observer = None


def see(name: str, tensor, axes: str):
    """`tensor`, unchanged, after its number of axes was checked against `axes` ("B N D")."""
    assert tensor.ndim == axes.count(" ") + 1, f"{name}: axes {axes}, shape {tuple(tensor.shape)}"
    if _observer is not None:
        _observer(name, tensor, axes, Path(sys._getframe(1).f_code.co_filename).name)
    return tensor


def observed() -> bool:
    """Whether an observer is set."""
    return _observer is not None


class Tracer:
    """Prints one line for each stage the first time that it passes.

    A line shows file, name, axes = sizes, dtype and milliseconds.
    """

    def __init__(self, stream):
        self.stream, self.seen, self.last = stream, set(), time.perf_counter()

    def __call__(self, name: str, tensor, axes: str, file: str) -> None:
        now = time.perf_counter()
        if (file, name) not in self.seen:
            self.seen.add((file, name))
            sizes = ", ".join(axis if axis == str(size) else f"{axis}={size}"
                              for axis, size in zip(axes.split(), tensor.shape))  # fmt: skip
            dtype = str(tensor.dtype).removeprefix("torch.")
            milliseconds = 1000 * (now - self.last)
            print(
                f"{file:14} {name:22} {sizes:34} {dtype:9} {milliseconds:9.2f} ms", file=self.stream
            )
        self.last = now


@contextmanager
def tracing(stream):
    """Print every stage to `stream` inside a `with` block."""
    global _observer
    _observer = Tracer(stream)
    try:
        yield
    finally:
        _observer = None
