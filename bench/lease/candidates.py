"""What the sweep may try on an H100 or H200, and what of it the compiler rules out beforehand.

in:  nothing      out: pruned.jsonl, a line for each compiled candidate with counts from its code
A Case is a row of a table of block sizes with a real shape; a Candidate is another row for it, or a
variant of the kernel. `python -m bench.lease.candidates` compiles all of them for sm_90 and drops
those that spill, want more shared memory than there is, or load single numbers in their loop. It
needs no GPU. The rest is ordered by `clocks`, a promise from counts alone.
Read sweep_cases.py, variants.py first. Read next: sweep.py.
"""

import itertools
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
import triton  # before the kernels, which it then compiles
from triton.compiler.errors import CompilationError
from triton.runtime.errors import PTXASError

from llava_min.kernels import activation, attention, decode_attention, int4, norm, rope

from . import variants
from .signatures import machine_code, recording
from .sweep_cases import CASES, EIGHT, Case, Where

PRUNED = Path(__file__).with_name("pruned.jsonl")
NUMBER, PART = 90, "227 KB"  # the GPU of the lease
MODULES = {
    "attention": attention,
    "decode_attention": decode_attention,
    "int4": int4,
    "norm": norm,
    "activation": activation,
    "rope": rope,
}
CONSTANTS = {"norm": "TILE", "activation": "TILE", "rope": "TOKENS"}  # tables of one number
BOUND = {
    # the functions whose last argument is such a constant by default
    "norm": (norm.rms_norm_triton, norm.layer_norm_triton),
    "activation": (activation.swiglu_triton, activation.gelu_triton),
    "rope": (rope.write_triton,),
}
PARTS = ("227 KB", "163 KB", "99 KB")
PROGRAMS = (1, 2, 3, 4)  # that run at once on a multiprocessor
WITH_PROGRAMS = ("decode_attention", "int4")
REGISTERS, SHARED, WARPS = 65536, 227 * 1024, 64  # of a multiprocessor
TENSOR, BYTES = 4096, 14.5  # what one does in a clock: 16-bit FLOPs, and bytes from memory
L2 = 32  # bytes from the L2 cache in a clock: taken to be half of what its port passes
SPILLED = 16  # bytes of stack that cost nothing, outside of loops
UNDER_WAY = 32768  # bytes that each must be waiting for, or its memory idles


@dataclass(frozen=True)
class Candidate:
    """Another row for a case's table, in a variant of its kernel ("" is the product's)."""

    block: tuple
    variant: str = ""


# Candidates ----------------------------------------------------------------------

GRIDS = {
    # (module, row): the numbers of a block, each of which may be any of these
    ("attention", (128, True)): ((64, 128), (32, 64, 128), (4, 8), (2, 3, 4)),
    ("attention", (80, False)): ((64, 128), (32, 64, 128), (4, 8), (2, 3)),
    ("attention", (64, False)): ((64, 128), (64, 128), (4, 8), (2, 3, 4)),
    ("attention", (64, True)): ((64, 128), (64, 128), (4, 8), (2, 3, 4)),
    ("decode_attention", (16,)): ((32, 64, 128), (2, 4, 8), (2, 3, 4, 5)),
    ("decode_attention", (8,)): ((32, 64, 128), (4, 8), (3, 4)),
    ("int4", (16,)): ((64, 128), (4, 8), (3, 4, 5, 6)),
    ("int4", (32,)): ((64, 128), (4, 8), (3, 4, 5)),
    ("int4", (64,)): ((64, 128), (4, 8), (3, 4, 5)),
    ("norm", ("TILE",)): ((2048, 4096, 8192, 16384),),
    ("activation", ("TILE",)): ((512, 1024, 2048, 4096),),
    ("rope", ("TOKENS",)): ((4, 8, 16, 32),),
}
TWO_OF_A_KIND = ((64, 128), (64, 128), (4, 8), (2, 3))
VARIED = {
    # the same for a variant of the kernel
    "descriptors": {
        ("attention", (128, True)): TWO_OF_A_KIND,
        ("attention", (64, True)): TWO_OF_A_KIND,
        ("attention", (64, False)): TWO_OF_A_KIND,
    },
    "borders": {
        ("attention", (80, False)): GRIDS["attention", (80, False)],
        ("attention", (64, False)): ((64, 128), (64, 128), (4, 8), (2, 3)),
    },
}


