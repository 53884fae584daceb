"""What quantising costs: answers of the embedded checkpoint on fresh scenes, and errors of weights.

    python -m bench quality [--samples 2000] [--only errors answers cache paired]

answers  rtn and mse at groups of 32, 64 and 128, head in 8 bits: the same questions to all, answers
         right as exam.py counts them, and the divergence KL(float32 || int4) at each answer token
errors   of random weights in the shapes of a 0.5B decoder, beside the formula of llama.cpp's Q4_0
cache    a cache of 8 bits instead, on a sixteenth of the samples: kv_cache.py
paired   eight bits and four of decoder, tower and projector, by the same questions: paired.py
Read ledger.py first. Read next: kv_cache.py.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import llava_min
from llava_min.base.progress import Progress
from llava_min.config import Quantization
from llava_min.families.folder import EMBEDDED
from llava_min.weights import quantize
from llava_min.weights.tiny import exam, lessons, train

from . import kv_cache, ledger, paired, shapes

WAYS = [(method, group) for method in ("rtn", "mse") for group in (32, 64, 128)]
BATCHES = {"picture": 10, "pair": 10, "clip": 10}  # samples of one batch
LAYERS = ("qkv", "output", "gate_up", "down")  # of a decoder's block


def networks() -> dict:
    """The embedded checkpoint in float32, and quantised in every way."""
    found = {("float32", None): llava_min.load(dtype="float32").network}
    with tempfile.TemporaryDirectory() as folder:
        for method, group in WAYS:
            wanted = Quantization(4, group, 8, method)
            target = quantize.quantize(EMBEDDED, f"{folder}/{method}{group}", wanted)
            found[method, group] = llava_min.load(target, dtype="float32").network
    return found


@torch.no_grad()
def examined(samples: int) -> tuple[dict, dict]:
    """Every way through the same questions, at least `samples` a task.

    {way: {task: verdicts}}, and {way: KL divergence of each token from float32's}.
    """
    models = networks()
    plain = models["float32", None]
    teacher = lessons.Teacher(plain.config, Tokenizer.from_file(str(EMBEDDED / "tokenizer.json")))
    right = {way: {} for way in models}
    divergence = {way: [] for way in WAYS}
    progress = Progress("examining", quiet=False)
    for group, (tasks, _) in exam.PASS.items():
        rng, drawn = np.random.default_rng([20261121, len(group)]), 0
        count = 0
        while count < samples:
            kinds = [kind for kind in exam.KINDS[group] if kind in BATCHES]
            kind = kinds[drawn % len(kinds)]
            batch = teacher.draw(rng, kind, BATCHES[kind], exam=True)
            drawn += 1
            visual = lessons.visual_rows(plain, plain.config, batch)  # the tower is not quantised
            for way, network in models.items():
                logits, targets = train.answer_logits(network, batch, visual=visual)
                verdicts = iter(exam.verdicts(batch, logits, targets))
                for task in (task for lesson in batch.tasks for task in lesson):
                    right[way].setdefault(task, []).append(next(verdicts))
                if way == ("float32", None):
                    exact = F.log_softmax(logits, -1)
                    continue
                found = F.log_softmax(logits, -1)
                divergence[way] += (exact.exp() * (exact - found)).sum(-1).tolist()
            count = min(len(right["float32", None].get(task, ())) for task in tasks)
            progress(min(count, samples), samples)
    return right, divergence


def answers(samples: int) -> list[dict]:
    """A row for each way and task, and one for all tasks together."""
    right, divergence = examined(samples)
    marks = {way: {**tasks, "all": sum(tasks.values(), [])} for way, tasks in right.items()}
    rows = []
    for method, group in WAYS:
        for task, verdicts in marks[method, group].items():
            before = marks["float32", None][task]
            rows.append(
                {
                    "section": "answers",
                    "shape": "embedded",
                    "name": task,
                    "format": f"{method} {group}",
                    "float32": np.mean(before),
                    "int4": np.mean(verdicts),
                    "lost_points": 100 * (np.mean(before) - np.mean(verdicts)),
                    "n": len(verdicts),
                    "kl": np.mean(divergence[method, group]),
                }
            )
    return rows


def q4_0(weight: torch.Tensor) -> torch.Tensor:
    """llama.cpp's rounding: in groups of 32 the largest becomes -8, the scale a float16."""
    grouped = weight.unflatten(1, (-1, 32))
    largest = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))
    scale = largest / -8
    steps = torch.floor(grouped / scale + 8.5).clamp(0, 15) - 8
    return (steps * scale.half().float()).flatten(1)


def errors() -> list[dict]:
    """The relative error of each linear, in each way."""
    rows, generator = [], torch.Generator().manual_seed(0)
    sizes = shapes.linears_of(shapes.TEXTS["0.5B"])
    for name in LAYERS:
        weight = (0.02 * torch.randn(sizes[name], generator=generator)).bfloat16().float()
        found = {"q4_0 32": q4_0(weight)}
        for method, group in WAYS:
            codes, scale = quantize.codes(weight, 4, group, method)
            steps = codes.float().unflatten(1, (-1, group)) - 8
            found[f"{method} {group}"] = (steps * scale.float()[..., None]).flatten(1)
        rows += [
            {
                "section": "errors",
                "shape": "0.5B",
                "name": name,
                "format": way,
                "relative": float((other - weight).norm() / weight.norm()),
            }
            for way, other in found.items()
        ]
    return rows


LINES = {
    "errors": "{name:8} {format:8} {relative:.4f}",
    "answers": "{name:14} {format:8} float32 {float32:.4f} int4 {int4:.4f} "
    "lost {lost_points:5.2f} points of {n:6,} KL {kl:.5f}",
    "paired": "{name:14} {format:8} float32 {float32:.4f} {right:.4f} "
    "lost {lost_points:5.2f} points of {n:6,} KL {kl:.5f}",
    "cache": "{name:14} {format:5} same {same:.4f} of {n:6,} KL {kl:.2e}, at most {kl_most:.2e}; "
    "{token_bytes} bytes a token, in bfloat16 {token_bytes_bf16}",
}


def run(samples: int, sections: list[str], out: Path) -> Path:
    """The parts asked for, each printed and written as it comes."""
    path = out / "quality.jsonl"
    for section in sections:
        if section == "errors":
            rows = errors()
        elif section == "paired":
            rows = paired.rows(samples, out / "quality-parts.jsonl")
        else:
            rows = answers(samples) if section == "answers" else kv_cache.rows(samples // 16)
        ledger.keep(path, rows)
        for row in rows:
            print(LINES[section].format(**row))
    return path
