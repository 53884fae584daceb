"""examples/exercises/: each fails with its hole, and with a slip in a solution, and else passes."""

import ast
import re
import runpy
import shutil
import subprocess
import sys

import pytest
from test_house import ROOT

FOLDER, SOLUTIONS = ROOT / "examples" / "exercises", ROOT / "tests" / "exercises"
PATHS = {path.stem: path for path in sorted(FOLDER.glob("[0-9]*.py"))}
PAGE = ROOT / "docs" / "exercises.md"
judge = runpy.run_path(str(FOLDER / "judge.py"))["judge"]
SLIPS = [
    # exercise, a part of its solution, what stands there by mistake, a word of what is said then
    ("01_newlines", ".all(-1)", ".any(-1)", "is at 1 and 3"),
    ("01_newlines", ".tolist()", ".tolist()[1:]", "is at 1 and 3"),
    ("02_top_p", "total >= top_p", "total > top_p", "keeps [1]"),
    ("02_top_p", "descending=True", "descending=False", "keeps [1]"),
    ("03_unpad", "> columns * height", "< columns * height", "rows and columns"),
    ("03_unpad", "height * columns // width", "-(-height * columns // width)", "rows and columns"),
    ("03_unpad", "(border, columns - border)", "(0, kept)", "rows and columns"),
    ("04_rope", "2 * pairs / width", "pairs / width", "position 1"),
    ("04_rope", "first * sine + second", "second - first * sine + 0 * second", "quarter"),
    ("04_rope", "vectors.chunk(2, dim=1)", "vectors[:, ::2], vectors[:, 1::2]", "the halves"),
    ("05_int4", "wide >> shift & 15", "wide >> shift", "unpacked"),
    ("05_int4", "second << 4 | third << 8", "second << 8 | third << 4", "not ["),
    ("05_int4", ".to(torch.int16)", "", "torch.int32"),
    ("06_line_start", "side * (side + 1)", "side * side + 1", "were planned"),
    ("06_line_start", "[starts, lines]", "[lines, starts]", "are not what they should be"),
    ("07_characters", ".rstrip(UNREADABLE)", "", "half a character"),
    ("07_characters", "UNREADABLE if", '"" if', "cut inside"),
    ("07_characters", "new, self.shown = whole[len(self.shown) :], whole", 'new = ""', "complete"),
    ("08_chunked_prefill", "        cache.advance(len(some))\n", "", "has counted"),
    ("08_chunked_prefill", "rows.split(chunk)", "[rows]", "at once"),
    ("08_chunked_prefill", "(hidden[:, -1:])[0, 0]", "(hidden)[0, -1]", "the head"),
    (
        "08_chunked_prefill",
        "cache.advance(len(some))",
        "cache.advance(chunk)",
        "AssertionError in test",
    ),
    ("08_chunked_prefill", "[:, -1:]", "[:, :1]", "off by"),
    ("09_planted_bug", "before = total - new", "before = (total - new) // 16 * 16", "mend it"),
    ("09_planted_bug", "in (1, 5, 11)", "in (16, 32)", "the property is true"),
    ("09_planted_bug", "return False", "continue", "the property is true"),
    ("09_planted_bug", "    return True\n", "    return False\n", "the property is false"),
    ("10_grouped_queries", "folded @ key", "folded @ key.clone()", "an operation made"),
    (
        "10_grouped_queries",
        "(torch.softmax(scores, dim=-1)",
        "(torch.softmax(scores, dim=1)",
        "off",
    ),
    ("11_online_softmax", "total = total * shrink", "total = total", "off by"),
    ("11_online_softmax", "torch.maximum(maximum, scores.amax())", "torch.tensor(0.0)", "NaN"),
    ("11_online_softmax", "in tiles", "in list(tiles)", "are kept"),
    ("12_two_queries", ".clamp(min=LOWEST)", "", "off by"),
    ("12_two_queries", "(maximums - maximums.amax(0))", "(maximums)", "with large scores"),
    ("12_two_queries", "keys > last", "keys >= last", "off by"),
    ("12_two_queries", "first + torch.arange", "torch.arange", "off by"),
    ("13_prompt_lookup", "len(ids) - 3, -1, -1", "len(ids) - 2", "the guess is"),
    ("13_prompt_lookup", "cache.rewind(len(guess) - right)", "pass", "the greedy answer"),
    ("13_prompt_lookup", "chosen[: right + 1]", "[*guess[:right], chosen[0]]", "the greedy answer"),
    ("13_prompt_lookup", "[: count - len(answer) - 1]", "[:0]", "where 58 would do"),
]


