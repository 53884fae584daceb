"""More than one process, and more than one device: prompts, layers and heads over ranks."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import split_model
import torch

import llava_min

from llava_min.command.batch_shares import Share, parts_of
from llava_min.command.main import main
from llava_min.errors import ParameterError
from llava_min.families.folder import EMBEDDED, config_of
from llava_min.planning.memory import Storage
from llava_min.planning.split import Split, Traffic

CONFIG = config_of(EMBEDDED, None, None)

# Prompts over ranks ----------------------------------------------------------------


@pytest.fixture
def batch(tmp_path):
    """A batch of 200 questions, some of them wrong, and a way to run it as a rank of n."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"question": f"What number is {n}?"} | ({"id": n} if n % 3 else {}) for n in range(197)]
    texts = [json.dumps(line) for line in lines]
    source.write_text("\n".join([*texts[:50], "nonsense", *texts[50:], '{"question": ""}', ""]))

    def run(rank: int, count: int, *more: str, name: str = "out.jsonl") -> int:
        os.environ["RANK"], os.environ["WORLD_SIZE"] = str(rank), str(count)
        try:
            asked = ["--batch", str(source), "-o", str(tmp_path / name), "--max-tokens", "2"]
            return main([*asked, "-q", "--batch-size", "16", *more])
        finally:
            del os.environ["RANK"], os.environ["WORLD_SIZE"]

    return run, target


def unmeasured(target) -> bytes:
    """The bytes of an output without what a clock or the operating system measured."""
    entries = [json.loads(line) for line in target.read_bytes().splitlines()]
    for entry in entries:
        for name in ("timings", "memory"):
            entry.pop(name, None)
        entry.get("usage", {}).pop("cached_tokens", None)  # whose beginning a row still held
    return b"\n".join(json.dumps(entry).encode() for entry in entries)


def test_a_batch_by_several_ranks_is_the_one_by_one_process(batch):
    run, target = batch
    assert run(0, 1) == 4
    alone = unmeasured(target)
    assert alone.count(b"\n") == 198
    for count in (2, 3):
        target.unlink()
        for rank in reversed(range(count)):
            assert not target.exists()
            run(rank, count)
        assert unmeasured(target) == alone
        assert parts_of(target) == []


def test_a_dead_rank_costs_its_lines_and_any_number_of_ranks_goes_on(batch, monkeypatch):
    run, target = batch
    run(0, 1)
    alone = unmeasured(target)
    target.unlink()
    run(0, 3)
    run(1, 3)  # and rank 2 died, with half a line written
    part = Share(2, 3).part(target)
    part.write_bytes(Share(1, 3).part(target).read_bytes()[:0] + b'{"line": 3, "te')
    assert not target.exists()
    asked = []
    from llava_min.command import batch_file

    answers = batch_file.outcomes
    monkeypatch.setattr(
        batch_file, "outcomes", lambda m, todo, s: asked.extend(todo) or answers(m, todo, s)
    )
    for rank in range(2):
        run(rank, 2, "--resume")
    assert unmeasured(target) == alone and parts_of(target) == []
    lines = 199
    died = len(range(2, lines, 3))
    assert died <= len(asked) <= died + 2  # and the two lines in error are tried again
    asked.clear()
    run(0, 1, "--resume")
    assert len(asked) == 2


def test_one_process_goes_on_with_the_parts_of_several(batch):
    run, target = batch
    run(1, 2)
    assert [path.name for path in parts_of(target)] == ["out.jsonl.1-of-2.part"]
    assert run(0, 1) == 6  # there is an output in the making
    assert run(0, 1, "--resume") == 4
    assert len(target.read_bytes().splitlines()) == 199 and parts_of(target) == []


@pytest.mark.parametrize(
    "environment, share",
    [
        ({}, Share()),
        ({"RANK": "3"}, Share()),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Share(3, 8, 1)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_LOCALID": "2"}, Share(5, 6, 2)),
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "5", "SLURM_NTASKS": "6"}, Share(0, 2)),
    ],
)
def test_the_launcher_says_the_share(environment, share):
    assert Share.of(environment) == share


@pytest.mark.parametrize("environment", [{"RANK": "2", "WORLD_SIZE": "2"},
                                         {"RANK": "-1", "WORLD_SIZE": "2"},
                                         {"RANK": "0", "WORLD_SIZE": ""}])  # fmt: skip
def test_a_share_that_cannot_be_is_refused(environment):
    with pytest.raises(ParameterError, match="RANK|WORLD_SIZE"):
        Share.of(environment)


def test_ranks_need_files_with_names(batch):
    run, target = batch
    assert run(0, 2, "-o", "-") == 2


# One model over ranks and devices ----------------------------------------------------


@functools.cache
def alone(dtype: str, bits: int | None = None) -> dict[str, object]:
    """What one process answers."""
    return split_model.answers(llava_min.load(dtype=dtype, bits=bits))


