"""The adapter for lmms-eval, beside a stub of the few classes that it takes from there.

A whole run of lmms-eval itself is made by `python -m bench lmms`; its rows are committed.
"""

import importlib
import json
import subprocess
import sys
import types
from dataclasses import dataclass

import pytest
from PIL import Image
from test_house import ROOT

import llava_min

SAMPLES = ROOT / "weights" / "tiny" / "samples"
STAR, CLIP = SAMPLES / "shapes.png", SAMPLES / "clip.mp4"


@dataclass
class TokenCounts:
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass
class GenerationResult:
    text: str
    token_counts: TokenCounts


@dataclass
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


class Base:
    """lmms_eval.api.model.lmms, as far as an adapter sees it."""

    is_simple = True

    def __init__(self) -> None:
        self.task_dict: dict = {}


@dataclass
class Instance:
    args: tuple


@pytest.fixture
def adapter(monkeypatch):
    """The module of the adapter, imported next to a stub of lmms_eval."""
    contents = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Base},
        "lmms_eval.api.instance": {
            "GenerationResult": GenerationResult,
            "TokenCounts": TokenCounts,
        },
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, values in contents.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "llava_min.evals.lmms_eval", raising=False)
    yield importlib.import_module("llava_min.evals.lmms_eval")
    sys.modules.pop("llava_min.evals.lmms_eval", None)


DOCUMENTS = [
    {"picture": STAR, "question": "Where is the star?", "answer": "In the top left."},
    {"picture": STAR, "question": "Describe the picture.", "answer": "Nothing."},
    {"video": CLIP, "question": "What color is the circle at the end?", "answer": "Purple."},
]


def messages_of(document: dict) -> list[dict]:
    if "video" in document:
        medium = {"type": "video", "url": str(document["video"]), "end_time": None}
    else:
        medium = {"type": "image", "url": Image.open(document["picture"]).convert("RGB")}
    text = {"type": "text", "text": document["question"]}
    return [{"role": "user", "content": [medium, text]}]


def model_of(adapter, **more):
    model = adapter.LlavaMin(batch_size=2, device="cpu", dtype="float32", **more)
    model.task_dict = {"scenes": {"test": DOCUMENTS}}
    return model


def requests(*given: dict) -> list[Instance]:
    how = (
        given
        or [{"max_new_tokens": 40, "do_sample": False, "temperature": 0, "until": ["\n\n"]}] * 3
    )
    return [
        Instance(("", messages_of, one, number, "scenes", "test")) for number, one in enumerate(how)
    ]


def test_answers_are_those_of_generate_in_order(adapter):
    own = llava_min.load(dtype="float32")
    found = model_of(adapter).generate_until(requests())
    for document, result in zip(DOCUMENTS, found, strict=True):
        media = {"videos": [CLIP]} if "video" in document else {"images": [STAR]}
        answer = own.generate(document["question"], max_tokens=40, **media)
        assert result.text == answer.text
        counts = result.token_counts
        assert counts.input_tokens == answer.usage["prompt_tokens"]
        assert counts.output_tokens == answer.usage["completion_tokens"]


def test_what_a_task_says_of_generating_counts(adapter):
    model = model_of(adapter, frames=4)
    first, second, third = model.generate_until(
        requests(
            {"max_new_tokens": 2}, {"until": ["star"]}, {"do_sample": False, "temperature": 3.0}
        )
    )
    assert first.token_counts.output_tokens == 2
    assert second.text == "A yellow " and third.text == "Purple."
    assert model.request("", messages_of, {}, 2, "scenes", "test")["frames"] == 4
    with pytest.raises(ValueError, match="beam"):
        model.generate_until(requests({"num_beams": 4}))


def test_times_of_a_video_are_the_part_that_is_seen(adapter):
    def timed(document):
        (message,) = messages_of(document)
        message["content"][0] |= {"start_time": 0.5, "end_time": 1.5}
        return [message]

    asked = model_of(adapter).request("", timed, {}, 2, "scenes", "test")
    assert (asked["start"], asked["end"]) == (0.5, 1.5)
    with pytest.raises(ValueError, match="audio"):
        adapter.part({"type": "audio", "url": "x"}, {})


def test_a_broken_document_ends_itself_alone(adapter):
    def broken(document):
        (message,) = messages_of(document)
        if document is DOCUMENTS[1]:
            message["content"][0]["url"] = "nowhere.png"
        return [message]

    asked = requests()
    for one in asked:
        one.args = (one.args[0], broken, *one.args[2:])
    found = [result.text for result in model_of(adapter).generate_until(asked)]
    assert found[0] == "In the top left." and found[2] == "Purple."
    assert found[1].startswith("[error] ") and "nowhere.png" in found[1]


def test_likelihoods_choose_as_score_does(adapter):
    model = model_of(adapter)
    answers = ["In the top left.", "In the bottom right.", lambda document: document["answer"]]
    visual = lambda document: [Image.open(document["picture"]).convert("RGB")]
    asked = [
        Instance((DOCUMENTS[0]["question"], one, visual, 0, "scenes", "test")) for one in answers
    ]
    (right, greedy), (wrong, other), again = model.loglikelihood(asked)
    assert greedy and not other and right < wrong and again == (right, True)
    score = llava_min.load(dtype="float32").score(
        DOCUMENTS[0]["question"], answers[0], images=[STAR]
    )
    assert right == pytest.approx(-sum(score.log_probabilities), abs=1e-4)


def test_lmms_eval_finds_the_class_and_nobody_else_imports_it(adapter):
    from llava_min.evals.manifest import manifest

    found = manifest()
    module, _, name = found.chat_class_path.rpartition(".")
    assert found.model_id == "llava_min" and getattr(importlib.import_module(module), name)
    assert not adapter.LlavaMin.is_simple and issubclass(adapter.LlavaMin, Base)
    text = (ROOT / "setup.py").read_text()
    assert '"lmms_eval.models": ["llava_min = llava_min.evals.manifest:manifest"]' in text
    code = "import sys, llava_min, llava_min.evals.manifest; llava_min.load()\n"
    code += "print('lmms_eval' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr


def test_the_task_of_the_benchmark_is_whole(tmp_path):
    from bench import lmms

    documents = lmms.write_task(tmp_path, 20)
    stored = [json.loads(line) for line in (tmp_path / "scenes.jsonl").read_text().splitlines()]
    assert stored == documents and len(documents) == 20
    utils: dict = {}
    exec((tmp_path / "utils.py").read_text(), utils)
    (message,) = utils["messages"](documents[0])
    assert [one["type"] for one in message["content"]] == ["image", "text"]
    assert utils["results"](documents[0], [documents[0]["answer"]]) == {"right": 1.0}
    assert lmms.by_generate(documents).count(True) >= 16
