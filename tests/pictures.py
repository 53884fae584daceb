"""Draw the pictures of the walk from one run of the toy: python tests/pictures.py.

They are docs/walk/*.png, named after the files that make what they show; the README's reading table
links them. What is drawn is what the run made: tensors that pass the places of trace.py, pieces and
ids of the prompt, and weights of attention.
"""

import json
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from paper import (
    INK,
    LINE,
    SOFT,
    above,
    arrow,
    bar,
    beside,
    blank,
    box,
    cells,
    flow,
    key,
    noted,
    sheet,
    tint,
    words,
)
from PIL import Image, ImageDraw
from test_house import ROOT

import llava_min
from llava_min import prompt as turns
from llava_min.explain.attention import weighing
from llava_min.explain.rows import KINDS
from llava_min.families.templates import TEMPLATES
from llava_min.options import Sampling
from llava_min.sampling import candidates
from llava_min.segments import Text
from llava_min.trace import watch

FOLDER = ROOT / "docs" / "walk"
TINY = ROOT / "weights" / "tiny"
QUESTION = "Where is the star?"
HATCH = (205, 205, 210)
COLOURS = {
    "first": (138, 143, 152),
    "text": (79, 127, 191),
    "base": (217, 132, 16),
    "grid": (184, 51, 106),
    "newline": (58, 138, 95),
}
TEXT, NEW = COLOURS["text"], (120, 80, 190)
PLACES = ("tiles", "features", "visual_rows")
HEAD = (3, 0)  # whose attention is drawn


class Run:
    """One answer of the toy about a picture that does not fill its grid, and what passed."""

    def __init__(self):
        self.model = llava_min.load(dtype="float32")
        picture = Image.open(TINY / "samples" / "shapes.png").convert("RGB").crop((20, 0, 310, 240))
        self.picture = np.asarray(picture)
        self.prepared = self.model.prepare(QUESTION, images=[self.picture])
        with ExitStack() as stack:
            lists = {name: stack.enter_context(watch(name)) for name in PLACES}
            self.logits, cache = self.model.prefilled(self.prepared, 8)
        self.found = self.model.explain(QUESTION, images=[self.picture], alternatives=8)
        self.tiles = torch.cat(lists["tiles"]).numpy()
        self.features = torch.cat(lists["features"]).numpy()
        self.rows = lists["visual_rows"][0].numpy()
        self.weights = self.weights_of_first_word(cache)
        self.segment = self.found.visuals[0].segment
        self.side = self.model.config.vision.side
        self.tokens = self.prepared.plan.tokens
        self.kinds = self.found.rows.all_kinds(self.tokens)

    def weights_of_first_word(self, cache) -> np.ndarray:
        """Where one head looks from the row that predicts the first word: [tokens]."""
        found, last = [], torch.tensor([[self.prepared.ids[-1]]])

        def take(layer, columns, weights):
            if layer == HEAD[0]:
                found.append(weights[HEAD[1], 0])

        cache.rewind(1)
        with torch.inference_mode(), weighing(cache, take, {}):
            self.model.network.decoder(self.model.network.decoder.embed(last), cache)
        return torch.cat(found).numpy()


