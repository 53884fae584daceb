"""The C library's heap: memory of freed tensors goes back to the system."""

import contextlib
import ctypes


def give_back() -> None:
    """Return the heap's unused memory, and give each new tensor of 4 MiB or more its own pages.

    By itself glibc raises that limit to 32 MiB over time. The chunks of a long clip then leave
    holes in the heap, more of them the longer the clip is (bench frames). New pages cost the tower
    2% and the decoder nothing. With another C library than glibc nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(-3, 4 << 20)  # M_MMAP_THRESHOLD
        ctypes.CDLL(None).malloc_trim(0)
