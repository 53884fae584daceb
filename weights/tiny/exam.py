"""How often the checkpoint is right on scenes that nobody has seen.

in:  a model, how many questions of each task
out: {task: Marks}, and a table of them

An answer counts when every token of it, the end token included, is the most likely one: exactly
the cases in which greedy decoding prints the right answer and nothing else. Next to it are the
same questions with a blank picture and with another sample's picture, and how often the task's most
frequent answer would be right: what can be had without looking.
Read train.py first.
"""

import math
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from . import lessons, scenes

PASS = {
    # group: (its tasks, what the lower end of the interval must reach, in %)
    "one picture": (scenes.ONE_PICTURE, 95),
    "two pictures": (scenes.TWO_PICTURES, 90),
    "clip": (scenes.CLIPS, 90),
}
KINDS = {
    "one picture": ("picture", "picture", "large"),
    "two pictures": ("pair",),
    "clip": ("clip",),
}
BATCH = 20


@dataclass
class Marks:
    """The verdicts on one task: with the picture, with a blank one, with another sample's."""

    right: list[bool] = field(default_factory=list)
    blank: list[bool] = field(default_factory=list)
    other: list[bool] = field(default_factory=list)
    answers: Counter = field(default_factory=Counter)

    @property
    def most_common(self) -> float:
        """How often the most frequent answer is right."""
        return max(self.answers.values()) / sum(self.answers.values())


def interval(right: list[bool]) -> tuple[float, float]:
    """Wilson's 95% interval of a share.

    >>> [round(end, 3) for end in interval([True] * 970 + [False] * 30)]
    [0.957, 0.979]
    """
    n, share, z = len(right), sum(right) / len(right), 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def blanked(batch: lessons.Batch) -> lessons.Batch:
    """The batch with white pictures."""
    white = [
        [(segment, np.full_like(tiles, 255)) for segment, tiles in visuals]
        for visuals in batch.visuals
    ]
    return replace(batch, visuals=white)


def exchanged(batch: lessons.Batch) -> lessons.Batch:
    """The batch with each sample's pictures given to its neighbour."""
    return replace(batch, visuals=batch.visuals[1:] + batch.visuals[:1])


def verdicts(batch: lessons.Batch, logits: torch.Tensor, targets: torch.Tensor) -> list[bool]:
    """For each question of the batch in order: is every token of the answer the most likely one?"""
    right = (logits.argmax(-1) == targets).numpy()
    rows, columns = np.nonzero(batch.targets != lessons.IGNORED)
    segments = batch.segments[rows, columns]
    return [
        bool(right[(rows == row) & (segments == number)].all())
        for row, tasks in enumerate(batch.tasks)
        for number in range(len(tasks))
    ]


@torch.no_grad()
def take(
    model,
    teacher: lessons.Teacher,
    answer_logits,
    samples: int,
    seed: int,
    controls: bool = True,
    progress=None,
) -> dict[str, Marks]:
    """{task: Marks}, at least `samples` questions of each task."""
    marks: dict[str, Marks] = {}
    for group, (tasks, _) in PASS.items():
        rng, drawn = np.random.default_rng([seed, len(group), 20261121]), 0
        while min((len(marks[t].right) if t in marks else 0) for t in tasks) < samples:
            batch = teacher.draw(rng, KINDS[group][drawn % len(KINDS[group])], BATCH, exam=True)
            drawn += 1
            columns = {"right": batch}
            if controls:
                columns |= {"blank": blanked(batch), "other": exchanged(batch)}
            for name, seen in columns.items():
                found = iter(verdicts(batch, *answer_logits(model, seen)))
                for lesson in batch.tasks:
                    for task in lesson:
                        getattr(marks.setdefault(task, Marks()), name).append(next(found))
            for lesson, answers in zip(batch.tasks, batch.answers):
                for task, answer in zip(lesson, answers):
                    marks[task].answers[answer] += 1
            if progress is not None:
                progress(min(len(marks[t].right) for t in tasks), samples)
    return {task: marks[task] for tasks, _ in PASS.values() for task in tasks}


def line(marks: dict[str, Marks]) -> str:
    """One line for the training log."""
    return "held out: " + "  ".join(f"{t} {100 * np.mean(m.right):.0f}" for t, m in marks.items())


HEADS = (
    "| task | example | accuracy | 95% interval | blank picture | other picture "
    "| most common answer | n |",
    "|---|---|---:|---:|---:|---:|---:|---:|",
)


def row(task: str, marks: Marks) -> str:
    """One row of the table."""
    group = next(name for name, (tasks, _) in PASS.items() if task in tasks)
    low, high = interval(marks.right)
    example = scenes.QUESTIONS[task][0].format(kind="star", place=scenes.PLACES[0], nth="first")
    shares = [float(np.mean(marks.blank)), float(np.mean(marks.other)), marks.most_common]
    cells = [
        f"{group}: {task.replace('_', ' ')}",
        example,
        f"**{100 * np.mean(marks.right):.1f}%**",
        f"{100 * low:.1f} to {100 * high:.1f}",
        *(f"{100 * share:.1f}%" for share in shares),
        f"{len(marks.right):,}",
    ]
    return f"| {' | '.join(cells)} |"


def table(marks: dict[str, Marks]) -> str:
    """The printed result, a row for each task, as Markdown."""
    return "\n".join([*HEADS, *(row(task, marks[task]) for task in marks)])