def colours(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N D] as colours [N 3]: their three largest principal components."""
    centred = vectors - vectors.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:3] * np.sign(axes[:3, np.abs(axes[:3]).argmax(1)].diagonal())[:, None]
    parts = centred @ axes.T
    low, high = np.percentile(parts, [2, 98], axis=0)
    return (255 * ((parts - low) / (high - low)).clip(0, 1)).astype(np.uint8)


def tiled(run: Run, tiles: list[Image.Image], gap: int = 6) -> Image.Image:
    """The tiles of the grid in their places."""
    rows, columns = run.segment.grid.tiles
    lines = (tiles[row * columns : (row + 1) * columns] for row in range(rows))
    return above(*(beside(*line, gap=gap) for line in lines), gap=gap)


# The picture -------------------------------------------------------------------------------


FIELDS = (  # section of config.json, key, what becomes of it
    ("vision_config", "hidden_size", "vision.hidden_size"),
    ("vision_config", "num_hidden_layers", "vision.num_layers"),
    ("vision_config", "image_size", "vision.image_size"),
    ("vision_config", "patch_size", "vision.patch_size"),
    ("text_config", "hidden_size", "text.hidden_size"),
    ("text_config", "num_attention_heads", "text.num_heads"),
    ("text_config", "num_key_value_heads", "text.num_kv_heads"),
    ("text_config", "max_position_embeddings", "text.context"),
    ("", "model_type", "family"),
    ("", "image_grid_pinpoints", "grids"),
    ("", "vision_aspect_ratio", "anyres_max"),
)


def config(run: Run) -> Image.Image:
    """Keys of config.json, and the fields of dataclasses that they become."""
    given = json.loads((TINY / "config.json").read_text())
    tones = {"vision_config": COLOURS["base"], "text_config": TEXT, "": COLOURS["grid"]}
    lines = []
    for section, name, field in FIELDS:
        value, made = (given[section] if section else given)[name], run.model.config
        for part in field.split("."):
            made = getattr(made, part)
        read = box(f"{section}.{name}: {short(value)}".lstrip("."), tones[section], 340)
        becomes = box(f"{field}: {short(made)}", tones[section], 340)
        lines.append(beside(read, arrow(read.height), becomes, gap=4))
    return sheet(
        "Every family's config.json, whatever its words, becomes the same LlavaConfig",
        beside(words("config.json", 12, SOFT), blank(299, 1), words("LlavaConfig", 12, SOFT)),
        above(*lines, gap=3),
        words(
            "What a family does not write, as how it pools the frames of a clip, is filled in.\n"
            "A key with a value that is not understood is refused.",
            12,
            SOFT,
        ),
    )


def short(value: object) -> str:
    """A value in a few letters: of a long list its beginning."""
    if not isinstance(value, list | tuple):
        return str(value)
    first = ", ".join(str(tuple(one)) for one in value[:2])
    return f"{first}, ... {len(value)} in all"


def anyres(run: Run) -> Image.Image:
    """The picture in its grid of tiles; the border is hatched, and its patches are dropped."""
    rows, columns = run.segment.grid.tiles
    tile, side = run.tiles.shape[1], run.side
    canvas = tiled(run, [Image.fromarray(pixels) for pixels in run.tiles[1:]], gap=0)
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
            corner = (column * tile, row * tile)
            draw.rectangle((*corner, corner[0] + tile - 1, corner[1] + tile - 1), None, LINE, 2)
    width, height = run.segment.size
    return sheet(
        "A picture of any size is fitted into a grid of tiles that the tower knows",
        beside(
            noted(f"the picture: {width} x {height} pixels", Image.fromarray(run.picture)),
            arrow(canvas.height),
            noted(f"{rows} x {columns} tiles of {tile} x {tile} pixels", canvas),
        ),
        words(
            "Hatched patches are nothing but border: what the tower makes of them is dropped.",
            12,
            SOFT,
        ),
    )


def image(run: Run) -> Image.Image:
    """The tiles as cut: the whole picture squeezed into one, then those of the grid."""
    tiles = [Image.fromarray(pixels) for pixels in run.tiles]
    note = (
        f"... and the {len(tiles) - 1} tiles of its grid, each {tiles[0].width} x {tiles[0].width}"
    )
    return sheet(
        "The pixels that the vision tower gets",
        beside(noted("the whole, squeezed", tiles[0]), noted(note, tiled(run, tiles[1:])), gap=24),
        words("Black is border: the grid has another ratio than the picture.", 12, SOFT),
    )


def vision(run: Run) -> Image.Image:
    """What leaves the tower: a vector for each patch, drawn by its three principal components."""
    side, width = run.side, run.features.shape[-1]
    drawn = colours(run.features.reshape(-1, width)).reshape(-1, side, side, 3)
    tiles = [cells(patches, 14) for patches in drawn]
    patch = run.tiles.shape[1] // side
    return sheet(
        f"Each patch of {patch} x {patch} pixels becomes {width} numbers",
        beside(
            noted("the whole", tiles[0]),
            noted("the tiles of the grid", tiled(run, tiles[1:])),
            gap=24,
        ),
        words(
            "Patches with like numbers have like colours: their three main components.\n"
            "A patch has seen all others of its tile, and no other tile.",
            12,
            SOFT,
        ),
    )


def projector(run: Run) -> Image.Image:
    """The rows of the picture: the base tile's, then the grid's, each line with its newline."""
    drawn = colours(run.rows)
    drawn[run.found.rows.kinds == KINDS.index("newline")] = COLOURS["newline"]
    base, width = run.side**2, run.rows.shape[1]
    rows, columns = run.segment.grid.shape
    grid = drawn[base:].reshape(rows, columns + 1, 3)
    note = f"{rows} lines of {columns} rows, and a newline after each (green, right)"
    return sheet(
        f"Patches become rows of the decoder: {width} numbers each, like a word",
        beside(
            noted(f"first {base} rows: the whole", cells(drawn[:base].reshape(6, 6, 3), 14)),
            noted(note, cells(grid, 14)),
            gap=24,
        ),
        words(
            f"The tiles are joined, their border is dropped, and {run.segment.grid.tiles[0] * 6} x"
            f" {run.segment.grid.columns.stop - run.segment.grid.columns.start} patches are\n"
            f"interpolated to {rows} x {columns}, so that there are not too many.",
            12,
            SOFT,
        ),
    )


# The prompt --------------------------------------------------------------------------------


def visible(text: str) -> str:
    """With newlines and blanks that can be seen."""
    return text.replace("\n", "\\n").replace(" ", "\N{MIDDLE DOT}")


def thumbnail(run: Run, height: int = 25) -> Image.Image:
    picture = Image.fromarray(run.picture)
    return picture.resize((round(height * picture.width / picture.height), height))


def prompt(run: Run) -> Image.Image:
    """A turn, and the pieces that a template writes for it."""
    turn = turns.user_turn(QUESTION, images=1, videos=0)
    who = box(turn.role, COLOURS["newline"])
    said = beside(who, thumbnail(run), box(QUESTION, TEXT), gap=4)
    pieces = [
        thumbnail(run)
        if isinstance(piece, turns.Visual)
        else box(piece.token, COLOURS["grid"])
        if isinstance(piece, turns.Special)
        else box(visible(piece), TEXT)
        for piece in TEMPLATES[run.model.config.template]([turn])
    ]
    return sheet(
        "A question becomes the conversation that the model was trained on",
        noted("one turn: who speaks, and the parts", said),
        noted("as the family's template writes it", flow(pieces)),
        key({"special token, which only a template can write": COLOURS["grid"], "text": TEXT}),
    )


def tokenizer(run: Run) -> Image.Image:
    """The text of the prompt as pieces of the vocabulary, each above its id."""
    ids, boxes = iter(run.prepared.ids), []
    for part in run.found.prompt:
        if isinstance(part, int):
            boxes.append(thumbnail(run, 50))
        else:
            token = next(ids)
            colour = COLOURS["grid"] if part.startswith("<|") else TEXT
            top = box(visible(part), colour)
            boxes.append(above(top, box(str(token), INK, top.width, 0.06), gap=0))
    return sheet(
        f"Text becomes ids: pieces of a vocabulary of {run.model.config.text.vocab_size}",
        flow(boxes),
        words("Above, the text of each piece; a dot is a blank. Below, its id.", 12, SOFT),
    )


def counts(run: Run) -> dict[str, tuple[int, int, int]]:
    """The colours of the prompt's kinds, each with how many tokens are of it."""
    return {
        f"{int((run.kinds == KINDS.index(name)).sum())} {name}": colour
        for name, colour in COLOURS.items()
    }


