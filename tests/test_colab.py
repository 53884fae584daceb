"""The notebook for Colab: its cells run here in order, but for what must be downloaded."""

import contextlib
import io
import json
from pathlib import Path

import pytest
from test_real_sizes import CHECKPOINTS

import llava_min
from llava_min.planning import forecast

NOTEBOOK = Path(__file__).parents[1] / "examples" / "colab.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def text(cell: dict) -> str:
    """A cell's Python, without the lines that are Jupyter's own."""
    return "".join(line for line in cell["source"] if not line.startswith(("%", "!")))


def offline(cell: dict) -> bool:
    return "network" not in cell["metadata"].get("tags", ())


@pytest.fixture
def published(tmp_path, monkeypatch):
    """What the hub has of onevision-0.5b, without its weights: a plan needs no more."""
    values, *_ = CHECKPOINTS["llava-onevision-0.5b-ov-hf"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    asked = []
    monkeypatch.setattr(forecast.hub, "find", lambda name, **_: asked.append(name) or tmp_path)
    return asked


def test_cells_run_in_order(published):
    """The embedded checkpoint answers, and the plan of 0.5B fits into a T4; loading it is left."""
    names, shown = {}, []
    for cell in CELLS[:-1]:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(text(cell), NOTEBOOK.name, "exec"), names)
        shown.append(printed.getvalue())
    path, reason = llava_min.plan(device=names["device"]).kernels
    assert path in shown[1] and reason in shown[1]
    assert shown[2] == "In the top left.\n" and published == ["onevision-0.5b"]
    assert "15.00 GB at hand: it fits" in shown[3] and "> float16" in shown[3]


def test_the_last_cell_is_python_that_asks_the_model():
    """It needs 1.8 GB from the hub: here the toy answers in its place."""
    names = {"llava_min": llava_min, "device": "cpu", "question": "Where is the star?"}
    from llava_min.families.folder import EXAMPLE_PICTURE

    names["EXAMPLE_PICTURE"] = EXAMPLE_PICTURE
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(text(CELLS[-1]).replace('"onevision-0.5b"', "None"), names)
    assert printed.getvalue() == "In the top left."
    assert [offline(cell) for cell in CELLS] == [False, True, True, False, False]


def test_nothing_was_run_before():
    """No outputs are kept, which would go stale."""
    assert not any(cell["outputs"] or cell["execution_count"] for cell in CELLS)
