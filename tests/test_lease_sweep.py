"""The stages compile and sweep, and --apply: rehearsed in the interpreter and on made-up rows."""

import functools
import json
import shutil
import time
from pathlib import Path

import pytest
import torch
import triton

from bench.lease import apply, candidates, compile, place, right_cases, right_rule, sweep, variants
from bench.lease.candidates import Candidate
from bench.lease.sweep_cases import CASES
from llava_min.kernels import attention, choose

ROOT = Path(__file__).parents[1]
DTYPES = (torch.float16, torch.float32)


def somewhere(out: Path, rows=(), seconds: float = 600.0) -> place.Place:
    return place.Place("cpu", DTYPES, True, out, list(rows), time.monotonic() + seconds)


# Variants and candidates ---------------------------------------------------------


@pytest.mark.parametrize("name", variants.VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_variant_is_the_formula(name, dtype):
    """Both directions, where it exists for them, at ragged lengths."""
    trials = [(right_cases.both_ways, dict(batch=2, patches=37, heads=(2, 2, 16)))]
    if name == "descriptors":
        trials.append((right_cases.causal, dict(starts=[9, 4], new=37, heads=(2, 1, 32))))
    else:
        trials.append((right_cases.both_ways, dict(batch=1, patches=15, heads=(2, 2, 40))))
    for make, sizes in trials:
        trial = make(right_cases.Draw("cpu", dtype, 3), **sizes)
        with choose.using("triton"), variants.using(name):
            found = right_rule.is_right(trial)
        assert found["ok"], found


def test_a_variant_is_the_product_but_for_its_lines():
    for name, exchanged in variants.VARIANTS.items():
        text = variants.text(name)
        for right, other in exchanged:
            text = text.replace(other, right)
        assert text == Path(attention.__file__).read_text(), name


def test_every_candidate_was_compiled():
    """pruned.jsonl holds a line for each, and nothing else."""
    lines = map(json.loads, candidates.PRUNED.read_text().splitlines())
    found = [
        (line["kernel"], tuple(line["case"]), line["shape"], tuple(line["block"]), line["variant"])
        for line in lines
    ]
    expected = [
        (case.module, case.row, case.shape, candidate.block, candidate.variant)
        for case in candidates.first_cases()
        for candidate in candidates.kernels_of(case)
    ]
    assert found == expected


def test_what_is_left_is_few_and_the_present_row_comes_first():
    rows = {(case.module, case.row): case for case in CASES}
    left = {row: candidates.kept(case) for row, case in rows.items()}
    assert sum(map(len, left.values())) <= 600
    for row, case in rows.items():
        assert left[row][0] == candidates.present(case)
        assert len(left[row]) == len(set(left[row])) >= 3, row


def test_a_promise_prefers_fewer_instructions_and_more_at_once():
    case = next(case for case in CASES if case.module == "decode_attention")
    code = dict(loop=400, warps=4)
    few, many = (candidates.clocks(case, (64, 4, 4, n), code, n) for n in (1, 3))
    assert many < few < candidates.clocks(case, (64, 4, 4, 1), dict(loop=900, warps=4), 1)


def test_reasons_to_drop():
    case = next(case for case in CASES if case.module == "attention")
    fine = dict(
        reg=128,
        shared=65536,
        warps=8,
        stack=0,
        local=0,
        loop=300,
        spills_in_loop=0,
        single_loads_in_loop=0,
        waits_in_loop=3,
        products_in_loop=8,
    )
    assert candidates.reason(case, fine) is None and candidates.fit(fine) == 2
    wrong = dict(
        stack=24, spills_in_loop=1, shared=300_000, single_loads_in_loop=8, waits_in_loop=16
    )
    for name, value in wrong.items():
        assert candidates.reason(case, fine | {name: value}), name
    assert candidates.reason(case, fine | dict(reg=255, warps=16))


# The sweep -----------------------------------------------------------------------


@functools.cache
def rehearsed() -> dict[str, list[dict]]:
    tasks = sweep.tasks(somewhere(Path()))
    return {key: list(measure()) for key, measure in tasks}


def test_the_sweep_rehearses_every_row():
    """In the interpreter: each row of a table, its present block and others, right and timed."""
    found = rehearsed()
    assert len(found) == len(sweep.WORTH) + 1
    for row in sweep.WORTH:
        rows = found[f"{row[0]} {row[1]}"]
        shapes = {case.shape for case in CASES if (case.module, case.row) == row}
        assert {line["shape"] for line in rows} == shapes
        assert all(line["ok"] and line["ms"] > 0 and line["present_ms"] > 0 for line in rows), rows
        assert sum(line["current"] for line in rows) == len(shapes)
        assert len({tuple(line["block"]) for line in rows}) >= 2
    assert len(found["chunks of a prompt"]) >= len(sweep.CHUNKS)


def test_every_row_of_the_tables_is_swept():
    from llava_min.kernels import decode_attention, int4

    tables = {"attention": attention, "decode_attention": decode_attention, "int4": int4}
    rows = {
        (name, row[1:])
        for name, module in tables.items()
        for row in module.BLOCKS
        if row[0] == candidates.PART
    }
    assert rows | {(name, (constant,)) for name, constant in candidates.CONSTANTS.items()} == set(
        sweep.WORTH
    )


def test_a_wrong_candidate_is_not_timed(monkeypatch, tmp_path):
    """One that reads past its keys: it says what is wrong, and the others go on."""
    lines = [("last = new - 1 + 0 * rows", "last = new - 3 + 0 * rows")]
    monkeypatch.setitem(variants.VARIANTS, "wrong", lines)
    case = next(case for case in CASES if case.row == (64, False))
    some = [candidates.present(case), Candidate((16, 16, 4, 1), "wrong")]
    monkeypatch.setattr(candidates, "kept", lambda _: some)
    monkeypatch.setattr(sweep, "toys", lambda some: some)
    rows = list(sweep.compared(somewhere(tmp_path), ("attention", (64, False)), 1.0))
    assert [row["ok"] for row in rows] == [None, True] and "error" in rows[0]["problem"]
    assert rows[0]["variant"] == "wrong" and not any("ms" in row for row in rows[:1])


def test_no_time_is_left(tmp_path):
    """Nothing is begun, and the row says how many were not reached."""
    rows = list(sweep.compared(somewhere(tmp_path, seconds=-1), ("int4", (16,)), 1.0))
    assert [row["what"] for row in rows] == ["not reached"] and rows[0]["count"] >= 1


def made_up(kernel: str, case: list, block: list, ms: float, **more) -> dict:
    """A row that nobody measured."""
    row = dict(stage="sweep", key="", kernel=kernel, case=case, shape="made up", block=block)
    return row | dict(variant="", ms=ms, present_ms=1.0, ok=True, made_up=True) | more


ROWS = [
    made_up("attention", [128, True], [128, 64, 8, 3], 1.0, current=True),
    made_up("attention", [128, True], [128, 128, 8, 2], 0.8),
    made_up("attention", [128, True], [64, 64, 4, 3], 0.5, ok=None),
    made_up("attention", [128, True], [64, 32, 4, 3], 0.4, variant="descriptors"),
    made_up("int4", [16], [128, 4, 4, 2], 1.0, current=True),
    made_up("int4", [16], [64, 4, 4, 2], 0.99),
    made_up("norm", ["TILE"], [8192], 0.9),
]


def test_the_best_is_right_and_gains_two_percent():
    assert sweep.best(ROWS) == {
        ("attention", (128, True)): Candidate((128, 128, 8, 2)),
        ("norm", ("TILE",)): Candidate((8192,)),
    }
    both = sweep.best(ROWS, variants=True)
    assert both["attention", (128, True)] == Candidate((64, 32, 4, 3), "descriptors")
    slower = [row | {"shape": "other", "ms": 4.0} for row in ROWS[1:2]]
    assert ("attention", (128, True)) not in sweep.best([*ROWS, *slower])


def test_later_stages_use_the_winners(monkeypatch):
    for case in CASES:
        module = candidates.MODULES[case.module]
        if case.module in candidates.CONSTANTS:
            monkeypatch.setattr(module, candidates.CONSTANTS[case.module], 1)
            for function in candidates.BOUND[case.module]:
                monkeypatch.setattr(function, "__defaults__", function.__defaults__)
        else:
            monkeypatch.setattr(module, "BLOCKS", dict(module.BLOCKS))
    before = dict(attention.BLOCKS)
    sweep.use([row | {"dry": True} for row in ROWS])
    assert attention.BLOCKS == before
    sweep.use(ROWS)
    assert attention.BLOCKS["227 KB", 128, True] == (128, 128, 8, 2)
    assert attention.BLOCKS["227 KB", 64, True] == before["227 KB", 64, True]
    norm = candidates.MODULES["norm"]
    assert norm.TILE == norm.rms_norm_triton.__defaults__[-1] == 8192


# Compiling -----------------------------------------------------------------------


def test_the_stage_compile_rehearses(tmp_path):
    """Two kernels, in a process that does not interpret them."""
    ((key, measure),) = compile.tasks(somewhere(tmp_path))
    rows = list(measure())
    assert key == "two kernels" and len(rows) == 2
    assert {row["kernel"] for row in rows} == {"attention_kernel"}
    assert all(row["registers"] > 32 and row["spills"] == 0 and row["seconds"] > 0 for row in rows)


def test_late_compiles_are_told(monkeypatch):
    """What comes from the cache on disk is not."""
    monkeypatch.setattr(triton.knobs.compilation, "listener", None)
    told = []
    compile.watch(told.append)
    times = triton.knobs.CompileTimes(1_000_000, [("ptx", 500_000)], 0)
    kernel = type("Source", (), {"name": "late_kernel"})
    for cache_hit in (True, False):
        triton.knobs.compilation.listener(
            src=kernel, metadata={}, metadata_group={}, times=times, cache_hit=cache_hit
        )
    assert told == [{"late": "late_kernel", "seconds": 1.5}]


# --apply -------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of what --apply may write: kernels, results, docs."""
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels")
    (tmp_path / "bench" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "gpu.md").write_text(f"# GPU\n{apply.BEGIN}\nold\n{apply.END}\nend\n")
    return tmp_path


def lease(folder: Path, **header) -> Path:
    """The folder of a lease that nobody ran."""
    peer = dict(
        stage="peers",
        key="",
        section="prefill 7B",
        shape="made up",
        size=8,
        name="sdpa",
        ours=False,
        p20_ms=1.0,
        p50_ms=1.0,
        p80_ms=1.0,
        bytes=1e6,
        flops=1e9,
        gb_per_s=1.0,
        tflop_per_s=1.0,
        of_ceiling=0.5,
        of_best_peer=1.0,
        device="made up",
    )
    ours = peer | dict(name="llava_min", ours=True, p50_ms=0.5, of_best_peer=2.0)
    limits = [
        dict(stage="ceilings", key="", limit=name, per_second=1e12, device="made up")
        for name in ("copy", "matmul")
    ]
    whole = dict(
        stage="whole",
        key="",
        what="decode",
        model="7B",
        format="int4",
        size=1024,
        ms=1.25,
        tokens_per_s=800.0,
        peer_ms=2.5,
    )
    journal = place.Journal(folder)
    facts = dict(device="NVIDIA H100 80GB HBM3", date="2000-01-01T00:00:00", commit="abc1234")
    journal.write(line="header", **facts | dict(torch="0", triton="0") | header)
    for number, row in enumerate([*ROWS, *limits, peer, ours, whole]):
        journal.write(**row | {"key": str(number)})
    return folder


def test_apply_prints_a_patch_and_changes_nothing(project, capsys):
    (project / "out").mkdir()
    before = {path: path.read_text() for path in project.glob("kernels/*.py")}
    assert apply.main(lease(project / "out"), root=project) == 0
    printed = capsys.readouterr().out
    assert (
        '+    ("227 KB", 128, True): (128, 128, 8, 2),  # 0.8 ms, was 1: H100, abc1234' in printed
    )
    assert "+TILE = 8192" in printed and "descriptors" in printed and "int4.py" not in printed
    assert (project / "out" / "blocks.patch").read_text() in printed
    assert all(path.read_text() == text for path, text in before.items())
    assert not any((project / "bench" / "results").iterdir())


def test_apply_writes_tables_results_plots_and_the_page(project):
    (project / "out").mkdir()
    for _ in range(2):  # the second time finds what the first wrote
        assert apply.main(lease(project / "out"), write=True, root=project) == 0
    kernel = (project / "kernels" / "attention.py").read_text()
    assert '("227 KB", 128, True): (128, 128, 8, 2),  # 0.8 ms' in kernel
    norm = (project / "kernels" / "norm.py").read_text()
    assert norm.count("TILE = 8192") == 1 and norm.count("ms, was") == 1
    assert max(map(len, (kernel + norm).splitlines())) <= 100
    names = {path.name for path in (project / "bench" / "results").iterdir()}
    assert "lease-NVIDIA-H100-80GB-HBM3.jsonl" in names
    assert any(name.endswith(".svg") for name in names)
    page = (project / "docs" / "gpu.md").read_text()
    assert page.startswith("# GPU\n") and page.endswith("end\n") and "old" not in page
    assert "| prefill 7B | made up | llava_min | 0.5000 | 50% | sdpa | 1.0000 | 2.00x |" in page
    assert "| decode | 7B | int4 | 1024 | 1.250 | 800 | 2.500 | 2.00x |" in page
    assert "(../bench/results/kernels-NVIDIA-H100-80GB-HBM3-prefill-7B.svg)" in page
    assert ("What was not right" in page) == any(row.get("ok") is False for row in ROWS)


def test_apply_refuses_what_is_no_result(project, capsys):
    """Neither an empty folder nor a dry run reaches the project."""
    (project / "out").mkdir()
    assert apply.main(project / "out", root=project) == 2
    assert apply.main(lease(project / "out", dry=True), write=True, root=project) == 2
    assert "dry run" in capsys.readouterr().err
    assert not any((project / "bench" / "results").iterdir())
    assert "old" in (project / "docs" / "gpu.md").read_text()
