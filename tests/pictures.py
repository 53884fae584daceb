"""Draw the pictures of the walk from one run of the toy: python tests/pictures.py.

They are docs/walk/*.png, named after the files that make what they show; the README's reading table
links them. What is drawn are the tensors that pass the places of trace.py.
"""

import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from test_house import ROOT

import llava_min
from llava_min.explain.rows import KINDS
from llava_min.trace import watch

FOLDER = ROOT / "docs" / "walk"
SAMPLE = ROOT / "weights" / "tiny" / "samples" / "shapes.png"
QUESTION = "Where is the star?"
INK, LINE, PAPER, HATCH = (30, 30, 34), (11, 98, 196), (255, 255, 255), (205, 205, 210)
COLOURS = {
    "first": (138, 143, 152),
    "text": (79, 127, 191),
    "base": (217, 132, 16),
    "grid": (184, 51, 106),
    "newline": (58, 138, 95),
}
PLACES = ("tiles", "features", "visual_rows")


class Run:
    """One answer of the toy about a picture that does not fill its grid, and what passed."""

    def __init__(self):
        self.model = llava_min.load(dtype="float32")
        picture = Image.open(SAMPLE).convert("RGB").crop((20, 0, 310, 240))
        self.picture = np.asarray(picture)
        with ExitStack() as stack:
            lists = {name: stack.enter_context(watch(name)) for name in PLACES}
            self.found = self.model.explain(QUESTION, images=[self.picture])
        self.tiles = torch.cat(lists["tiles"]).numpy()
        self.features = torch.cat(lists["features"]).numpy()
        self.rows = lists["visual_rows"][0].numpy()
        self.segment = self.found.visuals[0].segment
        self.side = self.model.config.vision.side


