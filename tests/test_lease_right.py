"""Every check of the lease's stage `right` can fail: each meets kernels that are wrong.

The kernels' own tests know mistakes of one line; some of them go through the checks of the lease
here. The stages peers and whole go through their shapes at toy size.
"""

import importlib
import json
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from kernel_checks import mutated

from bench import measure, models
from bench.kernels import attention as attention_cases
from bench.kernels.case import L2, Bench, Case, measured
from bench.lease import peers, right, right_children, right_model, sanitise, whole
from bench.lease import right_cases as cases
from bench.lease import right_rule as rule
from bench.lease import right_shapes as shapes
from bench.lease import right_weights as weights
from bench.lease.place import Place
from bench.shapes import TOY
from llava_min.kernels import choose, language

DTYPES = (torch.float16, torch.float32)
FIRST = shapes.first()


@pytest.fixture
def place(tmp_path):
    return Place("cpu", DTYPES, True, tmp_path, [], time.monotonic() + 60, 3)


@pytest.fixture
def interpreted():
    with choose.using("triton"), torch.inference_mode():
        yield


def trial_of(place, make, number: int = 0) -> rule.Trial:
    """The number-th of the first cases that a function makes."""
    found = [case for case in FIRST if case[0] is make]
    return shapes.trial(place, found[number], torch.float32, 7)


# Kernels -----------------------------------------------------------------------