def in_lines(tokens: np.ndarray, across: int = 60) -> np.ndarray:
    """Colours [N 3] in lines of so many: [lines across 3], white after the last."""
    lines = -(-len(tokens) // across)
    drawn = np.full((lines * across, 3), 255)
    drawn[: len(tokens)] = tokens
    return drawn.reshape(lines, across, 3)


def segments(run: Run) -> Image.Image:
    """The prompt as the decoder reads it, in lines of 60: text, base tile, grid, newlines."""
    parts = [
        box(
            f"Text: {one.tokens} tokens"
            if isinstance(one, Text)
            else f"Picture: {one.tokens} rows",
            TEXT if isinstance(one, Text) else COLOURS["grid"],
        )
        for one in run.prepared.plan.segments
    ]
    drawn = np.array([COLOURS[KINDS[kind]] for kind in run.kinds])
    ruled = cells(in_lines(drawn), 11)
    draw = ImageDraw.Draw(ruled)
    for x in range(0, ruled.width, 11):
        draw.line((x, 0, x, ruled.height), (255, 255, 255))
    for y in range(0, ruled.height, 11):
        draw.line((0, y, ruled.width, y), (255, 255, 255))
    return sheet(
        f"The plan, before anything is computed: {run.tokens} tokens",
        beside(*parts, gap=4),
        noted("all tokens in reading order, 60 in a line", ruled),
        key(counts(run)),
    )


# The decoder -------------------------------------------------------------------------------


def cache(run: Run) -> Image.Image:
    """How long the cache is after the prompt and after each word: what is kept, what is added."""
    config, scale = run.model.config.text, 1.2
    steps = [("the prompt", run.tokens)]
    for number, word in enumerate(run.found.tokens[:-1], start=1):
        steps.append((repr(word), run.tokens + number))
    lines = []
    for number, (name, length) in enumerate(steps):
        before = 0 if number == 0 else length - 1
        line = blank(round(scale * (run.tokens + 8)) + 250, 17)
        draw = ImageDraw.Draw(line)
        line.paste(words(name, 12), (0, 0))
        draw.rectangle((90, 2, 90 + round(scale * before), 13), tint(TEXT, 0.4))
        draw.rectangle(
            (90 + round(scale * before), 2, 90 + round(scale * length) + 2 * bool(before), 13), NEW
        )
        line.paste(words(f"{length} tokens", 12), (100 + round(scale * (length + 4)), 0))
        lines.append(line)
    numbers = 2 * config.num_kv_heads * config.head_dim
    return sheet(
        "The decoder's memory grows by what is new, and nothing is computed twice",
        key({"written now": NEW, "kept, and read": tint(TEXT, 0.4)}),
        above(*lines, gap=2),
        words(
            f"A token is a key and a value of {config.head_dim} numbers in each of "
            f"{config.num_kv_heads} heads:\n"
            f"{numbers} numbers in each of {config.num_layers} layers.",
            12,
            SOFT,
        ),
    )


def decoder(run: Run) -> Image.Image:
    """Where the row that predicts the first word looks: each layer on the picture, and one head
    over all tokens.
    """
    pictures = []
    for layer in range(run.model.config.text.num_layers):
        found = run.found.map(0, layer)
        strength = (found / found.max())[..., None]
        drawn = run.picture * (1 - 0.85 * strength) + np.array([255, 0, 0]) * 0.85 * strength
        shown = Image.fromarray(drawn.astype(np.uint8)).resize((174, 144))
        pictures.append(noted(f"layer {layer}, mean of its heads", shown))
    high, each = 90, 2
    curve = blank(each * run.tokens, high + 8)
    draw = ImageDraw.Draw(curve)
    for token, weight in enumerate(run.weights):
        x, top = each * token, round(high * (1 - weight / run.weights.max()))
        draw.rectangle((x, top, x + each - 1, high), COLOURS[KINDS[run.kinds[token]]])
        draw.rectangle((x, high + 3, x + each - 1, high + 7), COLOURS[KINDS[run.kinds[token]]])
    layer, head = HEAD
    note = f"layer {layer}, head {head}, over all tokens of the prompt in order"
    return sheet(
        f"Where the decoder looks for its first word, {run.found.tokens[0]!r}",
        beside(*pictures, gap=8),
        noted(f"{note}; the tallest is {run.weights.max():.0%} of its attention", curve),
        key(counts(run)),
    )


def model(run: Run) -> Image.Image:
    """Rows of words and rows of the picture are one sequence, in the order of the plan."""
    patches = colours(run.rows)
    patches[run.found.rows.kinds == KINDS.index("newline")] = COLOURS["newline"]
    drawn = np.tile(TEXT, (run.tokens, 1))
    drawn[run.found.rows.tokens] = patches
    first, end = int(run.found.rows.tokens[0]), int(run.found.rows.tokens[-1]) + 1
    seen = [thumbnail(run, 60), arrow(60), cells(in_lines(patches), 8)]
    return sheet(
        "Rows of the picture take their place among the words; then it is one sequence",
        noted(f"embed: {first} words of the template", cells(drawn[:first][None], 11)),
        noted(f"encode: tiles, tower, projector, {len(patches)} rows", beside(*seen, gap=6)),
        noted(f"embed: {len(drawn) - end} words", cells(drawn[end:][None], 11)),
        noted(f"prefill: the decoder reads all {len(drawn)} rows", cells(in_lines(drawn), 11)),
        key({"a word": TEXT, "a newline": COLOURS["newline"]}),
    )


# The answer --------------------------------------------------------------------------------


def sampling(run: Run) -> Image.Image:
    """What is left of the first word's probabilities by temperature, top-k, top-p and min-p."""
    ways = {
        "temperature 1": Sampling(temperature=1.0),
        "temperature 3": Sampling(temperature=3.0),
        "3, then top-k 4": Sampling(temperature=3.0, top_k=4),
        "3, then top-p 0.8": Sampling(temperature=3.0, top_p=0.8),
        "3, then min-p 0.1": Sampling(temperature=3.0, min_p=0.1),
    }
    logits, name = run.logits[0], run.model.tokenizer
    ids = logits.topk(8).indices.tolist()
    lines = [above(words(" "), *(box(visible(name.decode([i])), TEXT, 70) for i in ids), gap=4)]
    for way, chosen in ways.items():
        order, shares = candidates(logits, chosen)
        found = dict(zip(order.tolist(), shares.tolist()))
        bars = []
        for token in ids:
            part = found.get(token, 0.0)
            text = f"{part:.1%}" if part else "ruled out"
            bars.append(above(blank(1, 4), bar(part, text, TEXT, 70), blank(1, 4), gap=0))
        lines.append(above(words(way, 12, SOFT), *bars, gap=4))
    return sheet(
        "From logits to a draw: the likeliest first words, and what each setting leaves of them",
        beside(*lines, gap=16),
    )


def generate(run: Run) -> Image.Image:
    """The likeliest words in each place of the answer, with their probabilities."""
    columns = []
    for step, (word, top) in enumerate(zip(run.found.tokens, run.found.top), start=1):
        boxes = []
        for other, share in top[:4]:
            colour = COLOURS["newline"] if other == word else SOFT
            text = f"{visible(other)}\n{share:.2%}"
            boxes.append(box(text, colour, 96, 0.45 if other == word else 0.08))
        columns.append(noted(f"step {step}", above(*boxes, gap=4)))
    return sheet(
        "One token at a time: each step chooses a word (green), and the next step reads it",
        beside(*columns, gap=8),
        words("The loop ends with the token that ends a turn.", 12, SOFT),
    )


STAGES = (
    config,
    anyres,
    image,
    vision,
    projector,
    prompt,
    tokenizer,
    segments,
    cache,
    decoder,
    model,
    sampling,
    generate,
)


def draw(folder: Path) -> None:
    """Write all pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    run = Run()
    for stage in STAGES:
        stage(run).save(folder / f"{stage.__name__}.png", optimize=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
