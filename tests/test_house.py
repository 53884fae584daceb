"""The rules of the house: imports one way, nothing heavy on import, budgets, names, the order of
reading.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import mutants
import pytest

ROOT = Path(__file__).parent.parent
WALK = [
    "image",
    "vision",
    "projector",
    "prompt",
    "tokenizer",
    "segments",
    "cache",
    "decoder",
    "model",
    "sampling",
]
SOURCES = [
    path
    for folder in ("llava_min", "kernels", "weights")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "tiny" not in path.parts
]
EVERYTHING = SOURCES + sorted((ROOT / "weights" / "tiny").glob("*.py"))


def test_nothing_imports_the_bare_names():
    """A PyPI package is called kernels; ours is llava_min.kernels, and the folders are no packages
    of their own.
    """
    for folder in ("kernels", "weights"):
        assert not (ROOT / folder / "__init__.py").exists()
    for path in [*EVERYTHING, *(ROOT / "tests").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not {a.name.split(".")[0] for a in node.names} & {"kernels", "weights"}, path
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert node.module.split(".")[0] not in ("kernels", "weights"), path


def test_importing_the_package_imports_nothing_heavy():
    heavy = "('torch', 'numpy', 'PIL', 'av', 'triton')"
    code = f"import sys, llava_min; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "[]\n"
    )


def test_on_a_cpu_neither_triton_nor_av_is_imported():
    """A picture on a CPU needs neither; their import would cost a second of every start."""
    code = (
        "import sys, llava_min; m = llava_min.load(device='cpu'); m.generate('Where is the "
        "star?', max_tokens=1)\n"
        "print([n for n in ('triton', 'av', 'transformers', 'huggingface_hub', 'torch._dynamo') "
        "if n in "
        "sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=without_interpreter()
    )
    assert run.stdout == "[]\n", run.stderr


def without_interpreter() -> dict:
    import os

    return {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}


def test_every_error_of_a_user_is_in_one_file():
    """docs/cli.md lists what errors.py has, whatever else was imported before."""
    files = {
        path.name for path in SOURCES if re.search(r"class \w+\(\w*LlavaMinError", path.read_text())
    }
    assert files == {"errors.py"}


def test_only_the_allowed_packages():
    """torch, triton, safetensors, tokenizers, numpy, pillow, av, and huggingface_hub, which comes
    with tokenizers.
    """
    allowed = {
        "torch",
        "triton",
        "safetensors",
        "tokenizers",
        "numpy",
        "PIL",
        "av",
        "huggingface_hub",
    }
    for path in EVERYTHING:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in names:
                package = name.split(".")[0]
                if package in EXTRAS.get(path.name, ()) or package in EXTRAS.get(
                    path.parent.name, ()
                ):
                    continue
                assert package in allowed or package in sys.stdlib_module_names, (
                    f"{path}: {package}"
                )


EXTRAS = {
    # a file or room -> packages that it uses where they are installed
    "compare.py": ("transformers",),
    "grammar.py": ("llguidance",),
    "serve": ("starlette", "uvicorn", "h11"),
    "evals": ("lmms_eval",),
}
FORBIDDEN = {"pickle", "marshal", "shelve", "subprocess", "ctypes"}
CAUGHT_WHOLE = {
    # files in which any exception becomes the outcome of one question, so that others go on
    "slots.py",
    "exchange.py",
    "app.py",
    "worker.py",
    "run.py",  # of a thread, for the thread that waits for it
    "threads.py",
    "explanations.py",
}


def test_nothing_dangerous_in_the_package():
    """No pickle, eval, exec, subprocess, C library; the network in one file; no handler that
    swallows everything.
    """
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used = {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN
                assert not used or path.name == "followers.py", path  # which starts this program
                names = {a.name for a in node.names} - {"urllib.parse"}
                if {name.split(".")[0] for name in names} & {"urllib", "socket", "http", "ssl"}:
                    assert path.name in ("web.py", "public.py")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__"), path
            if isinstance(node, ast.ExceptHandler):
                names = ast.unparse(node.type) if node.type else ""
                assert names and not re.search(r"\bBaseException\b", names), path
                if re.search(r"\bException\b", names) and path.name not in CAUGHT_WHOLE:
                    # the tokenizers library raises the bare class
                    assert "is not Exception" in ast.unparse(node), path


def chain() -> list[str]:
    """The files of the walk by their own "Read next", from config.py on."""
    order, name = [], "config"
    while name:
        order.append(name)
        header = ast.get_docstring(ast.parse((ROOT / "llava_min" / f"{name}.py").read_text()))
        found = re.search(r"Read next: (\w+)\.py", header)
        name = found[1] if found else None
    return order


def test_the_chain_of_read_next_is_the_walk():
    order = chain()
    assert [name for name in order if name in WALK] == WALK
    assert order[0] == "config" and order[-1] == "generate"


def test_every_file_to_read_before_or_after_is_there():
    """By its path from the file that names it, from llava_min/ or from the root."""
    for path in [*EVERYTHING, *sorted((ROOT / "bench").rglob("*.py"))]:
        header = ast.get_docstring(ast.parse(path.read_text())) or ""
        for said in re.findall(r"^Read .*?(?= Agrees with|$)", header, re.M):
            for name in re.findall(r"[\w./]+\.py", said):
                places = path.parent, ROOT / "llava_min", ROOT
                assert any((place / name).exists() for place in places), (path, name)


def test_the_package_states_the_reading_order():
    import llava_min

    stated = re.search(r"Reading order: (.+?)\.\n", llava_min.__doc__ + "\n", re.S)[1]
    assert re.split(r",\s+", stated) == chain()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_file_opens_with_a_sentence_and_functions_stay_short(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), path
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 90, f"{path.name}: {node.name} has {length} lines"
            assert len(node.args.args) + len(node.args.kwonlyargs) <= 24


def test_what_no_mutant_changes_is_still_there():
    """Each part that means nothing is in its file, once, and leaves out a place at least."""
    for file, parts in mutants.MEANINGLESS.items():
        assert file in mutants.TESTS
        for part, span in zip(parts, mutants.meaningless(file), strict=True):
            mutator = mutants.Mutator(-1, [span])
            mutator.visit(ast.parse((ROOT / file).read_text()))
            frozen = (ROOT / file).read_text().count("frozen=True")
            assert mutator.left_out > frozen, (file, part)