def over_ranks(tmp_path, **load) -> dict[str, object]:
    """What a model answers that is split as load() is told, led by a process of its own."""
    words = [sys.executable, split_model.__file__, str(tmp_path / "found"), json.dumps(load)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment())
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return torch.load(tmp_path / "found", weights_only=False)


def environment(**more: str) -> dict[str, str]:
    paths = [str(Path(llava_min.__file__).parent.parent), str(Path(split_model.__file__).parent)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"} | more


def same(found: object, wanted: object) -> bool:
    if isinstance(wanted, torch.Tensor):
        return torch.equal(found, wanted)
    return found == wanted


def planned(split: Split, rows: int, kept: int, dtype: str) -> Traffic:
    """What --plan says that the first rank hands to others."""
    storage = Storage(dtype)
    share = split.shares(CONFIG, storage, [])[0]
    return Traffic.of(share, split, rows, kept, storage.size)


LAYERS = [
    # dtype, bits, ranks
    ("float32", None, 2),
    ("float32", 4, 3),
    pytest.param("float32", None, 3, marks=pytest.mark.slow),
    pytest.param("float32", None, 4, marks=pytest.mark.slow),
    pytest.param("float32", 4, 2, marks=pytest.mark.slow),
    pytest.param("float32", 4, 4, marks=pytest.mark.slow),
    pytest.param("bfloat16", None, 2, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("dtype, bits, count", LAYERS)
def test_layers_over_ranks_give_the_same_bits(tmp_path, dtype, bits, count):
    found = over_ranks(tmp_path, dtype=dtype, bits=bits, pipeline_parallel=count)
    for name, wanted in alone(dtype, bits).items():
        assert same(found[name], wanted), name
    parameters, layers, heads = found["held"]
    assert layers == 4 // count and heads == 2  # the first stage, which has the tower, holds least
    prompt, tokens = found["tokens"]
    chunks, steps, sent = -(-prompt // 1024), tokens - 1, found["traffic"]
    plan = planned(Split(pipeline=count), prompt + steps, 1 + steps, dtype)
    assert (sent["send"], sent["recv"]) == (chunks + steps, 1 + steps)
    assert (sent["send bytes"], sent["recv bytes"]) == (plan.passed, plan.back)
    assert sent.keys() == {"send", "send bytes", "recv", "recv bytes"}


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_layers_over_devices_give_the_same_bits(bits, count):
    model = llava_min.load(dtype="float32", bits=bits, devices=["cpu"] * count)
    found, wanted = split_model.answers(model), alone("float32", bits)
    assert all(same(found[name], wanted[name]) for name in wanted)
    assert model.network.decoder.parts == count


def worst(found: dict[str, object], wanted: dict[str, object]) -> float:
    """The largest difference of their numbers."""
    names = [name for name, value in wanted.items() if isinstance(value, torch.Tensor)]
    return max(float((found[name].double() - wanted[name].double()).abs().max()) for name in names)


def test_heads_over_ranks_give_the_same_numbers(tmp_path):
    found, wanted = over_ranks(tmp_path, dtype="float64", tensor_parallel=2), alone("float64")
    assert worst(found, wanted) < 1e-10
    assert all(found[name] == wanted[name] for name in ("greedy", "sampled", "chat", "batch"))
    _, layers, heads = found["held"]
    assert (layers, heads) == (4, 1)
    prompt, tokens = found["tokens"]
    chunks, steps, sent = -(-prompt // 1024), tokens - 1, found["traffic"]
    plan = planned(Split(tensor=2), prompt + steps, 1 + steps, "float64")
    assert (sent["all_reduce"], sent["broadcast"]) == (2 * 4 * (chunks + steps), chunks + steps)
    assert (sent["all_reduce bytes"], sent["broadcast bytes"]) == (plan.summed, plan.entering)
    assert sent.keys() == {"all_reduce", "all_reduce bytes", "broadcast", "broadcast bytes"}


@pytest.mark.slow
@pytest.mark.parametrize("load", [
    {"dtype": "float64", "tensor_parallel": 2, "pipeline_parallel": 2},
    {"dtype": "float64", "tensor_parallel": 2, "pipeline_parallel": 4},
])  # fmt: skip
def test_heads_and_layers_over_ranks_give_the_same_numbers(tmp_path, load):
    found, wanted = over_ranks(tmp_path, **load), alone("float64")
    assert worst(found, wanted) < 1e-10
    assert all(found[name] == wanted[name] for name in ("greedy", "sampled", "chat", "batch"))


@pytest.mark.parametrize("dtype, bits", [
    ("float32", None),
    pytest.param("bfloat16", None, marks=pytest.mark.slow),
])  # fmt: skip
def test_heads_over_ranks_are_as_exact_as_one_process(tmp_path, dtype, bits):
    exact = alone("float64")
    found = over_ranks(tmp_path, dtype=dtype, bits=bits, tensor_parallel=2)
    assert worst(found, exact) <= 2 * worst(alone(dtype, bits), exact)