def kernels_of(case: Case) -> Iterator[Candidate]:
    """Every different machine code for a case; how many programs run at once is not part of it."""
    row = case.module, case.row
    more = (1,) if case.module in WITH_PROGRAMS else ()
    yield from (Candidate((*block, *more)) for block in itertools.product(*GRIDS[row]))
    for variant, grids in VARIED.items():
        if row in grids:
            yield from (Candidate(block, variant) for block in itertools.product(*grids[row]))


@contextmanager
def setting(case: Case, candidate: Candidate) -> Iterator[None]:
    """Inside a `with` block the product uses a candidate, on whatever device."""
    module = MODULES[case.module]
    with ExitStack() as stack:
        stack.enter_context(variants.using(candidate.variant))
        if case.module in CONSTANTS:
            for function in BOUND[case.module]:
                values = (*function.__defaults__[:-1], candidate.block[0])
                stack.enter_context(patch.object(function, "__defaults__", values))
        else:
            stack.enter_context(patch.object(module, "INTERPRETED_BLOCK", candidate.block))
            rows = {(part, *case.row): candidate.block for part in PARTS}
            stack.enter_context(patch.dict(module.BLOCKS, rows))
        yield


def assign(name: str, row: tuple, candidate: Candidate) -> None:
    """Let the product use a candidate of the product's own kernel from now on, in this process."""
    module = MODULES[name]
    if name not in CONSTANTS:
        module.BLOCKS |= {(part, *row): candidate.block for part in PARTS}
        return
    setattr(module, CONSTANTS[name], candidate.block[0])
    for function in BOUND[name]:
        function.__defaults__ = (*function.__defaults__[:-1], candidate.block[0])


def present(case: Case) -> Candidate:
    """What the product uses now on an H100."""
    module = MODULES[case.module]
    if case.module in CONSTANTS:
        return Candidate((getattr(module, CONSTANTS[case.module]),))
    return Candidate(module.BLOCKS[PART, *case.row])


# Counts from code ----------------------------------------------------------------


def launch_of(case: Case, candidate: Candidate, dtype=torch.bfloat16, number: int = NUMBER):
    """The launch of a candidate's kernel, recorded on tensors without memory.

    What follows it, as decode attention's second kernel does, depends on no candidate.
    """
    found = []
    with setting(case, candidate), recording(number, found.append), torch.inference_mode():
        case.make(Where("meta", dtype), 1)[0]()
    return found[0]


