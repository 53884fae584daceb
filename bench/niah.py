"""A needle in a haystack of frames: is one frame found, wherever it stands in a long clip?

in:  a checkpoint; a film, or clips that the toy's world draws; needles: picture, question, answer
out: niah-NAME.jsonl, a row for each length, depth and needle; niah-NAME.svg, the heat map
The protocol is LongVA's: n frames of the film with the needle put after the first int(depth x n);
one pass with the answer forced; found if every token of the answer is the most likely one. Each
frame is encoded once, and a prefix of the film that two cases share is prefilled once: the cases
are taken from the deepest place to the shallowest, rewinding the cache.
Read next: plots.py. Agrees with: vision_niah of LongVA; arXiv 2406.16852.
"""

import colorsys
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import llava_min
from llava_min import image, projector
from llava_min import segments as plans
from llava_min.engine.handle import Model
from llava_min.errors import MediaError
from llava_min.media import sources as media
from llava_min.media import video
from llava_min.segments import Clip, Plan, Text
from llava_min.weights.tiny import scenes

LENGTHS = (4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256)
TRAINED = 16  # frames of the longest clip that the embedded checkpoint was trained on
SIZE, SEED = (126, 126), 24242424


def drawn(longest: int, needles: int) -> tuple[list[np.ndarray], list[dict]]:
    """A clip without a number, and frames of others in which a number flashes."""
    rng, found = np.random.default_rng(SEED), []
    while (film := scenes.draw_clip(rng, SIZE, longest)).number:
        pass
    while len(found) < needles:
        clip = scenes.draw_clip(rng, SIZE, 8)
        if clip.number:
            frame = next(scene for scene in clip.frames if scene.number)
            found.append(
                {
                    "image": scenes.render(frame),
                    "answer": f"{clip.number}.",
                    "question": scenes.QUESTIONS["flash"][0],
                }
            )
    return [np.asarray(scenes.render(scene)) for scene in film.frames], found


def filmed(path: str, longest: int) -> list[np.ndarray]:
    """One frame a second of a film, from its beginning, as V-NIAH takes them."""
    clip = video.sample_clip(path, video.Choice(fps=1.0, end=float(longest)))
    frames = list(clip)[:longest]
    if len(frames) < longest:
        raise MediaError("cannot hide a needle", path, f"{longest} seconds", f"{len(frames)}")
    return frames


def stored(path: Path) -> list[dict]:
    """The needles of a file, or of needles.json in a folder; pictures lie next to the file."""
    listed = path / "needles.json" if path.is_dir() else path
    needles = json.loads(listed.read_text())
    return [
        one | {"image": media.open_picture(str(listed.parent / one["image"]))} for one in needles
    ]


@torch.inference_mode()
def encoded(model: Model, frames: list[np.ndarray]) -> list[Tensor]:
    """The rows [tokens W] of each frame, what ends a clip left out."""
    network, config = model.network, model.config
    rows = []
    for features in network.features(image.FrameTiles(frames, config, range(len(frames))), 8):
        pooled = network.pooled(features)
        rows += [
            projector.frames_rows(one[None], network.newline, config.newline_position)
            for one in pooled
        ]
    return rows


class Haystack:
    """Frames after the prompt's beginning in a cache, as far as the cases have needed them."""

    def __init__(self, model: Model, frames: list[Tensor], room: int):
        self.model, self.frames, self.held = model, frames, 0
        prepared = model.prepare("?", videos=[np.zeros((1, 8, 8, 3), np.uint8)])
        self.before = len(prepared.plan.segments[0].ids)
        self.cache = model.empty_cache(self.before + room)
        self.read([prepared.plan.segments[0]], [])

    def read(self, segments: list, rows: list[Tensor]) -> Tensor:
        """Prefill segments into the cache; the rows of its visuals in order."""
        plan = Plan(tuple(segments), self.model.config.text.context)
        return self.model.network.prefill(plan, [iter(rows)] if rows else [], self.cache)

    def clip(self, frames: int, ended: bool) -> Clip:
        """The segment of some frames of the film, `ended` by what follows its last one."""
        clip = plans.clip([0.0] * frames, (1, 1), self.model.config)
        cut = clip.newlines == "one_token" and not ended
        return replace(clip, newlines="no_token") if cut else clip

    def rewind(self, count: int) -> None:
        """Keep the first `count` frames, reading those that are not there yet."""
        new = self.frames[self.held : count] if count > self.held else []
        if new:
            self.read([self.clip(len(new), ended=False)], new)
        self.held = max(self.held, count)
        kept = self.before + sum(len(rows) for rows in self.frames[:count])
        self.cache.rewind(int(self.cache.host_lengths[0]) - kept)
        self.held = count

    def score(self, place: int, length: int, needle: Tensor, asked: Text, answer: list[int]):
        """The answer's Score with the needle after `place` of `length` frames, and the tokens."""
        self.rewind(place)
        network, config = self.model.network, self.model.config
        end = projector.clip_end(network.newline, config.newline_position)
        rows = [needle, *self.frames[place:length], *([] if end is None else [end])]
        clip = self.clip(length - place + 1, ended=True)
        logits = self.read([clip, asked], rows)
        tokens = int(self.cache.host_lengths[0])
        found = self.model.forced(logits, self.cache, answer)
        self.rewind(place)
        return found, tokens


