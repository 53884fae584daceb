"""Run the notebook without Jupyter, and write its outputs again: python tests/cells.py.

Its cells run in order in one namespace, in which `display` keeps pictures. The outputs are stored
as Jupyter stores them, so that a page of the repository shows them.
"""

import base64
import contextlib
import io
import json
from collections.abc import Iterator
from typing import Any

from PIL import Image
from test_house import ROOT

NOTEBOOK = ROOT / "examples" / "pixels-to-words.ipynb"

Output = dict[str, Any]


def shown(picture: Image.Image) -> Output:
    """A picture as Jupyter stores it."""
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    encoded = base64.b64encode(data.getvalue()).decode()
    return {"data": {"image/png": encoded}, "metadata": {}, "output_type": "display_data"}


def printed(text: str) -> list[Output]:
    """Text as Jupyter stores it; nothing where there is none."""
    lines = text.splitlines(keepends=True)
    return [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []


def outputs(cells: list[dict[str, Any]]) -> Iterator[list[Output]]:
    """What each cell of code prints and shows, in this order."""
    found: list[Output] = []
    text = io.StringIO()

    def display(*pictures: Image.Image) -> None:
        found.extend([*printed(text.getvalue()), *map(shown, pictures)])
        text.truncate(text.seek(0))

    names = {"display": display}
    for cell in cells:
        with contextlib.redirect_stdout(text):
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
        display()
        yield [*found]
        found.clear()


def codes(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def write() -> None:
    """Run the notebook and store what came out."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = codes(notebook)
    for number, (cell, found) in enumerate(zip(cells, outputs(cells)), start=1):
        cell["execution_count"], cell["outputs"] = number, found
    text = json.dumps(notebook, indent=1, ensure_ascii=False)
    NOTEBOOK.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
