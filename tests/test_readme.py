"""The README says nothing that is not so: its commands run, its tables are generated."""

import hashlib
import json
import re
import shlex
import subprocess
import sys

import pytest
import readme
from test_house import ROOT

README = (ROOT / "README.md").read_text()
CONSOLE = re.findall(r"```console\n(.*?)```", README, re.S)
VARYING = ("[1", "[3", "[t", "at best:")  # statistics, and seconds of this machine
NOT_RUN = (
    "make ",
    "pip ",
    "git ",
    "python -m bench",
    "python -m llava_min.weights.tiny",
    "python -m llava_min.weights quantize",
    "python -m pytest",
)


def commands() -> list[tuple[str, str]]:
    """(command, what stands below it) of every console block, lines that name times or sizes left
    out.
    """
    found = []
    for block in CONSOLE:
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, comparable(output)))
    return found


def comparable(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith(VARYING)]
    return "\n".join(re.sub(r"\s+[\d.]+ ms$", "", line) for line in lines)


@pytest.mark.parametrize("command, expected", commands(), ids=lambda text: text[:50])
def test_commands_print_what_the_readme_shows(command, expected):
    if command.startswith(NOT_RUN):
        assert command.split()[0] in ("make", "pip", "git", "python")
        return
    words = shlex.split(command)
    assert words[0] == "python", command
    merged = "2>&1" in words
    words = [word for word in words if word != "2>&1"]
    result = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
    )
    assert result.returncode == 0, result.stdout
    if expected:
        assert comparable(result.stdout) == expected


def test_python_examples_run():
    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        subprocess.run([sys.executable, "-c", block], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("part", [part for part in readme.PARTS if part != "trace"])
def test_generated_parts_are_up_to_date(part):
    """Reading order, line counts, and tables of committed results (python tests/readme.py)."""
    assert readme.replaced(README, part) == README


def test_every_marked_part_is_generated():
    marked = [part for part in re.findall(r"<!-- (\w+) -->", README) if part != "end"]
    assert sorted(marked) == sorted(readme.PARTS)


def test_the_exam_belongs_to_the_committed_checkpoint():
    """The result names the checkpoint that was examined, by its hash."""
    head = json.loads((ROOT / "bench" / "results" / "tiny_exam.jsonl").read_text().splitlines()[0])
    found = hashlib.sha256(
        (ROOT / "weights" / "tiny" / "model.safetensors").read_bytes()
    ).hexdigest()
    assert head["checkpoint"] == found


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
