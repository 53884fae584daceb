"""A clone without symbolic links, and a source archive run in place: the README's first command."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKED = ("kernels", "weights")
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", *LINKED)


def clone(folder: Path, text: bool) -> Path:
    """The package and its folders; text: with what Git writes where it can make no links."""
    shutil.copytree(ROOT / "llava_min", folder / "llava_min", ignore=IGNORED)
    for name in LINKED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        if text:
            (folder / "llava_min" / name).write_text(f"../{name}")
    for name in ("tests", "docs"):
        (folder / name).mkdir()
        (folder / name / "stray.py").write_text("")
    return folder


@pytest.fixture(scope="module", params=[True, False], ids=["git", "archive"])
def folder(tmp_path_factory, request):
    return clone(tmp_path_factory.mktemp("clone"), text=request.param)


def run(folder: Path, *words: str) -> subprocess.CompletedProcess:
    """Python in a folder, which comes first in its path."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_first_command_of_the_readme(folder):
    """The answer of the repository itself, from the clone's own checkpoint and picture."""
    assert "$ python -m llava_min\n" in (ROOT / "README.md").read_text()
    here, there = (run(place, "-m", "llava_min") for place in (ROOT, folder))
    assert there.returncode == 0, there.stderr
    assert there.stdout == here.stdout
    picture = Path("weights") / "tiny" / "samples" / "shapes.png"
    assert f"[Describe the picture. {picture}]" in there.stderr


def test_a_plan_and_the_modules_of_both_folders(folder):
    assert run(folder, "-m", "llava_min", "--plan").returncode == 0
    inspected = run(folder, "-m", "llava_min.weights", "inspect", str(folder / "weights" / "tiny"))
    assert inspected.returncode == 0, inspected.stderr


def test_nothing_else_of_the_repository_is_in_the_package(folder):
    """llava_min.tests, or a folder of that name with a user's own files, is no part of it."""
    code = (
        "import llava_min, importlib.util as util\n"
        "names = ['tests', 'docs', 'setup', 'weights.load', 'kernels.rope', 'weights.tiny.train']\n"
        "print([name for name in names if util.find_spec(f'llava_min.{name}')])\n"
        "from llava_min import kernels, weights\n"
        "print(llava_min.__file__, *llava_min.__path__, *kernels.__path__, *weights.__path__)\n"
    )
    first, second = run(folder, "-c", code).stdout.splitlines()
    assert first == "['weights.load', 'kernels.rope', 'weights.tiny.train']"
    places = ["llava_min/__init__.py", "llava_min", "kernels", "weights"]
    assert second.split() == [str(folder / place) for place in places]


@pytest.mark.skipif(not (ROOT / "llava_min/kernels").is_symlink(), reason="there is no link")
def test_a_link_is_gone_through_where_there_is_one():
    """In a clone with links, nothing is found in another way than Python's own."""
    code = "import sys, llava_min; print([n for n in sys.modules if n.startswith('llava_min.')])"
    found = run(ROOT, "-c", code).stdout
    assert "llava_min.errors" in found and "kernels" not in found and "weights" not in found
