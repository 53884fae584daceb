"""Published weights hold what was published about them, and equal transformers stage by stage.

    LLAVA_MIN_REAL=/folder python -m pytest -m real tests/test_real.py

/folder holds checkpoints under their published names, and samples/ with the pictures and clips that
were asked about (docs/verified.md). Skipped where the variable names nothing. tests/test_verify.py
proves on the toy that a broken tower or projector shows.
"""

import os
from pathlib import Path

import pytest

from llava_min.check import verify
from llava_min.check.published import published

FOLDER = Path(os.environ.get("LLAVA_MIN_REAL", ""))
NAMES = sorted({name for one in published()[1] for name in one.checkpoints})


@pytest.mark.real
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.skipif("LLAVA_MIN_REAL" not in os.environ, reason="LLAVA_MIN_REAL names no folder")
def test_what_was_published_holds(name):
    folder = FOLDER / name.rpartition("/")[2]
    if not folder.is_dir():
        pytest.skip(f"no {folder.name} in {FOLDER}")
    row = verify.verify(str(folder), name, samples=FOLDER / "samples", dtype="float16")
    assert any(check["what"] == "answer" for check in row["checks"]), row["left_out"]
    assert verify.verdict(row) == 0
