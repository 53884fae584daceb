"""More than one process, and more than one device: prompts, layers and heads over ranks."""

import functools
import gc
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import split_model
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import llava_min
from llava_min import segments, trace
from llava_min.command import batch_shares
from llava_min.command.batch_shares import Share, parts_of
from llava_min.command.main import main
from llava_min.config import Quantization
from llava_min.engine import load as engine_load
from llava_min.engine import offload
from llava_min.engine.recording import RecordedTower
from llava_min.engine.towers import SharedTower
from llava_min.errors import CheckpointError, ParameterError, RankError
from llava_min.families.folder import EMBEDDED, config_of
from llava_min.planning.memory import Storage, pass_bytes, tower_weight_bytes, weight_bytes
from llava_min.planning.predict import CARDS, LINKS, predicted
from llava_min.planning.split import Split, Traffic, rank_memory, tiles_of_parts
from llava_min.weights import checkpoint, header, load, names, quantize
from llava_min.weights.checkpoint import Checkpoint
from llava_min.weights.slices import Slices

CONFIG = config_of(EMBEDDED, None, None)
PHOTO = split_model.PHOTO
linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")

# Prompts over ranks ----------------------------------------------------------------


@pytest.fixture
def batch(tmp_path):
    """A batch of 200 questions, some of them wrong, and a way to run it as a rank of n."""
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [
        {"question": f"What number is {n}?"} | ({"id": n} if n % 3 else {}) for n in range(197)
    ]
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


def test_parts_that_another_rank_has_joined_and_removed_are_no_error(batch, monkeypatch):
    """Two ranks that end at once both find every line."""
    run, target = batch
    for rank in range(2):
        run(rank, 2)
    whole, gone = unmeasured(target), [Share(rank, 2).part(target) for rank in range(2)]
    monkeypatch.setattr(batch_shares, "parts_of", lambda target: gone)
    assert run(0, 2, "--resume") == 4 and unmeasured(target) == whole


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


def looked(dtype: str, ranks: int) -> dict[str, int]:
    """What --plan says that goes and comes for the tiles of the photo."""
    split = {"pipeline_parallel": ranks, "dtype": dtype}
    return llava_min.plan(images=[PHOTO], device="cpu", **split).json()["sent"]


AWAY = {2: 3, 3: 4, 4: 6}  # ranks: messages with some of the photo's 13 tiles, 2 a rank at a time
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
    seen = looked(dtype, count)
    assert (sent["send"], sent["isend"]) == (chunks + steps, AWAY[count])
    assert (sent["send bytes"], sent["isend bytes"]) == (plan.passed, seen["tiles"])
    assert sent["recv"] == AWAY[count] + 1 + steps
    assert sent["recv bytes"] == seen["features"] + plan.back
    assert len(sent) == 6


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_layers_over_devices_give_the_same_bits(bits, count):
    model = llava_min.load(dtype="float32", bits=bits, devices=["cpu"] * count)
    found, wanted = split_model.answers(model), alone("float32", bits)
    assert all(same(found[name], wanted[name]) for name in wanted)
    assert model.network.decoder.parts == count


@pytest.mark.parametrize("bits, held", [(None, 0), (None, 1), (4, 2), (None, 3)])
def test_streamed_layers_give_the_same_bits(monkeypatch, bits, held):
    """With an even and an odd number of streamed layers, and with one."""
    monkeypatch.setattr(offload, "blocks_in_place", lambda *given: held)
    model = llava_min.load(dtype="float32", bits=bits, offload=True)
    decoder = model.network.decoder
    assert (len(decoder.blocks), len(decoder.streamed)) == (held, 4 - held)
    found, wanted = split_model.answers(model), alone("float32", bits)
    assert all(same(found[name], wanted[name]) for name in wanted)
    assert len(decoder.places) == 2


