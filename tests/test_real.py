"""The published weights themselves: the first logits, as transformers' conversion script has them.

    LLAVA_MIN_REAL=/folder python -m pytest -m real tests/test_real.py

/folder holds llava-onevision-qwen2-0.5b-ov-hf or -7b-ov-hf (or both), and radar.jpg: the picture of
1024 x 899 pixels that the script asks about. Skipped where the variable names nothing.
"""

import os
from pathlib import Path

import pytest
import torch

import llava_min

FOLDER = Path(os.environ.get("LLAVA_MIN_REAL", ""))
QUESTION = "What is shown in this image?"
PUBLISHED = {
    # the first three logits of the first three rows, in float16
    "llava-onevision-qwen2-0.5b-ov-hf": [
        [-12.0234, -14.3828, -12.75], [2.3594, 1.0, 3.9336], [3.6582, 4.7148, 9.1172]],
    "llava-onevision-qwen2-7b-ov-hf": [
        [1.8496, 3.4219, 1.3135], [3.0996, 3.0117, 3.1484], [4.2422, 4.7109, 9.9688]],
}  # fmt: skip


@pytest.mark.real
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.skipif("LLAVA_MIN_REAL" not in os.environ, reason="LLAVA_MIN_REAL names no folder")
def test_first_logits_are_the_published_ones(name):
    """27 tokens of text and 6,551 of the picture; within what float16 leaves over 24 layers."""
    if not (FOLDER / name).is_dir():
        pytest.skip(f"no {name} in {FOLDER}")
    model = llava_min.load(FOLDER / name)
    logits = model.logits(QUESTION, images=[FOLDER / "radar.jpg"], template="qwen")
    expected = torch.tensor(PUBLISHED[name])
    assert len(logits) == 6578 and torch.allclose(logits[:3, :3], expected, atol=0.1, rtol=0.02)
