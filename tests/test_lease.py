"""The lease loses nothing: a run is cut off in every way, resumed, and its rows counted.

Most tests fork this process, which has imported torch already, and run stages made up on the spot;
a task of them is one line of a list, such as "rows 3" or "die 9".
"""

import argparse
import importlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.lease import marks, run, table, watch
from bench.lease import place as places

STUB = """
import os, signal, time
SECONDS = {seconds}
TASK_SECONDS = {limit}
TASKS = {tasks!r}

def act(name, words):
    for word, number in zip(words.split()[::2], map(float, words.split()[1::2])):
        if word == "rows":
            yield from ({{"what": name, "number": i, "ok": True}} for i in range(int(number)))
        elif word == "wait":
            time.sleep(number)
        elif word == "hold":
            while not os.path.exists({marks!r} + "/go"):
                time.sleep(0.01)
        elif word == "exit":
            os._exit(int(number))
        elif word == "die":
            os.kill(os.getpid(), int(number))
        elif word == "raise":
            raise RuntimeError(f"number {{number}}")
        elif word == "print":
            print("printed by", name)
        elif word == "mark":
            open({marks!r} + "/" + name, "a").write("x")

def tasks(place):
    for index, words in enumerate(TASKS):
        name = f"task {{index}}"
        yield name, lambda name=name, words=words: act(name, words)
"""
ROOT = Path(run.__file__).parent.parent.parent
numbers = itertools.count()


@pytest.fixture
def lease(tmp_path, monkeypatch):
    """stage(...) makes a stage; begin() forks a run over all of them; both count on tmp_path."""
    monkeypatch.syspath_prepend(tmp_path)
    return Rehearsal(tmp_path)


class Rehearsal:
    def __init__(self, folder: Path):
        self.folder, self.out, self.stages = folder, folder / "out", {}

    def stage(self, name: str, tasks: list[str], seconds: float = 60, limit: float = 60) -> None:
        module = f"stub_{next(numbers)}"
        source = STUB.format(seconds=seconds, limit=limit, tasks=tasks, marks=str(self.folder))
        (self.folder / f"{module}.py").write_text(source)
        importlib.invalidate_caches()
        self.stages[name] = module

    def begin(self, minutes: float = 9.0, **settings) -> int:
        """The process id of a run."""
        given = dict(minutes=minutes, out=self.out, resume=False, dry_run=True) | settings
        output = os.open(self.folder / "printed.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        process = os.fork()
        if process:
            os.close(output)
            return process
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))
        code = 99
        try:
            code = run.main(argparse.Namespace(**given), self.stages)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def run(self, minutes: float = 9.0, **settings) -> int:
        """A run to its end; its exit code."""
        return code_of(self.begin(minutes, **settings))

    def until(self, wanted: str, seconds: float = 30.0) -> None:
        """Wait until the journal holds a text."""
        end = time.monotonic() + seconds
        path = self.out / places.ROWS
        while not path.exists() or wanted not in path.read_text():
            assert time.monotonic() < end, f"{wanted} never came"
            time.sleep(0.01)

    @property
    def rows(self) -> list[dict]:
        return places.read(self.out).rows

    @property
    def table(self) -> str:
        return (self.out / "table.txt").read_text()