def colours(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N D] as colours [N 3]: their three largest principal components."""
    centred = vectors - vectors.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:3] * np.sign(axes[:3, np.abs(axes[:3]).argmax(1)].diagonal())[:, None]
    parts = centred @ axes.T
    low, high = np.percentile(parts, [2, 98], axis=0)
    return (255 * ((parts - low) / (high - low)).clip(0, 1)).astype(np.uint8)


def cells(values: np.ndarray, size: int) -> Image.Image:
    """Colours [R C 3] as squares of `size` pixels."""
    picture = Image.fromarray(values.astype(np.uint8))
    return picture.resize(
        (size * values.shape[1], size * values.shape[0]), Image.Resampling.NEAREST
    )


def side_by_side(pictures: list[Image.Image], gap: int = 14) -> Image.Image:
    """Pictures next to each other on paper, at their upper edge."""
    width = sum(picture.width + gap for picture in pictures) + gap
    whole = Image.new("RGB", (width, max(p.height for p in pictures) + 2 * gap), PAPER)
    left = gap
    for picture in pictures:
        whole.paste(picture, (left, gap))
        left += picture.width + gap
    return whole


def anyres(run: Run) -> Image.Image:
    """The picture in its grid of tiles; the border is hatched, and its patches are dropped."""
    rows, columns = run.segment.grid.tiles
    tile, side = run.tiles.shape[1], run.side
    cut = run.tiles[1:].reshape(rows, columns, tile, tile, 3).swapaxes(1, 2)
    canvas = Image.fromarray(np.ascontiguousarray(cut.reshape(rows * tile, columns * tile, 3)))
    draw, patch = ImageDraw.Draw(canvas), tile // side
    kept = run.segment.grid
    for down in range(rows * side):
        for right in range(columns * side):
            inside = kept.rows.start <= down < kept.rows.stop
            if not (inside and kept.columns.start <= right < kept.columns.stop):
                x, y = right * patch, down * patch
                draw.rectangle((x, y, x + patch - 1, y + patch - 1), HATCH)
                draw.line((x, y, x + patch - 1, y + patch - 1), INK)
    for row in range(rows):
        for column in range(columns):
            box = (column * tile, row * tile, (column + 1) * tile - 1, (row + 1) * tile - 1)
            draw.rectangle(box, outline=LINE, width=2)
    return side_by_side([Image.fromarray(run.picture), canvas])


def image(run: Run) -> Image.Image:
    """The tiles as cut: the whole picture squeezed into one, then those of the grid."""
    rows, columns = run.segment.grid.tiles
    tile, gap = run.tiles.shape[1], 6
    grid = Image.new("RGB", (columns * (tile + gap) - gap, rows * (tile + gap) - gap), PAPER)
    for number, pixels in enumerate(run.tiles[1:]):
        row, column = divmod(number, columns)
        grid.paste(Image.fromarray(pixels), (column * (tile + gap), row * (tile + gap)))
    return side_by_side([Image.fromarray(run.tiles[0]), grid])


def vision(run: Run) -> Image.Image:
    """What leaves the tower: a vector for each patch, drawn by its three principal components."""
    rows, columns = run.segment.grid.tiles
    side = run.side
    drawn = colours(run.features.reshape(-1, run.features.shape[-1])).reshape(-1, side, side, 3)
    gap, tile = 6, 14 * side
    grid = Image.new("RGB", (columns * (tile + gap) - gap, rows * (tile + gap) - gap), PAPER)
    for number, patches in enumerate(drawn[1:]):
        row, column = divmod(number, columns)
        grid.paste(cells(patches, 14), (column * (tile + gap), row * (tile + gap)))
    return side_by_side([cells(drawn[0], 14), grid])


def projector(run: Run) -> Image.Image:
    """The rows of the picture: the base tile's, then the grid's, each line with its newline."""
    drawn = colours(run.rows)
    drawn[run.found.rows.kinds == KINDS.index("newline")] = COLOURS["newline"]
    base = run.side**2
    rows, columns = run.segment.grid.shape
    grid = drawn[base:].reshape(rows, columns + 1, 3)
    return side_by_side([cells(drawn[:base].reshape(run.side, run.side, 3), 14), cells(grid, 14)])


def segments(run: Run) -> Image.Image:
    """The prompt as the decoder reads it, in lines of 60: text, base tile, grid, newlines."""
    tokens = int(run.found.rows.tokens[-1]) + 1
    tokens += run.found.prompt[::-1].index(0)  # of text after the picture, which is number 0
    kinds = run.found.rows.all_kinds(tokens)
    lines = -(-tokens // 60)
    drawn = np.full((lines * 60, 3), 255)
    drawn[:tokens] = [COLOURS[KINDS[kind]] for kind in kinds]
    return side_by_side([cells(drawn.reshape(lines, 60, 3), 9)])


def decoder(run: Run) -> Image.Image:
    """Where the row that predicts the first word looks, layer by layer: the mean of the heads."""
    pictures = []
    for layer in range(run.model.config.text.num_layers):
        found = run.found.map(0, layer)
        strength = (found / found.max())[..., None]
        drawn = run.picture * (1 - 0.85 * strength) + np.array([255, 0, 0]) * 0.85 * strength
        pictures.append(Image.fromarray(drawn.astype(np.uint8)).resize((218, 180)))
    return side_by_side(pictures)


def sampling(run: Run) -> Image.Image:
    """The likeliest words in each place of the answer, a column for each, darker where likelier."""
    cell, found = 70, run.found
    drawn = Image.new("RGB", (cell * len(found.tokens), 24 * len(found.top[0])), PAPER)
    draw = ImageDraw.Draw(drawn)
    for column, words in enumerate(found.top):
        for row, (word, share) in enumerate(words):
            x, y, shade = column * cell, row * 24, int(255 - 150 * share)
            draw.rectangle((x, y, x + cell - 3, y + 21), (shade, shade, 255))
            draw.text((x + 4, y + 4), word.replace("\n", "\\n")[:10], INK)
    return side_by_side([drawn])


STAGES = (anyres, image, vision, projector, segments, decoder, sampling)


def draw(folder: Path) -> None:
    """Write all pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    run = Run()
    for stage in STAGES:
        stage(run).save(folder / f"{stage.__name__}.png", optimize=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
