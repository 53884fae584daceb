"""Every kernel, in every configuration of the tables, compiled for six GPUs on a machine that has
none.

The compiler runs in a child process (this file as a script), because TRITON_INTERPRET is set in
this one and decides how a kernel is made. It prints one JSON line for each kernel and GPU:
registers, bytes of stack, shared memory, and counts from the machine code. Spills (a stack frame),
too much shared memory, scalar loads and missing tensor-core instructions are what makes a kernel
slow or unlaunchable, and all show without a GPU.
"""

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

GPUS = {80: "163 KB", 86: "99 KB", 89: "99 KB", 90: "163 KB", 100: "163 KB", 120: "99 KB"}
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KB that one block may have


@dataclass
class Case:
    """A kernel with the types of its arguments: "*bf16" a pointer, "i16" a size divisible by 16,
    None absent.
    """

    name: str
    kernel: object
    types: list
    constants: dict
    warps: int
    stages: int
    part: str | None = None  # only GPUs of this part, or all
    expect: dict = field(default_factory=dict)
    oldest: int = 80

    def fits(self, gpu: int) -> bool:
        return self.part in (None, GPUS[gpu]) and gpu >= self.oldest


def attention_cases():
    from llava_min.kernels import attention

    for part in ("163 KB", "99 KB"):
        for head_dim, causal in ((64, True), (64, False), (72, False), (128, True)):
            size = min(size for size in attention.BLOCKS[part] if size >= head_dim)
            query, key, warps, stages = attention.BLOCKS[part][size]
            types = ["*bf16"] * 4 + ["*i32" if causal else None, "i32"] + ["i16"] * 5
            constants = dict(KV_HEADS=4, LOW=64 if head_dim == 72 else head_dim, HEAD_DIM=head_dim,
                             BLOCK_QUERY=query, BLOCK_KEY=key)  # fmt: skip
            yield Case(
                f"attention {head_dim}{' causal' if causal else ''}",
                attention.attention_kernel,
                types,
                constants,
                warps,
                stages,
                part,
                dict(wgmma=True, matrix=True, wide=0.5),
            )


def decode_cases():
    from llava_min.kernels import decode_attention as decode

    for part in ("163 KB", "99 KB"):
        keys, warps, stages, _ = decode.BLOCKS[part]
        for head_dim in (64, 128):
            sizes = dict(GROUP=7, HEAD_DIM=head_dim, ROWS=16)
            for bits, cache, scales in (
                ("", "*bf16", None),
                (" int8", "*i8", "*fp32"),
                (" fp8", "*fp8e4nv", "*fp32"),
            ):
                types = [
                    "*bf16",
                    cache,
                    cache,
                    scales,
                    scales,
                    "*i32",
                    "*fp32",
                    "*fp32",
                    "i32",
                    "i16",
                    "i16",
                ]
                yield Case(
                    f"decode {head_dim}{bits}",
                    decode.split_kernel,
                    types,
                    sizes | dict(BLOCK=keys),
                    warps,
                    stages,
                    part,
                    dict(matrix=True),
                    89 if bits == " fp8" else 80,  # older parts have no conversion of fp8
                )
            types = ["*fp32", "*fp32", "*bf16", "i32", "i32"]
            yield Case(f"decode combine {head_dim}", decode.combine_kernel, types,
                       sizes | dict(BLOCK=decode.COMBINED), 4, 3, part)  # fmt: skip


def int4_cases():
    from llava_min.kernels import int4

    for part in ("163 KB", "99 KB"):
        outputs, warps, stages, _ = int4.BLOCKS[part]
        for name, group, offsets, rows in (
            ("128 M=1", 128, None, 16),
            ("128 M=64", 128, None, 64),
            ("128 offset M=1", 128, "*bf16", 16),
            ("32 M=1", 32, None, 16),
        ):
            types = ["*bf16", "*i32", "*bf16", offsets, "*bf16", "i32", "i16"]
            sizes = dict(K=3584, GROUP=group, BLOCK_M=rows, BLOCK_N=outputs)
            few = {"per_weight": 4.0} if name == "128 M=1" else {}
            yield Case(
                f"int4 {name}",
                int4.linear_kernel,
                types,
                sizes,
                warps * (1 + (rows > 32)),
                stages,
                part,
                dict(wgmma=True, matrix=True, **few),
            )
    types = ["*i16", "*bf16", None, "*bf16", "i16", "i16", "i32"]
    yield Case(
        "int4 dequantise", int4.dequantise_kernel, types, dict(K=3584, GROUP=128, BLOCK_N=64), 4, 3
    )


