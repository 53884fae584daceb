"""A wheel and a source archive, built, installed into a clean environment and run from elsewhere.

The environment has this one's packages, but nothing of this clone.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from test_clone import ROOT

import llava_min

KINDS = ("wheel", "sdist")
NOT_SOURCE = (".*", "__pycache__", "*.egg-info", "node_modules", "build", "dist")


def run(*words: str | Path, where: Path) -> str:
    """What a command prints, run in a folder."""
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [*map(str, words)]
    found = subprocess.run(command, cwd=where, env=alone, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The files of this clone, without what was built here."""
    folder = tmp_path_factory.mktemp("source") / "clone"
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    return folder


@pytest.fixture(scope="module")
def archives(source, tmp_path_factory):
    """The kind of package -> its file. Nothing is fetched."""
    if sys.platform == "win32":
        pytest.skip("runs the scripts of POSIX environments")
    out = tmp_path_factory.mktemp("dist")
    setup = (sys.executable, "setup.py", "--quiet")
    run(*setup, "sdist", "--dist-dir", out, where=source)
    run(*setup, "bdist_wheel", "--dist-dir", out, where=source)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="module", params=KINDS)
def environment(request, archives, tmp_path_factory):
    """The folder of an environment in which the package is installed."""
    folder = tmp_path_factory.mktemp(request.param) / "environment"
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(str(Path(torch.__file__).parents[1]))
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--quiet")
    offline = ("--no-deps", "--no-index", "--no-build-isolation", archives[request.param])
    run(*pip, *offline, where=folder)
    return folder


def test_it_is_installed_whole(environment, tmp_path):
    """From the environment, not from this clone, and of this version."""
    code = "import llava_min; print(llava_min.__version__, llava_min.__file__)"
    version, where = run(environment / "bin" / "python", "-c", code, where=tmp_path).split()
    assert version == llava_min.__version__ and Path(where).is_relative_to(environment)


@pytest.mark.parametrize("command", [["llava-min"], ["python", "-m", "llava_min.generate"]])
def test_it_answers(environment, tmp_path, command):
    """From a folder that has nothing, about a picture that came with it."""
    program, *words = command
    answer = run(environment / "bin" / program, *words, "-q", where=tmp_path)
    assert answer.startswith("A yellow star in the top left, the number 42 in the top right")


def test_every_file_of_the_package_is_in_the_wheel(archives, source):
    """What lies in llava_min/, its two linked folders included, but what Python itself writes."""
    with zipfile.ZipFile(archives["wheel"]) as wheel:
        held = {name for name in wheel.namelist() if not name.startswith(("llava_min-", "bench"))}
    there = {
        str(path.relative_to(source))
        for name in ("llava_min", "kernels", "weights")
        for path in (source / name).rglob("*")
        if path.is_file()
    }
    linked = {name if name.startswith("llava_min") else f"llava_min/{name}" for name in there}
    assert held == linked


def test_the_tests_run_from_the_source_archive(archives, tmp_path):
    """They need what lies next to them, such as conftest.py and the stored outputs."""
    with tarfile.open(archives["sdist"]) as archive:
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    tests = ["tests/test_anyres.py", "tests/test_agrees_golden.py", "tests/test_contributing.py"]
    run(sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests, where=folder)
    listed = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    missing = [
        name
        for path in (ROOT / "tests").rglob("*.py")
        if (name := str(path.relative_to(ROOT))) not in listed
    ]
    assert not missing
    shutil.rmtree(folder)
