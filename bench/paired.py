"""What eight bits cost the embedded checkpoint beside four: the same questions to both.

    python -m bench quality --only paired [--samples 2000]

Tower and projector are quantised with the decoder in eight bits, and not in four: each network sees
through its own. Marks are counted as exam.py does, and KL(float32 || quantised) is taken at each
token of an answer. Questions come in parts, each drawn from a seed of its own and kept when it is
done: what is broken off goes on where it stopped, if the code is that of the same commit.
Read quality.py first.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import llava_min
from llava_min.base.progress import Progress
from llava_min.families.folder import EMBEDDED
from llava_min.weights.tiny import exam, lessons, train

from . import ledger

WAYS = {"float32": None, "int8": 8, "int4": 4}  # bits
PART = 50  # samples of each task in a part
BATCH = 10


@torch.inference_mode()
def marked(models: dict, teacher: lessons.Teacher, group: str, part: int, samples: int) -> dict:
    """One part of a group's questions: {way: {task: [right, asked]}} and sums of KL and tokens."""
    tasks, _ = exam.PASS[group]
    rng, drawn = np.random.default_rng([20261126, len(group), part]), 0
    marks = {way: {task: [0, 0] for task in tasks} for way in models}
    divergence, tokens = dict.fromkeys(models, 0.0), 0
    while min(asked for _, asked in marks["float32"].values()) < samples:
        kinds = exam.KINDS[group]
        batch = teacher.draw(rng, kinds[drawn % len(kinds)], BATCH, exam=True)
        drawn += 1
        for way, network in models.items():
            logits, targets = train.answer_logits(network, batch)
            found = F.log_softmax(logits.float(), -1)
            if way == "float32":
                exact, tokens = found, tokens + len(found)
            divergence[way] += float((exact.exp() * (exact - found)).sum())
            verdicts = iter(exam.verdicts(batch, logits, targets))
            for task in (task for lesson in batch.tasks for task in lesson):
                right, asked = marks[way][task]
                marks[way][task] = [right + bool(next(verdicts)), asked + 1]
    return {"marks": marks, "kl_sum": divergence, "tokens": tokens}


def parts(samples: int, path: Path) -> list[dict]:
    """Every part, from the file or asked now and written to it."""
    size = min(PART, samples)
    wanted = [(group, part) for group in exam.PASS for part in range(-(-samples // size))]
    commit = ledger.here()["commit"]
    done = {
        (row["name"], row["context"]): row
        for row in ledger.read(path)
        if row["section"] == "part" and row["samples"] == size and row["commit"] == commit
    }
    networks = None
    progress = Progress("asking", quiet=False)
    for count, (group, part) in enumerate(wanted, 1):
        if (group, part) not in done:
            if networks is None:
                networks = {way: llava_min.load(dtype="float32", device="cpu", bits=bits).network
                            for way, bits in WAYS.items()}  # fmt: skip
                tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
                teacher = lessons.Teacher(networks["float32"].config, tokenizer)
            row = {"section": "part", "shape": "embedded", "name": group, "context": part,
                   "samples": size, **marked(networks, teacher, group, part, size)}  # fmt: skip
            ledger.keep(path, [row])
            done[group, part] = row
        progress(count, len(wanted))
    return [done[one] for one in wanted]


def rows(samples: int, path: Path) -> list[dict]:
    """A row for each way and task, and one for all tasks together."""
    asked, found = parts(samples, path), []
    tokens = sum(part["tokens"] for part in asked)
    for way in (way for way in WAYS if way != "float32"):
        sums: dict[str, np.ndarray] = {}
        for part in asked:
            for task, (right, count) in part["marks"][way].items():
                both = np.array([part["marks"]["float32"][task][0], right, count])
                for name in (task, "all"):
                    sums[name] = sums.get(name, 0) + both
        found += [
            {
                "section": "paired",
                "shape": "embedded",
                "name": name,
                "format": way,
                "float32": before / count,
                "right": right / count,
                "lost_points": 100 * (before - right) / count,
                "n": int(count),
                "kl": sum(part["kl_sum"][way] for part in asked) / tokens,
            }
            for name, (before, right, count) in sums.items()
        ]
    return found
