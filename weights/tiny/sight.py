"""The first stage: the vision tower alone learns to say what each patch of a tile shows.

A linear reader on top of the tower names, for every patch, the shape, the colour and the two digits
found there. The reader is thrown away; what the tower has learnt shortens the second stage many
times.
Read next: lessons.py.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import image
from ...vision import VisionTower
from . import scenes

COLORS = list(scenes.COLORS)
# kind (or number), colour, tens, ones; 0 = nothing
CLASSES = (len(scenes.KINDS) + 2, len(COLORS) + 1, 12, 12)


class Reader(nn.Module):
    """One linear layer over patch features [B N D], one group of logits for each of CLASSES."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, sum(CLASSES))

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return self.linear(features).split(CLASSES, dim=-1)


def labels(scene: scenes.Scene, box: tuple[float, float, float, float], side: int) -> np.ndarray:
    """What each patch of a region shows, by CLASSES: [side*side 4].

    box: the region's left, top, right and bottom in pixels of the picture.
    """
    found = np.zeros((side, side, 4), dtype=np.int64)
    for shape in scene.shapes + ((scene.number,) if scene.number else ()):
        center = np.multiply(shape.center, scene.size)
        half = ((box[2] - box[0]) / side / 2, (box[3] - box[1]) / side / 2)
        for row in range(side):
            for column in range(side):
                x = box[0] + (2 * column + 1) * half[0]
                y = box[1] + (2 * row + 1) * half[1]
                # the shape covers the patch's centre, or its own centre lies in the patch
                near = math.hypot(x - center[0], y - center[1]) < 0.85 * shape.radius
                inside = abs(x - center[0]) <= half[0] and abs(y - center[1]) <= half[1]
                if near or inside:
                    color = COLORS.index(shape.color) + 1
                    if shape.kind.isdigit():
                        tens = int(shape.kind[0]) + 1 if len(shape.kind) > 1 else 11
                        found[row, column] = (
                            len(scenes.KINDS) + 1,
                            color,
                            tens,
                            int(shape.kind[-1]) + 1,
                        )
                    else:
                        found[row, column] = (scenes.KINDS.index(shape.kind) + 1, color, 0, 0)
    return found.reshape(side * side, 4)


def example(rng: np.random.Generator, tile: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A tile [S S 3] and its patches' labels: a whole picture, a part, or a frame of a clip."""
    size = (int(rng.integers(64, 200)), int(rng.integers(64, 200)))
    chance = rng.random()
    if chance < 0.25:
        clip = scenes.draw_clip(rng, size, 4)
        scene = next((frame for frame in clip.frames if frame.number), clip.frames[0])
    else:
        scene = scenes.draw_scene(rng, size, number_chance=0.5)
    picture, box = scenes.render(scene), (0, 0, *size)
    if chance > 0.75:  # a detail tile of a grid
        width, height = (int(x * rng.uniform(0.45, 1.0)) for x in size)
        left, top = int(rng.integers(size[0] - width + 1)), int(rng.integers(size[1] - height + 1))
        box = (left, top, left + width, top + height)
        picture = picture.crop(box)
    return image.squeezed(picture, tile), labels(scene, box, side)


def loss(tower: VisionTower, reader: Reader, rng: np.random.Generator, count: int) -> Tensor:
    """Cross-entropy of the reader on `count` fresh tiles.

    Patches that show nothing count a quarter.
    """
    config = tower.config
    tiles, labelled = zip(*(example(rng, config.image_size, config.side) for _ in range(count)))
    wanted = torch.from_numpy(np.stack(labelled)).flatten(0, 1)
    groups = reader(tower(torch.from_numpy(np.stack(tiles))))
    weight = torch.where(wanted[:, 0] == 0, 0.25, 1.0)
    total = torch.zeros(())
    for index, logits in enumerate(groups):
        each = F.cross_entropy(logits.flatten(0, 1).float(), wanted[:, index], reduction="none")
        # digits are asked of numbers alone
        counted = weight * (wanted[:, 2] > 0) if index >= 2 else weight
        total = total + (each * counted).sum() / counted.sum().clamp_min(1)
    return total