@given(st.integers(1, 60), st.integers(1, 9))
def test_tiles_are_shared_as_evenly_as_they_can_be(count, parts):
    shares = tiles_of_parts(count, parts)
    assert sum(shares) == count and len(shares) == parts
    assert shares == sorted(shares, reverse=True) and shares[0] - shares[-1] <= 1


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_each_part_looks_at_its_tiles(monkeypatch, parts, count):
    """And gives the features of one tower; whoever watches that sees all tiles pass."""
    model = llava_min.load(dtype="float32", devices=["cpu"] * parts)
    tower, seen, asked = model.network.vision, [], []
    look = tower.team.look
    monkeypatch.setattr(tower.team, "look", lambda *given: asked.append(1) or look(*given))
    hooks = [
        part.register_forward_pre_hook(lambda part, given: seen.append(len(given[0])))
        for part in (tower.tower, *(stage.tower for stage in tower.team.stages))
    ]
    tiles = torch.from_numpy(np.random.default_rng(count).integers(0, 256, (count, 84, 84, 3)))
    tiles = tiles.to(torch.uint8)
    with torch.inference_mode():
        found = tower(tiles)
        assert seen == [share for share in tiles_of_parts(count, parts) if share]
        assert len(asked) == (count > 1)  # nobody is told of one tile
        seen.clear()
        with trace.watch("features") as watched:
            assert torch.equal(tower(tiles), found)
        assert seen == [count]  # by the leader, since an observer sees nothing of another rank
        hooks[0].remove()
        assert torch.equal(tower.tower(tiles), found)
    assert torch.equal(torch.cat(watched), found)


def test_ctrl_c_waits_until_all_have_looked():
    tower = llava_min.load(devices=["cpu", "cpu"]).network.vision
    (stage,), seen = tower.team.stages, []
    tower.tower.register_forward_pre_hook(lambda *given: signal.raise_signal(signal.SIGINT))
    stage.tower.register_forward_pre_hook(lambda *given: seen.append(1))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
    try:
        with pytest.raises(KeyboardInterrupt):
            tower(torch.zeros(2, 84, 84, 3, dtype=torch.uint8))
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen


def test_after_a_step_that_failed_nothing_is_asked_of_other_ranks():
    ranks = pytest.importorskip("llava_min.engine.ranks")
    team = ranks.Ranks(Split(pipeline=2), 0, torch.device("cpu"), None, None, midst=True)
    tiles = torch.zeros(2, 84, 84, 3, dtype=torch.uint8)
    with pytest.raises(RankError, match="A step has failed"):
        SharedTower(torch.nn.Identity(), team)(tiles)
    with pytest.raises(RankError, match="A step has failed"):
        team.begin(None, tiles)


def test_what_is_recorded_of_a_shared_tower_is_each_part_of_it(monkeypatch):
    """A recording holds no messages."""
    monkeypatch.setattr(engine_load, "recorded", lambda device: True)
    tower = llava_min.load(devices=["cpu", "cpu"]).network.vision
    (stage,) = tower.team.stages
    assert isinstance(tower, SharedTower)
    assert isinstance(tower.tower, RecordedTower) and isinstance(stage.tower, RecordedTower)
    assert isinstance(llava_min.load(device="cpu").network.vision, RecordedTower)


def test_tiles_go_before_the_first_chunk(monkeypatch):
    """So no chunk of a pipeline waits for tiles; other work can come after each portion."""
    model = llava_min.load(devices=["cpu", "cpu"])
    (stage,), done = model.network.decoder.team.stages, []
    look, run = stage.look, stage.run
    monkeypatch.setattr(stage, "look", lambda tiles: done.append("look") or look(tiles))
    monkeypatch.setattr(stage, "run", lambda *given: done.append("run") or run(*given))
    prepared = model.prepare("What moves?", images=[PHOTO], videos=[split_model.CLIP])
    cache = model.empty_cache(prepared.plan.tokens)
    monkeypatch.setattr("llava_min.engine.handle.portions", lambda *given: (2, 256))
    for portion in model.reading(prepared.plan, prepared.visuals, cache):
        done.append(portion.done)
    photo, clip = [*["look", 0] * 3, 0], ["look", 0] * 2  # of 13 tiles the last one is the leader's
    assert done == [*photo, *clip, "run", 256, "run", prepared.plan.tokens]


