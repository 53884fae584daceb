"""The world of the embedded checkpoint: drawn scenes, and questions with exactly one right answer.

A picture holds 1 to 5 shapes, each kind at most once, in different places, and sometimes a number.
A clip shows one shape that moves or stays, may change its colour, and a number that may flash up in
a frame. Everything is drawn from a numpy Generator; nothing is stored.

Borders between places: the nine places are the thirds of each side, and a centre keeps at least
MARGIN of that side from a border between two thirds, so that every answer is certain.
Read next: train.py.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw, ImageFont

KINDS = ("circle", "square", "triangle", "star", "diamond")
COLORS = {
    "red": (215, 30, 40),
    "green": (25, 150, 60),
    "blue": (35, 70, 215),
    "yellow": (240, 205, 20),
    "purple": (135, 45, 165),
    "orange": (245, 125, 15),
    "black": (20, 20, 20),
}
PLACES = (
    "in the top left",
    "at the top",
    "in the top right",
    "on the left",
    "in the center",
    "on the right",
    "in the bottom left",
    "at the bottom",
    "in the bottom right",
)
MOMENTS = {"early": (0.0, 0.28), "in the middle": (0.36, 0.64), "late": (0.72, 1.0)}
DIRECTIONS = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}
MARGIN = 0.05


@dataclass(frozen=True)
class Shape:
    """A shape, or a number, whose kind is its digits."""

    kind: str
    color: str
    rgb: tuple[int, int, int]
    center: tuple[float, float]  # in fractions of the picture's sides
    radius: float  # in pixels
    turn: float = 0.0  # in radians

    @property
    def place(self) -> int:
        """Which of PLACES the centre lies in."""
        x, y = self.center
        return 3 * min(int(3 * y), 2) + min(int(3 * x), 2)

    @property
    def named(self) -> str:
        return f"{self.color} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """One picture before it is drawn."""

    size: tuple[int, int]  # width, height
    shapes: tuple[Shape, ...]
    number: Shape | None
    background: int  # a seed
    smooth: bool  # whether edges are anti-aliased

    def find(self, kind: str) -> Shape | None:
        """The shape of a kind, None where there is none."""
        return next((shape for shape in self.shapes if shape.kind == kind), None)


def jittered(rng: np.random.Generator, color: str) -> tuple[int, int, int]:
    """A shade of the colour."""
    shade = np.array(COLORS[color]) + rng.integers(-18, 19, 3)
    red, green, blue = (int(x) for x in shade.clip(0, 255))
    return red, green, blue


def free_center(rng, size, place: int, radius: float) -> tuple[float, float]:
    """A centre in the place, MARGIN away from other places, the whole shape inside the picture."""
    center = []
    for cell, side in ((place % 3, size[0]), (place // 3, size[1])):
        low = max(cell / 3 + (MARGIN if cell > 0 else 0), radius / side)
        high = min((cell + 1) / 3 - (MARGIN if cell < 2 else 0), 1 - radius / side)
        center.append(float(rng.uniform(low, high)) if low < high else (cell + 0.5) / 3)
    return center[0], center[1]


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int], most: int = 5, number_chance: float = 0.35
) -> Scene:
    """1 to `most` shapes, perhaps a number, all in different places and clear of each other."""
    cell = min(size) / 3
    kinds = [str(kind) for kind in rng.permutation(KINDS)[: rng.integers(1, most + 1)]]
    if rng.random() < number_chance:
        kinds.append(str(rng.integers(0, 100)))
    while True:  # a crowded draw is thrown away whole, so that places stay independent
        placed: list[Shape] = []
        for kind, place in zip(kinds, rng.permutation(9)):
            radius = (
                cell * rng.uniform(0.55, 0.75) if kind.isdigit() else cell * rng.uniform(0.3, 0.52)
            )
            for _ in range(20):
                center = free_center(rng, size, int(place), radius)
                if all(
                    math.dist(np.multiply(center, size), np.multiply(other.center, size))
                    > 1.05 * (radius + other.radius)
                    for other in placed
                ):
                    color = str(rng.choice(list(COLORS)))
                    turn = float(rng.uniform(-0.15, 0.15))
                    placed.append(Shape(kind, color, jittered(rng, color), center, radius, turn))
                    break
            else:
                break
        if len(placed) == len(kinds):
            break
    shapes = tuple(shape for shape in placed if not shape.kind.isdigit())
    number = next((shape for shape in placed if shape.kind.isdigit()), None)
    return Scene(size, shapes, number, int(rng.integers(2**31)), bool(rng.random() < 0.7))


# Drawing -----------------------------------------------------------------------


def background(size: tuple[int, int], seed: int) -> Image.Image:
    """A light background: one colour, a gradient, stripes, soft blotches, or noise."""
    rng = np.random.default_rng(seed)
    width, height = size
    light = rng.integers(170, 256) if rng.random() < 0.8 else 255
    first, second = (np.clip(light + rng.integers(-22, 23, 3), 0, 255) for _ in range(2))
    style = rng.choice(["plain", "plain", "gradient", "stripes", "blotches", "noise"])
    if style == "gradient":
        across = np.linspace(0, 1, width)[None, :] * rng.uniform(-1, 1)
        ramp = across + np.linspace(0, 1, height)[:, None] * rng.uniform(-1, 1)
        mix = (ramp - ramp.min()) / max(np.ptp(ramp), 1e-6)
    elif style == "stripes":
        along = np.arange(width)[None, :] if rng.random() < 0.5 else np.arange(height)[:, None]
        mix = np.broadcast_to((along // rng.integers(4, 20)) % 2, (height, width))
    elif style == "blotches":
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4), dtype=np.uint8))
        mix = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) / 255
    else:
        mix = np.zeros((height, width))
    pixels = first + (second - first) * mix[..., None]
    if style == "noise":
        pixels = pixels + rng.normal(0, rng.uniform(2, 10), (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def polygon(shape: Shape, center, radius: float) -> list[tuple[float, float]]:
    """The corners of a square, triangle, star or diamond inscribed in the circle of `radius`."""
    corners, start, inner = {
        "square": (4, math.pi / 4, 0),
        "triangle": (3, math.pi / 2, 0),
        "star": (5, math.pi / 2, 0.42),
        "diamond": (4, math.pi / 2, 0),
    }[shape.kind]
    steps = 2 * corners if inner else corners
    points = []
    for step in range(steps):
        angle = start + shape.turn + 2 * math.pi * step / steps
        reach = radius * (inner if inner and step % 2 else 1.0)
        squeeze = 0.68 if shape.kind == "diamond" else 1.0
        points.append(
            (center[0] + squeeze * reach * math.cos(angle), center[1] - reach * math.sin(angle))
        )
    return points


def draw_shape(canvas: ImageDraw.ImageDraw, shape: Shape, size, scale: int) -> None:
    """Draw a shape or number of a picture of `size` on a canvas that is `scale` times as large."""
    center = (shape.center[0] * size[0] * scale, shape.center[1] * size[1] * scale)
    radius = shape.radius * scale
    if shape.kind.isdigit():
        font = ImageFont.load_default(
            size=max(8, 1.75 * radius * (0.82 if len(shape.kind) > 1 else 1))
        )
        canvas.text(
            center, shape.kind, fill=shape.rgb, font=font, anchor="mm", stroke_width=radius * 0.04
        )
    elif shape.kind == "circle":
        reach = 0.9 * radius
        canvas.ellipse(
            [center[0] - reach, center[1] - reach, center[0] + reach, center[1] + reach],
            fill=shape.rgb,
        )
    else:
        canvas.polygon(polygon(shape, center, radius), fill=shape.rgb)


def render(scene: Scene) -> Image.Image:
    """The picture: anti-aliased by drawing at twice the size, or with hard edges."""
    scale = 2 if scene.smooth else 1
    picture = background(scene.size, scene.background)
    if scale > 1:
        picture = picture.resize(
            (scale * scene.size[0], scale * scene.size[1]), Image.Resampling.BILINEAR
        )
    canvas = ImageDraw.Draw(picture)
    canvas.fontmode = "L" if scene.smooth else "1"
    for shape in scene.shapes + ((scene.number,) if scene.number else ()):
        draw_shape(canvas, shape, scene.size, scale)
    return picture.reduce(scale) if scale > 1 else picture


# Questions: (task, question, answer) -------------------------------------------

QUESTIONS = {
    "count": ("How many shapes are there?", "How many shapes do you see?", "Count the shapes."),
    "color": (
        "What color is the {kind}?",
        "Which color does the {kind} have?",
        "Name the color of the {kind}.",
    ),
    "where": (
        "Where is the {kind}?",
        "In which place is the {kind}?",
        "Where do you see the {kind}?",
    ),
    "at": ("What shape is {place}?", "Which shape is {place}?", "What is {place}?"),
    "exists": ("Is there a {kind}?", "Do you see a {kind}?", "Does the picture show a {kind}?"),
    "number": ("What number is written?", "Which number do you see?", "Read the number."),
    "describe": ("Describe the picture.", "What do you see?", "What is in the picture?"),
    "which": ("Which picture has the {kind}?", "In which picture is the {kind}?"),
    "pair_color": (
        "What color is the {kind} in the {nth} picture?",
        "Which color does the {kind} in the {nth} picture have?",
    ),
    "different": ("What is different?", "What changed?", "What is the difference?"),
    "describe_pair": ("Describe the pictures.", "What do you see in the pictures?"),
    "direction": ("Which way does the {kind} move?", "Where does the {kind} go?"),
    "end_color": (
        "What color is the {kind} at the end?",
        "Which color does the {kind} have at the end?",
    ),
    "flash": ("What number flashed up?", "Which number flashed up?"),
    "when": ("When did the number flash up?", "When was the number there?"),
    "describe_clip": (
        "Describe the video.",
        "What happens in the video?",
        "What do you see in the video?",
    ),
}
NONE = "There is no number."
ONE_PICTURE = ("count", "color", "where", "at", "exists", "number", "describe")
TWO_PICTURES = ("which", "pair_color", "different", "describe_pair")
CLIPS = ("direction", "end_color", "flash", "when", "describe_clip")


def ask(rng, task: str, answer: str, **words) -> tuple[str, str, str]:
    """One of the task's phrasings; half of the draws are the first one."""
    phrasings = QUESTIONS[task]
    index = 0 if rng.random() < 0.5 else int(rng.integers(len(phrasings)))
    return task, phrasings[index].format(**words), answer


