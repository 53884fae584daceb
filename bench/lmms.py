"""lmms-eval on drawn scenes: the embedded checkpoint by the adapter, and over HTTP.

    python -m bench lmms --python PYTHON [--questions 500]

PYTHON has lmms-eval (docs/evaluation.md says how to install it; it pins an older av, so it has an
environment of its own). The task is made of fresh scenes of weights/tiny/scenes.py, in lmms-eval's
own form. Beside both roads stands what `generate` itself says to the same questions.
Read next: ledger.py.
"""

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import llava_min
from llava_min.families.folder import EMBEDDED
from llava_min.weights.tiny import exam, scenes

from . import ledger, serve

TASK = "llava_min_scenes"
YAML = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/scenes.jsonl
test_split: test
output_type: generate_until
doc_to_visual: !function utils.pictures
doc_to_text: !function utils.question
doc_to_messages: !function utils.messages
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 64
  temperature: 0
  do_sample: false
process_results: !function utils.results
metric_list:
  - metric: right
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 1
"""
UTILS = '''\
"""What lmms-eval calls for a document of the task."""

from PIL import Image


def pictures(doc):
    return [Image.open(doc["picture"]).convert("RGB")]


def question(doc, *_):
    return doc["question"]


def messages(doc, *_):
    text = {"type": "text", "text": doc["question"]}
    return [{"role": "user", "content": [{"type": "image", "url": pictures(doc)[0]}, text]}]


def results(doc, found):
    return {"right": float(found[0].strip() == doc["answer"])}
'''


def write_task(folder: Path, count: int, seed: int = 2_000_000) -> list[dict]:
    """The task's files; its documents: picture, question, answer, kind."""
    rng, documents = np.random.default_rng(seed), []
    while len(documents) < count:
        scene = scenes.draw_scene(rng, (150, 120))
        path = folder / f"{len(documents)}.png"
        scenes.render(scene).save(path)
        for kind, question, answer in scenes.picture_questions(rng, scene):
            documents.append(
                {"picture": str(path), "question": question, "answer": answer, "kind": kind}
            )
    documents = documents[:count]
    (folder / "scenes.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    (folder / f"{TASK}.yaml").write_text(YAML.format(task=TASK, folder=folder))
    (folder / "utils.py").write_text(UTILS)
    return documents


def by_generate(documents: list[dict]) -> list[bool]:
    """Whether each answer of `generate` is right."""
    model = llava_min.load()
    return [
        model.generate(one["question"], images=[one["picture"]], max_tokens=64).text.strip()
        == one["answer"]
        for one in documents
    ]


def evaluated(python: str, folder: Path, name: str, model: str, given: str) -> float:
    """The accuracy that lmms-eval says of a model."""
    out = folder / name
    command = [python, "-m", "lmms_eval", "--model", model, "--model_args", given]
    command += ["--tasks", TASK, "--include_path", str(folder), "--batch_size", "8"]
    subprocess.run([*command, "--output_path", str(out), "--log_samples"], check=True, cwd=folder)
    (found,) = out.rglob("*results.json")
    return json.loads(found.read_text())["results"][TASK]["right,none"]


def run(python: str, count: int, out: Path) -> Path:
    """Measure and keep rows; the path of their file."""
    path = out / "lmms.jsonl"
    with tempfile.TemporaryDirectory() as there:
        folder = Path(there)
        documents = write_task(folder, count)
        own = by_generate(documents)
        low, high = exam.interval(own)
        roads = {"adapter": evaluated(python, folder, "adapter", "llava_min", "device=cpu")}
        with serve.ours(EMBEDDED, 2) as address:
            given = f"model_version=llava_min,base_url=http://{address}/v1,api_key=EMPTY"
            given += ",num_concurrent=8,timeout=60"
            roads["http"] = evaluated(python, folder, "http", "openai", given)
    rows = [
        {
            "section": "lmms-eval",
            "shape": "embedded",
            "context": road,
            "name": "llava_min",
            "questions": count,
            "right": right,
            "generate": sum(own) / count,
            "interval": [low, high],
        }
        for road, right in roads.items()
    ]
    for row in rows:
        print(f"{row['context']}: {row['right']:.1%}; generate itself: {row['generate']:.1%}")
    ledger.keep(path, rows)
    return path