def run(settings) -> list[Path]:
    """All cases that the file of results does not hold yet, then the heat map."""
    lengths = sorted(settings.frames or ((4, 12) if settings.dry_run else LENGTHS))
    count, depths = (1, 3) if settings.dry_run else (settings.needles, settings.depths)
    model = llava_min.load(settings.model, context=10**7)
    film, needles = drawn(lengths[-1], count)
    if settings.haystack:
        film, needles = filmed(settings.haystack, lengths[-1]), stored(settings.asked)
    name = "dry-run" if settings.dry_run else Path(settings.model or "embedded").name
    path = settings.out / f"niah-{name}.jsonl"
    settings.out.mkdir(parents=True, exist_ok=True)
    if settings.dry_run:
        path.unlink(missing_ok=True)
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    have = {(row["frames"], row["depth"], row["needle"]) for row in done}
    shares = [step / max(depths - 1, 1) for step in range(depths)]
    cases = [
        (int(depth * n), n, depth, k)
        for n in lengths
        for depth in shares
        for k in range(len(needles))
        if (n, round(depth, 3), k) not in have
    ]
    if cases:
        search(model, film, needles, sorted(cases, reverse=True), path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    trained = None if settings.model else TRAINED
    drawing = path.with_suffix(".svg")
    drawing.write_text(heat_map(rows, f"needle in a haystack, {name}", trained))
    return [path, drawing]


def search(model: Model, film: list, needles: list[dict], cases: list, path: Path) -> None:
    """Run the cases, (place, length, depth, needle) from the deepest place on; append each row."""
    frames = encoded(model, film)
    hidden = encoded(model, [np.asarray(needle["image"].convert("RGB")) for needle in needles])
    asked = [
        model.prepare(n["question"], videos=[np.zeros((1, 8, 8, 3), np.uint8)]).plan.segments[-1]
        for n in needles
    ]
    answers = [model.tokenizer.encode_text(needle["answer"]) for needle in needles]
    room = sum(map(len, frames)) + max(map(len, hidden)) + 1
    room += max(len(text.ids) + len(ids) for text, ids in zip(asked, answers))
    haystack = Haystack(model, frames, room)
    with path.open("a") as file:
        for place, length, depth, k in cases:
            found, tokens = haystack.score(place, length, hidden[k], asked[k], answers[k])
            row = {
                "frames": length,
                "depth": round(depth, 3),
                "needle": k,
                "tokens": tokens,
                "answer": needles[k]["answer"],
                "found": all(found.matches),
                "log_probability": round(sum(found.log_probabilities), 4),
            }
            file.write(json.dumps(row) + "\n")
            file.flush()


def colour(share: float) -> str:
    """Red for 0 to green for 1, in a form that every viewer knows."""
    channels = colorsys.hls_to_rgb(share / 3, 0.6, 0.6)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)


def square(x: float, y: float, cell: float, share: float) -> str:
    """One cell of the heat map, whose upper left corner is at (x, y)."""
    return (
        f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" '
        f'fill="{colour(share)}" stroke="white"/>'
        f'<text x="{x + cell / 2}" y="{y + 0.58 * cell}" '
        f'text-anchor="middle">{share:.0%}</text>'
    )


def heat_map(rows: list[dict], title: str, trained: int | None) -> str:
    """An SVG: frames across, depth down, green where all needles are found, red where none is.

    trained: frames of the longest clip of the training; a dotted line stands after it.
    """
    lengths = sorted({row["frames"] for row in rows})
    depths = sorted({row["depth"] for row in rows})
    cell, left, top = 56, 70, 50
    parts = [f'<text x="{left}" y="24" font-size="15">{title}</text>']
    for x, length in enumerate(lengths):
        across = left + x * cell
        parts.append(
            f'<text x="{across + cell / 2}" y="{top + cell * len(depths) + 18}" '
            f'text-anchor="middle">{length}</text>'
        )
        for y, depth in enumerate(depths):
            found = [r["found"] for r in rows if (r["frames"], r["depth"]) == (length, depth)]
            if found:
                parts.append(square(across, top + y * cell, cell, sum(found) / len(found)))
    for y, depth in enumerate(depths):
        parts.append(
            f'<text x="{left - 8}" y="{top + (y + 0.58) * cell}" '
            f'text-anchor="end">{depth:.0%}</text>'
        )
    bottom = top + cell * len(depths)
    parts.append(f'<text x="{left}" y="{bottom + 38}">frames; depth of the needle downwards</text>')
    if trained is not None:
        x = left + cell * sum(length <= trained for length in lengths)
        parts.append(
            f'<line x1="{x}" y1="{top - 8}" x2="{x}" y2="{bottom + 4}" stroke="black" '
            'stroke-width="2" stroke-dasharray="2 5"/>'
        )
        parts.append(f'<text x="{x + 4}" y="{top - 10}">trained up to {trained} frames</text>')
    width, height = left + cell * len(lengths) + 40, bottom + 54
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" '
        f'fill="white"/>\n{body}\n</svg>\n'
    )
