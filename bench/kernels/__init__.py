"""Each kernel at the real shapes of the five families, beside its peers in the same process.

in:  names of SECTIONS
out: measure.Rows, printed shape by shape

Each operation has a file with its shapes, its peers, and its bytes and FLOPs by formula, so that
they can be checked.
Read case.py first. Read next: ../plots.py.
"""

import torch

from llava_min.kernels import choose

from .. import measure
from . import attention, decode_attention, int4, pointwise, rope
from .case import Bench, measured

SECTIONS = {
    "prefill": attention.prefill_cases,
    "vision": attention.vision_cases,
    "decode": decode_attention.decode_cases,
    "int4": int4.int4_cases,
    "pointwise": pointwise.pointwise_cases,
    "rope": rope.rope_cases,
}


def run(sections: list[str], dry: bool, rounds: int) -> tuple[list[measure.Row], dict[str, float]]:
    """(rows, the limits of this machine), printing each shape as it ends.

    A dry run goes through everything at toy size.
    """
    bench = Bench("cuda", torch.bfloat16, False)
    if dry:
        bench = Bench("cpu", torch.float32, True, compiled=False)
    limits, rows = measure.ceilings(), []
    note = " (invented: a dry run)" if dry else ""
    copy, matmul = limits["copy"] / 1e9, limits["matmul"] / 1e12
    print(f"copy {copy:.0f} GB/s, matmul {matmul:.0f} TFLOP/s{note}", flush=True)
    with choose.using("auto"), torch.inference_mode():
        for section in sections:
            for case in SECTIONS[section](bench):
                found = measured(case, limits, rounds)
                rows += found
                print(measure.table(found), flush=True)
                if not dry:
                    torch.compiler.reset()
    return rows, limits
