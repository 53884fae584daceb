"""One thread, no interpreter surprises, the same examples in every run, and the marks: gpu, slow,
real. `pytest --hypothesis-profile default` draws other examples each time.

What another machine has, by variables that are read here alone: TEST_KERNELS=reference is any
device, TEST_WITHOUT=triton,av are packages that cannot be imported. Child processes see neither.
"""

import importlib.util
import logging
import os
import sys
import tempfile
import traceback

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    # no test depends on how fast a machine is
    "same",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("same")


# no test takes a decode step that somebody compiled on this machine (engine/compiled.py)
os.environ["LLAVA_MIN_CACHE"] = os.path.join(tempfile.gettempdir(), f"no-packages-{os.getpid()}")

for absent in filter(None, os.environ.get("TEST_WITHOUT", "").split(",")):
    sys.modules[absent] = None  # type: ignore[assignment]


def has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if importlib.util.find_spec("triton") and not has_cuda():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton


def scheduled() -> int | None:
    """How the system schedules this thread, where it says so."""
    return os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None


SCHEDULED = scheduled()


def pytest_runtest_teardown(item):
    """No test leaves a real-time thread, whose every child would let nothing else run."""
    assert scheduled() == SCHEDULED, f"{item.nodeid} has changed how this thread is scheduled"


def pytest_addoption(parser):
    words = "write tests/bad_input.md in place of comparing it with what the cases get"
    parser.addoption("--write-tables", action="store_true", help=words)


def pytest_configure(config):
    import torch

    torch.set_num_threads(1)
    if asked := os.environ.get("TEST_KERNELS"):
        import llava_min

        llava_min.use_kernels(asked)
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    config.addinivalue_line("markers", "slow: only with -m slow")
    config.addinivalue_line("markers", "real: needs the published weights")
    config.addinivalue_line("markers", "catalogue(row, name): a case of bad_input.md that holds")


def pytest_collection_modifyitems(config, items):
    expression = config.getoption("-m")
    for item in items:
        if "gpu" in item.keywords and not has_cuda():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "slow" in item.keywords and "slow" not in expression:
            item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))


MISSING = {
    # what not every machine has: how a test says that it needs it
    "triton": "neither a CUDA device nor TRITON_INTERPRET=1",
    "av": "pip install av",
    "resource": "needs the module resource",
}


def needed(told: str) -> str | None:
    """Which of these is not here, and is what a failure complains of."""
    for name, words in MISSING.items():
        texts = words, f"No module named '{name}'", f"import of {name} halted"
        if importlib.util.find_spec(name) is None and any(text in told for text in texts):
            return name
    return None


def skipped_without(outcome) -> None:
    """A test that fails for want of a package that is not here is skipped."""
    if outcome.excinfo is not None:
        name = needed("".join(traceback.format_exception(outcome.excinfo[1])))
        if name is not None:
            outcome.force_exception(pytest.skip.Exception(f"needs {name}"))


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    """A file that imports it is skipped whole."""
    report = (yield).get_result()
    name = needed(str(report.longrepr)) if report.failed else None
    if name is not None:
        report.outcome, report.longrepr = "skipped", (str(collector.path), 1, f"needs {name}")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_setup(item):
    skipped_without((yield))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    skipped_without((yield))


@pytest.fixture(autouse=True)
def loudness():
    """The command says what is logged, for its whole process; tests run it in theirs."""
    log = logging.getLogger("llava_min")
    before = log.level
    yield
    log.setLevel(before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Note cases of the catalogue of bad input that hold, for bad_input.py's table."""
    report = (yield).get_result()
    there = importlib.util.find_spec("resource")  # which Windows lacks, as it does fork
    for mark in item.iter_markers("catalogue") if there else ():
        import bad_input

        bad_input.REGISTERED.add(mark.args)
        if report.when == "call" and report.passed:
            bad_input.RESULTS[mark.args] = "holds"


def pytest_sessionfinish(session):
    if "bad_input" in sys.modules and not session.testsfailed:
        table = sys.modules["bad_input"].stale_table()
        if table and session.config.getoption("--write-tables"):
            sys.modules["bad_input"].TABLE.write_text(table)
        elif table:
            print("\ntests/bad_input.md says something else: run pytest --write-tables and look")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
