"""What a cache of 8 bits costs: greedy answers of the embedded checkpoint on fresh scenes.

    python -m bench quality --only cache

The answer that the float32 cache gives is forced on the others: theirs is the same where each of
its tokens, the end token included, is their most likely one too. Beside that stands the divergence
KL(float32 || 8 bits) at each of its tokens, and the bytes of one token in the cache.
Read quality.py first.
"""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import llava_min
from llava_min.base.progress import Progress
from llava_min.engine.handle import KV_DTYPES, Model
from llava_min.explain.forced import before
from llava_min.families.folder import EMBEDDED
from llava_min.planning.memory import Storage, token_bytes
from llava_min.weights.tiny import exam, lessons, scenes


def questions(samples: int, config):
    """(task, question, what is shown), at least `samples` of each task."""
    teacher = lessons.Teacher(config, Tokenizer.from_file(str(EMBEDDED / "tokenizer.json")))
    for group, (tasks, _) in exam.PASS.items():
        rng, asked = np.random.default_rng([20261121, 8, len(group)]), dict.fromkeys(tasks, 0)
        while min(asked.values()) < samples:
            kind = exam.KINDS[group][0]
            drawn, some = teacher.scenes(rng, kind, teacher.sizes(rng, kind), 8)
            pictures = [scenes.render(scene) for scene in drawn]
            shown = {"images": pictures}
            if kind == "clip":
                shown = {"videos": [np.stack([np.asarray(picture) for picture in pictures])]}
            for task, question, _ in some:
                if asked[task] < samples:
                    asked[task] += 1
                    yield task, question, shown


@torch.inference_mode()
def forced(model: Model, question: str, shown: dict, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [T V] before each of the T ids of an answer."""
    logits, cache = model.prefilled(model.prepare(question, **shown), len(ids))
    return F.log_softmax(before(model.network, logits, cache, ids).double(), -1)


def rows(samples: int) -> list[dict]:
    """A row for each kind of cache and task, and one for all tasks together."""
    plain = llava_min.load(dtype="float32", device="cpu")
    models = {name: replace(plain, kv_dtype=KV_DTYPES[name]) for name in ("int8", "fp8")}
    found: dict[tuple, list] = {}
    total = samples * sum(len(tasks) for tasks, _ in exam.PASS.values())
    progress = Progress("asking", quiet=False)
    for number, (task, question, shown) in enumerate(questions(samples, plain.config), 1):
        ids = plain.generate(question, max_tokens=96, **shown).token_ids
        exact, chosen = forced(plain, question, shown, ids), torch.tensor(ids)
        for name, model in models.items():
            logs = forced(model, question, shown, ids)
            same = bool((logs.argmax(-1) == chosen).all())
            kl = (exact.exp() * (exact - logs)).sum(-1).tolist()
            for key in (task, "all"):
                found.setdefault((name, key), []).append((same, kl))
        progress(number, total)
    stored = {"bf16": Storage("bfloat16"), **{n: model.storage for n, model in models.items()}}
    bytes_of = {name: token_bytes(plain.config.text, how) for name, how in stored.items()}
    made = []
    for (name, task), marks in sorted(found.items()):
        each = [one for _, kl in marks for one in kl]
        made.append(
            {
                "section": "cache",
                "shape": "embedded",
                "name": task,
                "format": name,
                "same": np.mean([same for same, _ in marks]),
                "n": len(marks),
                "kl": np.mean(each),
                "kl_most": max(each),
                "token_bytes": bytes_of[name],
                "token_bytes_bf16": bytes_of["bf16"],
            }
        )
    return made
