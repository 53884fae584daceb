"""How far the maps of an explanation can be trusted, on scenes of which we know what is where.

    python -m bench explain [--samples 2000] [--only pointing occlusion cost memory]

pointing   "Where is the star?" of fresh scenes: does the brightest place of the map of the first
           word lie in the star's box, and how much of the map does? Right answers only. Controls:
           another shape's box, the maps of a blank picture, shuffled places; and what four mistakes
           of the geometry would make of it
occlusion  does the square that costs the answer most have its middle in the box?
cost       seconds of explaining 64 words beside writing them: after 7,000 tokens in the shape of
           0.5B, and after 100,000 in that of the toy
memory     what explaining them takes beyond the model and its cache, after the same prompts
Read ledger.py first. Read next: quality.py.

V rows of a picture.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import llava_min
from llava_min import segments as plans
from llava_min.base.progress import Progress
from llava_min.cache import Cache
from llava_min.config import LlavaConfig
from llava_min.engine.handle import Model
from llava_min.explain.explaining import explained
from llava_min.explain.explanation import Explanation
from llava_min.explain.measures import Key
from llava_min.explain.places import spread
from llava_min.explain.rows import KINDS, Rows
from llava_min.model import Network
from llava_min.request.prepare import Prepared
from llava_min.request.visuals import Encodable
from llava_min.weights.tiny import exam, scenes

from . import ledger, measure, models, shapes

SECTIONS = ("pointing", "occlusion", "cost", "memory")
TASKS = ("where", "color")
CHOOSING, SEED = 11, 12  # seeds of the scenes on which a head is chosen, and of those that count
CHOSEN_ON = 200  # scenes
BASE, GRID = KINDS.index("base"), KINDS.index("grid")
Box = tuple[float, float, float, float]
Marks = dict[str, tuple[bool, float]]  # for "grid" and "joined": hit, mass


@dataclass
class Case:
    """A question about a scene: the box of the shape that it asks for, and that of another one."""

    picture: Image.Image
    question: str
    answer: str
    box: Box
    other: Box

    @property
    def area(self) -> float:
        """The box's part of the picture."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top) / (self.picture.width * self.picture.height)


def box_of(shape: scenes.Shape, size: tuple[int, int]) -> Box:
    """The square around a shape, cut at the picture's edge."""
    x, y = shape.center[0] * size[0], shape.center[1] * size[1]
    left, top, right, bottom = (end + sign * shape.radius for sign in (-1, 1) for end in (x, y))
    return max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1])


def cases(seed: int) -> Iterator[Case]:
    """Questions about fresh scenes of 2 to 5 shapes, without end."""
    rng = np.random.default_rng([seed, 20261126])
    while True:
        size = (int(rng.integers(100, 301)), int(rng.integers(100, 301)))
        scene = scenes.draw_scene(rng, size)
        if len(scene.shapes) < 2:
            continue
        asked, other = (scene.shapes[i] for i in rng.permutation(len(scene.shapes))[:2])
        task = TASKS[int(rng.integers(len(TASKS)))]
        answer = asked.color if task == "color" else scenes.PLACES[asked.place]
        question = scenes.QUESTIONS[task][0].format(kind=asked.kind)
        boxes = box_of(asked, size), box_of(other, size)
        yield Case(scenes.render(scene), question, scenes.sentence(answer), *boxes)


def explained_right(model: Model, seed: int) -> Iterator[tuple[Case, Explanation]]:
    """Cases that the model answers right, explained."""
    for case in cases(seed):
        found = model.explain(case.question, case.answer, images=[np.asarray(case.picture)])
        if all(top[0][0] == word for top, word in zip(found.top, found.tokens)):
            yield case, found


# One map ---------------------------------------------------------------------------------