def sentence(text: str) -> str:
    """A text with a capital letter and a full stop."""
    return text[0].upper() + text[1:] + "."


def description(scene: Scene) -> str:
    """Every shape in reading order, then the number.

    "A red star in the top left, a blue circle in the center, the number 42 on the right."
    """
    things = sorted(
        scene.shapes + ((scene.number,) if scene.number else ()), key=lambda shape: shape.place
    )
    return sentence(
        ", ".join(
            (
                f"the number {thing.kind}"
                if thing.kind.isdigit()
                else f"{'an' if thing.color == 'orange' else 'a'} {thing.named}"
            )
            + f" {PLACES[thing.place]}"
            for thing in things
        )
    )


def picture_questions(rng, scene: Scene) -> list[tuple[str, str, str]]:
    """About a dozen questions on one picture, some of them on what is not there.

    Color and place are asked of every shape: the same picture then has a different answer for each
    kind, and only who looks at the kind can learn them all.
    """
    present = [shape.kind for shape in scene.shapes]
    absent = [str(kind) for kind in rng.permutation(KINDS) if kind not in present]
    asked = present + [kind for kind in absent[:1] if rng.random() < 0.3]
    questions = []
    for kind in asked:
        shape, missing = scene.find(kind), f"There is no {kind}."
        color, place = (
            (sentence(shape.color), sentence(PLACES[shape.place])) if shape else (missing,) * 2
        )
        questions.append(ask(rng, "color", color, kind=kind))
        questions.append(ask(rng, "where", place, kind=kind))
    filled = {shape.place: shape for shape in scene.shapes}
    taken = {*filled, *([scene.number.place] if scene.number else [])}
    empty = [place for place in range(9) if place not in taken]
    for place in [*rng.permutation(list(filled))[:2], rng.choice(empty)][
        : 2 + (rng.random() < 0.5)
    ]:
        answer = f"A {filled[place].kind}." if place in filled else "Nothing."
        questions.append(ask(rng, "at", answer, place=PLACES[place]))
    for kinds, answer in ((present, "Yes."), (absent, "No.")):
        if kinds:
            questions.append(ask(rng, "exists", answer, kind=str(rng.choice(kinds))))
    number = f"{scene.number.kind}." if scene.number else NONE
    questions.append(ask(rng, "number", number))
    if rng.random() < 0.5:
        questions.append(ask(rng, "count", f"{len(scene.shapes)}."))
    else:
        questions.append(ask(rng, "describe", description(scene)))
    return questions


