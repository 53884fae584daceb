"""examples/: each does what it says."""

import re
import subprocess
import sys

import pytest
from test_house import ROOT

import llava_min


def run(*words: str) -> str:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


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