def inside(x: float, y: float, box: Box) -> bool:
    """Whether a point lies in a box, its edge included."""
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def judged(weights: np.ndarray, rows: Rows, size: tuple[int, int], box: Box) -> Marks:
    """Whether the middle of the brightest place lies in a box, and how much of the map does.

    "grid": of the grid's part of the map alone; "joined": of all of it, as a page shows it.
    """
    parts = {
        kind: spread(weights[rows.kinds == kind], rows.boxes[rows.kinds == kind], size)
        for kind in (BASE, GRID)
    }
    marks = {}
    for name, found in (("grid", parts[GRID]), ("joined", parts[BASE] + parts[GRID])):
        down, right = np.nonzero(found >= (1 - 1e-4) * found.max())
        middle = np.median(right) + 0.5, np.median(down) + 0.5
        (x0, y0), (x1, y1) = (np.round(ends).astype(int) for ends in (box[:2], box[2:]))
        mass = found[y0:y1, x0:x1].sum() / max(found.sum(), 1e-9)
        marks[name] = inside(*middle, box), float(mass)
    return marks


# What mistakes would make of it ------------------------------------------------------------


def off_by_one(rows: Rows, picture: plans.Picture) -> Rows:
    """Each row is taken for the one before it."""
    return moved(rows, np.roll(np.arange(len(rows.tokens)), 1))


def transposed(rows: Rows, picture: plans.Picture) -> Rows:
    """Rows and columns of the grid are exchanged: it is read column by column."""
    down, right = picture.grid.shape
    order, base = np.arange(len(rows.tokens)), picture.side**2
    cells = base + np.arange(down)[:, None] * (right + 1) + np.arange(right)
    order[cells.flatten()] = cells.T.flatten()
    return moved(rows, order)


def swapped(rows: Rows, picture: plans.Picture) -> Rows:
    """The grid is taken for what comes first."""
    return moved(rows, np.roll(np.arange(len(rows.tokens)), -(picture.side**2)))


def without_newlines(rows: Rows, picture: plans.Picture) -> Rows:
    """The newline at the end of each row of the grid is forgotten, so that rows slip."""
    patches = np.flatnonzero(rows.kinds != KINDS.index("newline"))
    order = np.resize(patches, len(rows.tokens))
    order[len(patches) :] = np.flatnonzero(rows.kinds == KINDS.index("newline"))
    return moved(rows, order)


def moved(rows: Rows, order: np.ndarray) -> Rows:
    """The same rows, but row i is taken for what row order[i] is."""
    return replace(rows, kinds=rows.kinds[order], boxes=rows.boxes[order])


MUTANTS: dict[str, Callable[[Rows, plans.Picture], Rows]] = {
    "rows off by one": off_by_one,
    "grid transposed": transposed,
    "base and grid swapped": swapped,
    "newlines forgotten": without_newlines,
}


# Many maps ---------------------------------------------------------------------------------


def chosen_head(model: Model, count: int) -> Key:
    """The head that points right most often, on other scenes."""
    hits: dict[Key, int] = {}
    for number, (case, found) in enumerate(explained_right(model, CHOOSING)):
        if number == count:
            break
        for key in found.planes:
            if key[1] is not None:
                marks = judged(found.weights(0, *key), found.rows, case.picture.size, case.box)
                hits[key] = hits.get(key, 0) + marks["grid"][0]
    return max(hits, key=lambda key: hits[key])


def pointing(samples: int) -> list[dict]:
    """A row for each kind of map, control and mistake."""
    model = llava_min.load(dtype="float32")
    head = chosen_head(model, min(samples, CHOSEN_ON))
    marks: dict[tuple[str, str], list[tuple[bool, float]]] = {}
    areas, progress, rng = [], Progress("pointing", quiet=False), np.random.default_rng(SEED)
    for number, (case, found) in enumerate(explained_right(model, SEED)):
        if number == samples:
            break
        every = maps_of(case, found, head, rng)
        if number < samples // 4:
            white = np.full_like(np.asarray(case.picture), 255)
            blank = model.explain(case.question, case.answer, images=[white], words=1)
            weights = blank.weights(0, len(found.shares) - 1)
            every["blank picture"] = weights, found.rows, case.box
        for name, (weights, rows, box) in every.items():
            for part, mark in judged(weights, rows, case.picture.size, box).items():
                marks.setdefault((name, part), []).append(mark)
        areas.append(case.area)
        progress(number + 1, samples)
    same = {"area": float(np.mean(areas)), "head": list(head)}
    return [result("pointing", *key, found) | same for key, found in marks.items()]


