"""Every branch of every kernel is taken both ways, and every loop goes round again: watched.

Triton's interpreter runs a kernel as Python with the lines of its file, so Python's own tracing
sees which line follows which. The cases are those that the kernels' tests check against float64.
"""

import ast
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import test_activation
import test_attention
import test_decode_attention
import test_int4
import test_int4_packing
import test_int8
import test_norm
import test_rope
import torch

from llava_min.kernels import (
    activation,
    attention,
    decode_attention,
    int4,
    int4_packing,
    int8,
    language,
    norm,
    rope,
)

FOLDER = Path(rope.__file__).resolve().parent
ONLY_COMPILED = {"ASM"}  # instructions of a GPU: test_aot.py compiles them
TWICE = {"for start in range(whole, stop, BLOCK_KEY):"}  # a tile of queries ends in two of keys
HALF, WHOLE = torch.float16, torch.float32
CASES = {
    "activation.py": [
        lambda: test_activation.check_swiglu(activation, 2, 40, WHOLE, 1.0, 0),
        lambda: [
            test_activation.check_gelu(activation, kind, 2, 40, WHOLE, 1.0, biased, 0)
            for kind in activation.GELUS
            for biased in (False, True)
        ],
    ],
    "attention.py": [
        lambda: test_attention.check_prefill(attention, [70], 40, 2, 1, 32, WHOLE, 0),
        lambda: test_attention.check_prefill(attention, [0], 40, 2, 1, 32, WHOLE, 0),
        lambda: test_attention.check_bidirectional(attention, 1, 60, 2, 72, WHOLE, 0),
    ],
    "decode_attention.py": [
        lambda: test_decode_attention.check_decode(
            decode_attention, [90], 2, 2, 1, 16, WHOLE, None, 1, 0
        ),
        lambda: test_decode_attention.check_decode(
            decode_attention, [90], 2, 2, 1, 16, WHOLE, torch.int8, 1, 0
        ),
        lambda: test_decode_attention.check_decode(
            decode_attention, [1300], 2, 2, 1, 16, WHOLE, None, 80, 0
        ),
    ],
    "int4.py": [
        lambda: test_int4.check_linear(int4, "small", 3, 40, 1024, 128, HALF, 0),
        lambda: test_int4.check_linear(int4, "small", 3, 40, 1024, 32, WHOLE, 0),
        lambda: test_int4.check_linear(int4, "small", 3, 40, 128, 64, WHOLE, 0),
        lambda: test_int4.check_shares(int4),
    ],
    "int4_packing.py": [
        lambda: test_int4_packing.check_dequantise(int4_packing, 40, 1024, 64, WHOLE, 0),
        lambda: test_int4_packing.check_dequantise(int4_packing, 40, 1024, 64, HALF, 0),
    ],
    "int8.py": [
        lambda: test_int8.check_linear(int8, 3, 40, 70, WHOLE, True, 0),
        lambda: test_int8.check_linear(int8, 3, 40, 70, HALF, False, 0),
    ],
    "norm.py": [
        lambda: test_norm.check_rms_norm(norm, 3, 40, WHOLE, 1.0, 0),
        lambda: test_norm.check_layer_norm(norm, 3, 40, WHOLE, 1.0, 0.0, 0),
    ],
    "rope.py": [
        lambda: test_rope.check_write(rope, [3, 0], 9, 4, 2, 16, WHOLE, 0),
        lambda: test_rope.check_write_8bit(rope),
        lambda: test_rope.check_write_8bit(rope, torch.float8_e4m3fn),
    ],
}


def jitted(path: Path) -> list[ast.FunctionDef]:
    """The functions of a file that Triton compiles."""
    tree = ast.parse(path.read_text())
    return [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        if any("triton.jit" in ast.unparse(mark) for mark in node.decorator_list)
    ]


@contextmanager
def watched(path: Path):
    """Counts which line of a file follows which inside one call; line 0 is the return.

    {(line, next): (how often in all, the most in one call)}
    """
    total, most, ending = Counter(), Counter(), f"kernels/{path.name}"

    def enter(frame, event, _):
        if not frame.f_code.co_filename.endswith(ending):
            return None
        last, own = [frame.f_lineno], Counter()

        def follow(frame, event, _):
            if event in ("line", "return"):
                line = frame.f_lineno if event == "line" else 0
                arc = last[0], line
                own[arc] += 1
                total[arc] += 1
                most[arc] = max(most[arc], own[arc])
                last[0] = line
            return follow

        return follow

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield total, most
    finally:
        sys.settrace(before)


@pytest.mark.skipif(not language.INTERPRETED, reason="needs Triton's interpreter")
@pytest.mark.parametrize("name", CASES)
def test_every_branch_is_taken_both_ways_and_every_loop_again(name):
    path = FOLDER / name
    with watched(path) as (total, most):
        for case in CASES[name]:
            case()
    for function in jitted(path):
        assert any(start == function.body[-1].lineno for start, _ in total), function.name
        for node in ast.walk(function):
            if not isinstance(node, ast.If | ast.For):
                continue
            text, inside = ast.unparse(node).splitlines()[0], node.body[0].lineno
            if isinstance(node, ast.For):
                turns = 2 if text in TWICE else 3
                assert most[node.lineno, inside] >= turns, f"{function.name}: {text}"
                continue
            skipped = any(a == node.lineno and b != inside for a, b in total)
            assert skipped, f"{function.name}: always {text}"
            if ast.unparse(node.test) not in ONLY_COMPILED:
                assert total[node.lineno, inside], f"{function.name}: never {text}"


def test_every_kernel_is_watched():
    """All but `language.begin`, which is nothing in the interpreter: test_aot.py compiles it."""
    kernels = {path.name for path in FOLDER.glob("*.py") if jitted(path)}
    assert kernels - {"language.py"} == CASES.keys()
