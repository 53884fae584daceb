"""The list of CONTRIBUTING.md is enough: a family that nobody has published is added by it."""

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
LIST = re.findall(
    r"^\d\. (.+?)(?=^\d\. |^\n|\Z)", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S
)
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
        ("eye.", "vision."),
        ("nerve.", "projector."),
        ("mouth.", "decoder."),
        ("blink", "newline"),
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
