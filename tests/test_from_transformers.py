"""docs/from-transformers.md: every example runs as printed, on small models of these names."""

import contextlib
import io
import re

import pytest
import small
from test_families import Family
from test_house import ROOT

import llava_min
from llava_min.engine import load as loading
from llava_min.families.folder import EMBEDDED

pytest.importorskip("transformers")
PAGE = (ROOT / "docs" / "from-transformers.md").read_text()
EXAMPLES = re.findall(r"^## (.*?)$|```python\n(.*?)```", PAGE, re.S | re.M)
BLOCKS = [block for _, block in EXAMPLES if block]
TIMED = {"add_time_instruction": True, "mm_newline_position": "grid"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small random checkpoint of the family of each name on the page: (folder, more to load).

    In four bits the toy takes its place: the small ones are too narrow.
    """
    folder = tmp_path_factory.mktemp("hub")
    for name in ("long_llava", "interleave", "next_video"):
        Family(name, folder / name)
    small.small(folder / "onevision")
    small.small(folder / "original", "original")
    made = {
        "llava-hf/llava-interleave-qwen-0.5b-hf": ("interleave", {}),
        "llava-hf/llava-onevision-qwen2-7b-ov-hf": ("onevision", {}),
        "llava-hf/LLaVA-NeXT-Video-7B-hf": ("next_video", {}),
        "lmms-lab/llava-onevision-qwen2-0.5b-ov": ("original", {}),
        "lmms-lab/LLaVA-Video-7B-Qwen2": ("original", {"config": TIMED}),
        "aws-prototyping/long-llava-qwen2-7b": ("long_llava", {}),
    }
    return {name: (folder / kind, more) for name, (kind, more) in made.items()}


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_example_runs(number, folders, monkeypatch):
    monkeypatch.chdir(ROOT)
    asked = []

    def load(name: str, **options: object) -> llava_min.Model:
        folder, more = folders[name] if "bits" not in options else (EMBEDDED, {})
        asked.append(name)
        return loading.load(folder, **more, **options)

    monkeypatch.setattr(llava_min, "load", load)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(BLOCKS[number], {})
    assert asked and printed.getvalue().strip(), BLOCKS[number]
    assert "False" not in printed.getvalue()


def test_every_name_of_the_page_is_tried(folders):
    assert folders.keys() == set(re.findall(r'load\("([^"]+)"', PAGE))