def pointwise_cases():
    from llava_min.kernels import activation, norm, rope

    rows = dict(WIDTH=3584, ROWS=1, BLOCK=4096)
    narrow = dict(WIDTH=896, ROWS=4, BLOCK=1024)
    bf16, none = "*bf16", None
    for name, size in (("3584", rows), ("896", narrow)):
        yield Case(
            f"rms_norm {name}",
            norm.rms_norm_kernel,
            [bf16, none, bf16, none, bf16, "i32", "fp32"],
            size,
            8,
            3,
        )
        yield Case(
            f"add_rms_norm {name}", norm.rms_norm_kernel, [bf16] * 5 + ["i32", "fp32"], size, 8, 3
        )
    size = dict(WIDTH=1152, ROWS=2, BLOCK=2048)
    yield Case("layer_norm", norm.layer_norm_kernel, [bf16] * 4 + ["i32", "fp32"], size, 8, 3)
    size = dict(WIDTH=18944, BLOCK=1024)
    yield Case("swiglu", activation.swiglu_kernel, [bf16] * 2, size, 4, 3)
    for kind in activation.GELUS:
        size = dict(WIDTH=4304, KIND=kind, BLOCK=1024)
        yield Case(kind, activation.gelu_kernel, [bf16, none, bf16], size, 4, 3)
    size = dict(HEADS=28, KV_HEADS=4, HEAD_DIM=128, TOKENS=rope.TOKENS)
    kinds = (("bf16", "*bf16", none), ("int8", "*i8", "*fp32"), ("fp8", "*fp8e4nv", "*fp32"))
    for name, cache, scales in kinds:
        types = [
            bf16,
            "*fp32",
            "*fp32",
            "*i32",
            bf16,
            cache,
            cache,
            scales,
            scales,
            "i32",
            "i16",
            "i16",
        ]
        yield Case(
            f"rope.write {name}", rope.write_kernel, types, size, 4, 3,
            oldest=89 if name == "fp8" else 80
        )  # fmt: skip


def cases():
    for case in (*attention_cases(), *decode_cases(), *int4_cases(), *pointwise_cases()):
        case.expect.setdefault("wide", 0.0)
        yield case


def compiled(case: Case, gpu: int) -> dict:
    """One kernel for one GPU: what the driver would be given, and what can be read from it."""
    import triton
    from triton.backends.compiler import GPUTarget

    names = [parameter.name for parameter in case.kernel.params]
    given = dict(zip(names, case.types)) | dict.fromkeys(case.constants, "constexpr")
    signature = {
        name: {None: "constexpr", "i16": "i32"}.get(kind, kind) for name, kind in given.items()
    }
    constants = {name: None for name, kind in given.items() if kind is None} | case.constants
    attributes = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name, kind in given.items()
        if kind and (kind[0] == "*" or kind == "i16")
    }
    source = triton.compiler.ASTSource(case.kernel, signature, constants, attributes)
    options = dict(num_warps=case.warps, num_stages=case.stages, enable_fp_fusion=True)
    kernel = triton.compile(source, target=GPUTarget("cuda", gpu, 32), options=options)
    return {
        "name": case.name,
        "gpu": gpu,
        "shared": kernel.metadata.shared,
        "expect": case.expect,
        **machine_code(kernel.asm["cubin"], case),
        "wgmma": kernel.asm["ptx"].count("wgmma.mma_async"),
        "tcgen05": kernel.asm["ptx"].count("tcgen05.mma"),
    }


def machine_code(cubin: bytes, case: Case) -> dict:
    """Registers, stack bytes, and counts of instructions of interest, from the tools that come with
    Triton.
    """
    import triton

    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run(
                [tools / "cuobjdump", option, file.name], capture_output=True, text=True, check=True
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    found = {
        name.lower(): int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)
    }
    code = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", sass, re.M)
    loop = main_loop(code)
    weights = case.constants.get("GROUP") and 128 * case.constants.get(
        "BLOCK_N", 0
    )  # of an iteration
    return found | {
        "instructions": len(code),
        "loop": len(loop),
        "per_weight": len(loop) * 32 * case.warps / weights if weights else 0.0,
        "spills": sum(bool(re.search(r"\b(LDL|STL)\b", text)) for _, text in code),
        "wide_loads": sum(
            bool(re.search(r"\b(LDG|LDGSTS)\.E.*\.128\b|UBLKCP|UTMALDG", text)) for _, text in code
        ),
        "global_loads": sum(bool(re.search(r"\b(LDG|LDGSTS)\b", text)) for _, text in code),
        "matrix": sum(
            bool(re.search(r"\b(HMMA|HGMMA|UTCHMMA|UTCQMMA|QGMMA)\b", text)) for _, text in code
        ),
        "shared_stores_in_loop": sum(bool(re.search(r"\bSTS\b", text)) for text in loop),
    }


