"""How often the checkpoint is right on scenes that nobody has seen.

An answer counts when every token of it, the end token included, is the most likely one: exactly the
cases in which greedy decoding prints the right answer.
Read before: train.py.
"""

import numpy as np
import torch

from . import scenes

KINDS_OF_EXAM = {
    "picture": scenes.ONE_PICTURE,
    "large": scenes.ONE_PICTURE,
    "pair": scenes.TWO_PICTURES,
    "clip": scenes.CLIPS,
}


@torch.no_grad()
def take(model, teacher, answer_logits, samples: int, seed: int) -> dict[str, list[bool]]:
    """{task: right or wrong for each of its questions} over `samples` pictures, pairs and clips."""
    results: dict[str, list[bool]] = {}
    for kind in ("picture", "pair", "clip"):
        rng = np.random.default_rng([seed, len(kind), 77])
        for _ in range(max(1, samples // 10)):
            batch = teacher.draw(rng, kind, min(10, samples), exam=True)
            logits, targets = answer_logits(model, batch)
            mark(batch, (logits.argmax(-1) == targets).numpy(), results)
    return results


def mark(batch, right: np.ndarray, results: dict[str, list[bool]]) -> None:
    """Sort the token verdicts of a batch into verdicts on its answers."""
    answers = batch.targets != -100
    rows, columns = np.nonzero(answers)
    segments = batch.segments[rows, columns]
    for row, tasks in enumerate(batch.tasks):
        for number, task in enumerate(tasks):
            results.setdefault(task, []).append(
                bool(right[(rows == row) & (segments == number)].all())
            )


def line(results: dict[str, list[bool]]) -> str:
    return "held out: " + "  ".join(
        f"{task} {100 * np.mean(right):.0f}" for task, right in results.items()
    )