def maps_of(
    case: Case, found: Explanation, head: Key, rng: np.random.Generator
) -> dict[str, tuple[np.ndarray, Rows, Box]]:
    """Weights, places and a box by name: five kinds of map, controls, and mistakes.

    Controls and mistakes have the weights of the last layer.
    """
    weights, rows = found.weights(0, len(found.shares) - 1), found.rows
    picture, shuffled = found.visuals[0].segment, moved(rows, rng.permutation(len(rows.tokens)))
    assert isinstance(picture, plans.Picture) and found.suggested is not None
    aimed = next(key for key in found.planes if key[1] is not None)  # the best of them comes first
    return {
        "mean of all layers and heads": (found.weights(0), rows, case.box),
        "mean of the last layer": (weights, rows, case.box),
        "suggested layer": (found.weights(0, *found.suggested), rows, case.box),
        "head that is aimed best": (found.weights(0, *aimed), rows, case.box),
        "head chosen on other scenes": (found.weights(0, *head), rows, case.box),
        "another shape's box": (weights, rows, case.other),
        "shuffled places": (weights, shuffled, case.box),
        **{name: (weights, change(rows, picture), case.box) for name, change in MUTANTS.items()},
    }


def result(section: str, name: str, part: str, marks: list[tuple[bool, float]]) -> dict:
    """A row: how often, with its interval, and the mean mass with its own."""
    hits, masses = [hit for hit, _ in marks], np.array([mass for _, mass in marks])
    low, high = exam.interval(hits)
    return {
        "section": section,
        "shape": "embedded",
        "name": name,
        "format": part,
        "n": len(hits),
        "hit": float(np.mean(hits)),
        "low": float(low),
        "high": float(high),
        "mass": float(masses.mean()),
        "mass_error": float(1.96 * masses.std() / np.sqrt(len(masses))),
    }


def covering(samples: int) -> list[dict]:
    """The same for the middle of the square that costs most; mass is the part of all costs."""
    model = llava_min.load(dtype="float32")
    marks: dict[str, list[tuple[bool, float]]] = {}
    progress = Progress("covering", quiet=False)
    for number, (case, _) in enumerate(explained_right(model, SEED)):
        if number == samples:
            break
        image = np.asarray(case.picture)
        found = model.explain(case.question, case.answer, images=[image], occlusion=True)
        one = found.occlusion[0]
        for fill, drops in one.drops.items():
            costs = drops.sum(1).clip(min=0)
            middles = (one.boxes[:, :2] + one.boxes[:, 2:]) / 2
            hits = np.array([inside(x, y, case.box) for x, y in middles])
            mark = bool(hits[costs.argmax()]), float(costs[hits].sum() / max(costs.sum(), 1e-9))
            marks.setdefault(f"covered in {fill}", []).append(mark)
        progress(number + 1, samples)
    return [result("occlusion", name, "joined", found) for name, found in marks.items()]


# What it costs -----------------------------------------------------------------------------

WORDS = 64
IDS = list(range(5, 5 + WORDS))
COSTS = (("0.5B", 7_000), ("embedded", 100_000))  # shape, tokens of the prompt


