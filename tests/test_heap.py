"""Freed tensors go back to the system, also between others that stay."""

import platform
import subprocess
import sys

import pytest

CHILD = """
import resource
import sys
import torch
from llava_min import heap

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

ones = lambda size: torch.ones(size, dtype=torch.uint8)
ones(30 << 20)  # freed: glibc takes tensors of this size into its heap from here on
if sys.argv[1] == "returned":
    heap.return_freed()
before, held = resident(), []
for _ in range(16):
    held += [ones(8 << 20), ones(10_000)]
    between = held[1::2]
del held
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its heap is glibc's")
def test_a_freed_tensor_goes_back_to_the_system():
    kept, returned = (
        int(subprocess.check_output([sys.executable, "-c", CHILD, way]))
        for way in ("kept", "returned")
    )
    assert returned < 16 << 20 < 64 << 20 < kept
