"""The C library's heap: have the memory of freed tensors go back to the system."""

import contextlib
import ctypes

OWN_PAGES = 4 << 20  # bytes


def give_back() -> None:
    """Return what glibc's heap holds unused, and give each new tensor of OWN_PAGES bytes or more
    pages of its own.

    By itself glibc raises that limit to 32 MiB as it goes, and the chunks of a long clip leave
    holes in the heap: up to 290 MiB beside the cache of 64 frames, where 190 are in use (bench
    frames). It costs the tower 2% and the decoder nothing. With another C library nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        library.mallopt(-3, OWN_PAGES)  # M_MMAP_THRESHOLD
        library.malloc_trim(0)
