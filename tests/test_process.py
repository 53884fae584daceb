"""Nothing that the package does holds for the whole process, so that models and threads cannot
disturb each other: no switch of torch, no call of the allocator, no state in a module.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [p for name in ("llava_min", "kernels", "weights") for p in (ROOT / name).rglob("*.py")]
PROGRAMS = (
    # they own their process
    "llava_min/command/",
    "weights/tiny/train.py",
    "llava_min/engine/follower.py",
    "llava_min/engine/several.py",  # it shares its threads with the followers that it starts
)
OBSERVERS = {
    "llava_min/trace.py": {"_observers"},
    "kernels/choose.py": {"_choice", "_pretended"},
    "kernels/language.py": {"launches"},  # a count that only tests read
    "llava_min/__init__.py": {"sys"},  # find_linked: a clone without links, while it is imported
}
MEMOS = {
    # what does not change while a process runs
    "kernels/choose.py": {"gpu_at", "decided"},
    "kernels/int8_cpu.py": {"exact"},
    "kernels/language.py": {"capability_of"},
    "llava_min/engine/compiled.py": {"code"},
}
PAUSES = {"llava_min/engine/recording.py": "gc."}  # and sets it back, which its tests hold
SWITCHES = (
    "torch.set_",
    "torch.use_deterministic",
    "torch.manual_seed",
    "torch.backends.mkldnn.flags",
    "torch.backends.cudnn.flags",
    "torch.backends.cuda.sdp_kernel",
    "torch.backends.cuda.enable_",
    "torch.nn.attention.sdpa_kernel",
    "random.seed",
    "numpy.random.seed",
    "os.putenv",
    "gc.",
)
CHANGES = {"add", "append", "clear", "discard", "extend", "insert", "pop", "popitem", "remove",
           "setdefault", "update", "__setitem__"}  # fmt: skip  # methods of mutable collections


def imported(tree: ast.Module) -> dict[str, str]:
    """{name in this module: what it stands for}, of everything that is imported anywhere in it."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name if alias.asname else alias.name.split(".")[0]
                found[alias.asname or whole] = whole
        elif isinstance(node, ast.ImportFrom):
            where = "." * node.level + (node.module or "")
            for alias in node.names:
                found[alias.asname or alias.name] = f"{where}.{alias.name}"
    return found


def root(node: ast.expr) -> str | None:
    """The name with which a chain of attributes, methods and indices begins: x of x.y()[0].z."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        if not isinstance(node, ast.Call):
            node = node.value
        elif isinstance(node.func, ast.Attribute):
            node = node.func.value
        elif isinstance(node.func, ast.Name) and node.func.id == "getattr":
            node = node.args[0]
        else:
            return None  # what a function returns
    return node.id if isinstance(node, ast.Name) else None


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """The full name of torch.backends or of F.linear; "" where it begins with no import."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    begins = names.get(node.id) if isinstance(node, ast.Name) else None
    return "" if begins is None else ".".join([begins, *reversed(parts)])


def changed(node: ast.AST) -> Iterator[ast.expr]:
    """The objects that a statement or call changes: x of x.y = 1, x[0] += 1, del x[0], x.add(1)."""
    targets = list(getattr(node, "targets", []))  # assignments and del
    if isinstance(node, ast.AugAssign | ast.AnnAssign):
        targets.append(node.target)
    for target in targets:
        parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        yield from (part.value for part in parts if isinstance(part, ast.Attribute | ast.Subscript))
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
            yield node.func.value
        if isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
            yield node.args[0]


