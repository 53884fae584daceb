"""Scenes and questions -> batches that teach: many questions about one picture, each as if alone.

in:  a random generator, a kind of lesson
out: Batch: tiles, token ids, what each token should be followed by, and how much that counts

A batch holds samples of one kind and one picture size, so that all have equally many visual rows:
    prefix | visual rows | question answer | question answer | ...
A question sees the prefix, the visual rows and itself; its positions go on from the visual rows, as
if the others were not there. So one pass over a picture gives ten independent lessons. In a quarter
of the batches the questions are turns of one conversation instead, and see each other. A token
weighs one over the root of its answer's length, or descriptions would drown the short answers.
Read scenes.py first. Read next: train.py.

B samples, P prefix tokens, R visual rows, T tokens of questions and answers, W decoder width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ... import image, projector
from ... import segments as plans
from ...config import LlavaConfig
from . import scenes

IGNORED = -100
STRETCHED = 0.5  # of the lessons have long and narrow pictures: in them shapes are smallest
FOCUS = {
    # kind: the kind that it is drawn as, and the one hard task that is asked; short, so cheap
    "change": ("pair", "different"),
    "telling": ("pair", "describe_pair"),
    "reading": ("picture", "number"),
    "flash": ("clip", "flash"),
}


@dataclass
class Batch:
    """`visuals[i]` are sample i's tiles; the arrays are [B T]."""

    kind: str
    prefix: list[int]
    visuals: list[list[tuple[plans.Visual, np.ndarray]]]
    ids: np.ndarray
    segments: np.ndarray  # the number of the question; -1 is padding
    offsets: np.ndarray  # positions, counted from the end of the visual rows
    targets: np.ndarray  # the id that follows, or IGNORED
    weights: np.ndarray  # how much a token counts
    tasks: list[list[str]]  # of each sample's questions
    answers: list[list[str]]
    conversation: bool  # whether questions see those before them


TURNS = {
    # template: (prefix before the visuals, before a later question, around the question, end of the
    # answer)
    "onevision": (
        "<|im_start|>user ",
        "<|im_start|>user ",
        "<|im_end|><|im_start|>assistant\n",
        "<|im_end|>",
    ),
    "qwen": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        "\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>",
    ),
}


