"""Installation anywhere: what each platform resolves, paths and names of any kind, other consoles.

No network: markers of setup.py are evaluated for the platforms, whose wheels are noted here.
"""

import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import setuptools
import torch
from packaging.requirements import Requirement
from test_clone import clone

from llava_min.base import files
from llava_min.command.main import main
from llava_min.engine.answers import peak_bytes

ROOT = Path(__file__).parents[1]
SOURCES = [p for name in ("llava_min", "kernels", "weights") for p in (ROOT / name).rglob("*.py")]
SAMPLES = ROOT / "weights" / "tiny" / "samples"


# What pip resolves -------------------------------------------------------------

PLATFORMS = {
    # (platform_system, platform_machine): what of Triton is installed, with the extra "windows" too
    ("Linux", "x86_64"): {"triton"},
    ("Linux", "aarch64"): {"triton"},
    ("Darwin", "arm64"): set(),
    ("Windows", "AMD64"): {"triton-windows"},
    ("Linux", "ppc64le"): set(),
}
EVERYWHERE = {"torch", "safetensors", "tokenizers", "huggingface_hub", "numpy", "pillow", "av"}


@pytest.fixture(scope="module")
def setup():
    """The arguments of setup.py."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", found.update)
        runpy.run_path(str(ROOT / "setup.py"))
    return found


@pytest.mark.parametrize("platform", PLATFORMS, ids=" ".join)
@pytest.mark.parametrize("python", ["3.11", "3.14"])
def test_what_a_platform_resolves(setup, platform, python):
    """Each requirement once at most, Triton where it has wheels, and the rest everywhere."""
    system, machine = platform
    environment = {
        "platform_system": system,
        "platform_machine": machine,
        "sys_platform": {"Linux": "linux", "Darwin": "darwin", "Windows": "win32"}[system],
        "os_name": "nt" if system == "Windows" else "posix",
        "python_version": python,
        "python_full_version": f"{python}.0",
    }
    lines = [*setup["install_requires"], *setup["extras_require"]["windows"]]
    wanted = [Requirement(line) for line in lines]
    names = [one.name for one in wanted if one.marker is None or one.marker.evaluate(environment)]
    assert set(names) == EVERYWHERE | PLATFORMS[platform] and len(set(names)) == len(names)
    assert all(Requirement(line).specifier for line in lines)


def test_what_is_pinned_is_what_is_asked_for(setup):
    """constraints.txt lies inside the ranges of setup.py."""
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    ranges = {Requirement(line).name: Requirement(line) for line in setup["install_requires"]}
    for pin in map(Requirement, pins):
        version = str(pin.specifier).removeprefix("==")
        assert pin.name not in ranges or ranges[pin.name].specifier.contains(version), pin


# Names -------------------------------------------------------------------------


def test_names_that_every_file_system_can_hold():
    """No two differ in case alone; none is a device of Windows or has a letter that it refuses."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a clone")
    names = listed.stdout.splitlines()
    assert len({name.casefold() for name in names}) == len(names) > 100
    devices = {"con", "prn", "aux", "nul", *(f"{x}{n}" for x in ("com", "lpt") for n in range(10))}
    for name in names:
        parts = name.split("/")
        assert not set(name) & set('<>:"|?*\\') and name.isascii() and len(name) < 150, name
        assert not any(part.split(".")[0].casefold() in devices for part in parts), name
        assert not any(part.endswith((".", " ")) for part in parts), name


