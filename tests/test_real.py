"""The published weights themselves: their answers begin as the published answers do.

    LLAVA_MIN_REAL=/folder python -m pytest -m real tests/test_real.py

/folder holds some of the checkpoints named below, and radar.jpg: the picture of 1024 x 899 pixels
that transformers' conversion script asks about. Skipped where the variable names nothing. The
answers are those that the script states, of float16 on a GPU. Of the first logits that it states
too, none comes after the picture, so that they say nothing about the tower or the projector.
"""

import os
from pathlib import Path

import pytest

import llava_min

FOLDER = Path(os.environ.get("LLAVA_MIN_REAL", ""))
QUESTION = "What is shown in this image?"
PUBLISHED = {
    # how the greedy answer begins
    "llava-onevision-qwen2-0.5b-si-hf": (
        "The image is a radar chart that shows the performance of different algorithms or models"
    ),
    "llava-onevision-qwen2-0.5b-ov-hf": (
        "The image is a radar chart that compares the performance of different models in a"
    ),
    "llava-onevision-qwen2-7b-si-hf": (
        "This image is a radar chart that compares the performance of different models on various"
    ),
    "llava-onevision-qwen2-7b-ov-hf": (
        "The image shows a radar chart, also known as a spider chart or a star chart, which is"
    ),
    "llava-onevision-qwen2-7b-ov-chat-hf": (
        "The image shows a radar chart, also known as a spider chart or a star chart, which is"
    ),
}


@pytest.mark.real
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.skipif("LLAVA_MIN_REAL" not in os.environ, reason="LLAVA_MIN_REAL names no folder")
def test_answers_begin_as_the_published_ones(name):
    """27 tokens of text and 6,551 of the picture, then about fifteen words without a slip."""
    if not (FOLDER / name).is_dir():
        pytest.skip(f"no {name} in {FOLDER}")
    model = llava_min.load(FOLDER / name, dtype="float16")
    answer = model.generate(QUESTION, images=[FOLDER / "radar.jpg"], template="qwen", max_tokens=24)
    assert answer.usage["prompt_tokens"] == 6578
    assert answer.text.startswith(PUBLISHED[name])
