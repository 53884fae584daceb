"""The types: mypy finds nothing, public signatures say what they take, and few lines are exempt."""

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "llava_min"
INSIDE = {"check", "command", "evals", "serve"}  # rooms that no program of a user calls
SOURCES = [*sorted(PACKAGE.rglob("*.py")), *sorted((ROOT / "weights").glob("*.py"))]
IGNORES = 0  # lines of the package that mypy is told to ignore
JSON = {
    # functions that take or give a JSON object, whose values may be Any
    "engine/batch.py": ["generate_batch", "ready_for", "answer_each", "rolled"],
    "engine/chat.py": ["next_events"],
    "planning/forecast.py": ["json", "split_json", "rows"],
}
needs_mypy = pytest.mark.skipif(not find_spec("mypy"), reason="needs mypy")


def mypy(*arguments: str) -> list[str]:
    """The errors that mypy finds with these arguments."""
    command = [sys.executable, "-m", "mypy", "--no-error-summary", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not run.stderr, run.stderr
    return [line for line in run.stdout.splitlines() if ": error: " in line]


@needs_mypy
def test_mypy_finds_nothing():
    assert mypy("-p", "llava_min") == []


USES = {
    # a line of somebody's program -> the error that it is, if any
    "llava_min.load('folder', device='cpu', context=None)": None,
    "llava_min.plan('folder', 'What?', images=['a.png', b'', Path('b.png')])": None,
    "llava_min.plan(question=[{'role': 'user', 'content': 'What?'}], frames=8)": None,
    "llava_min.load(device=3)": "arg-type",
    "llava_min.load(precision='auto')": "call-arg",
    "llava_min.plan(images=[3])": "list-item",
    "llava_min.load().nothing": "attr-defined",
}


@needs_mypy
def test_users_see_the_types():
    """What a program gives to load() and plan() is checked where it is written, and no more."""
    program = "\n".join(["import llava_min; from pathlib import Path", *USES])
    found = [re.match(r"<string>:(\d+): .+\[([\w-]+)\]$", line) for line in mypy("-c", program)]
    own = {int(match[1]): match[2] for match in found if match}
    assert own == {number: code for number, code in enumerate(USES.values(), start=2) if code}


def test_the_marker_of_a_typed_package_is_shipped():
    assert (PACKAGE / "py.typed").exists()
    assert "py.typed" in (ROOT / "setup.py").read_text()
    assert "llava_min/py.typed" in (ROOT / "MANIFEST.in").read_text()


def test_few_lines_are_exempt():
    """Every exemption names the rule that it breaks, and their number is stated above."""
    paths = [*SOURCES, *(ROOT / "kernels").glob("*.py"), *(ROOT / "weights/tiny").glob("*.py")]
    found = [
        line for path in paths for line in path.read_text().splitlines() if "type: ignore" in line
    ]
    assert all(re.search(r"# type: ignore\[[\w-]+\]", line) for line in found)
    assert len(found) == IGNORES


def names(node: ast.AST | None) -> set[str]:
    """The names in an annotation, those inside of quotes too."""
    if node is None:
        return set()
    found = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    found |= {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            found |= set(re.findall(r"\w+", inner.value))
    return found


def aliases_of_any(trees: list[ast.Module]) -> set[str]:
    """Any, and the names that modules give to types with Any in them."""
    known, before = {"Any"}, set()
    assignments = [node for tree in trees for node in tree.body if isinstance(node, ast.Assign)]
    while known != before:
        before = set(known)
        for node in assignments:
            if names(node.value) & known and not any(map(is_call, ast.walk(node.value))):
                known |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return known


def is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call)


def vague(tree: ast.Module, any_names: set[str]) -> list[str]:
    """The public functions and methods of a module with Any in their signatures."""
    owners = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
    found = []
    for owner in owners:
        if isinstance(owner, ast.ClassDef) and owner.name.startswith("_"):
            continue
        for node in owner.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            private = node.name.startswith("_") and node.name != "__init__"
            given = node.args
            arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs]
            arguments += [one for one in (given.vararg, given.kwarg) if one is not None]
            written = [node.returns, *(argument.annotation for argument in arguments)]
            if not private and any(names(annotation) & any_names for annotation in written):
                found.append(node.name)
    return found


def test_no_public_signature_says_any():
    trees = {path: ast.parse(path.read_text()) for path in SOURCES}
    any_names = aliases_of_any(list(trees.values()))
    found = {}
    for path, tree in trees.items():
        if path.parent.name not in INSIDE and (functions := vague(tree, any_names)):
            found[f"{path.parent.name}/{path.name}"] = functions
    assert found == JSON


@pytest.mark.parametrize(
    "text",
    [
        "def f(x: Any) -> int: ...",
        "def f(x: int) -> list[Any]: ...",
        "def f(*, x: 'dict[str, Any]') -> int: ...",
        "def f(**x: typing.Any) -> int: ...",
        "class C:\n    def f(self, x: Any) -> int: ...",
        "Values = dict[str, Any]\nMore = list[Values]\ndef f(x: More) -> int: ...",
    ],
)
def test_a_signature_with_any_is_seen(text):
    tree = ast.parse(text)
    assert vague(tree, aliases_of_any([tree])) == ["f"]
    tree = ast.parse(text.replace("Any", "object"))
    assert not vague(tree, aliases_of_any([tree]))