NTH = ("first", "second")


def draw_pair(rng, size) -> tuple[list[Scene], list[tuple[str, str, str]]]:
    """Two pictures: either unrelated, or the second one is the first with one difference."""
    first, difference = draw_scene(rng, size, most=4, number_chance=0.1), None
    if rng.random() < 0.2:
        second = draw_scene(rng, size, most=4, number_chance=0.1)
    else:
        first, second, difference = differing(rng, first)
    scenes = [first, second]
    questions = []
    for kind in rng.permutation(KINDS)[:4]:
        holders = [nth for nth, scene in zip(NTH, scenes) if scene.find(kind)]
        which = ("Neither", f"The {holders[0]}" if holders else "", "Both")[len(holders)]
        answer = f"{which} picture{'s' * (len(holders) == 2)}."
        questions.append(ask(rng, "which", answer, kind=kind))
    for index in (0, 1):
        shape = scenes[index].shapes[rng.integers(len(scenes[index].shapes))]
        questions.append(
            ask(rng, "pair_color", sentence(shape.color), kind=shape.kind, nth=NTH[index])
        )
    if difference is not None:
        questions.append(ask(rng, "different", difference))
    parts = [description(scene) for scene in scenes]
    both = " ".join(
        f"{nth.capitalize()}: {part[0].lower()}{part[1:]}" for nth, part in zip(NTH, parts)
    )
    questions.append(ask(rng, "describe_pair", both))
    return scenes, questions


