"""Teach the embedded checkpoint a sixth shape, a cross, in some ten minutes on a CPU.

    python examples/finetune.py [FOLDER] [--steps 250] [--questions 200]

It is examined before and after, on pictures with crosses and on pictures without: what it learns,
and what it forgets. FOLDER then is a checkpoint like any other:
    python -m llava_min -m FOLDER --image PICTURE "Where is the cross?"
"""

import argparse
import math
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import llava_min
from llava_min.weights.tiny import lessons, scenes, train

KNOWN, polygon = scenes.KINDS, scenes.polygon


def with_cross(shape: scenes.Shape, center, radius: float) -> list[tuple[float, float]]:
    """The corners of any shape of the toy's world; of a cross, twelve."""
    if shape.kind != "cross":
        return polygon(shape, center, radius)
    arm = 0.36
    corners = [(1, arm), (arm, arm), (arm, 1), (-arm, 1), (-arm, arm), (-1, arm)]
    corners += [(-x, -y) for x, y in corners]
    return [(center[0] + 0.9 * radius * x, center[1] + 0.9 * radius * y) for x, y in corners]


def exam(model: llava_min.Model, kinds: tuple[str, ...], about: str, count: int) -> float:
    """The share of right answers to questions on fresh pictures whose text holds `about`."""
    scenes.KINDS, rng, right = kinds, np.random.default_rng(7), []
    while len(right) < count:
        scene = scenes.draw_scene(rng, (150, 120))
        for _, question, answer in scenes.picture_questions(rng, scene):
            if about in question + answer and len(right) < count:
                given = model.generate(question, images=[scenes.render(scene)], max_tokens=64)
                right.append(given.text == answer)
    return sum(right) / count


def learn(network: torch.nn.Module, teacher: lessons.Teacher, steps: int) -> None:
    """Every weight learns to answer about fresh pictures with six shapes."""
    scenes.KINDS, rng = (*KNOWN, "cross"), np.random.default_rng(0)
    tool = torch.optim.AdamW(network.parameters(), lr=3e-4, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.LambdaLR(tool, lambda step: math.cos(1.5 * step / steps))
    for step in range(steps):
        logits, targets = train.answer_logits(network, teacher.draw(rng, "picture", 12))
        loss = F.cross_entropy(logits, targets)
        tool.zero_grad()
        loss.backward()
        tool.step()
        rate.step()
        if step % 25 == 0 or step == steps - 1:
            print(f"step {step + 1} of {steps}: loss {loss.item():.3f}", flush=True)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    words.add_argument("folder", type=Path, nargs="?", default="toy-with-crosses")
    words.add_argument("--steps", type=int, default=250)
    words.add_argument("--questions", type=int, default=200, help="of each exam")
    given = words.parse_args()
    scenes.polygon = with_cross
    before, network = llava_min.load(), train.warm()
    tokenizer = Tokenizer.from_file(str(train.FOLDER / "tokenizer.json"))
    learn(network, lessons.Teacher(before.config, tokenizer), given.steps)
    files = shutil.ignore_patterns("*.py", "samples", "__*")
    shutil.copytree(train.FOLDER, given.folder, ignore=files)
    train.export(network, given.folder)
    after = llava_min.load(given.folder)
    for name, kinds, about in (("crosses", (*KNOWN, "cross"), "cross"), ("the rest", KNOWN, "")):
        count = given.questions
        shares = [f"{exam(model, kinds, about, count):.1%}" for model in (before, after)]
        print(f"{name}: {shares[0]} right before, {shares[1]} after")


if __name__ == "__main__":
    main()
