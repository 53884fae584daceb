"""python -m llava_min.check: equal models pass, and a slip is found at the stage where it is."""

import importlib.util
import json
import re
from xml.etree import ElementTree

import pytest
from test_agrees_golden import GOLDEN

from llava_min import projector
from llava_min.check import compare
from llava_min.kernels import activation, attention, rope

pytest.importorskip("transformers")
end_rows, angles, bidirectional = projector.end_rows, rope.angles, attention.bidirectional
gelu_torch = activation.gelu_torch


def run(capsys, *arguments: str) -> tuple[int, str]:
    code = compare.main(list(arguments))
    return code, capsys.readouterr().out


def stages(output: str) -> list[str]:
    return re.findall(r"^((?:picture|clip): \w+(?: \d+)?) +[\d.]", output, re.MULTILINE)


def test_the_embedded_checkpoint_and_its_plot(capsys, tmp_path):
    code, output = run(capsys, "-o", str(tmp_path / "errors.svg"))
    assert code == 0 and "24 stages are equal" in output and "EXCEEDED" not in output
    assert len(stages(output)) == 24 and {"picture: logits", "clip: layer 3"} <= set(stages(output))
    drawn = ElementTree.parse(tmp_path / "errors.svg").getroot()
    texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert set(stages(output)) <= set(texts) and "1e-9" in texts
    assert run(capsys, "-o", str(tmp_path / "none" / "errors.svg"))[0] == 6


@pytest.mark.parametrize("folder, count", [("tiny_ov", 18), ("tiny_video", 9)])
def test_original_layouts_by_our_table_of_names(capsys, folder, count):
    code, output = run(capsys, "-m", str(GOLDEN / folder))
    assert code == 0 and len(stages(output)) == count, output
    assert ("clip: not compared" in output) == (folder == "tiny_video")


@pytest.mark.parametrize("name", ["original_1_5", "original_1_6", "original_mistral"])
def test_original_layouts_on_clip(capsys, tmp_path, name):
    from test_originals import Original

    Original(name, tmp_path / name)
    code, output = run(capsys, "-m", str(tmp_path / name))
    assert code == 0 and len(stages(output)) >= 8 and "not compared" not in output, output


@pytest.mark.parametrize("name", ["long_llava", "interleave", "llava_1_5", "next", "next_video"])
def test_every_other_family(capsys, tmp_path, name):
    from test_families import GRIDS, TILE, Family

    folder = tmp_path / name
    Family(name, folder)
    side = {"height": TILE, "width": TILE}
    size = side if name == "interleave" else {"shortest_edge": TILE}
    settings = {"size": size, "crop_size": side, "image_grid_pinpoints": GRIDS}
    if name == "interleave":
        settings |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    code, output = run(capsys, "-m", str(folder))
    assert code == 0 and len(stages(output)) >= 8, output
    assert ("clip: not compared" in output) == (name == "next")


MUTANTS = {
    # a slip: (module, name, what stands there instead, the first stage that shows it)
    "quick GELU in the projector": (
        activation,
        "gelu_torch",
        lambda rows, kind: gelu_torch(rows, "quick_gelu" if kind == "gelu" else kind),
        "picture: projector",
    ),
    "no newlines": (
        projector,
        "end_rows",
        lambda patches, newline: end_rows(patches, 0 * newline),
        "picture: rows",
    ),
    "a wrong rope": (
        rope,
        "angles",
        lambda at, theta, *rest: angles(at, theta * 1.01, *rest),
        "picture: layer 0",
    ),
    "a wrong scale in the tower": (
        attention,
        "bidirectional",
        lambda q, k, v: bidirectional(1.01 * q, k, v),
        "picture: tower 0",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_slip_is_found_at_its_stage(capsys, monkeypatch, name):
    module, attribute, slip, stage = MUTANTS[name]
    monkeypatch.setattr(module, attribute, slip)
    code, output = run(capsys)
    assert code == 1 and f"the first stage that differs: {stage}\n" in output, output


def test_without_transformers_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert compare.main([]) == 2
    assert "pip install transformers" in capsys.readouterr().err


def test_a_missing_folder_is_one_line(capsys):
    assert compare.main(["-m", "nowhere"]) == 3
    assert "nowhere" in capsys.readouterr().err