def fit(code: dict) -> int:
    """How many blocks of a kernel a multiprocessor holds, by registers, shared memory and warps.

    >>> fit({"reg": 168, "shared": 131072, "warps": 8})
    1
    """
    registers = -(-code["reg"] // 8) * 8 * 32 * code["warps"]
    return min(REGISTERS // registers, SHARED // (code["shared"] + 1024), WARPS // code["warps"])


def reason(case: Case, code: dict) -> str | None:
    """Why a candidate is not worth a measurement, or None."""
    if code["stack"] > SPILLED or code["local"] or code["spills_in_loop"]:
        return f"spills: {code['stack']} bytes of stack"
    if code["shared"] > SHARED:
        return f"shared memory: {code['shared']} bytes"
    if not fit(code):
        return f"{code['reg']} registers in each of {code['warps']} warps"
    if case.module in CONSTANTS:
        return None
    if code["single_loads_in_loop"] and case.module != "int4":
        return f"{code['single_loads_in_loop']} loads of single numbers in the loop"
    if case.module == "attention" and code["waits_in_loop"] > code["products_in_loop"]:
        return "each product is waited for"
    return None


def clocks(case: Case, block: tuple, code: dict, running: int) -> float:
    """A promise: clocks of a multiprocessor for a score, a key, or a weight, from counts alone.

    Four schedulers issue one instruction each in a clock; the tensor cores and the L2 cache, which
    gives every block of queries all keys and values, or the memory, have their own rates, and a
    memory that waits for too few bytes is slower in proportion. Whichever is slower hides the other
    but for the share of one block in all that run at once.
    """
    if case.module == "attention":
        work, depth = block[0] * block[1], case.row[0]
        limit = max(4 * depth / TENSOR, 4 * depth / block[0] / L2)
    else:
        width = 2 * 128 * case.row[0] // 8 if case.module == "decode_attention" else 0.5
        work = block[0] if case.module == "decode_attention" else 128 * block[0]
        under_way = running * (block[2] - 1) * work * width
        limit = width / BYTES / min(1.0, under_way / UNDER_WAY)
    issue = code["loop"] * code["warps"] / work / 4
    return max(issue, limit) + min(issue, limit) / running


def judged(case: Case, candidate: Candidate) -> dict:
    """The line of one candidate: its counts, and why it was dropped, or nothing."""
    line = {
        "kernel": case.module,
        "case": case.row,
        "shape": case.shape,
        "block": candidate.block,
        "variant": candidate.variant,
    }
    try:
        code = machine_code(launch_of(case, candidate).compiled())
    except (CompilationError, PTXASError, RuntimeError) as error:
        words = [text for text in str(error).splitlines() if text.strip()]
        return line | {"dropped": f"{type(error).__name__}: {(words or [''])[-1].strip()[:100]}"}
    kept = ("reg", "shared", "warps", "loop", "waits_in_loop", "products_in_loop")
    line |= {name: code[name] for name in kept} | {"fit": fit(code)}
    why = reason(case, code)
    if why is None and case.module not in CONSTANTS:
        line["clocks"] = round(clocks(case, candidate.block, code, line["fit"]), 6)
    return line | {"dropped": why}


def first_cases() -> list[Case]:
    """One case for each different machine code: fp8 and int8 differ, lengths do not."""
    found: dict[tuple, Case] = {}
    for case in CASES:
        kind = next((kind for kind in EIGHT if kind in case.shape), case.module in CONSTANTS)
        found.setdefault((case.module, case.row, case.shape if kind is True else kind), case)
    return list(found.values())


def kept(case: Case) -> list[Candidate]:
    """What is worth a measurement: the product's own row, then the others, the best promise first.

    A block must have passed in every kernel of the row: int8 and fp8 share one.
    """
    passed: dict[Candidate, list[dict]] = {}
    for line in map(json.loads, PRUNED.read_text().splitlines()):
        if (line["kernel"], tuple(line["case"])) == (case.module, case.row):
            candidate = Candidate(tuple(line["block"]), line["variant"])
            passed.setdefault(candidate, []).append(line)
    promises = {}
    for candidate, lines in passed.items():
        if any(line["dropped"] for line in lines):
            continue
        most = min(line["fit"] for line in lines)
        for running in PROGRAMS[:most] if case.module in WITH_PROGRAMS else (most,):
            block = candidate.block
            if case.module in WITH_PROGRAMS:
                block = (*block[:3], running)
            promise = 0.0
            if case.module not in CONSTANTS:
                promise = max(clocks(case, block, line, running) for line in lines)
            promises[Candidate(block, candidate.variant)] = promise
    now = present(case)
    return [now, *(c for c in sorted(promises, key=promises.get) if c != now)]


def compile_all() -> None:
    """Write pruned.jsonl; it prints how far it is."""
    lines = []
    for case in first_cases():
        for candidate in kernels_of(case):
            lines.append(judged(case, candidate) | {"triton": triton.__version__})
            print(len(lines), *lines[-1].values(), flush=True)
            PRUNED.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    compile_all()
