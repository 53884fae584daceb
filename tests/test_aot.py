"""Every kernel that the product launches, compiled for six GPUs on a machine that has none.

Nothing here names a signature: models without memory are called (bench/lease/launches.py), and what
they launch is specialised and compiled by Triton as it will be on a GPU. That happens in child
processes (this file as a script), because TRITON_INTERPRET is set in this one and decides how a
kernel is made. Spills, too much shared memory, scalar loads, products that wait for each other and
missing tensor-core instructions are what makes a kernel slow or unlaunchable, and all show without
a GPU.

LLAVA_MIN_TRITON=<folder> compiles with the Triton that is installed there, in place of this
environment's:  pip install --target <folder> --no-deps triton==3.6.0
By default one launch of each kind is compiled (launches.kind), in bfloat16; `-m slow` compiles all.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

GPUS = (90, 80, 89, 86, 100, 120)
BOTH = (90,)  # where float16 is compiled too, and float32
TURING = 75  # whose tensor cores Triton does not use: plain torch does
SHARED = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KB that one block may have
SPILLED = 48  # bytes of stack of a thread that cost nothing, before and after the loop
POINTWISE = (
    "rms_norm_kernel",
    "layer_norm_kernel",
    "gelu_kernel",
    "swiglu_kernel",
    "dequantise_kernel",
    "write_kernel",
)
# Instructions for a weight of int4. Blocks of 64 outputs have more than those of 128 and are faster
# on an H100 all the same, as more programs fit. On sm_100 nobody has measured them.
PER_WEIGHT = {90: 3.6, 100: 5.3}
WITHOUT_PRODUCTS = (*POINTWISE, "combine_kernel")
MUTANTS = {
    # name: (tower, what is right in its attention, what is wrong)
    "none": ("SigLIP", "", ""),
    "strides in numbers": ("SigLIP", "row * stride * HEAD_DIM", "row * stride"),
    "a division": ("CLIP", "new - new % BLOCK_KEY", "new // BLOCK_KEY * BLOCK_KEY"),
}


# In a child ----------------------------------------------------------------------


def compiled(launch) -> dict:
    """One launch as a flat dict: what it is, and what can be read from its code."""
    from bench.lease import signatures

    read = signatures.resources if launch.name in WITHOUT_PRODUCTS else signatures.machine_code
    about = {"name": launch.name, "gpu": launch.number, "dtype": launch.dtype()}
    return about | {"options": launch.options, "key": launch.key} | read(launch.compiled())


def compile_all(gpu: int, everything: bool) -> None:
    """Print a line for each kind of launch, or for each launch."""
    import torch

    from bench.lease import launches

    some = launches.DTYPES if gpu in BOTH or everything else launches.DTYPES[:1]
    some = (torch.float16,) if gpu == TURING else some
    found = launches.product(gpu, some)
    wide = launches.product(gpu, (torch.float32,))
    print(json.dumps({"gpu": gpu, "float32": sorted({launch.name for launch in wide.values()})}))
    if gpu in BOTH:
        found |= wide
    for launch in found.values() if everything else launches.one_of_each(found):
        print(json.dumps(compiled(launch)), flush=True)


def compile_mutants() -> None:
    """Print a line for the attention of a tower as it is, and for each mistake in it."""
    import torch
    from kernel_checks import mutated

    from bench.lease import launches
    from llava_min.kernels import attention

    kernel = attention.attention_kernel
    for name, (tower, right, wrong) in MUTANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            if right:
                mutant = mutated(attention, Path(folder), right, wrong)
                attention.attention_kernel = mutant.attention_kernel
            call = functools.partial(launches.use_tower, tower, torch.bfloat16)
            found = launches.distinct(90, [call])
            one = next(launch for launch in found.values() if launch.name == "attention_kernel")
            print(json.dumps(compiled(one) | {"mutant": name}), flush=True)
            attention.attention_kernel = kernel


def other_calls():
    """Calls of the product at other lengths, capacities and batches than launches.py makes."""
    import torch

    from bench.lease import launches

    for text in launches.TEXTS:
        for weights, cache in (("16", "16"), ("16", "int8"), ("16", "fp8"), ("int4", "16")):
            quantised = launches.WEIGHTS[weights]
            made = launches.model(launches.settings(text, "embedded", quantised), torch.float16)
            sizes = made.config.text, 3, 1003, torch.float16, launches.CACHES[cache], "meta"
            memory = launches.Cache.empty(*sizes)
            yield functools.partial(launches.write_tokens, made, memory)
            for row in range(3):
                news = (1, 2, 4, 6, 7, 8, 9, 33, 127, 500)
                yield functools.partial(launches.read_prompts, made, memory.row(row), news)


def benchmark_calls():
    """Our side of every benchmark of kernels."""
    import torch

    from bench import kernels
    from bench.kernels.case import Bench

    class Short(Bench):
        def copies(self, size: float) -> int:
            return 2

    for section in kernels.SECTIONS.values():
        for case in section(Short("meta", torch.bfloat16, False, compiled=False)):
            for name, call in case.candidates.items():
                if name.startswith("llava_min"):
                    yield functools.partial(call, 0)


def step_of_the_embedded_checkpoint():
    """A step of a model that has memory, as it is recorded on a GPU."""
    import torch

    import llava_min
    from llava_min.cache import Cache
    from llava_min.engine.step import Step

    network = llava_min.load(dtype="float16").network
    cache = Cache.empty(network.config.text, 2, 77, torch.float16)
    Step(network, cache, 500).work()


def compare_keys(gpu: int) -> None:
    """Print what else is launched than launches.py says."""
    from bench.lease import launches

    known = launches.product(gpu)
    others = launches.distinct(gpu, other_calls())
    others |= launches.distinct(gpu, benchmark_calls())
    others |= launches.distinct(gpu, [step_of_the_embedded_checkpoint])
    new = [key for key in others if key not in known]
    print(json.dumps({"known": len(known), "others": len(others), "new": new}))


# In pytest -----------------------------------------------------------------------


def environment(folder: str) -> dict[str, str]:
    """The child's: no interpreter, an empty cache, and another Triton where one is asked for."""
    values = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    here = Path(__file__).parent
    paths = [os.environ.get("LLAVA_MIN_TRITON"), str(here.parent), str(here / "support")]
    return values | {"TRITON_CACHE_DIR": folder, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(command: str, folder: str) -> list[dict]:
    """The lines of one child process."""
    done = subprocess.run(
        [sys.executable, __file__, *command.split()],
        stdout=subprocess.PIPE,
        env=environment(f"{folder}/{command}"),
    )
    assert done.returncode == 0, command
    return [json.loads(line) for line in done.stdout.splitlines()]


def children(commands: list[str]) -> list[dict]:
    """The lines of child processes, as many at a time as there are cores, two at most."""
    workers = min(2, len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        return [row for rows in pool.map(lambda one: run(one, folder), commands) for row in rows]


@functools.cache
def results() -> list[dict]:
    return children([f"compile {gpu}" for gpu in GPUS] + ["mutants"])


def serialised(result: dict) -> bool:
    """Whether the tensor cores of sm_90 wait after every product: each then has two instructions
    beside it.
    """
    return result["waits_in_loop"] > result["products_in_loop"]


def per_weight(result: dict) -> float:
    """Instructions of a warp for 32 weights, in the loop of int4."""
    weights = 128 * result["options"]["BLOCK_N"]
    return result["loop"] * 32 * result["warps"] / weights


def found_wrong(result: dict) -> list[str]:
    """What is wrong with one compiled kernel: a list to be empty."""
    name, gpu, options, wrong = result["name"], result["gpu"], result["options"], []
    allowed = 0 if name in WITHOUT_PRODUCTS else SPILLED
    if result["stack"] > allowed or result["local"] or result.get("spills_in_loop"):
        wrong.append(f"spills: {result['stack']} bytes of stack")
    if result["shared"] > SHARED[gpu] * 1024:
        wrong.append(f"shared memory: {result['shared']} bytes of {SHARED[gpu]} KB")
    if not result["wide_loads"]:
        wrong.append(f"128-bit loads: none of {result['loads']}")
    if name in WITHOUT_PRODUCTS or name == "bytes_kernel" and options["K"] <= options["BLOCK_K"]:
        return wrong  # a loop of one round is none
    if not result["wide_loads_in_loop"]:
        wrong.append(f"128-bit loads in the loop: none of {result['loads_in_loop']}")
    if result["single_loads_in_loop"] and name != "linear_kernel":  # its scales are single numbers
        wrong.append(f"loads of single numbers in the loop: {result['single_loads_in_loop']}")
    if not result["products_in_loop"]:
        wrong.append("no instruction of the tensor cores in the loop")
    if gpu == 90 and name == "attention_kernel":
        if not result["wgmma"]:
            wrong.append("no wgmma")
        if serialised(result):
            wrong.append(f"{result['waits_in_loop']} waits in the loop")
        if options["HEAD_DIM"] == 128 and result["loop"] / options["BLOCK_KEY"] > 380 / 64:
            wrong.append(f"{result['loop']} instructions in the loop")
    if name == "linear_kernel" and options["BLOCK_M"] == 16 and options["GROUP"] == 128:
        if per_weight(result) > PER_WEIGHT.get(gpu, 3.3):
            wrong.append(f"instructions per weight: {per_weight(result):.2f}")
    return wrong


def described(result: dict) -> str:
    return f"sm_{result['gpu']} {result['name']} {result['dtype']} {result['options']}"


def check(rows: list[dict]) -> None:
    wrong = {described(row): found_wrong(row) for row in rows}
    assert not any(wrong.values()), {name: texts for name, texts in wrong.items() if texts}


@pytest.mark.parametrize("gpu", GPUS)
def test_every_kernel_compiles(gpu):
    """One launch of each kind; what is wrong is named, kernel by kernel."""
    rows = [row for row in results() if row["gpu"] == gpu and "mutant" not in row]
    compiled = [row for row in rows if "name" in row]
    assert {row["name"] for row in compiled} == {
        *WITHOUT_PRODUCTS,
        "attention_kernel",
        "decode_kernel",
        "linear_kernel",
        "bytes_kernel",
    }
    assert len(compiled) > 30
    check(compiled)


@pytest.mark.parametrize("gpu", GPUS)
def test_in_float32_products_go_to_torch(gpu):
    """Blocks of float32 overflow shared memory and registers."""
    (names,) = [row["float32"] for row in results() if row["gpu"] == gpu and "float32" in row]
    assert names == sorted(POINTWISE)


def test_every_published_shape_is_launched():
    """The sizes of each published configuration, of text and tower, are among those called."""
    from test_real_sizes import CHECKPOINTS

    from bench.shapes import TEXTS, TOWERS
    from llava_min.families import layouts

    def text_sizes(config) -> tuple[int, ...]:
        return config.hidden_size, config.intermediate_size, config.num_heads, config.num_kv_heads

    def tower_sizes(config) -> tuple[int, ...]:
        return config.hidden_size, config.intermediate_size, config.num_heads

    texts = {text_sizes(config) for config in TEXTS.values()}
    towers = {tower_sizes(config) for config in TOWERS.values()}
    for values, *_ in CHECKPOINTS.values():
        found = layouts.parse_config(values)
        assert text_sizes(found.text) in texts
        assert tower_sizes(found.vision) in towers


@pytest.mark.slow
@pytest.mark.parametrize("gpu", GPUS)
def test_every_launch_compiles(gpu):
    check([row for row in children([f"everything {gpu}"]) if "name" in row])


@pytest.mark.slow
def test_what_sm_75_would_run():
    """Everything compiles in float16, but no product becomes an instruction of the tensor cores,
    and most blocks spill: why kernels/paths.py begins at sm_80. What is pointwise is fine.
    """
    rows = [row for row in children([f"compile {TURING}"]) if "name" in row]
    products = [row for row in rows if row["name"] not in WITHOUT_PRODUCTS]
    check([row for row in rows if row["name"] in WITHOUT_PRODUCTS])
    assert {row["name"] for row in products} == {
        "attention_kernel",
        "decode_kernel",
        "linear_kernel",
        "bytes_kernel",
    }
    assert not any(row["products"] for row in products)
    spilled = [row for row in products if row["stack"]]
    assert len(spilled) > len(products) / 2, (len(spilled), len(products))


def test_mistakes_in_a_kernel_are_seen():
    """Strides that count numbers make loads of 16 bits, a division makes sm_90 wait."""
    rows = {row["mutant"]: found_wrong(row) for row in results() if "mutant" in row}
    assert rows.keys() == MUTANTS.keys() and not rows["none"], rows
    assert any("single" in text for text in rows["strides in numbers"]), rows
    assert any("waits" in text for text in rows["a division"]), rows


def test_nothing_else_is_launched():
    """Other lengths, capacities, batches, and a step of a real model need no other machine code:
    one compiled late would stop an answer for a second.
    """
    (row,) = children(["keys 90"])
    assert row["others"] > 100 and not row["new"], (len(row["new"]), row["new"][:3])


def test_what_is_wrong_is_found():
    """Each limit fails where it is passed: a check that cannot fail would let spills through."""
    options = dict(HEAD_DIM=128, BLOCK_KEY=64, BLOCK_M=16, BLOCK_N=128, GROUP=128)
    fine = dict(
        name="attention_kernel",
        gpu=90,
        key="",
        options=options,
        stack=0,
        local=0,
        spills_in_loop=0,
        shared=0,
        loads=9,
        wide_loads=8,
        loads_in_loop=4,
        wide_loads_in_loop=4,
        single_loads_in_loop=0,
        products_in_loop=8,
        wgmma=8,
        waits_in_loop=3,
        loop=350,
        warps=4,
    )
    assert not found_wrong(fine)
    limits = dict(
        stack=56,
        spills_in_loop=1,
        shared=300_000,
        wide_loads=0,
        wide_loads_in_loop=0,
        single_loads_in_loop=1,
        products_in_loop=0,
        wgmma=0,
        waits_in_loop=16,
        loop=400,
    )
    for name, value in limits.items():
        assert found_wrong(fine | {name: value}), name
    assert found_wrong(fine | {"name": "linear_kernel", "loop": 500})
    assert not found_wrong(fine | {"name": "linear_kernel", "single_loads_in_loop": 1})


if __name__ == "__main__":
    import triton  # noqa: F401  before the kernels, which then are compiled and not interpreted

    if sys.argv[1] == "mutants":
        compile_mutants()
    elif sys.argv[1] == "keys":
        compare_keys(int(sys.argv[2]))
    else:
        compile_all(int(sys.argv[2]), sys.argv[1] == "everything")