def differing(rng, scene: Scene) -> tuple[Scene, Scene, str]:
    """(the scene, a neighbour with one difference, the sentence that names it).

    They differ in a colour, in a shape that is gone, or in one that is new.
    """
    index = int(rng.integers(len(scene.shapes)))
    shape = scene.shapes[index]
    before, after = scene.shapes[:index], scene.shapes[index + 1 :]
    what = str(rng.choice(["color", "gone", "new"], p=[0.35, 0.4, 0.25]))
    what = what if before + after else "color"
    if what == "gone":
        return scene, replace(scene, shapes=before + after), f"The {shape.kind} is gone."
    if what == "new":
        return replace(scene, shapes=before + after), scene, f"There is a new {shape.kind}."
    color = str(rng.choice([name for name in COLORS if name != shape.color]))
    recolored = replace(shape, color=color, rgb=jittered(rng, color))
    return (
        scene,
        replace(scene, shapes=(*before, recolored, *after)),
        f"The {shape.kind} turned {color}.",
    )


@dataclass(frozen=True)
class Clip:
    """A clip before it is drawn: one Scene a frame, and the facts that the questions ask for."""

    frames: tuple[Scene, ...]
    kind: str
    color: str
    end_color: str
    direction: str | None
    number: str | None
    moment: str | None