def test_the_parts_of_a_cache_that_is_gone_are_forgotten():
    model = llava_min.load(devices=["cpu", "cpu"])
    (stage,) = model.network.decoder.team.stages
    for _ in range(3):
        model.generate("Hello", max_tokens=2)
    chat = model.chat(max_tokens=2)
    chat.ask("Hello")
    assert len(stage.caches) == 1
    chat.ask("Hello " * 300)  # which grows it
    model.generate("Hello", max_tokens=2)
    assert len(stage.caches) == 2
    del chat
    gc.collect()
    model.generate("Hello", max_tokens=2)
    assert len(stage.caches) == 1


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
    seen = looked("float64", 2)
    assert (sent["isend"], sent["recv"]) == (AWAY[2], AWAY[2])
    assert (sent["isend bytes"], sent["recv bytes"]) == (seen["tiles"], seen["features"])
    assert (sent["all_reduce"], sent["broadcast"]) == (2 * 4 * (chunks + steps), chunks + steps)
    assert (sent["all_reduce bytes"], sent["broadcast bytes"]) == (plan.summed, plan.entering)
    assert len(sent) == 8


@pytest.mark.slow
@pytest.mark.parametrize("load", [
    {"dtype": "float64", "tensor_parallel": 2, "pipeline_parallel": 2},
    {"dtype": "float64", "tensor_parallel": 2, "pipeline_parallel": 4},
])  # fmt: skip
def test_heads_and_layers_over_ranks_give_the_same_numbers(tmp_path, load):
    found, wanted = over_ranks(tmp_path, **load), alone("float64")
    assert worst(found, wanted) < 1e-10
    assert all(found[name] == wanted[name] for name in ("greedy", "sampled", "chat", "batch"))


@pytest.mark.slow
def test_heads_over_ranks_with_the_kernels_of_triton(tmp_path):
    pytest.importorskip("triton")
    exact = {"text": alone("float64")["text"]}
    errors = [
        worst(over_ranks(tmp_path, dtype="float32", kernels="triton", tensor_parallel=n), exact)
        for n in (1, 2)
    ]
    assert errors[1] <= 2 * errors[0]


@pytest.mark.parametrize("dtype, bits", [
    ("float32", None),
    pytest.param("bfloat16", None, marks=pytest.mark.slow),
])  # fmt: skip
def test_heads_over_ranks_are_as_exact_as_one_process(tmp_path, dtype, bits):
    exact = alone("float64")
    found = over_ranks(tmp_path, dtype=dtype, bits=bits, tensor_parallel=2)
    assert worst(found, exact) <= 2 * worst(alone(dtype, bits), exact)


# Failures --------------------------------------------------------------------------

COMMAND = (
    "from llava_min.engine import followers; "
    "followers.CODE = 'import saboteur; saboteur.main()'; "
    "from llava_min.command.main import run; run()"
)
LIMIT = 60.0  # seconds from a rank's end to that of all, on a busy machine


class Command:
    """The command in a process of its own, with one follower or more that may fail on purpose."""

    def __init__(self, tmp_path, *words: str, sabotage: str = "", code: str = COMMAND):
        self.stamp = tmp_path / "stamp"
        told = {"SABOTAGE": f"{sabotage} {self.stamp}"} if sabotage else {}
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *words, "-q", "--threads", "1"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=environment(**told), start_new_session=True,
        )  # fmt: skip

    def ask(self, question: str) -> str:
        """A question of the chat, and the line that answers it."""
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()

    def followers(self) -> list[int]:
        """The processes that it started."""
        here = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in here.read_text().split()]

    def ended(self, since: float | None = None) -> tuple[int, str]:
        """(exit code, stderr) once it has ended, soon enough after a rank did."""
        self.process.wait(300)
        since = since or float(self.stamp.read_text())
        assert time.time() - since < LIMIT
        return self.process.returncode, self.process.stderr.read()