def code_of(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def counted(rows: list[dict]) -> list[tuple]:
    return [(row["stage"], row["key"], row["number"]) for row in rows if "number" in row]


def test_a_run_to_its_end(lease):
    lease.stage("one", ["rows 2 print 1", "rows 1"])
    lease.stage("two", ["rows 3"])
    assert lease.run() == 0
    assert counted(lease.rows) == [
        ("one", "task 0", 0),
        ("one", "task 0", 1),
        ("one", "task 1", 0),
        ("two", "task 0", 0),
        ("two", "task 0", 1),
        ("two", "task 0", 2),
    ]
    assert all(row["dry"] and row["device"] for row in lease.rows)
    header = places.read(lease.out).headers[0]
    assert {"torch", "triton", "commit", "compiler", "ptxas", "sanitizer", "date"} <= set(header)
    assert "printed by task 0" in (lease.out / "log.txt").read_text()
    assert {path.name for path in lease.out.iterdir()} == {"rows.jsonl", "log.txt", "table.txt"}
    assert (lease.folder / "printed.txt").read_text().endswith(lease.table)


@pytest.mark.parametrize(
    "stage, number",
    [
        ("one", signal.SIGKILL),
        ("two", signal.SIGKILL),
        ("one", signal.SIGTERM),
        ("two", signal.SIGTERM),
        ("two", signal.SIGINT),
        ("one", signal.SIGHUP),
    ],
)
def test_cut_off_and_resumed(lease, stage, number):
    """Every row is there once, and the task under way alone was run twice."""
    for name in ("one", "two"):
        held = " hold 1" if name == stage else ""
        lease.stage(name, ["mark 1 rows 2", f"mark 1 rows 1{held}", "mark 1 rows 1"])
    process = lease.begin()
    lease.until(f'"stage": "{stage}", "key": "task 1", "what"')
    os.kill(process, number)
    code = code_of(process)
    assert code == (-9 if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert f"{stage}: not finished" in lease.table
    time.sleep(0.1)  # what a killed run started ends with it
    assert len(counted(lease.rows)) < 8
    (lease.folder / "go").touch()
    assert lease.run(resume=True) == 0
    rows = counted(lease.rows)
    assert len(rows) == len(set(rows)) == 8
    runs = {name: (lease.folder / f"task {name}").read_text() for name in (0, 1, 2)}
    assert runs[0] == runs[2] == "xx" and len(runs[1]) == 3


@pytest.mark.parametrize(
    "how, named",
    [("exit 3", "exit code 3"), ("die 11", "SIGSEGV"), ("raise 7", "RuntimeError: number 7.0")],
)
def test_a_task_that_fails_is_named_and_the_others_run(lease, how, named):
    lease.stage("one", ["rows 1", f"mark 1 rows 1 {how}", "rows 2"])
    lease.stage("two", ["rows 1"])
    assert lease.run() == 1
    assert len(counted(lease.rows)) == 5
    errors = [row for row in lease.rows if "error" in row]
    assert [row["key"] for row in errors] == ["task 1"] and named in errors[0]["error"]
    assert not errors[0]["ok"] and f"one: task 1: {errors[0]['error']}" in lease.table
    before = lease.rows
    assert lease.run(resume=True) == 1  # nothing is missing, and what was wrong stays wrong
    assert lease.rows == before and (lease.folder / "task 1").read_text() == "x"


def test_a_process_that_crashes_at_every_task_is_given_up(lease):
    lease.stage("one", ["rows 1", *["exit 3"] * 9])
    lease.stage("two", ["rows 1"])
    assert lease.run() == 1
    errors = [row["error"] for row in lease.rows if "error" in row]
    assert len(errors) == run.CRASHES + 1 and "given up" in errors[-1]
    assert counted(lease.rows)[-1] == ("two", "task 0", 0)


def test_a_device_that_answers_no_more(lease, monkeypatch):
    """The process ends after the row of the error, and another one goes on."""
    monkeypatch.setattr(run.child, "answers", lambda: False)
    lease.stage("one", ["rows 1", "raise 1", "rows 1"])
    assert lease.run() == 1
    assert len(counted(lease.rows)) == 2
    assert "RuntimeError" in [row for row in lease.rows if "error" in row][0]["error"]
    assert lease.table.count("RuntimeError") == 1


def test_a_task_that_hangs_is_stopped_and_the_others_run(lease):
    lease.stage("one", ["rows 1", "rows 1 wait 60", "rows 1"], limit=3)
    assert lease.run() == 1
    assert len(counted(lease.rows)) == 3
    assert "one: task 1: stopped after 3 s" in lease.table
    assert "in act" in (lease.out / "log.txt").read_text()  # where it was


def test_a_stage_ends_at_its_deadline(lease, monkeypatch):
    """Its tasks are listed as not reached, the next stage runs, and --resume runs what is left."""
    monkeypatch.setattr(run, "GRACE", 2.0)
    lease.stage("one", ["rows 1", "wait 3.3 rows 1", "rows 1", "rows 1"], seconds=3)
    lease.stage("two", ["rows 1", "wait 60"], seconds=3)
    lease.stage("three", ["rows 1"], seconds=60)
    assert lease.run(minutes=66 / 60) == 1
    assert "not reached: one: 2: task 2, task 3" in lease.table
    assert "cut short: two: 1: task 1" in lease.table and "one: its time was up" in lease.table
    assert len(counted(lease.rows)) == 4
    assert lease.run(minutes=9 / 60, resume=True) == 1
    assert len(counted(lease.rows)) == len(set(counted(lease.rows))) == 6
    assert "not reached" not in lease.table
    assert "two: task 1: its time was up twice" in lease.table
    assert lease.run(minutes=3 / 60, resume=True) == 1  # a task that was cut twice is left alone


def test_what_an_early_stage_leaves_over_goes_to_the_later_ones(lease):
    lease.stage("one", ["rows 1"], seconds=3)
    lease.stage("two", ["wait 0.4", "wait 0.4 rows 1"], seconds=0.3)
    assert lease.run(minutes=3.3 / 60) == 0


def test_a_stage_that_writes_too_much(lease, monkeypatch):
    """Its tasks end there, the next stage runs, and --resume goes on."""
    monkeypatch.setattr(run.child, "STAGE_BYTES", 1000)
    lease.stage("one", ["rows 9", "rows 1", "rows 1"])
    lease.stage("two", ["rows 1"])
    assert lease.run() == 1
    assert "one: it wrote too many rows" in lease.table and len(counted(lease.rows)) == 10
    assert "not reached: one: 2: task 1, task 2" in lease.table
    assert lease.run(resume=True) == 0 and len(counted(lease.rows)) == 12


def test_a_stage_that_is_not_there(lease):
    lease.stages["one"] = "bench.lease.nowhere"
    lease.stage("two", ["rows 1"])
    assert lease.run() == 1
    assert "No module named 'bench.lease.nowhere'" in lease.table
    assert len(counted(lease.rows)) == 1
    lease.stage("one", ["rows 1"])
    assert lease.run(resume=True) == 0 and len(lease.rows) == 2


@pytest.mark.parametrize("name", run.STAGES)
def test_every_stage_is_there(name):
    module = importlib.import_module(run.STAGES[name])
    assert callable(module.tasks) and run.budget(run.STAGES[name]).seconds == module.SECONDS


def test_the_budgets_are_nine_minutes():
    budgets = {name: run.budget(module) for name, module in run.STAGES.items()}
    assert sum(each.seconds for each in budgets.values()) == 60 * run.MINUTES
    assert run.scaled(budgets, 9.0) == budgets
    assert run.scaled(budgets, 4.5)["right"].seconds == budgets["right"].seconds / 2
    left = {"trace": budgets["trace"]}  # no more than its share, however many minutes are left
    assert run.scaled(left, 9.0) == left


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    journal = places.Journal(tmp_path)
    journal.write(stage="one", key="a", value=1)
    with (tmp_path / places.ROWS).open("ab") as file:
        file.write(b'{"stage": "one", "key": "a", "val')
    places.Journal(tmp_path).write(stage="one", key="b", value=2)
    assert [row["value"] for row in places.read(tmp_path).rows] == [1, 2]


def test_what_cannot_be_run_is_refused(lease):
    lease.stage("one", ["rows 1"])
    assert lease.run() == 0
    assert lease.run() == 2 and lease.run(resume=True, dry_run=False) == 2
    assert lease.run(minutes=0, resume=True) == 2
    printed = (lease.folder / "printed.txt").read_text()
    for words in ("add --resume", "results of --dry-run", "--minutes must be above 0"):
        assert words in printed


def test_without_a_device_it_is_one_line(lease, monkeypatch):
    """Only a child asks for CUDA: a process that did could not fork children that use it."""
    asked = lease.folder / "asked.txt"

    def available() -> bool:
        asked.open("a").write(f"{os.getpid()}\n")
        return False

    monkeypatch.setattr(run.torch.cuda, "is_available", available)
    lease.stage("one", ["rows 1"])
    process = lease.begin(dry_run=False)
    assert code_of(process) == 2 and not lease.out.exists()
    assert (lease.folder / "printed.txt").read_text().count("\n") == 1
    assert asked.read_text().split() and str(process) not in asked.read_text().split()


def test_on_a_device_rows_name_it(lease, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(run, "asked_card", lambda: {"device": "a card"})
    lease.stage("one", ["rows 1"])
    lease.run(dry_run=False)
    assert lease.rows[0]["device"] == "a card" and "dry" not in lease.rows[0]


def made_up(count: int) -> places.Found:
    """A journal with `count` rows of every kind, many of them wrong."""
    found = places.Found(headers=[{"line": "header", "device": "NVIDIA H200", "date": "today"}])
    for i in range(count):
        where = {"stage": "right", "key": f"check {i}"}
        found.add(
            where
            | {
                "kernel": f"kernel {i % 40}",
                "dtype": "bfloat16",
                "shape": "S" * 60,
                "size": i,
                "ok": i % 3 > 0,
                "error": 2e-3,
                "allowed": 1e-3,
            }
        )
        case = {"stage": "sweep", "key": f"case {i}", "kernel": "attention", "shape": "T" * 40}
        for block, ms in (([64, 64], 2.0), ([128, 64], 1.0)):
            found.add(
                case
                | {
                    "case": i,
                    "block": block,
                    "variant": "plain",
                    "ms": ms,
                    "ok": True,
                    "current": ms == 2.0,
                }
            )
        for name, ms in (("llava_min", 2.0), ("sdpa cudnn", 1.0)):
            found.add(
                {
                    "stage": "peers",
                    "key": f"shape {i}",
                    "section": "prefill 7B",
                    "shape": f"shape {i}",
                    "size": 8192,
                    "name": name,
                    "p50_ms": ms,
                    "ours": name == "llava_min",
                    "of_ceiling": 0.5,
                }
            )
        found.add(
            {
                "stage": "whole",
                "key": f"model {i}",
                "what": "decode",
                "model": "7B",
                "format": "int4",
                "size": 1024,
                "ms": 2.0,
                "tokens_per_s": 500.0,
                "planned_bytes": 2e9,
                "peak_bytes": 1e9,
                "peer_ms": 4.0,
            }
        )
        found.add(
            {
                "stage": "ceilings",
                "key": f"limit {i}",
                "what": f"limit {i}",
                "unit": "bytes",
                "per_second": 3e12,
            }
        )
        found.add(
            {
                "stage": "trace",
                "key": f"trace {i}",
                "trace": f"trace {i}",
                "share": 0.9,
                "us_together": 1000.0,
                "part": "qkv",
                "us": 900.0,
            }
        )
        found.add({"line": "missed", "stage": "right", "key": f"never {i}"})
    return found


@pytest.mark.parametrize("count", [1, 5, 1500])
def test_the_table_stays_short_and_has_every_part(count):
    text = table.text(made_up(count), list(run.STAGES))
    assert len(text.splitlines()) <= 120 and len(text) <= 11_000
    assert "right: kernel 0 bfloat16" in text
    for words in (
        "THE MACHINE",
        "3,000 GB/s",
        "kernel 0",
        "2.00x attention",
        "0.50x sdpa cudnn",
        "500 tokens/s",
        "peak 1.00 of 2.00 GB",
        "2.00x transformers",
        "not reached: right",
        "compile: not begun",
        "trace 0: 1,000: qkv",
    ):
        assert words in text, words


def test_marks():
    found = made_up(1)
    for index, value in ((0, "0.5 x"), (3, "500 tokens/s")):
        line = marks.MARKS[index].line(found)
        assert value in line and line.endswith("BELOW PAR")
    found.headers[0]["device"] = "NVIDIA H100"
    assert marks.MARKS[3].line(found).endswith("par 400, goal 520: par")
    assert marks.MARKS[5].line(found).endswith("not there")
    found.add({"stage": "whole", "what": "frames", "model": "7B", "size": 64, "seconds": 0.3})
    assert marks.MARKS[5].line(found).endswith(": goal")


def test_the_table_of_nothing_and_of_rubbish():
    assert "not begun" in table.text(places.Found(), list(run.STAGES))
    found = made_up(3)
    found.add({"stage": "peers", "key": "odd", "p50_ms": None, "ours": True})
    found.add({"stage": "right", "key": "odder", "ok": False, "error": None, "allowed": "much"})
    text = table.text(found, list(run.STAGES))
    assert "this part cannot be written: " in text and "right: odder: not ok" in text
    assert "500 tokens/s" in text and "2.00x attention" in text


def test_the_fastest_block_is_that_of_all_shapes():
    found, row = places.Found(), {"stage": "sweep", "kernel": "int4", "case": [16], "ok": True}
    for shape, other in (("short", 0.5), ("long", 1.0)):
        for block, ms in (([1], 1.0), ([2], other), ([3], 0.8)):
            times = {"ms": ms, "present_ms": 1.1, "current": block == [1]}
            found.add(row | {"shape": shape, "block": block} | times)
    found.add(row | {"shape": "short", "block": [4], "ms": 0.1, "present_ms": 1.0})
    found.add(row | {"block": [5], "ok": None, "problem": "error 2 of 1"})
    found.add({"stage": "sweep", "kernel": "attention", "case": "chunks", "shape": "7B", "ms": 5.0})
    lines = table.sweep(found)
    assert lines[0] == " 1.56x int4 [16]: [2] in place of [1]: short 2.20x, long 1.10x"
    assert lines[1] == "attention chunks: 7B: 5.0000 ms"
    assert lines[2] == "1 candidates were not right, or could not run"


def test_the_mark_of_the_bandwidth():
    found = made_up(1)
    for name, rate in (("copy", 3e12), ("read", 4e12), ("matmul", 8e14)):
        found.add(
            {"stage": "ceilings", "limit": name, "per_second": rate, "unit": "bytes", "what": name}
        )
    found.add(
        {
            "stage": "peers",
            "key": "long",
            "section": "decode 7B",
            "shape": "7B, 131072 seen",
            "size": 131072,
            "name": "llava_min",
            "ours": True,
            "p50_ms": 1.0,
            "of_ceiling": 0.99,
            "gb_per_s": 3400.0,
        }
    )
    assert "85 %" in marks.MARKS[1].line(found) and marks.MARKS[1].line(found).endswith(": par")


def test_the_log_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LOG_BYTES", 100)
    log = watch.Log(tmp_path / "log.txt", time.monotonic())
    for _ in range(50):
        log.feed(b"half a line, and the")
        log.feed(b" other half\n")
    assert 100 <= len((tmp_path / "log.txt").read_bytes()) < 200


def test_the_rehearsal(tmp_path):
    """The command itself at toy size, ended by a signal in each stage, and resumed to its end."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "bench", "lease", "--dry-run", "--out", str(out)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    first = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    lease = Rehearsal(tmp_path)
    lease.stages = run.STAGES
    for number, stage in enumerate(run.STAGES):
        process = first.pid if number == 0 else lease.begin(resume=True)
        lease.until(f'"line": "begun", "stage": "{stage}", "key": "', 120)
        os.kill(process, signal.SIGTERM)
        code = first.wait(30) if number == 0 else code_of(process)
        assert code == 128 + signal.SIGTERM, (out / "log.txt").read_text()[-3000:]
    last = subprocess.run([*command, "--resume"], cwd=ROOT, env=environment, capture_output=True)
    assert last.returncode == 0, lease.table
    assert last.stdout.decode().endswith(lease.table) and len(lease.table.splitlines()) <= 120
    files = list(out.iterdir())
    assert len(files) <= 8 and all(file.is_file() for file in files)
    assert {"rows.jsonl", "log.txt", "table.txt", "trace.html"} <= {file.name for file in files}
    assert {row["stage"] for row in lease.rows} >= run.STAGES.keys() - {"compile"}
    assert all(row["dry"] for row in lease.rows)
    lines = places.lines_of((out / places.ROWS).read_bytes())
    done = [line for line in lines if line.get("line") == "done"]
    assert len(done) == len(places.read(out).done)  # no task was run twice to its end


def test_the_trace_knows_every_kernel():
    from bench.lease import trace

    source = "".join(path.read_text() for path in sorted((ROOT / "kernels").glob("*.py")))
    names = re.findall(r"^def (\w+_kernel)\(", source, re.M)
    assert len(names) > 8
    assert [name for name in names if trace.family(name) == trace.REST] == []


def test_the_parts_of_a_trace():
    """Layers are known by the kernels around them, in a decoder and in the tower."""
    from bench.lease import trace

    rest = trace.REST
    block = [
        ("linear_kernel", "qkv"),
        ("write_kernel", "rope"),
        ("decode_kernel", "attention"),
        ("nvjet_tst", "output"),
        ("splitKreduce_kernel", "output"),
        ("rms_norm_kernel", "norms"),
        ("gemm", "gate_up"),
        ("swiglu_kernel", "activation"),
        ("linear_kernel", "down"),
        ("elementwise", rest),
        ("rms_norm_kernel", "norms"),
    ]
    first, last = [("gather", rest), ("rms_norm_kernel", "norms")], [("gemvx", "head")]
    tower = [
        ("copy", rest),
        ("gemm", "patches"),
        ("layer_norm_kernel", "norms"),
        ("gemm", "qkv"),
        ("attention_kernel", "attention"),
        ("gemm", "output"),
        ("elementwise", rest),
        ("layer_norm_kernel", "norms"),
        ("gemm", "gate_up"),
        ("gelu_kernel", "activation"),
        ("gemm", "down"),
        ("elementwise", rest),
    ]
    for kernels in ([*first, *block, *block, *last, ("copy", rest)], tower):
        names, parts = zip(*kernels)
        assert trace.parts(list(names)) == list(parts)


def test_the_page_says_where_the_time_goes():
    from xml.etree import ElementTree

    from bench.lease import page, trace

    found = [
        trace.Event("rms_norm_kernel", 10.0),
        trace.Event("gemm<float, 8>", 50.0),
        trace.Event("write_kernel", 5.0),
        trace.Event("decode_kernel", 25.0),
    ]
    rows = list(trace.rows_of("one step", found, 100.0, {"qkv": 40.0, "attention": 5.0}))
    assert sum(row["us"] for row in rows if "kernel" not in row) == 100.0
    text = page.html(rows, {"read": 3e12, "matmul": 8e14}, False)
    for words in (
        "It takes 100 microseconds. 4 kernels run for 90 of them; 10 are gaps",
        "The largest part is qkv: 50%",
        "Most is to be gained in attention: 25",
        "50.0 us, 50.0%, 1.25x its floor",
        "gemm&lt;float, 8&gt;",
    ):
        assert words in text
    tree = ElementTree.fromstring(text.removeprefix("<!doctype html>"))  # every tag is closed
    assert len(tree.findall(".//svg/rect")) == 5 and len(tree.findall(".//svg/line")) == 2
    assert "http" not in text and "<script" not in text


def test_write_needs_apply(capsys):
    from bench.__main__ import main

    assert main(["lease", "--write"]) == 2
    assert capsys.readouterr().err == "bench: --write needs --apply DIR\n"
