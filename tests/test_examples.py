"""examples/: each does what it says."""

import ast
import json
import re
import runpy
import subprocess
import sys

import pytest
import serving
from PIL import Image
from test_house import ROOT

import llava_min
from llava_min.command.main import main

SAMPLES = ROOT / "weights" / "tiny" / "samples"
SHORT = ("photo", "two_photos", "conversation", "batch", "client", "explain")
PLACE, NUMBER = "In the top left.", "42."


def run(*words: str, folder=ROOT) -> str:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def example(monkeypatch, capsys):
    """Run an example with these words, in this process; what it prints."""

    def printed(name: str, *words: object) -> str:
        path = str(ROOT / "examples" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, words)])
        monkeypatch.chdir(ROOT)
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return printed


@pytest.mark.parametrize("name", SHORT)
def test_a_short_example_is_short_and_says_how_it_is_started(name):
    text = (ROOT / "examples" / f"{name}.py").read_text()
    assert len(text.splitlines()) < 30
    assert f"python examples/{name}.py [" in ast.get_docstring(ast.parse(text))


def test_all_examples_are_here():
    """Besides the ones that have a test of their own in this file, there is one that trains."""
    found = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert found == {*SHORT, "finetune"}


def test_a_photo(example, tmp_path):
    """Its own picture from any folder; then a picture, a question and a model that are given."""
    shown = run(str(ROOT / "examples" / "photo.py"), folder=tmp_path)
    assert shown.startswith("A yellow star in the top left, the number 42")
    given = SAMPLES / "after.png", "What color is the circle?", "-m", SAMPLES.parent
    assert example("photo", *given) == "Green.\n"


def test_two_photos(example):
    assert example("two_photos") == (
        "The circle turned green.\n74 of 86 tokens are pictures\n"  # 2 x (6 x 6 patches, newline)
    )
    swapped = SAMPLES / "after.png", SAMPLES / "before.png"
    assert example("two_photos", *swapped).startswith("The circle turned blue.\n")


def test_a_conversation_computes_only_what_is_new(example):
    first, cold, second, warm = example("conversation").splitlines()
    assert first.startswith("Describe the video. A red circle moves to the right.")
    assert second == "What color is the circle at the end? Purple."
    numbers = [[int(number) for number in re.findall(r"\d+", line)] for line in (cold, warm)]
    (tokens, cached), (more, kept) = numbers
    assert cached == 0 and tokens - 1 <= kept < more
    asked = example("conversation", SAMPLES / "clip.mp4", "-q", "What number flashed up?")
    assert asked.startswith("What number flashed up? 7.\n")


def test_a_file_of_questions(example, tmp_path):
    """The script, and the command that it names, give the same answers."""
    printed = example("batch")
    assert printed.splitlines()[:2] == [f"place: {PLACE}", f"number: {NUMBER}"]
    answers = tmp_path / "answers.jsonl"
    words = (ROOT / "examples" / "batch.py").read_text()
    command = re.search(r"python (-m llava_min --batch .+)", words)[1]
    assert main(command.replace("answers.jsonl", str(answers)).split()[2:]) == 0
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert printed == "".join(f"{line['id']}: {line['text']}\n" for line in lines)
    assert len(lines) == 4


def test_a_client_of_the_server(example, tmp_path):
    pytest.importorskip("openai")
    photo = tmp_path / "photo.jpg"
    Image.open(SAMPLES / "shapes.png").convert("RGB").save(photo, quality=95)
    with serving.server() as address:
        assert example("client", "--server", address) == PLACE + "\n"
        asked = photo, "What number is written?", "--server", address
        assert example("client", *asked) == NUMBER + "\n"


def test_an_explanation(example, tmp_path):
    """The patch looked at most shows the star, from (28, 11) to (100, 78); the answer needs it."""
    page = tmp_path / "page.html"
    printed = example("explain", "--save", page)
    assert printed.startswith(PLACE) and "<html" in page.read_text()
    left, top, right, bottom = map(int, re.search(r"\[([\d ]+)\]", printed)[1].split())
    assert 28 < (left + right) / 2 < 100 and 11 < (top + bottom) / 2 < 78
    most, least = map(float, re.findall(r"at (?:most|least): (-?[\d.]+) nats", printed))
    assert most > 1 > abs(least)


def test_a_few_steps_of_teaching_give_a_checkpoint_that_answers(tmp_path):
    """A whole run takes minutes: examples/finetune.py says what came of one."""
    folder = tmp_path / "toy"
    printed = run("examples/finetune.py", str(folder), "--steps", "2", "--questions", "6")
    assert re.search(r"^step 2 of 2: loss [\d.]+$", printed, re.M), printed
    for about in ("crosses", "the rest"):
        assert re.search(rf"^{about}: [\d.]+% right before, [\d.]+% after$", printed, re.M), printed
    picture = ROOT / "weights" / "tiny" / "samples" / "shapes.png"
    before, after = (llava_min.load(one) for one in (None, folder))
    logits = [model.logits("Where is the star?", images=[picture]) for model in (before, after)]
    assert logits[0].shape == logits[1].shape and not logits[0].equal(logits[1])


@pytest.mark.slow
def test_the_toy_learns_a_cross(tmp_path):
    """Nearly all crosses are known after a whole run, and the five other shapes still are."""
    printed = run("examples/finetune.py", str(tmp_path / "toy"))
    shares = re.findall(r"([\d.]+)% right before, ([\d.]+)% after", printed)
    (unknown, learned), (known, kept) = [[float(share) for share in pair] for pair in shares]
    assert unknown < 60 and learned > 80 and kept > known - 10, printed
