"""The lists of CONTRIBUTING.md: a family that nobody has published is added by its list and
nothing else, and what is here of the other kinds has all that the list of its kind asks for.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import small
from safetensors.torch import load_file

import llava_min
from llava_min.config import LlavaConfig
from llava_min.errors import LlavaMinError
from llava_min.families import aliases, layouts, templates
from llava_min.families.folder import EMBEDDED
from llava_min.prompt import Special, Visual
from llava_min.weights import names

ROOT = Path(__file__).parent.parent


def steps(title: str) -> list[str]:
    """The numbered steps below a heading of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition(f"## {title}\n")[2]
    return re.findall(r"^\d\. (.+?)(?=^\d\. |^\n|\Z)", text.partition("\n## ")[0], re.M | re.S)


LIST = steps("A new family of checkpoints")
OPTIONAL = {"PUBLISHED", "PARTS"}  # for what this family does not have


def from_star(fields: layouts.Fields) -> LlavaConfig:
    """A layout of its own: the decoder under "mouth", the tower under "eye", one tile a picture."""
    text, vision = fields.section("mouth"), fields.section("eye")
    eos = layouts.eos_ids(text.values)
    return LlavaConfig(
        family="star",
        vision=layouts.vision_config(vision, -1),
        text=layouts.text_config(text, "qwen2", text.get("tie_word_embeddings", bool), eos),
        template="star",
        image_modes=("square",),
        several_images="square",
        newline=True,
        ignored=layouts.ignored(fields, text, vision),
    )


def star(turns):
    """Its turns: question and answer, with a sign for the end."""
    for turn in turns:
        yield "Q: "
        for part in turn.parts:
            yield from (part,) if isinstance(part, Visual) else part
        yield Special("<|im_end|>")
    yield "A:"


@pytest.fixture
def folder(tmp_path):
    """The embedded checkpoint, written as this family would publish it."""
    known = json.loads((EMBEDDED / "config.json").read_text())
    values = {
        "architectures": ["StarForConditionalGeneration"],
        "mouth": known["text_config"],
        "eye": known["vision_config"],
    }
    tensors = {}
    for name, tensor in load_file(EMBEDDED / "model.safetensors").items():
        inner, piece = names.ours(name)
        first = {"vision": "eye.", "projector": "nerve.", "decoder": "mouth.", "newline": "blink"}
        part = inner.partition(".")[0]
        rest = re.sub(
            r"^.*?(layers|embed_tokens|norm|embeddings|encoder|post_layernorm|linear_\d)",
            r"\1",
            name,
        )
        tensors[first[part] + ("" if part == "newline" else rest)] = tensor
    return small.write(tmp_path / "star", values, tensors)


@pytest.fixture
def added(monkeypatch):
    """The list, step by step; what was changed by name."""
    monkeypatch.setitem(layouts.LAYOUTS, "StarForConditionalGeneration", from_star)
    monkeypatch.setitem(templates.TEMPLATES, "star", star)
    prefixes = (
        ("eye.", "vision.", None),
        ("nerve.", "projector.", None),
        ("mouth.", "decoder.", None),
        ("blink", "newline", None),
        *names.PREFIXES,
    )
    monkeypatch.setattr(names, "PREFIXES", prefixes)
    monkeypatch.setitem(aliases.ALIASES, "star", ("nobody/star", 0.01))
    return {"LAYOUTS", "TEMPLATES", "PREFIXES", "ALIASES"}


