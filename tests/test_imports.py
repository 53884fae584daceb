"""Imports go one way: from the command down to the small things, as the folders say.

Every module is looked at, and imports inside functions count.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"errors", "options", "trace", "base"},
    {"kernels"},
    {"walk"},  # the files that lie directly in llava_min/
    {"families", "media"},
    {"weights"},
    {"request"},
    {"planning"},
    {"explain"},
    {"engine"},
    {"check", "evals"},
    {"serve"},
    {"command"},
]
PACKAGE = ROOT / "llava_min"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
} | {
    ".".join(("llava_min", *path.relative_to(ROOT).with_suffix("").parts)): path
    for folder in ("kernels", "weights")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
EXEMPT = {
    "llava_min",  # load() and plan() of the package itself
    "llava_min.__main__",
    "llava_min.weights.tiny",  # the toy's training and its exam use the engine
}
TYPES_ONLY = "if TYPE_CHECKING:"
GUARD = ("llava_min.generate", "llava_min.command.main")  # python -m llava_min.generate


def room(module: str) -> str:
    """The room of a module: a folder's name, or "walk" for a file directly in the package.

    >>> room("llava_min.media.film"), room("llava_min.vision"), room("llava_min.errors")
    ('media', 'walk', 'errors')
    """
    parts = module.split(".")[1:]
    known = {name for floor in FLOORS for name in floor}
    return parts[0] if parts and (parts[0] in known or len(parts) > 1) else "walk"


def imports(module: str, types: bool = True) -> set[str]:
    """The modules of the project that a module imports, inside functions too.

    types: whether those count that only a type checker reads.
    """
    path, found = MODULES[module], set()
    parent = module if path.name == "__init__.py" else module.rpartition(".")[0]
    tree = ast.parse(path.read_text())
    if not types:
        tree.body = [node for node in tree.body if not ast.unparse(node).startswith(TYPES_ONLY)]
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = parent.split(".")[: len(parent.split(".")) - node.level + 1]
        name = ".".join([*base, node.module] if node.module else base)
        for alias in node.names:  # a module, or something in one
            inner = f"{name}.{alias.name}"
            found |= {inner} if inner in MODULES else {name} & MODULES.keys()
    return found - {module}


def exempt(module: str) -> bool:
    return any(
        module == name or (name != "llava_min" and module.startswith(name + ".")) for name in EXEMPT
    )


def test_every_folder_is_on_a_floor():
    """A new room is given its place here before anything is in it."""
    known = {name for floor in FLOORS for name in floor}
    assert {room(module) for module in MODULES if not exempt(module)} <= known
    assert room("llava_min.cellar.door") not in known


@pytest.mark.parametrize("module", [module for module in MODULES if not exempt(module)])
def test_imports_go_one_way(module):
    """From the command down to the small things, never up; the toy is nobody's dependency."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for other in imports(module) - {"llava_min"}:  # __version__
        if (module, other) != GUARD:
            assert floor[room(other)] <= floor[room(module)], f"{module} imports {other}"
            assert not exempt(other), f"{module} imports {other}"


def test_no_circle():
    """Nothing imports what imports it, by whatever way."""
    edges = {module: imports(module, types=False) - {"llava_min"} for module in MODULES}
    edges["llava_min.generate"] -= {GUARD[1]}
    while edges:
        ready = {module for module, others in edges.items() if not others & edges.keys()}
        assert ready, sorted(edges)
        edges = {module: others for module, others in edges.items() if module not in ready}


def test_a_circle_and_a_step_up_are_seen(monkeypatch, tmp_path):
    """The two tests above can fail: an import inside a function of the lowest room is enough."""
    path = tmp_path / "progress.py"
    path.write_text("def show():\n    from ..command import main\n")
    monkeypatch.setitem(MODULES, "llava_min.base.progress", path)
    with pytest.raises(AssertionError, match=r"base.progress imports llava_min.command.main"):
        test_imports_go_one_way("llava_min.base.progress")
    with pytest.raises(AssertionError, match=r"llava_min.base.progress"):
        test_no_circle()
