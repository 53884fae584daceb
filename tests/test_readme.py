"""The documents say nothing that is not so: commands are run, and tables are generated."""

import functools
import hashlib
import json
import re
import shlex
import subprocess
import sys

import pytest
import readme
import serving
from test_house import ROOT

DOCUMENTS = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
}
NOT_RUN = ("make ", "pip ", "python -m llava_min quantize", "llava-min serve")
VARYING = re.compile(
    r"[\d.]+(e-\d+)? (?=s\b)|\d+ (?=tokens/s|MiB)|\s+[\d.]+ ms$|(?<=^kernels: ).*$", re.M
)  # seconds, rates, memory, and what this machine has
GENERATED = [(name, part) for name, parts in readme.PARTS.items() for part in parts]


def commands(text: str) -> list[tuple[str, str]]:
    """(command, the output shown below it) of every console block."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", text, re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, output = part.partition("\n")
            found.append((command, output))
    return found


def comparable(output: str) -> str:
    """The output without seconds, tokens/s and MiB, which are a machine's, and empty lines."""
    lines = VARYING.sub("", output).splitlines()
    return "\n".join(line.rstrip() for line in lines if line.strip())


@functools.cache
def printed(command: str) -> str:
    """What a terminal would show: stdout and stderr, in order."""
    program, *words = [word for word in shlex.split(command) if word != "2>&1"]
    assert program == "python", command
    run = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


def wrong(text: str) -> list[str]:
    """The commands of a text that print something else than it shows."""
    return [
        command
        for command, shown in commands(text)
        if shown and comparable(printed(command)) != comparable(shown)
    ]


EVERY = [(name, *found) for name, text in DOCUMENTS.items() for found in commands(text)]


@pytest.mark.parametrize(
    "name, command, shown", EVERY, ids=[f"{name}: {command[:50]}" for name, command, _ in EVERY]
)
def test_commands_print_what_is_shown(name, command, shown):
    if command.startswith(NOT_RUN):
        assert not shown, "an output that no test compares"
    elif shown:
        assert comparable(printed(command)) == comparable(shown)
    else:
        printed(command)


def test_a_changed_figure_in_an_output_is_noticed():
    """Each digit of the first command's output, one after another, but those of seconds, tokens/s
    and MiB; and each of these leaves the README right.
    """
    command, shown = next(found for found in commands(DOCUMENTS["README.md"]) if found[1])
    varying = {i for match in VARYING.finditer(shown) for i in range(*match.span())}
    digits = {match.start() for match in re.finditer(r"\d", shown)}
    assert len(digits - varying) >= 10 and len(digits & varying) >= 7
    for i in digits:
        mutated = f"{shown[:i]}{(int(shown[i]) + 1) % 10}{shown[i + 1 :]}"
        noticed = wrong(f"```console\n$ {command}\n{mutated}```")
        assert noticed == ([] if i in varying else [command]), mutated


def test_a_word_or_a_line_too_much_or_too_little_is_noticed():
    command, shown = next(found for found in commands(DOCUMENTS["README.md"]) if found[1])
    lines = shown.splitlines()
    for mutated in (shown.replace("blue", "red"), "\n".join([*lines, "x"]), "\n".join(lines[1:])):
        assert wrong(f"```console\n$ {command}\n{mutated}\n```") == [command], mutated


def examples(name: str) -> list[str]:
    """The blocks of Python of a document."""
    return re.findall(r"```python\n(.*?)```", DOCUMENTS[name], re.S)


ELSEWHERE = {"docs/serving.md", "docs/from-transformers.md"}  # where examples need more to run


@pytest.mark.parametrize("name", DOCUMENTS.keys() - ELSEWHERE)
def test_python_examples_run(name):
    for block in examples(name):
        subprocess.run([sys.executable, "-c", block], cwd=ROOT, check=True, capture_output=True)


def test_the_client_of_the_docs_gets_an_answer():
    """Unchanged but for the port."""
    pytest.importorskip("openai")
    with serving.server() as address:
        (block,) = examples("docs/serving.md")
        block = block.replace("http://127.0.0.1:8000", address)
        run = subprocess.run(
            [sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True
        )
    assert run.stdout == "In the top left.\n", run.stderr


@pytest.mark.parametrize(
    "name, part",
    [(name, part) for name, part in GENERATED if part is not readme.trace],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_generated_parts_are_up_to_date(name, part):
    """Line counts, first sentences and committed results; a changed digit is noticed."""
    text = DOCUMENTS[name]
    assert readme.replaced(text, part) == text, "run python tests/readme.py"
    start, end = readme.marked(part.__name__).search(text).span()
    digits = [match.start() for match in re.finditer(r"\d", text[start:end])]
    for i in [start + digit for digit in digits[:1] + digits[-1:]]:
        mutated = f"{text[:i]}{(int(text[i]) + 1) % 10}{text[i + 1 :]}"
        assert readme.replaced(mutated, part) == text


def test_every_marked_part_is_generated():
    """docs/gpu.md has one part, which `python -m bench lease --apply` writes."""
    found = [
        (name, part)
        for name, text in DOCUMENTS.items()
        for part in re.findall(r"<!-- (\w+) -->", text)
        if part != "end"
    ]
    known = [(name, part.__name__) for name, part in GENERATED]
    assert sorted(found) == sorted([*known, ("docs/gpu.md", "gpu")])


def test_the_readme_shows_at_most_six_results():
    assert len(readme.summary().splitlines()) - 2 <= 6


def test_the_exam_belongs_to_the_committed_checkpoint():
    """The result names the checkpoint that was examined, by its hash."""
    head = json.loads((ROOT / "bench" / "results" / "tiny_exam.jsonl").read_text().splitlines()[0])
    found = hashlib.sha256(
        (ROOT / "weights" / "tiny" / "model.safetensors").read_bytes()
    ).hexdigest()
    assert head["checkpoint"] == found


def anchors(text: str) -> set[str]:
    """The names by which headings are linked.

    >>> anchors("# The toy's exam")
    {'the-toys-exam'}
    """
    heads = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^):]+)\)", DOCUMENTS[name]):
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text()), target


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_named_in_the_text_exist(name):
    folders = "llava_min|kernels|weights|tests|bench|docs"
    for path in re.findall(rf"`((?:{folders})/[\w./-]+)`", DOCUMENTS[name]):
        assert (ROOT / path).exists(), path
