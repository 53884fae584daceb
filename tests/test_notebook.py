"""The notebook: its cells run in order, and what is stored of them is what they print and draw."""

import base64
import copy
import io
import json
import re

import cells
import numpy as np
import pytest
from PIL import Image
from test_house import ROOT

STORED = json.loads(cells.NOTEBOOK.read_text(encoding="utf-8"))
CELLS = cells.codes(STORED)
TEXTS = ["".join(cell["source"]) for cell in STORED["cells"] if cell["cell_type"] == "markdown"]
LEVELS = 8  # of 255, by which two drawings may differ: fonts and float32 are a machine's own


@pytest.fixture(scope="module")
def fresh():
    """The outputs of each cell."""
    return list(cells.outputs(CELLS))


def texts(outputs: list[dict]) -> list[str]:
    return ["".join(one["text"]) for one in outputs if one["output_type"] == "stream"]


def pictures(outputs: list[dict]) -> list[np.ndarray]:
    encoded = [one["data"]["image/png"] for one in outputs if one["output_type"] != "stream"]
    return [np.array(Image.open(io.BytesIO(base64.b64decode(data)))) for data in encoded]


def different(stored: list[dict], found: list[dict]) -> bool:
    """Whether two runs of a cell show something else."""
    if [one["output_type"] for one in stored] != [one["output_type"] for one in found]:
        return True
    pairs = list(zip(pictures(stored), pictures(found)))
    return texts(stored) != texts(found) or any(
        one.shape != other.shape or np.abs(one.astype(int) - other).mean() > LEVELS
        for one, other in pairs
    )


def test_what_is_stored_is_what_the_cells_print_and_draw(fresh):
    stale = [
        n for n, (cell, new) in enumerate(zip(CELLS, fresh)) if different(cell["outputs"], new)
    ]
    assert not stale, f"cells {stale} of code: run python tests/cells.py and look"
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))


def test_every_stage_prints_and_draws_what_it_should(fresh):
    """Nine drawings and more; the answer; and the star's place is where the attention is."""
    assert all(fresh) and texts(fresh[-1]) == ["In the top left.\n"]
    assert sum(len(pictures(cell)) for cell in fresh) >= 9
    (looked,) = next(pictures(cell) for cell in fresh if "on the whole picture" in str(texts(cell)))
    rows, columns = np.nonzero(looked.min(2) > 150)  # the background where it is lit
    assert len(rows) and rows.max() < 85 and columns.max() < 110  # of 240 and 290


@pytest.mark.parametrize(
    "before, after, answer",
    [
        ("Where is the star?", "What color is the circle?", "Blue."),
        ("Where is the star?", "What number is written?", "42."),
        ("LAYER = 3", "LAYER = 0", "In the top left."),
        ("crop((20, 0, 310, 240))", "crop((20, 0, 310, 120))", "On the left."),
    ],
)
def test_what_it_proposes_to_change_can_be_changed(before, after, answer):
    assert after.replace("LAYER =", "`LAYER` to") in TEXTS[-1]
    changed = json.loads(json.dumps(CELLS).replace(before, after))
    assert changed != CELLS
    assert texts([*cells.outputs(changed)][-1]) == [answer + "\n"]


def test_a_changed_output_is_noticed(fresh):
    """A digit, a picture that is mirrored, and one that is missing."""
    for cell in fresh:
        for number, output in enumerate(cell):
            changed = copy.deepcopy(cell)
            if output["output_type"] == "stream":
                changed[number]["text"][0] += "0"
            else:
                mirrored = Image.fromarray(255 - pictures([output])[0])
                changed[number] = cells.shown(mirrored)
            assert different(changed, cell) and different(cell[:-1], cell)


def test_it_is_small_and_needs_nothing_else():
    """Below 200 KB; plain Python, without magics, network or packages of Jupyter's."""
    assert cells.NOTEBOOK.stat().st_size < 200_000
    for cell in CELLS:
        source = "".join(cell["source"])
        assert not re.search(r"^[%!]|IPython|matplotlib|https?:", source, re.M), source


def test_each_cell_has_words_before_it():
    kinds = [cell["cell_type"] for cell in STORED["cells"]]
    assert kinds[0] == "markdown"
    assert all(kinds[at - 1] == "markdown" for at, kind in enumerate(kinds) if kind == "code")


def test_it_names_files_of_the_walk_and_links_lead_somewhere():
    words = "\n".join(TEXTS)
    for name in re.findall(r"`(\w+\.py)`", words):
        assert (ROOT / "llava_min" / name).exists(), name
    assert len(set(re.findall(r"`(\w+\.py)`", words))) >= 12
    colab = json.loads((ROOT / "examples" / "colab.ipynb").read_text(encoding="utf-8"))
    linked = "".join("".join(cell["source"]) for cell in colab["cells"])
    assert "(pixels-to-words.ipynb)" in linked
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", words + linked):
        assert (ROOT / "examples" / target).exists(), target