def test_a_family_is_added_by_the_list(added, folder, monkeypatch):
    """It loads, answers, and gives the logits of the checkpoint that it was made from."""
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    for name in ("chat_template.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    model, toy = llava_min.load(folder), llava_min.load()
    assert model.config.family == "star" and not model.config.ignored
    picture = np.zeros((84, 84, 3), np.uint8)
    answer = model.generate("What is this?", images=[picture], max_tokens=3)
    assert len(answer.token_ids) in (1, 2, 3) and answer.usage["image_tokens"] == 37
    assert model.prepare("What is this?", images=[picture]).text().startswith("Q: <image: 37")
    ids = toy.tokenizer.encode_text("Where is the star?")
    assert np.array_equal(model.logits(ids).numpy(), toy.logits(ids).numpy())
    assert added | OPTIONAL == set(re.findall(r"`([A-Z]+)`", " ".join(LIST)))


def test_the_list_names_files_that_hold_its_tables():
    assert len(LIST) == 4
    for step in LIST:
        path = ROOT / re.match(r"`(.+?)`", step)[1]
        for table in re.findall(r"`([A-Z]+)`", step):
            assert re.search(rf"^{table}\b", path.read_text(), re.M), (table, path)


def test_without_the_list_it_is_refused(folder):
    with pytest.raises(LlavaMinError, match="StarForConditionalGeneration"):
        llava_min.load(folder)


# The other lists ------------------------------------------------------------------

KERNELS = ("norm", "activation", "rope", "attention", "decode_attention", "int4")
BENCHMARKS = sorted(
    path.stem
    for path in (ROOT / "bench").glob("*.py")
    if re.search(r"\ndef run\(", path.read_text())
)
NO_TABLE = {"batch-cpu", "dry-run"}  # results that plots alone show, or nothing


def test_a_renderer_has_what_the_list_says():
    """Each published text is in the tests, known by its hash, and has a renderer of the table."""
    assert len(steps("A new chat template")) == 3
    texts = {path.stem for path in (ROOT / "tests" / "templates").glob("*.jinja")}
    tested = (ROOT / "tests" / "test_templates.py").read_text()
    for name in texts:
        text = (ROOT / "tests" / "templates" / f"{name}.jinja").read_text()
        assert templates.PUBLISHED[templates.fingerprint(text)] in templates.TEMPLATES, name
        assert f'"{name}": ' in tested, name


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_has_what_the_list_says(name):
    """What torch runs and a kernel, tests with mistakes that they notice, and a benchmark."""
    assert len(steps("A new kernel")) == 4
    source = "".join(path.read_text() for path in (ROOT / "kernels").glob(f"{name}*.py"))
    assert re.search(r"^def \w+_torch\(", source, re.M) and "jit" in source
    test = (ROOT / "tests" / f"test_{name}.py").read_text()
    assert "kernel_checks" in test and re.search("mutated|MUTANTS", test)
    assert name in "".join(path.read_text() for path in (ROOT / "bench" / "kernels").glob("*.py"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_has_what_the_list_says(name):
    """A command that the main calls."""
    assert len(steps("A new benchmark")) == 3
    command = name if name != "cpu" else "generate"
    main = (ROOT / "bench" / "__main__.py").read_text()
    assert re.search(rf"^def {command}\(", (ROOT / "bench" / "arguments.py").read_text(), re.M)
    assert f"{name}.run(" in main or f"import {name}" in main


def test_results_are_in_the_documents():
    """Each file of rows is read by what writes the tables, or stands in docs/gpu.md."""
    rows = {path.stem for path in (ROOT / "bench" / "results").glob("*.jsonl")}
    source = (ROOT / "tests" / "readme.py").read_text()
    guide = (ROOT / "docs" / "gpu.md").read_text()
    cards = {name for name in rows if name.partition("-")[0] in ("lease", "kernels")}
    assert all(name.partition("-")[2].replace("-", " ") in guide for name in cards)
    rest = rows - cards
    assert {name for name in rest if f'results("{name}"' not in source} <= NO_TABLE


def test_every_file_names_the_same_version():
    newest = re.search(r"^## (\S+), (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    cited = (ROOT / "CITATION.cff").read_text()
    assert newest[1] == llava_min.__version__
    assert f"version: {newest[1]}\n" in cited and f"date-released: {newest[2]}\n" in cited