def main_loop(code: list[tuple[str, str]]) -> list[str]:
    """The instructions of the longest loop without another inside: from a backward jump's target to
    the jump.
    """
    loops = []
    for address, text in code:
        jump = re.search(r"\bBRA(?:\.U)?\b.*?(0x[0-9a-f]+)", text)
        if jump and int(jump[1], 16) < int(address, 16):
            loops.append((int(jump[1], 16), int(address, 16)))
    inner = [
        one
        for one in loops
        if not any(one != other and one[0] <= other[0] and other[1] <= one[1] for other in loops)
    ]
    first, last = max(inner, key=lambda loop: loop[1] - loop[0], default=(0, -1))
    return [
        text for address, text in code if first <= int(address, 16) <= last and "NOP" not in text
    ]


def found_wrong(result: dict) -> list[str]:
    """What is wrong with one compiled kernel: a list to be empty."""
    gpu, expect, wrong = result["gpu"], result["expect"], []
    if result["stack"] or result["local"] or result["spills"]:
        wrong.append(f"spills: {result['stack']} bytes of stack, {result['spills']} instructions")
    if result["shared"] > SHARED[gpu] * 1024:
        wrong.append(f"shared memory: {result['shared']} bytes of {SHARED[gpu]} KB")
    if result["wide_loads"] < expect["wide"] * result["global_loads"] or not result["wide_loads"]:
        wrong.append(f"128-bit loads: {result['wide_loads']} of {result['global_loads']}")
    if expect.get("matrix") and not result["matrix"]:
        wrong.append("no instruction of the tensor cores")
    if expect.get("wgmma") and gpu == 90 and not result["wgmma"]:
        wrong.append("no wgmma")
    if expect.get("per_weight", 99.0) < result["per_weight"]:
        wrong.append(f"instructions per weight: {result['per_weight']:.2f}")
    return wrong


@functools.cache
def results() -> list[dict]:
    """Compile in one child process for each core, up to two, into empty caches."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    workers, gpus = min(2, len(os.sched_getaffinity(0))), list(GPUS)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, f"{worker}.jsonl") for worker in range(workers)]
        children = [
            subprocess.Popen(
                [sys.executable, __file__, ",".join(map(str, gpus[worker::workers])), ""],
                env=environment | {"TRITON_CACHE_DIR": f"{folder}/{worker}"},
                stdout=output.open("w"),
            )
            for worker, output in enumerate(outputs)
        ]
        codes = [child.wait() for child in children]
        assert not any(codes), codes
        lines = [line for output in outputs for line in output.read_text().splitlines()]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("gpu", GPUS)
def test_every_kernel_compiles(gpu):
    """For the GPU's row of the tables; what is wrong is named, kernel by kernel."""
    found = [result for result in results() if result["gpu"] == gpu]
    assert len(found) == sum(case.fits(gpu) for case in cases()) > 20
    wrong = {result["name"]: found_wrong(result) for result in found}
    assert not any(wrong.values()), {name: texts for name, texts in wrong.items() if texts}


def test_what_is_wrong_is_found():
    """Each limit fails where it is passed: a check that cannot fail would let spills through."""
    fine = dict(
        gpu=90, stack=0, local=0, spills=0, shared=0, wide_loads=8, global_loads=9, matrix=4
    )
    fine |= dict(wgmma=4, per_weight=3.0)
    fine["expect"] = dict(wide=0.5, wgmma=True, matrix=True, per_weight=4.0)
    assert not found_wrong(fine)
    limits = dict(
        stack=8, spills=1, shared=300_000, wide_loads=4, matrix=0, wgmma=0, per_weight=5.0
    )
    for name, value in limits.items():
        assert found_wrong(fine | {name: value}), name


def main(gpus: list[int], only: str) -> None:
    for case in cases():
        for gpu in gpus:
            if only in case.name and case.fits(gpu):
                print(json.dumps(compiled(case, gpu)), flush=True)


if __name__ == "__main__":
    import triton  # noqa: F401  before the kernels, which then are compiled and not interpreted

    main([int(gpu) for gpu in sys.argv[1].split(",")], sys.argv[2] if len(sys.argv) > 2 else "")
