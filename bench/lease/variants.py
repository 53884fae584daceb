"""The product's attention with some lines exchanged: what a table of block sizes cannot express.

    borders       the keys of whole blocks counted by rounding down after taking one block off
    descriptors   keys and values loaded by the memory's own copy engine (TMA of sm_90), which knows
                  a tile by its corner, in place of an address for each thread; heads of 2^n only
A variant is the text of kernels/attention.py with exact replacements, so that it differs in nothing
else and stays right when that file changes; tests hold each to the formula.

`tl.range(..., warp_specialize=True)`, one warp that loads while others multiply, is no variant:
Triton 3.6 and 3.7 do it for Blackwell, and for sm_90 leave the loop as it is.
Read next: candidates.py.
"""

import functools
import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

from llava_min.kernels import attention

VARIANTS = {
    "borders": [
        (
            "whole = new - new % BLOCK_KEY",
            "whole = tl.maximum(new - BLOCK_KEY + 1, 0) // BLOCK_KEY * BLOCK_KEY",
        ),
    ],
    "descriptors": [
        (
            "load_rows(key, start, stop, stride, 0, LOW, HEAD_DIM, BLOCK, MASKED)",
            "key.load([start, 0])",
        ),
        (
            "load_rows(value, start, stop, stride, 0, LOW, HEAD_DIM, BLOCK, MASKED)",
            "value.load([start, 0])",
        ),
        (
            "    maximum, total = tl.full([BLOCK_QUERY]",
            "    stride = key_token.to(tl.int64) * HEAD_DIM\n"
            "    key = tl.make_tensor_descriptor(\n"
            "        key, [stop, HEAD_DIM], [stride, 1], [BLOCK_KEY, HEAD_DIM])\n"
            "    value = tl.make_tensor_descriptor(\n"
            "        value, [stop, HEAD_DIM], [stride, 1], [BLOCK_KEY, HEAD_DIM])\n"
            "    maximum, total = tl.full([BLOCK_QUERY]",
        ),
    ],
}


def text(name: str) -> str:
    """The module of a variant; every line that it exchanges must be there exactly once."""
    found = Path(attention.__file__).read_text()
    for right, other in VARIANTS[name]:
        assert found.count(right) == 1, (name, found.count(right), right)
        found = found.replace(right, other)
    return found


@functools.cache
def kernel(name: str):
    """The attention kernel of a variant, which the compiler reads from a file while it is made."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"attention_{name}.py")
        path.write_text(text(name))
        spec = importlib.util.spec_from_file_location(f"llava_min.kernels.{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module.attention_kernel


def scratch(size: int, alignment: int, stream) -> torch.Tensor:
    """Memory for the descriptors that a launch makes."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


@contextmanager
def using(name: str) -> Iterator[None]:
    """Inside a `with` block attention is that variant; "" is the product."""
    if not name:
        yield
        return
    import triton

    if name == "descriptors":
        triton.set_allocator(scratch)
    with patch.object(attention, "attention_kernel", kernel(name)):
        yield