def unnamed(tree: ast.Module) -> list[int]:
    """Lines that open text without saying how it is encoded: Windows would take its code page."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        words = {word.arg for word in node.keywords}
        values = [one.value for one in node.args if isinstance(one, ast.Constant)]
        binary = any(isinstance(one, str) and "b" in one for one in values[-1:])
        plain = isinstance(node.func, ast.Name) and name == "open" and not binary
        named = "encoding" in words or name == "read_text" and node.args
        if (plain or name in ("read_text", "write_text")) and not named:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_says_its_encoding(path):
    assert unnamed(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_what_does_not_say_it_is_seen():
    seen = "open('a')", "open(p, 'w')", "p.read_text()", "p.write_text('b')"
    assert all(unnamed(ast.parse(line)) for line in seen)
    unseen = "open(p, 'rb')", "p.open()", "p.read_text(encoding='utf-8')", "os.open(p, 1)"
    assert not any(unnamed(ast.parse(line)) for line in unseen)


# Places and consoles -----------------------------------------------------------

ABSENT = ("resource", "fcntl", "termios", "readline", "pwd", "grp", "triton", "av")
WINDOWS = textwrap.dedent("""
    import asyncio, io, json, multiprocessing, os, subprocess, sys, torch  # by their own rules
    for name in {absent!r}:
        sys.modules[name] = None
    for name in ("fork", "getuid", "geteuid", "sysconf", "mkfifo", "setsid", "posix_fadvise"):
        delattr(os, name)
    def opened(path, flags, *rest, real=os.open, **named):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        return real(path, flags, *rest, **named)
    def waited(handle, real=os.fsync):
        import _posixsubprocess
        assert open(f"/proc/self/fdinfo/{{handle}}").read().split("flags:")[1].split()[0][-1] != "0"
        real(handle)
    os.open, os.fsync, sys.platform = opened, waited, "win32"
    from llava_min.command.main import main
    for words in json.loads(sys.argv[1]):
        code = main(words)
        for stream in (sys.stdout, sys.stderr):
            print(f"<{{code}}>", file=stream, flush=True)
""")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A clone with copies in place of links, where a path has a space and letters of any kind."""
    return clone(tmp_path_factory.mktemp("Program Files") / "Zoë's Bücher 图", text=True)


def on_windows(place: Path, *commands: tuple[str, ...]) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of commands as on a Windows with Python alone, as far as that can
    be had elsewhere: one process after another would import torch each time.
    """
    code, environment = WINDOWS.format(absent=ABSENT), {"PATH": "", "PYTHONPATH": str(place)}
    environment |= {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", code, json.dumps(commands)]
    run = subprocess.run(command, cwd=place, env=environment, capture_output=True)
    shown, told = (re.split(r"<(\d+)>\n", x.decode("cp1252")) for x in (run.stdout, run.stderr))
    assert len(shown) == len(told) == 2 * len(commands) + 1, run.stderr.decode("cp1252")
    return list(zip(map(int, shown[1::2]), shown[0::2], told[0::2]))


@pytest.mark.skipif(sys.platform != "linux", reason="Windows is played on Linux")
def test_commands_on_a_windows_like_machine(place):
    """A picture whose path has letters that the console lacks; JSON and a prompt cache; a plan; a
    clip without av; and quantising: Windows opens no folder, and waits for no file that is open for
    reading alone.
    """
    picture, kept = place / "Ein Stern ★.png", place / "kept für später.cache"
    picture.write_bytes((SAMPLES / "shapes.png").read_bytes())
    asked, target = ("Where is the star?", "--image", str(picture)), place / "in four bits ★"
    found = on_windows(
        place,
        (*asked, "--kernels", "reference"),
        (*asked, "--json", "--prompt-cache", str(kept)),
        (*asked, "--json", "--prompt-cache", str(kept)),
        ("--plan", "--image", str(picture)),
        ("What moves?", "--video", str(SAMPLES / "clip.mp4")),
        ("quantize", str(place / "weights" / "tiny"), str(target)),
    )
    assert [code for code, _, _ in found] == [0, 0, 0, 0, 4, 0], found
    texts = [text for _, text, _ in found]
    assert texts[0] == "In the top left.\n" and "\\u2605.png" in texts[3]
    assert kept.stat().st_size and "pip install av" in found[4][2]
    assert (target / "config.json").exists()


def test_without_a_resource_module(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(sys, "platform", "win32")
    assert peak_bytes(torch.device("cpu")) == 0


def test_a_file_url_of_windows(monkeypatch):
    assert files.path_of("file:///C:/my%20pictures/a.png") == "/C:/my pictures/a.png"
    monkeypatch.setattr(sys, "platform", "win32")
    assert files.path_of("file:///C:/my%20pictures/a.png") == "C:/my pictures/a.png"


def test_a_model_folder_with_any_letters(tmp_path, capsys):
    """A folder with a space and umlauts, quantised while it is loaded."""
    folder = shutil.copytree(SAMPLES.parent, tmp_path / "Modelle für Bücher")
    picture = str(SAMPLES / "shapes.png")
    words = "-m", str(folder), "--int4", "-q", "Where is the star?", "--image", picture
    assert main(list(words)) == 0
    assert capsys.readouterr().out == "In the top left.\n"