def wait_for_end(pids: list[int]) -> None:
    """Until none of these processes is there any more."""
    until = time.time() + LIMIT
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists() and not zombie(pid)]:
        assert time.time() < until, left
        time.sleep(0.02)


def zombie(pid: int) -> bool:
    """Whether a process has ended, and only its parent's question is left."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


SPLITS = {"layers": ("-pp", "2"), "heads": ("-tp", "2"), "both": ("-tp", "2", "-pp", "2")}
PLACES = [("layers", "1", "decode"), ("layers", "1", "tower")] + [
    pytest.param(split, rank, place, marks=pytest.mark.slow)
    for split, ranks in (("layers", "1"), ("heads", "1"), ("both", "123"))
    for rank in ranks
    for place in ("loading", "tower", "prefill", "decode")
    if (split, place) != ("layers", "tower")
]


@linux
@pytest.mark.parametrize("how, rank, place", PLACES)
def test_a_dead_rank_ends_all_with_one_line(tmp_path, how, rank, place):
    words = ("--chat", *SPLITS[how], "--max-tokens", "30", "--ignore-eos")
    words += ("--image", PHOTO) if place == "tower" else ()
    command = Command(tmp_path, *words, sabotage=f"{rank} {place} kill")
    pids = []
    while not pids and command.process.poll() is None:
        pids = command.followers()
    command.process.stdin.write("Where is the star?\n")
    command.process.stdin.flush()
    code, told = command.ended()
    count = 4 if how == "both" else 2
    assert (code, told.strip().splitlines()) == (1, [
        f"llava_min: error: rank {rank} of {count} was ended by signal 9: the others cannot go on."
    ])  # fmt: skip
    wait_for_end(pids)


@linux
@pytest.mark.parametrize("way, code, line", [
    ("memory", 5, "llava_min: error: rank 1 of 2: cannot follow: memory: expected enough, found "),
    pytest.param("exit", 1, "llava_min: error: rank 1 of 2 ended with 11: the others cannot go on.",
                 marks=pytest.mark.slow),
])  # fmt: skip
def test_a_rank_that_fails_ends_all_with_its_code(tmp_path, way, code, line):
    command = Command(tmp_path, "Hello", *SPLITS["layers"], sabotage=f"1 prefill {way}")
    found, told = command.ended()
    assert found == code and told.strip().startswith(line) and told.count("error") == 1, told


@linux
@pytest.mark.parametrize("how", ["layers", pytest.param("both", marks=pytest.mark.slow)])
def test_a_rank_that_dies_while_nobody_asks_ends_all(tmp_path, how):
    command = Command(tmp_path, "--chat", *SPLITS[how], "--max-tokens", "3")
    assert command.ask("Hello")
    pids = command.followers()
    os.kill(pids[-1], signal.SIGKILL)
    code, told = command.ended(time.time())
    assert code == 1 and "was ended by signal 9" in told and len(told.split("\n")) == 3
    wait_for_end(pids)


@linux
@pytest.mark.parametrize("how, busy", [
    ("layers", False),
    *(pytest.param(how, busy, marks=pytest.mark.slow)
      for how in ("layers", "both") for busy in (False, True)),
])  # fmt: skip
def test_no_rank_outlives_its_leader(tmp_path, how, busy):
    words = ("--chat", *SPLITS[how], "--max-tokens", "500" if busy else "3", "--ignore-eos")
    command = Command(tmp_path, *words)
    pids = []
    if busy:
        command.process.stdin.write("Hello\n")
        command.process.stdin.flush()
        assert command.process.stdout.read(3)
    else:
        assert command.ask("Hello")
    pids = command.followers()
    assert len(pids) == (3 if how == "both" else 1)
    command.process.kill()
    wait_for_end(pids)
    assert command.process.communicate()[1] == ""


@linux
@pytest.mark.slow
@pytest.mark.parametrize("how", ["layers", "heads", "both"])
def test_ctrl_c_at_any_moment_leaves_the_ranks_in_step(tmp_path, how):
    """Answers after 20 interrupted ones are those of a chat without any."""
    words = ("--chat", *SPLITS[how], "--max-tokens", "200", "--ignore-eos", "--dtype", "float32")
    command, draw = Command(tmp_path, *words, "--image", PHOTO), random.Random(how)
    for _ in range(20):
        command.process.stdin.write("Describe the picture.\n")
        command.process.stdin.flush()
        command.process.stdout.read(1)
        time.sleep(draw.random() / 2)
        command.process.send_signal(signal.SIGINT)
        command.process.stdout.readline()
    command.process.stdin.write("/clear\n")
    last = command.ask(f"/image {PHOTO}\nWhere is the star?")
    command.process.stdin.close()
    told = command.process.stderr.read()
    assert command.process.wait(30) == 0, told
    plain = Command(tmp_path, *words)
    assert last == plain.ask(f"/image {PHOTO}\nWhere is the star?")
    plain.process.communicate(timeout=30)


@linux
@pytest.mark.parametrize("how", ["layers", pytest.param("both", marks=pytest.mark.slow)])
def test_ranks_wait_for_a_question_longer_than_for_each_other(tmp_path, how):
    shorter = "from llava_min.engine import ranks; ranks.SECONDS = 5; "
    code = shorter + COMMAND.replace("'import", f"'{shorter}import")
    command = Command(tmp_path, "--chat", *SPLITS[how], "--max-tokens", "3", code=code)
    first = command.ask("Hello")
    time.sleep(8)
    assert command.ask("/clear\nHello") == first != ""
    command.process.stdin.close()
    assert command.process.wait(30) == 0 and command.process.stderr.read() == ""


@pytest.mark.parametrize("words, line", [
    (("-pp", "5"), "--pipeline-parallel 5 is more than the 4 layers"),
    (("-tp", "3"), "4 heads and 2 key/value heads do not divide by it. 1 or 2 would."),
    (("-tp", "4", "--int4"), "4 heads and 2 key/value heads do not divide by it"),
    (("-tp", "2", "--prompt-cache", "x"), "--tensor-parallel and --prompt-cache cannot be used"),
    (("-pp", "2", "--devices", "cpu,cpu"), "--pipeline-parallel and --devices cannot be used"),
    (("-pp", "2", "--explain", "x.html"), "--explain cannot be used together"),
    (("--devices", "cpu"), "two or more devices of one kind"),
    (("--devices", "cpu,cuda:0"), "two or more devices of one kind"),
])  # fmt: skip
def test_what_does_not_divide_is_refused_by_name(words, line, capsys):
    assert main(["Hello", "-q", *words]) == 2
    assert line in capsys.readouterr().err


def test_numbers_that_share_a_model_are_whole():
    for name in ("tensor_parallel", "pipeline_parallel"):
        for value in (0, -1, 1.5, True, "2"):
            with pytest.raises(ParameterError, match=name):
                llava_min.load(**{name: value})
    with pytest.raises(ParameterError, match="only one can be used"):
        llava_min.load(offload=True, pipeline_parallel=2)


def test_the_launcher_must_have_started_as_many_ranks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert main(["Hello", "-q", "-tp", "2", "-pp", "2"]) == 2
    told = capsys.readouterr().err
    assert "WORLD_SIZE is 8, but --tensor-parallel 2 x --pipeline-parallel 2 = 4." in told


def test_only_ranks_know_torch_distributed():
    """And a model in one process never imports them."""
    wanted = re.compile(r"^ *(import|from) torch.distributed", re.M)
    root = Path(__file__).parent.parent
    files = [
        path for name in ("llava_min", "kernels", "weights") for path in (root / name).rglob("*.py")
    ]
    names = [path for path in files if wanted.search(path.read_text("utf-8"))]
    assert [path.name for path in names] == ["ranks.py", "train.py"]  # which trains the toy
    asked = (
        "import sys, llava_min; llava_min.load(); print('llava_min.engine.ranks' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, env=environment())
    assert done.stdout == b"False\n"


# What a rank reads -------------------------------------------------------------------


def bytes_read() -> int:
    """Bytes that this process has read from files so far."""
    text = Path("/proc/self/io").read_text()
    return int(text.split("rchar: ")[1].split()[0]) - len(text)


@linux
@pytest.mark.parametrize("axis, begin, stop", [(0, 3, 17), (1, 5, 12), (0, 0, 40), (1, 0, 1)])
def test_exactly_the_bytes_of_a_part_are_read(tmp_path, axis, begin, stop):
    whole, path = torch.randn(40, 24, dtype=torch.bfloat16), tmp_path / "a.safetensors"
    save_file({"before": torch.zeros(7), "a": whole, "after": torch.zeros(5)}, path)
    file = Slices(path)
    file.read("before", "F32", (7,), (0, 0, 7))  # and with the first part the header
    before = bytes_read()
    found = file.read("a", "BF16", (40, 24), (axis, begin, stop))
    count = bytes_read() - before
    assert torch.equal(found, whole.narrow(axis, begin, stop - begin))
    own = len(Path("/proc/self/io").read_text())  # the first look is counted by the second
    assert found.nbytes <= count <= found.nbytes + 2 * own


def test_a_part_of_a_file_cut_short_is_an_error(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.randn(40, 24)}, path)
    file = Slices(path)
    assert file.places["a"] == path.stat().st_size - 4 * 40 * 24
    os.truncate(path, path.stat().st_size - 1)
    file.read("a", "F32", (40, 24), (0, 0, 39))
    with pytest.raises(CheckpointError, match="the file cut short"):
        file.read("a", "F32", (40, 24), (1, 20, 24))


@pytest.mark.parametrize("split, times", [(Split(), 1), (Split(pipeline=2), 1), (Split(2), 2)])
def test_a_header_is_read_again_only_for_parts_of_tensors(monkeypatch, split, times):
    read, reader = [], header.read_header
    monkeypatch.setattr(header, "read_header", lambda path: read.append(path) or reader(path))
    share = split.shares(CONFIG, Storage(), [])[0]
    part = load.on_meta(share.local(CONFIG))
    load.fill(part, Checkpoint.open(EMBEDDED), torch.float32, "cpu", share=share)
    assert len(read) == times


PARTS = [Split(2, 1), Split(1, 2), Split(1, 3), Split(2, 2)]


@pytest.mark.parametrize("split", PARTS, ids=str)
@pytest.mark.parametrize("bits", [None, 4])
def test_the_parts_of_a_checkpoint_are_the_checkpoint(monkeypatch, split, bits):
    """Every number of a block that is cut is in one rank, others in each, and so are the bytes.

    The tower is in every rank.
    """
    config = replace(CONFIG, quantization=Quantization(bits) if bits else None)
    convert = [functools.partial(quantize.converted, config=config)] if bits else []
    read, reader = [], checkpoint.read_tensor

    def counting(shard, slices, name, part):
        tensor = reader(shard, slices, name, part)
        read.append((name, tensor.nbytes))
        return tensor

    monkeypatch.setattr(checkpoint, "read_tensor", counting)
    stored = Checkpoint.open(EMBEDDED)
    sizes = {name: 2 * math.prod(shape) for name, shape, _ in stored.headers()}
    whole = load.on_meta(config)
    load.fill(whole, stored, torch.float32, "cpu", None, convert)
    read.clear()
    seen = Counter()
    for share in split.shares(config, Storage(), []):
        part = load.on_meta(share.local(config))
        load.fill(part, stored, torch.float32, "cpu", None, convert, share)
        blocks = part.decoder.blocks
        assert len(blocks) == share.stop - share.first
        for index, block in enumerate(blocks):
            for name, parameter in block.named_parameters():
                own = whole.decoder.blocks[share.first + index].get_parameter(name)
                seen[share.first + index, name] += parameter.numel()
                assert set(parameter.unique().tolist()) <= set(own.unique().tolist())
        held = sum(p.numel() for p in blocks.parameters()) if not bits else None
        if held is not None:  # as --plan counts them
            local = share.local(config)
            empty = replace(local, text=replace(local.text, num_layers=0))
            counted = weight_bytes(local, Storage()) - weight_bytes(empty, Storage())
            assert held * 4 == counted
    for (index, name), count in seen.items():
        own = whole.decoder.blocks[index].get_parameter(name).numel()
        assert count == own * (split.tensor if "norm" in name else 1), name
    found = Counter()
    for name, count in read:
        found[name] += count
    for name, count in found.items():
        ours, _ = names.ours(name)
        norm = ours.startswith("decoder.blocks.") and "norm" in ours
        times = split.ranks if ours.startswith("vision.") else split.tensor if norm else 1
        assert count == sizes[name] * times, name
    assert found.keys() == {name for name in sizes if load.unused(name, config) is None}


@pytest.mark.parametrize("bits", [None, 4, 8])
@pytest.mark.parametrize("clip", [False, True])
def test_the_bytes_of_a_tower_are_those_of_its_parameters(bits, clip):
    vision = replace(CONFIG.vision, class_token=clip, pre_norm=clip, patch_bias=not clip)
    quantization = Quantization(bits) if bits else None
    made = load.on_meta(replace(CONFIG, vision=vision, quantization=quantization))
    held = sum(parameter.nbytes for parameter in made.vision.parameters())
    assert tower_weight_bytes(vision, Storage(bits=bits)) == held


@pytest.mark.parametrize("count", [2, 4, 8])
def test_an_mlp_is_shared_in_whole_blocks(count):
    """72B's 231 blocks of 128 do not divide by any of these."""
    text = replace(CONFIG.text, intermediate_size=29_568, num_heads=64, num_kv_heads=8)
    shares = Split(count).shares(replace(CONFIG, text=text), Storage(), [])
    ranges = [share.mlp for share in shares]
    assert [begin for begin, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == 29_568 and all(begin % 128 == 0 for begin, _ in ranges)
    sizes = {(stop - begin) // 128 for begin, stop in ranges}
    assert sizes == {231 // count, 231 // count + 1}


@pytest.mark.parametrize("rooms, wanted", [
    ([], [14, 14]),
    ([80, 80], [14, 14]),
    ([20, 60], [7, 21]),
    ([0, 60], [1, 27]),
    ([60, 0], [27, 1]),
    ([1, 1, 1], [9, 10, 9]),
])  # fmt: skip
def test_layers_are_shared_by_what_is_free(rooms, wanted):
    text = replace(CONFIG.text, num_layers=28)
    config = replace(CONFIG, text=text)
    rest = weight_bytes(replace(config, text=replace(text, num_layers=0)), Storage())
    tower = tower_weight_bytes(config.vision, Storage())
    free = [room * 10**4 + (tower if stage else rest) for stage, room in enumerate(rooms)]
    shares = Split(pipeline=len(wanted)).shares(config, Storage(), free)
    assert [share.stop - share.first for share in shares] == wanted
    assert shares[0].first == 0 and shares[-1].stop == 28


def test_the_plan_of_ranks(capsys):
    """The fullest rank decides; all ranks together hold the blocks and the cache once."""
    asked = ["--plan", "--json", "--dtype", "float32"]
    plans = []
    for more in (
        (),
        ("-pp", "2"),
        ("-tp", "2"),
        ("-tp", "2", "-pp", "2"),
        ("--devices", "cpu,cpu"),
    ):
        assert main([*asked, *more]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    whole = next(row for row in plans[0]["memory"] if row["chosen"])
    for plan in plans[1:]:
        assert sum(rank["cache"] for rank in plan["ranks"]) == whole["cache"]
        fullest = max(rank["total"] for rank in plan["ranks"])
        assert next(row for row in plan["memory"] if row["chosen"])["total"] == fullest
        assert plan["ranks"][0]["weights"] < whole["weights"]
        assert plan["predicted"]["H100, NVLink"]["prompt"] > 0
    assert [plan["sent"]["tiles"] // (3 * 84**2) for plan in plans[1:]] == [6, 6, 9, 6]
    assert plans[3]["sent"]["features"] == 9 * 36 * 128 * 4
    network = llava_min.load(dtype="float32").network
    tower, blocks = (
        sum(parameter.nbytes for parameter in part.parameters())
        for part in (network.vision, network.decoder.blocks)
    )
    assert plans[1]["ranks"][1]["weights"] == tower + blocks // 2
    assert main([*asked[:-3], "--dtype", "float32", "-pp", "2"]) == 0
    assert "0.1 MB of tiles to the other ranks, 0.1 MB of features back" in capsys.readouterr().out
    assert main(["Hello", "--plan", "-pp", "2"]) == 0
    assert "MB of tiles" not in capsys.readouterr().out
    layers = [rank["layers"] for rank in plans[1]["ranks"]]
    assert layers == [[0, 2], [2, 4]] == [rank["layers"] for rank in plans[4]["ranks"]]
    rows = plans[0]["tokens"]["text"] + plans[0]["tokens"]["visual"]
    assert plans[1]["predicted"]["H100, NVLink"]["prompt_bytes"] == rows * 256 * 4
    assert "ranks" not in plans[0] and "predicted" not in plans[0]
    assert main([*asked, "--offload"]) == 0
    offloaded = json.loads(capsys.readouterr().out)
    row = next(row for row in offloaded["memory"] if row["chosen"])
    assert row["weights"] < whole["weights"] and row["cache"] == whole["cache"]


def test_a_rank_that_follows_has_room_for_its_tiles():
    """The widest moment is either in its tower, over its share of a portion, or in its blocks."""
    wide = replace(CONFIG, vision=replace(CONFIG.vision, intermediate_size=10**6))
    storage = Storage(towers=2)
    _, share = Split(pipeline=2).shares(wide, storage, [])
    photo, text = segments.picture((320, 240), "anyres", wide), segments.Text((3,) * 9)
    frames = segments.clip([0.0] * 3, (9, 9), wide)  # two of which the leader looks at
    for tiles, parts in ((2, (photo,)), (2, (text, photo)), (1, (frames,)), (0, (text,))):
        plan = segments.Plan(parts, 4096)
        need = rank_memory(wide, plan, 5, storage, share)
        blocks = rank_memory(CONFIG, plan, 5, storage, share)
        looking = pass_bytes(wide.vision, tiles, storage)
        assert need.activations == (looking or blocks.activations)
        assert need.weights - blocks.weights == (
            tower_weight_bytes(wide.vision, storage) - tower_weight_bytes(CONFIG.vision, storage)
        )


def test_a_pipeline_is_as_fast_as_its_slowest_stage():
    """Many chunks over n stages take about a part in n; one chunk gains nothing."""
    text = replace(CONFIG.text, num_layers=28, hidden_size=3584, intermediate_size=18_944)
    config, card, link = replace(CONFIG, text=text), CARDS["H100"], LINKS["NVLink"]

    def seconds(split: Split, tokens: int) -> float:
        return predicted(config, Storage("bfloat16"), split, tokens, card, link).prompt

    for count in (2, 4):
        split = Split(pipeline=count)
        assert seconds(split, 200_000) < seconds(Split(), 200_000) / count * 1.15
        assert seconds(split, 2_000) > seconds(Split(), 2_000)
