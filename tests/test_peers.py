"""What .ci/peers installs on machines that have this and that; the installers are stand-ins."""

import os
import shutil
import subprocess

import pytest
from test_house import ROOT

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None or os.name == "nt", reason="needs bash")
CHROMIUM = "apt-get install --yes --quiet=2 --no-install-recommends chromium"
COMPILER = "apt-get install --yes --quiet=2 --no-install-recommends g++"
NODE = "apt-get install --yes --quiet=2 --no-install-recommends nodejs npm"


def installed(folder, programs: dict[str, int], user: str = "0") -> tuple[list[str], str]:
    """(commands that install something, what is said) where these programs exist.

    programs: names and the exit status of each. user: the number that `id -u` prints.
    """
    log = folder / "log"
    log.write_text("")
    for name in ("dirname", "env"):
        (folder / name).symlink_to(shutil.which(name))
    for name, status in {"id": 0, **programs}.items():
        said = f"echo {user}" if name == "id" else f'echo {name} "$@" >> {log}'
        (folder / name).write_text(f"#!{BASH}\n{said}\nexit {status}\n")
        (folder / name).chmod(0o755)
    command = [BASH, str(ROOT / ".ci" / "peers")]
    run = subprocess.run(command, env={"PATH": str(folder)}, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout == ""
    return [line for line in log.read_text().splitlines() if " install " in line], run.stderr


def npm(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("npm install --prefix tests/node ")]


def test_only_what_is_missing(tmp_path):
    there = dict.fromkeys(("chromium", "g++", "node", "npm", "apt-get"), 0)
    found, said = installed(tmp_path, there)
    assert len(found) == len(npm(found)) == 1 and said == ""


def test_a_machine_with_nothing(tmp_path):
    found, said = installed(tmp_path, {"apt-get": 0})
    assert found == [CHROMIUM, COMPILER, NODE] and said == ""


def test_another_browser_is_as_good(tmp_path):
    found, _ = installed(tmp_path, {"apt-get": 0, "google-chrome": 0})
    assert found == [COMPILER, NODE]


@pytest.mark.parametrize(
    "programs, user, words",
    [
        ({}, "0", ["chromium", "no apt-get", "g++", "nodejs npm"]),
        ({"apt-get": 100}, "0", ["chromium", "apt-get cannot", "nodejs npm"]),
        ({"apt-get": 0}, "1000", ["chromium", "sudo without a password"]),
        ({"apt-get": 0, "sudo": 1}, "1000", ["chromium", "sudo without a password"]),
        (
            {"chromium": 0, "g++": 0, "node": 0, "npm": 1},
            "0",
            ["tests/node/node_modules", "npm cannot"],
        ),
    ],
    ids=str,
)
def test_what_cannot_be_installed_is_said(tmp_path, programs, user, words):
    found, said = installed(tmp_path, programs, user)
    assert not [line for line in found if line.startswith("apt-get")]
    assert all(word in said for word in words) and "are skipped" in said
