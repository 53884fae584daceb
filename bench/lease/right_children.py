"""What runs in processes of its own: the tests marked gpu, compute-sanitizer, and early compiling.

in:  seconds that each may take      out: rows as those of right_rule.py
Read right_model.py first. Read next: right.py.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from . import sanitise

ROOT = Path(__file__).parents[2]
SANITIZERS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
REPORTED = 9  # compute-sanitizer's exit code where it found something


def environment(**more: str) -> dict[str, str]:
    """This process's variables, this repository's modules first, kernels compiled."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def row(check: str, shape: str, **found) -> dict:
    """A row of right_rule.py without a kernel or a dtype of its own."""
    return {"kernel": check, "dtype": "", "check": check, "shape": shape, "size": 0, **found}


class Background:
    """A command that runs while other checks do; what it prints goes into a file."""

    def __init__(self, command: list[str], **more: str):
        self.output = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(**more),
            text=True,
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )

    def wait(self, seconds: float) -> tuple[int | None, str]:
        """(its exit code, or None if it does not end in so many seconds; what it printed)."""
        try:
            code = self.process.wait(max(0.1, seconds))
        except subprocess.TimeoutExpired:
            code = None
        self.output.seek(0)
        return code, self.output.read()

    def end(self) -> None:
        """Kill it, unless it has ended."""
        self.process.kill()
        self.process.wait()


def ahead(count: int, seed: int) -> list[Background]:
    """Processes that run the checks of fixed shapes once, `count` of them.

    So Triton's cache on the disk has their kernels when they are needed: compiling takes most of
    the time of a first check.
    """
    command = [sys.executable, "-m", "bench.lease.right"]
    return [Background([*command, str(part), str(count), str(seed)]) for part in range(count)]


# Tests -------------------------------------------------------------------------


class MarkedTests:
    """The tests marked gpu, from the files that hold one: others may need what is not here."""

    def __init__(self):
        self.missing = [name for name in ("pytest", "hypothesis") if find_spec(name) is None]
        self.folder = tempfile.TemporaryDirectory()
        self.report = Path(self.folder.name) / "report.xml"
        files = sorted((ROOT / "tests").glob("test_*.py"))
        files = [str(path) for path in files if "@pytest.mark.gpu" in path.read_text()]
        pytest = [sys.executable, *"-m pytest -m gpu -q -p no:cacheprovider".split()]
        command = [*pytest, f"--junitxml={self.report}", *files]
        self.run = None if self.missing else Background(command)

    def rows(self, seconds: float, dry: bool) -> Iterator[dict]:
        """A row for each test. In a dry run they may all be skipped."""
        if self.run is None:
            yield row("tests marked gpu", "", skipped=f"{self.missing[0]} is not installed")
            return
        code, printed = self.run.wait(seconds)
        print(printed[-3000:])
        if code is None:
            yield row("tests marked gpu", "", ok=False, problem=f"no end in {seconds:.0f} s more")
            return
        found = list(tests_of(self.report.read_bytes())) if self.report.exists() else []
        yield from found
        if not found or not (dry or any("ok" in one for one in found)):
            yield row("tests marked gpu", "", ok=False, problem=f"none ran: exit code {code}")

    def end(self) -> None:
        if self.run:
            self.run.end()
        self.folder.cleanup()


def tests_of(report: bytes) -> Iterator[dict]:
    """The rows of a JUnit report.

    >>> report = b'<suite><testcase name="a"><failure message="1 != 2"/></testcase></suite>'
    >>> [(row["shape"], row["ok"], row["problem"]) for row in tests_of(report)]
    [('a', False, '1 != 2')]
    """
    for case in ElementTree.fromstring(report).iter("testcase"):
        wrong = [mark for mark in case if mark.tag in ("failure", "error")]
        skipped = [mark for mark in case if mark.tag == "skipped"]
        if wrong:
            found = {"ok": False, "problem": wrong[0].get("message", "")[:300]}
        else:
            found = {"skipped": skipped[0].get("message", "")} if skipped else {"ok": True}
        yield row("tests marked gpu", case.get("name"), **found)


# Memory ------------------------------------------------------------------------


class MemoryCheck:
    """One small launch of each kernel under compute-sanitizer; in a dry run without it."""

    def __init__(self, dry: bool):
        places = os.pathsep.join([os.environ.get("PATH", ""), *SANITIZERS])
        self.dry, self.tool, self.run = dry, shutil.which("compute-sanitizer", path=places), None
        if not dry and self.tool:
            check = [self.tool, "--tool", "memcheck", "--error-exitcode", str(REPORTED)]
            command = [*check, sys.executable, "-m", "bench.lease.sanitise"]
            self.run = Background(command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")

    def rows(self, seconds: float) -> Iterator[dict]:
        shape = f"{len(sanitise.SMALL)} kernels"
        if self.dry:
            sanitise.main("cpu")
            yield row("memcheck", shape, skipped="a dry run: launched unwatched")
        elif self.run is None:
            yield row("memcheck", shape, skipped="compute-sanitizer is not installed")
        else:
            code, printed = self.run.wait(seconds)
            print(printed[-3000:])
            yield row("memcheck", shape, **verdict(code, printed))

    def end(self) -> None:
        if self.run:
            self.run.end()


def verdict(code: int | None, printed: str) -> dict:
    """What compute-sanitizer's exit code means.

    >>> verdict(0, ""), verdict(None, "")
    ({'ok': True}, {'skipped': 'it did not end in time'})
    >>> verdict(9, "========= Invalid __global__ read of size 4 bytes")
    {'ok': False, 'problem': '========= Invalid __global__ read of size 4 bytes'}
    """
    if code == 0:
        return {"ok": True}
    if code == REPORTED:
        lines = [line for line in printed.splitlines() if "Invalid" in line or "ERROR" in line]
        return {"ok": False, "problem": "; ".join(lines[:3])[:300]}
    why = "it did not end in time" if code is None else f"it ended with {code}"
    return {"skipped": why}