def own_names(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> set[str]:
    """The arguments and variables of a function, which hide the module's names."""
    found = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
    stored = (n for n in ast.walk(function) if isinstance(n, ast.Name))
    return found | {node.id for node in stored if isinstance(node.ctx, ast.Store)}


def faults(source: str, place: str = "llava_min/planted.py") -> list[str]:
    """What a module does to the whole process, a line each; `place` is its path."""
    tree = ast.parse(source)
    names, found = imported(tree), []
    kept = {
        n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    }
    kept |= {n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    allowed, program = OBSERVERS.get(place, set()), place.startswith(PROGRAMS)

    def note(node: ast.AST, what: str) -> None:
        found.append(f"{place}:{node.lineno}: {what}")

    def visit(node: ast.AST, hidden: set[str], inside: bool) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            hidden, inside = hidden | own_names(node), True
            for decorator in getattr(node, "decorator_list", []):
                called = decorator.func if isinstance(decorator, ast.Call) else decorator
                memo = dotted(called, names) in ("functools.cache", "functools.lru_cache")
                if memo and node.name not in MEMOS.get(place, set()):
                    note(node, f"remembers results in {node.name}")
        if isinstance(node, ast.Global) and not set(node.names) <= allowed:
            note(node, f"global {', '.join(node.names)}")
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names]
            if any(str(module).split(".")[0] in ("ctypes", "cffi") for module in modules):
                note(node, "calls the C library")
        if isinstance(node, ast.Call) and not program:
            name = dotted(node.func, names)
            if name.startswith(SWITCHES) and not name.startswith(PAUSES.get(place, name + ".")):
                note(node, f"calls {name}")
        for target in changed(node):
            name = root(target)
            function = isinstance(node, ast.Call) and "." not in names.get(name, ".")  # np.append
            if name in hidden | allowed or program:
                continue
            if name in names and not (function and isinstance(target, ast.Name)):
                note(node, f"changes {ast.unparse(target)}, which is imported")
            elif inside and name in kept:
                note(node, f"changes {name}, which the module keeps")
        for child in ast.iter_child_nodes(node):
            visit(child, hidden, inside)

    visit(tree, set(), False)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_leaves_the_process_alone(path):
    assert faults(path.read_text(), path.relative_to(ROOT).as_posix()) == []


PLANTED = {
    "a switch of torch": "import torch\ntorch.backends.mkldnn.enabled = False",
    "by another name": "import torch.backends.mkldnn as m\ndef f():\n    m.enabled = False",
    "from torch": "from torch import backends\nbackends.cuda.matmul.allow_tf32 = True",
    "with setattr": "import torch\nsetattr(torch.backends.mkldnn, 'enabled', False)",
    "for a while": "import torch\nwith torch.backends.mkldnn.flags(enabled=False): pass",
    "threads": "import torch\ndef f():\n    torch.set_num_threads(1)",
    "dtype": "import torch\ntorch.set_default_dtype(torch.float64)",
    "from torch import": "from torch import set_default_dtype as d, float64\nd(float64)",
    "determinism": "import torch\ntorch.use_deterministic_algorithms(True)",
    "seed": "import torch\ntorch.manual_seed(0)",
    "environment": "import os\nos.environ['OMP_NUM_THREADS'] = '1'",
    "environment, updated": "import os\nos.environ.update(A='1')",
    "ctypes": "def f():\n    import ctypes",
    "from ctypes": "from ctypes import CDLL",
    "a counter": "count = 0\ndef f():\n    global count\n    count += 1",
    "a table": "seen = {}\ndef f(x):\n    seen[x] = 1",
    "a list": "seen = []\nclass A:\n    def f(self, x):\n        seen.append(x)",
    "in a comprehension": "seen = set()\ndef f(xs):\n    return [seen.add(x) for x in xs]",
    "in a lambda": "seen = []\nf = lambda x: seen.append(x)",
    "a pair": "a = {}\ndef f(x):\n    a[x], b = 1, 2",
    "an attribute": "class A: n = 0\ndef f():\n    A.n += 1",
    "another module's list": "from .segments import seen\ndef f():\n    seen.append(1)",
    "with getattr": "import torch\ngetattr(torch.backends, 'mkldnn').enabled = False",
    "another module's": "from . import segments as plans\ndef f():\n    plans.TILES = 2",
    "a memo": "from functools import cache\n@cache\ndef f(): pass",
    "a memo of a size": "import functools\n@functools.lru_cache(3)\ndef f(): pass",
}


@pytest.mark.parametrize("source", PLANTED.values(), ids=PLANTED)
def test_planted_faults_are_found(source):
    assert len(faults(source)) == 1


INNOCENT = {
    "reads": "import torch\nfast = torch.backends.mkldnn.is_available()",
    "a table that stays": "A = {}\nA['x'] = 1\ndef f(x):\n    return A[x]",
    "a variable": "seen = []\ndef f(x):\n    seen = []\n    seen.append(x)",
    "an argument": "seen = []\ndef f(seen, x):\n    seen[x] = 1",
    "an object": "class A:\n    def f(self, x):\n        self.x = x",
    "a function of a module": "import numpy as np\ndef f(x):\n    return np.append(x, 1)",
    "a result": "def g(): return []\ndef f():\n    g().append(1)",
    "a closure": "def f(xs):\n    seen = []\n    return [seen.append(x) for x in xs]",
}


@pytest.mark.parametrize("source", INNOCENT.values(), ids=INNOCENT)
def test_nothing_else_is_a_fault(source):
    assert faults(source) == []


def test_programs_and_observers_are_the_only_exceptions():
    """What an exempted file may do, no other file may, and each exemption is used."""
    threads = "import torch\ntorch.set_num_threads(1)"
    assert faults(threads, "llava_min/engine/load.py") and not faults(threads, PROGRAMS[0] + "a.py")
    for place in PAUSES:
        source = (ROOT / place).read_text()
        assert faults(source, "llava_min/elsewhere.py") and not faults(source, place)
    for place, kept in OBSERVERS.items():
        source = (ROOT / place).read_text()
        assert faults(source, "llava_min/elsewhere.py")
        assert all(name in source for name in kept | MEMOS.get(place, set()))