class Teacher:
    """Draws batches of a kind: "picture", "large", "pair", "clip" or one of FOCUS."""

    def __init__(self, config: LlavaConfig, tokenizer):
        self.config, self.tokenizer = config, tokenizer
        self.known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Special tokens are parsed: this text is ours."""
        if text not in self.known:
            self.known[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self.known[text]

    def sizes(self, rng, kind: str) -> tuple[int, int]:
        """A picture size (width, height). Most are small, since big ones cost more tiles."""
        if kind == "large":
            return int(rng.integers(100, 641)), int(rng.integers(100, 481))
        top = 84 if kind == "picture" and rng.random() < 0.35 else 168
        width, height = (int(x) for x in rng.integers(64, top + 1, 2))
        return width, height

    def draw(self, rng, kind: str, count: int, exam: bool = False) -> Batch:
        """A batch of `count` fresh samples; an exam has no conversations."""
        kind, focus = FOCUS.get(kind, (kind, None))
        size, frames = self.sizes(rng, kind), int(rng.choice([4, 5, 6, 6, 7, 8, 8, 10, 12, 16]))
        stretched = not exam and rng.random() < STRETCHED
        while stretched and max(size) < 1.6 * min(size):
            size = self.sizes(rng, kind)
        visuals: list[list[tuple[plans.Visual, np.ndarray]]] = []
        lessons = []
        while len(visuals) < count:
            drawn, questions = self.scenes(rng, kind, size, frames)
            if focus:
                questions = [one for one in questions if one[0] == focus and one[2] != scenes.NONE]
            if questions:
                visuals.append(self.tiles(drawn, kind, size))
                lessons.append(questions)
        for lesson in lessons:
            rng.shuffle(lesson)
        template = "onevision" if exam or rng.random() < 0.85 else "qwen"
        conversation = not exam and rng.random() < 0.25
        return self.pack(kind, template, visuals, lessons, conversation)

    def scenes(self, rng, kind: str, size, frames: int) -> tuple[list, list]:
        """(the scenes of one sample, its questions)."""
        if kind == "clip":
            clip = scenes.draw_clip(rng, size, frames)
            return list(clip.frames), scenes.clip_questions(rng, clip)
        if kind == "pair":
            return scenes.draw_pair(rng, size)
        scene = scenes.draw_scene(rng, size)
        return [scene], scenes.picture_questions(rng, scene)

    def tiles(self, drawn: list, kind: str, size) -> list[tuple[plans.Visual, np.ndarray]]:
        """The visuals of one sample and their tiles, prepared as the model prepares them."""
        pictures = [scenes.render(scene) for scene in drawn]
        if kind == "clip":
            frames = [image.squeezed(picture, self.config.tile) for picture in pictures]
            clip = plans.clip([float(number) for number in range(len(frames))], size, self.config)
            return [(clip, np.stack(frames))]
        mode = "pad" if kind == "pair" else "anyres"
        tiles = [image.MODES[mode](picture, self.config) for picture in pictures]
        return [(plans.picture(size, mode, self.config), one) for one in tiles]

    def pack(self, kind: str, template: str, visuals, lessons, conversation: bool) -> Batch:
        """Token arrays of the lessons, padded to the longest."""
        prefix, again, asked, end = TURNS[template]
        rows = []
        for lesson in lessons:
            ids: list[int] = []
            segments: list[int] = []
            offsets: list[int] = []
            targets: list[int] = []
            weights: list[float] = []
            for number, (_, question, answer) in enumerate(lesson):
                before = self.encode(again) if conversation and number else []
                before = before + self.encode("\n" + question) + self.encode(asked)
                after = self.encode(answer) + self.encode(end)
                start = len(ids) if conversation else 0
                ids += before + after
                length = len(before) + len(after)
                segments += [0 if conversation else number] * length
                offsets += range(start, start + length)
                targets += [IGNORED] * (len(before) - 1) + after + [IGNORED]
                weights += [len(after) ** -0.5] * length
            rows.append((ids, segments, offsets, targets, weights))
        longest = max(len(ids) for ids, *_ in rows)

        def padded(index: int, value: float) -> np.ndarray:
            return np.array([row[index] + [value] * (longest - len(row[index])) for row in rows])

        tasks = [[task for task, _, _ in lesson] for lesson in lessons]
        answers = [[answer for _, _, answer in lesson] for lesson in lessons]
        arrays = (padded(0, 0), padded(1, -1), padded(2, 0), padded(3, IGNORED), padded(4, 0.0))
        return Batch(kind, self.encode(prefix), visuals, *arrays, tasks, answers, conversation)


def visual_rows(model, config: LlavaConfig, batch: Batch) -> Tensor:
    """Every sample's pictures or frames through tower and projector: [B R W].

    The functions are the model's own.
    """
    tiles = np.concatenate([tiles for sample in batch.visuals for _, tiles in sample])
    projected = model.projector(model.vision(torch.from_numpy(tiles)))
    newline, rows, start = model.newline, [], 0
    if batch.kind == "clip" and config.pool_mode is not None:
        projected = projector.pool(projected, config.pool_mode)
    for sample in batch.visuals:
        parts = []
        for segment, tiles in sample:
            own = projected[start : start + len(tiles)]
            start += len(tiles)
            if isinstance(segment, plans.Clip):
                parts += [
                    projector.frames_rows(own, newline, config.newline_position),
                    newline[None],
                ]
            elif segment.grid is None:
                parts.append(projector.single_tile_rows(own, newline))
            else:
                parts.append(projector.picture_rows(own, segment.grid, newline))
        rows.append(torch.cat(parts))
    return torch.stack(rows)


def hidden(batch: Batch, before: int) -> Tensor:
    """[B 1 before+T before+T]: -1e30 where a token must not look, else 0.

    A token sees the `before` tokens of prefix and pictures, and of what follows only the earlier
    tokens of its own question.
    """
    segments = torch.from_numpy(batch.segments)
    count, length = segments.shape
    total = before + length
    visible = torch.ones(total, total, dtype=torch.bool).tril().repeat(count, 1, 1)
    visible[:, before:, before:] &= segments[:, :, None] == segments[:, None, :]
    return torch.zeros(count, 1, total, total).masked_fill(~visible[:, None], -1e30)
