"""Freed tensors go back to the system, also between others that stay."""

import platform
import subprocess
import sys

import pytest

CHILD = """
import resource
import sys
import torch
from llava_min.base import heap

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

ones = lambda size: torch.ones(size, dtype=torch.uint8)
ones(30 << 20)  # freed: glibc takes tensors of this size into its heap from here on
size, when = int(sys.argv[1]), sys.argv[2]
if when == "before":
    heap.give_back()
before, held = resident(), []
for _ in range(2**27 // size):
    held += [ones(size), ones(10_000)]
between = held[1::2]
del held
if when == "after":
    heap.give_back()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its heap is glibc's")
@pytest.mark.parametrize("size, when", [(8 << 20, "before"), (2 << 20, "after")])
def test_a_freed_tensor_goes_back_to_the_system(size, when):
    """Large ones at once, small ones when asked."""
    kept, returned = (
        int(subprocess.check_output([sys.executable, "-c", CHILD, str(size), how]))
        for how in ("never", when)
    )
    assert returned < 16 << 20 < 64 << 20 < kept