def draw_clip(rng, size: tuple[int, int], count: int) -> Clip:
    """A shape that moves across or stays, and may change its colour; a number may flash up."""
    width, height = size
    kind, color = str(rng.choice(KINDS)), str(rng.choice(list(COLORS)))
    end_color = str(rng.choice(list(COLORS))) if rng.random() < 0.5 else color
    first_rgb = jittered(rng, color)
    rgbs = (first_rgb, first_rgb if end_color == color else jittered(rng, end_color))
    radius = min(size) / 3 * rng.uniform(0.42, 0.58)
    direction = str(rng.choice(list(DIRECTIONS))) if rng.random() < 0.85 else None
    low = np.array([radius / width, radius / height])
    start = rng.uniform(low, 1 - low)
    end = start.copy()
    if direction:
        axis = 0 if DIRECTIONS[direction][0] else 1
        room = 1 - 2 * low[axis]
        travel = rng.uniform(0.6, 1.0) * room
        begin = low[axis] + rng.uniform(0, room - travel)
        ends = (
            (begin, begin + travel) if sum(DIRECTIONS[direction]) > 0 else (begin + travel, begin)
        )
        start[axis], end[axis] = ends
    change = rng.uniform(0.35, 0.6)
    moment = str(rng.choice(list(MOMENTS))) if rng.random() < 0.7 else None
    number, flash_frame = None, -1
    if moment:
        low_time, high_time = MOMENTS[moment]
        fitting = [f for f in range(count) if low_time <= (f + 0.5) / count <= high_time]
        flash_frame, digits = int(rng.choice(fitting)), str(rng.integers(0, 100))
        number_color = str(rng.choice(list(COLORS)))
        number_radius = min(size) * rng.uniform(0.26, 0.36)
        spot = rng.uniform(
            *(
                np.array(x)
                for x in (number_radius / np.array(size), 1 - number_radius / np.array(size))
            )
        )
        number = Shape(
            digits, number_color, jittered(rng, number_color), (spot[0], spot[1]), number_radius
        )
    ground, smooth = int(rng.integers(2**31)), bool(rng.random() < 0.7)
    frames = []
    for index in range(count):
        along = index / (count - 1)
        late = along > change
        x, y = (float(value) for value in start + (end - start) * along)
        center = (x, y)
        shape = Shape(kind, end_color if late else color, rgbs[late], center, radius)
        flash = number if index == flash_frame else None
        hidden = flash is not None and (
            math.dist(np.multiply(center, size), np.multiply(flash.center, size))
            < radius + flash.radius
        )
        frames.append(Scene(size, () if hidden else (shape,), flash, ground, smooth))
    return Clip(
        tuple(frames), kind, color, end_color, direction, number.kind if number else None, moment
    )


def clip_questions(rng, clip: Clip) -> list[tuple[str, str, str]]:
    """The five questions on a clip; sometimes one on a shape that is not there."""
    moves = sentence(clip.direction) if clip.direction else "It stays."
    story = f"{'An' if clip.color == 'orange' else 'A'} {clip.color} {clip.kind} "
    story += f"moves {clip.direction}." if clip.direction else "stays."
    story += f" It turns {clip.end_color}." if clip.end_color != clip.color else ""
    story += f" The number {clip.number} flashes up {clip.moment}." if clip.number else ""
    questions = [
        ask(rng, "direction", moves, kind=clip.kind),
        ask(rng, "end_color", sentence(clip.end_color), kind=clip.kind),
        ask(rng, "flash", f"{clip.number}." if clip.number else NONE),
        ask(rng, "when", sentence(clip.moment) if clip.moment else NONE),
        ask(rng, "describe_clip", story),
    ]
    if rng.random() < 0.25:
        other = str(rng.choice([kind for kind in KINDS if kind != clip.kind]))
        task = str(rng.choice(["direction", "end_color"]))
        questions.append(ask(rng, task, f"There is no {other}.", kind=other))
    return questions