def prompt_of(tokens: int, config: LlavaConfig) -> Prepared:
    """A prompt of about so many tokens: a clip, and a short question."""
    each = plans.clip([0.0], (640, 360), config).frame_tokens
    clip = plans.clip([float(n) for n in range(max(tokens // each, 1))], (640, 360), config)
    plan = plans.Plan((plans.Text((1,)), clip, plans.Text((2, 3))), 10**6)
    entry = {"type": "video", "source": "x", "size": [640, 360], "tokens": clip.tokens}
    return Prepared(plan, None, [Encodable(clip, np.empty(0))], [entry])


@dataclass
class Work:
    """What is measured: 64 words written, or explained, after a prompt of so many tokens."""

    network: Network
    cache: Cache
    prepared: Prepared

    @classmethod
    def of(cls, shape: str, length: int) -> "Work":
        """Random weights of a shape, and a cache that is full of random numbers."""
        config = models.onevision(shapes.TEXTS[shape], shapes.TOWERS["SigLIP"])
        network = models.network_of(models.decoder_of(config.text, False, "cpu", torch.bfloat16))
        network.config, prepared = config, prompt_of(length, config)
        tokens = [prepared.plan.tokens]
        return cls(network, models.full_cache(config.text, tokens, WORDS, torch.bfloat16), prepared)

    def write(self) -> None:
        """The words one by one."""
        for token in IDS:
            self.network.decode(torch.tensor([token]), self.cache)
        self.cache.rewind(WORDS)

    def explain(self) -> int:
        """The same words; how many there was room for."""
        last = self.network.decoder.embed(torch.tensor([IDS[:1]]))[0]
        found = explained(self.network, self.cache, last, self.prepared, IDS, WORDS, 5, "")
        return len(found.tokens)

    def row(self, section: str, shape: str) -> dict:
        """The beginning of a row."""
        named = {"section": section, "shape": shape, "name": f"{WORDS} words"}
        return {**named, "context": self.prepared.plan.tokens}


@torch.inference_mode()
def cost(shape: str, length: int, pairs: int) -> list[dict]:
    """A row: the median ratio of the seconds of explaining and writing, which take turns."""
    work, ratios, words = Work.of(shape, length), [], 0
    for turn in range(pairs + 1):
        start = time.perf_counter()
        work.write()
        middle = time.perf_counter()
        words = work.explain()
        if turn:  # the first one makes what is made once
            ratios.append((time.perf_counter() - middle) / (middle - start))
    return [work.row("cost", shape) | {"words": words, "ratio": sorted(ratios)[pairs // 2]}]


@torch.inference_mode()
def memory(shape: str, length: int) -> list[dict]:
    """A row: the largest of three peaks beyond what the process holds before."""
    work, peaks, words = Work.of(shape, length), {"writing": 0, "above": 0}, 0
    for _ in range(3):
        for name, does in (("writing", work.write), ("above", work.explain)):
            before = measure.resident("VmRSS")
            measure.forget_peak()
            words = does() or words
            peaks[name] = max(peaks[name], measure.resident("VmHWM") - before)
    found = {f"{name}_bytes": peak for name, peak in peaks.items()}
    return [work.row("memory", shape) | {"words": words} | found]


def apart(section: Callable[..., list[dict]], *given: object) -> list[dict]:
    """A section in a process of its own: what another case has freed would hide what it takes."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(section, *given).result()


def run(samples: int, sections: list[str], out: Path, dry: bool) -> Path:
    """The parts asked for, each printed and written as it comes."""
    path = out / "explain.jsonl"
    costs = [("embedded", 500)] if dry else COSTS
    work = {
        "pointing": [lambda: pointing(samples)],
        "occlusion": [lambda: covering(max(samples // 8, 1))],
        "cost": [partial(apart, cost, *case, 1 if dry else 3) for case in costs],
        "memory": [partial(apart, memory, *case) for case in costs],
    }
    for rows in (measured() for section in sections for measured in work[section]):
        ledger.keep(path, rows)
        for row in rows:
            print(row, flush=True)
    return path