def judged(name: str, capsys, solution: str = "") -> tuple[int, str]:
    """(exit code, the line that is printed) for an exercise whose holes a solution fills."""
    filled = {"__name__": "exercise", "__file__": str(PATHS[name])}
    exec(compile(PATHS[name].read_text(), str(PATHS[name]), "exec"), filled)
    exec(compile(solution, f"{name}: its solution", "exec"), filled)
    code = 0
    try:
        judge(filled["test"])
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1, printed
    return code, printed.strip()


def solution_of(name: str) -> str:
    return (SOLUTIONS / f"{name}.py").read_text()


@pytest.mark.parametrize("name", PATHS)
def test_a_hole_is_named(name, capsys):
    code, line = judged(name, capsys)
    found = re.fullmatch(rf"The hole is empty: write (\w+) in {name}.py, line (\d+)\.", line)
    assert code == 1 and found, line
    lines = PATHS[name].read_text().splitlines()
    assert lines[int(found[2]) - 1].strip() == "raise NotImplementedError"


@pytest.mark.parametrize("name", PATHS)
def test_a_solution_is_right(name, capsys):
    assert judged(name, capsys, solution_of(name)) == (0, "right")


@pytest.mark.parametrize("name, part, slip, word", SLIPS)
def test_a_slip_is_noticed(name, part, slip, word, capsys):
    solution = solution_of(name)
    assert solution.count(part) == 1, solution.count(part)
    code, line = judged(name, capsys, solution.replace(part, slip))
    assert code == 1 and line.startswith("Wrong: ") and word in line, line


def test_every_exercise_has_a_solution_and_a_slip():
    assert len(PATHS) >= 12
    assert [path.stem for path in sorted(SOLUTIONS.glob("*.py"))] == list(PATHS)
    assert {slip[0] for slip in SLIPS} == set(PATHS)


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("name", PATHS)
def test_every_hole_is_filled_by_the_solution(name):
    """No hole is left that the check would not reach."""
    holes = {
        function.name
        for function in functions(ast.parse(PATHS[name].read_text()))
        if isinstance(function.body[-1], ast.Raise)
    }
    written = {function.name for function in functions(ast.parse(solution_of(name)))}
    assert holes and holes <= written


@pytest.mark.parametrize("name", PATHS)
def test_an_exercise_says_what_to_do(name):
    """How long it takes, files that exist, and how it is started."""
    words = ast.get_docstring(ast.parse(PATHS[name].read_text()))
    assert re.match(rf"Exercise {int(name[:2])}, .*(minutes|hours?|evening): .+\.", words)
    assert words.endswith(f"Check yourself: python examples/exercises/{name}.py")
    files = re.findall(r"(?:llava_min|kernels|docs)/[\w/.]+\.(?:py|png)", words.split("Read:")[1])
    assert files and all((ROOT / file).exists() for file in files), files


def started(*words: str) -> tuple[int, str]:
    run = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


def test_an_exercise_is_started_as_it_says():
    """The line that the page shows, and the exit code; pytest runs the same check."""
    shown = re.search(r"^The hole is empty.+$", PAGE.read_text(), re.M)[0]
    assert started("examples/exercises/03_unpad.py") == (1, shown + "\n")
    code, printed = started("-m", "pytest", "examples/exercises/03_unpad.py")
    assert code == 1 and "1 failed" in printed and "NotImplementedError" in printed


def test_what_a_reader_writes_is_judged(tmp_path):
    """In the file itself: a solution, and code that raises, which is told with its line."""
    shutil.copy(FOLDER / "judge.py", tmp_path)
    hole, path = "    raise NotImplementedError\n", tmp_path / "03_unpad.py"
    text, solution = PATHS["03_unpad"].read_text(), solution_of("03_unpad")
    body = solution[solution.index("    (width, height)") :]
    path.write_text(text.replace(hole, body))
    assert started(str(path)) == (0, "right\n")
    path.write_text(text.replace(hole, "    return size / patches\n"))
    code, line = started(str(path))
    assert code == 1 and line.startswith("Wrong: TypeError in unpadded, line 23: unsupported"), line


def test_the_page_lists_all_exercises():
    """With the title and the time that each has itself."""
    rows = re.findall(r"^\| \[`(\w+)`\]\((\S+)\) \| (.+?) \|", PAGE.read_text(), re.M)
    assert [name for name, _, _ in rows] == list(PATHS)
    for name, link, time in rows:
        assert (PAGE.parent / link).resolve() == PATHS[name]
        words = ast.get_docstring(ast.parse(PATHS[name].read_text()))
        assert words.startswith(f"Exercise {int(name[:2])}, {time}: "), (name, time)