MISTAKES = [
    # module, its test file, the case, mistakes of that file that its shapes must show
    ("attention", "test_attention", cases.causal, "key mask dropped"),
    ("attention", "test_attention", cases.causal, "causal off by one"),
    ("attention", "test_attention", cases.both_ways, "scale forgotten"),
    ("decode_attention", "test_decode_attention", cases.decode, "causal off by one"),
    ("decode_attention", "test_decode_attention", cases.decode, "filled splits not written"),
    ("rope", "test_rope", cases.write, "rope sign"),
    ("rope", "test_rope", cases.write, "length of the first row for all"),
    ("norm", "test_norm", cases.add_rms_norm, "residual forgotten"),
    ("norm", "test_norm", cases.layer_norm, "padding centred"),
    ("activation", "test_activation", cases.swiglu, "gate and up exchanged"),
    ("int4", "test_int4", weights.four_bits, "nibbles swapped"),
    ("int4", "test_int4", weights.layer_of_four, "bias forgotten"),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a mistake may well divide by zero
@pytest.mark.parametrize(("name", "tests", "make", "mistake"), MISTAKES)
def test_a_mistake_of_one_line_is_found(
    name, tests, make, mistake, place, tmp_path, monkeypatch, interpreted
):
    module = importlib.import_module(f"llava_min.kernels.{name}")
    mutant = mutated(module, tmp_path, *importlib.import_module(tests).MUTANTS[mistake])
    monkeypatch.setattr(sys.modules[make.__module__], name, mutant)
    if make is weights.layer_of_four:
        monkeypatch.setattr(sys.modules[weights.Four.__module__], name, mutant)
    try:
        rows = [check(trial_of(place, make)) for check in (rule.is_right, steady)]
    except IndexError:  # a place outside of a tensor, which the interpreter refuses
        return
    assert not all(row["ok"] for row in rows), rows


def steady(trial: rule.Trial) -> dict:
    return rule.is_steady(trial, 2)


@pytest.mark.parametrize("number", range(len(FIRST)), ids=lambda n: f"{FIRST[n][0].__name__}-{n}")
def test_one_wrong_number_is_found(number, place, interpreted):
    """In every result of every kernel; and the right numbers are right."""
    trial = shapes.trial(place, FIRST[number], DTYPES[number % 2], 7)
    results = trial.call()
    trial.call = lambda: counted([one.clone() for one in results])
    assert rule.is_right(trial)["ok"]
    for wrong in results:
        kept = wrong.view(-1)[-1].clone()
        wrong.view(-1)[-1] += 0.5 * wrong.abs().max()
        row = rule.is_right(trial)
        assert not row["ok"] and row["error"] > row["allowed"] > 0
        wrong.view(-1)[-1] = kept


def counted(results: list[torch.Tensor]) -> list[torch.Tensor]:
    """Results, as if a kernel had made them."""
    language.launches["pretended"] += 1
    return results


def made_up(call) -> rule.Trial:
    """A trial of doubling a few numbers, by `call`."""
    numbers = torch.linspace(-1, 1, 12).reshape(3, 4)

    def formula(double: bool) -> list[torch.Tensor]:
        return [2 * (numbers.double() if double else numbers)]

    return rule.Trial(
        "double", torch.float32, "3 rows", 12, lambda: call(numbers), [numbers], formula
    )


def test_a_right_kernel_passes():
    trial = made_up(lambda x: counted([2 * x]))
    assert rule.is_right(trial)["ok"] and rule.shows_nan(trial)["ok"] and steady(trial)["ok"]


def test_what_is_left_unwritten_is_found():
    """New memory is NaN while a kernel runs, so that it cannot hold the right numbers by luck."""

    def forgets(x):
        result = torch.empty_like(x)
        result[:2] = 2 * x[:2]
        return counted([result])

    row = rule.is_right(made_up(forgets))
    assert not row["ok"] and row["error"] != row["error"]
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_wrong_shape_is_found():
    assert not rule.is_right(made_up(lambda x: counted([2 * x[:2]])))["ok"]


def test_a_hidden_nan_and_one_that_spreads_are_found():
    for wrong in (lambda x: 2 * x.nan_to_num(), lambda x: 2 * x + 0 * x.sum()):
        row = rule.shows_nan(made_up(lambda x, wrong=wrong: counted([wrong(x)])))
        assert not row["ok"] and row["error"] > 0


def test_bits_that_change_are_found():
    results = iter(torch.full((3, 4), value) for value in (0.0, 0.0, -0.0))
    row = rule.is_steady(made_up(lambda x: counted([next(results)])), 3)
    assert not row["ok"] and row["error"] == 1


def test_a_changed_input_is_found():
    row = rule.is_right(made_up(lambda x: counted([x.add_(1)])))
    assert row["problem"] == "an input was changed" and not row["ok"]


def test_torch_in_place_of_a_kernel_is_found():
    row = rule.is_right(made_up(lambda x: [2 * x]))
    assert row["problem"] == "no kernel was launched" and not row["ok"]


def test_a_write_elsewhere_in_the_cache_is_found(place, monkeypatch, interpreted):
    def careless(qkv, angles, layer):
        layer.values[-1, 0, -1, 0] = 7.0
        return right_write(qkv, angles, layer)

    right_write = cases.rope.write
    trial = trial_of(place, cases.write)
    monkeypatch.setattr(cases.rope, "write", careless)
    assert rule.is_right(trial)["problem"] == "the cache was changed elsewhere"


def test_small_launches_are_of_every_kernel(interpreted):
    """What compute-sanitizer watches."""
    before = language.launches.copy()
    assert len(sanitise.main("cpu")) == len(sanitise.SMALL)
    launched = set(language.launches - before)
    assert {
        "attention_kernel",
        "decode_kernel",
        "write_kernel",
        "linear_kernel",
        "dequantise_kernel",
        "rms_norm_kernel",
        "layer_norm_kernel",
        "swiglu_kernel",
        "gelu_kernel",
    } <= launched


def test_every_fixed_check_has_a_name_of_its_own(place):
    place.dry = False
    keys = [
        key
        for make in (right.kernel_tasks, right.border_tasks, right.vast_tasks)
        for key, _ in make(place)
    ]
    keys += [key for key, _ in right.model_tasks(place, None)]
    assert len(set(keys)) == len(keys) > 100


# Whole models ------------------------------------------------------------------


class WrongStep(right_model.Step):
    """A step whose logits are off by one bit in the last of its rows."""

    def __call__(self, ids):
        logits, likely = super().__call__(ids)
        logits[-1, 0] = torch.nextafter(logits[-1, 0], torch.tensor(9.0))
        return logits, likely


def test_a_wrong_step_is_found(monkeypatch, interpreted):
    text = replace(TOY, num_layers=1)
    network = models.network_of(models.decoder_of(text, False, "cpu", torch.float32))
    for step, ok in ((right_model.Step, True), (WrongStep, False)):
        monkeypatch.setattr(right_model, "Step", step)
        rows = list(right_model.recorded_steps(network, torch.float32, "plain", [1, 2], 1))
        assert [row["ok"] for row in rows] == [ok, ok]


def test_wrong_answers_are_found():
    texts = right_model.CpuAnswers(3, 1).get(600)
    for expected, ok in ((texts, True), ([*texts[:2], "A whale."], False)):
        (row,) = right_model.answers_equal("cpu", expected, torch.float32, 2)
        assert row["ok"] == ok and ("A whale." in row.get("example", "A whale."))
    (row,) = right_model.answers_equal("cpu", ["?"] * 3, torch.float32, 2, required=False)
    assert row["ok"] and row["error"] == 3


def test_rows_that_disturb_each_other_are_found(monkeypatch):
    def disturbed(network, cache, known):
        step = right_decoding(network, cache, known)
        return lambda ids: (step(ids)[0] + (len(ids) > 1), None)

    right_decoding = right_model.decoding
    rows = list(right_model.batches("cpu", torch.float32, False, 2))
    assert [row["ok"] for row in rows] == [True, True, True]
    monkeypatch.setattr(right_model, "decoding", disturbed)
    alone, together, tokens = right_model.batches("cpu", torch.float32, False, 2)
    assert alone["ok"] and not together["ok"] and tokens["ok"]


def test_another_token_is_found_where_the_margin_is_clear():
    exact = torch.tensor([[[0.0, 1.0, 3.0]]], dtype=torch.float64)
    other = exact.flip(-1)
    assert right_model.different_tokens(exact, other, exact, 0.4) == 1
    assert right_model.different_tokens(exact, other, exact, 0.6) == 0


# Processes of their own --------------------------------------------------------


def test_the_report_of_pytest_becomes_rows():
    marks = (
        '<testcase name="a"/>',
        '<testcase name="b"><failure message="1 != 2"/></testcase>',
        '<testcase name="c"><skipped message="no GPU"/></testcase>',
    )
    rows = list(right_children.tests_of(f"<suite>{''.join(marks)}</suite>".encode()))
    assert [(row["shape"], row.get("ok")) for row in rows] == [
        ("a", True),
        ("b", False),
        ("c", None),
    ]
    assert rows[1]["problem"] == "1 != 2" and rows[2]["skipped"] == "no GPU"


@pytest.mark.parametrize(
    ("code", "dry", "problem"),
    [(None, False, "no end in"), (4, False, "none ran"), (4, True, "none ran")],
)
def test_tests_that_do_not_run_are_found(code, dry, problem, tmp_path):
    tests = SimpleNamespace(
        run=SimpleNamespace(wait=lambda seconds: (code, "")), report=tmp_path / "missing.xml"
    )
    (row,) = right_children.MarkedTests.rows(tests, 5.0, dry)
    assert not row["ok"] and problem in row["problem"]


def test_the_verdict_of_compute_sanitizer():
    assert right_children.verdict(0, "") == {"ok": True}
    found = right_children.verdict(9, "fine\n========= Invalid __global__ read of size 4 bytes")
    assert not found["ok"] and "Invalid" in found["problem"]
    assert "ok" not in right_children.verdict(None, "") | right_children.verdict(1, "")


@pytest.mark.parametrize(("code", "found"), [(9, {"ok": False}), (0, {"ok": True})])
def test_compute_sanitizer_is_found_and_run(code, found, tmp_path, monkeypatch):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(f"#!/bin/sh\necho Invalid read by $4\nexit {code}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    (row,) = right_children.MemoryCheck(dry=False).rows(20)
    assert row["ok"] == found["ok"] and "memcheck" == row["kernel"]
    assert row["ok"] or row["problem"] == "Invalid read by 9"


def test_fixed_checks_run_early(place, monkeypatch):
    """In a process of its own that runs every n-th of them, for the sake of Triton's cache."""
    monkeypatch.setattr(right, "Place", lambda *_: place)
    before = language.launches.total()
    right.ahead(5, 20, 0)
    assert language.launches.total() > before


def test_a_process_is_waited_for_and_ended():
    one = right_children.Background([sys.executable, "-c", "print('here')"])
    assert one.wait(20) == (0, "here\n")
    other = right_children.Background([sys.executable, "-c", "import time; time.sleep(60)"])
    assert other.wait(0.1)[0] is None
    other.end()
    assert other.process.returncode


# Peers and whole models ----------------------------------------------------------


@pytest.mark.parametrize("size", [4.4e6, 6.8e6, 0.5e6, 68e6, 270e6])
def test_copies_do_not_fit_into_the_l2_cache(size):
    """Four times over: 0.5B gate_up, 7B output, decoding 0.5B after 1,024 tokens, 7B gate_up."""
    bench = Bench("cpu", torch.float32, False)
    assert 4 * L2 <= bench.copies(size) * size < 4 * L2 + 2 * size


def test_each_candidate_goes_through_all_copies(monkeypatch):
    """A sample is of whole rounds; a row says what one call took."""
    called = []
    row = measure.Row("", "", 1, "llava_min", True, 30, 30, 30, 300, 3, 1, 1, 1, 1)

    def rows_of(section, shape, size, candidates, costs, limits, rounds):
        assert costs == {"": (300, 3)}
        for number in range(2):
            candidates["llava_min"](number)
        return [row]

    monkeypatch.setattr(measure, "rows_of", rows_of)
    case = Case("", "", 1, {"llava_min": called.append}, {"": (100, 1)}, copies=3)
    (found,) = measured(case, {}, 1)
    assert called == [0, 1, 2, 3, 4, 5] and (found.p50_ms, found.bytes, found.flops) == (10, 100, 1)


def test_peers_compute_the_same():
    bench = Bench("cpu", torch.float32, True, compiled=False)
    for case in (
        attention_cases.chunk_case(bench, "7B", 1, 1),
        attention_cases.prefill_case(bench, "0.5B", 1),
    ):
        ours = case.candidates.pop("llava_min")(0).transpose(1, 2)
        case.candidates = {n: c for n, c in case.candidates.items() if n[-5:] in ("calls", "flash")}
        for call in case.candidates.values():
            torch.testing.assert_close(call(0), ours, atol=2e-6, rtol=0)


def run_all(tasks) -> list[dict]:
    rows, keys = [], []
    for key, task in tasks:
        keys.append(key)
        rows += [json.loads(json.dumps(row)) for row in task()]
    assert len(set(keys)) == len(keys)
    return rows


def test_peers_at_toy_size(place):
    rows = run_all(peers.tasks(place))
    sections = {row["section"] for row in rows}
    assert sections >= {"decode 7B", "prefill 7B", "int4 7B gate_up", "vision SigLIP", "chunk 7B"}
    assert all(row["p50_ms"] > 0 and row["of_ceiling"] > 0 for row in rows)
    assert {row["name"] for row in rows if row["section"] == "decode 7B"} >= {
        "llava_min",
        "llava_min int8",
        "llava_min fp8",
    }


def test_whole_models_at_toy_size(place):
    """All but the peer, whose import takes seconds: tests/test_lease.py goes through it."""
    place.rows += [
        {"stage": "ceilings", "limit": name, "per_second": 1e11}
        for name in ("copy", "read", "matmul")
    ]
    rows = run_all(task for task in whole.tasks(place) if "transformers" not in task[0])
    assert {row["what"] for row in rows} >= {
        "decode",
        "prefill",
        "frames",
        "tower",
        "decode, int8 cache",
    }
    assert all(row["ms"] > 0 for row in rows)
    assert all(0 < row["of_ceiling"] < 1 for row in rows if row["what"] in ("decode", "prefill"))
