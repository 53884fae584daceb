"""An Explanation as one page: a file without links, which needs no network and no library.

in:  an Explanation
out: the text of an HTML file of at most 8 MB

The page is page.html with data in it. All text comes from JSON and is set as text, never as markup;
`<` is written \\u003c there, or a text could end the element that holds it. A policy in the page
lets only its own script and style run, by their hashes. Numbers are bytes in base64. Without a
script there is still a table of words.
Read explain/pictures.py first. Read next: explain/explanation.py.

T words, V rows of visuals.
"""

import base64
import hashlib
import html
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..segments import Clip, Picture
from .pictures import as_seen, fits_of
from .places import tile_fits
from .rows import KINDS

if TYPE_CHECKING:
    from .explanation import Explanation
    from .measures import Key

TEMPLATE = Path(__file__).with_name("page.html")
PLANES = 5 * 2**18  # bytes of all maps together, before base64 makes 4/3 of them
PICTURES = 2**21  # bytes of all pictures together
LONGEST, QUALITY = 1024, 85  # of a picture: pixels, JPEG
NOWHERE = 65_535  # in place of a number of a box or frame; the largest of a box is one less


def page(found: "Explanation") -> str:
    """The whole page."""
    template = TEMPLATE.read_text(encoding="utf-8")
    data = json.dumps(content(found), ensure_ascii=False).replace("<", "\\u003c")
    parts = {
        "policy": policy(template),
        "title": html.escape(found.answer.strip() or "An answer"),
        "about": html.escape(f"What {found.model} looked at, told by llava_min."),
        "table": table(found),
        "data": data,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def policy(template: str) -> str:
    """What the page may do: run its own script, use its own style, show pictures in it."""
    hashes = {}
    for name in ("script", "style"):
        text = re.findall(rf"<{name}>(.*?)</{name}>", template, re.S)
        digest = hashlib.sha256(text[0].encode()).digest()
        hashes[name] = base64.b64encode(digest).decode()
    own = " ".join(f"{name}-src 'sha256-{value}';" for name, value in hashes.items())
    return f"default-src 'none'; img-src data:; {own} base-uri 'none'; form-action 'none'"


def table(found: "Explanation") -> str:
    """Words and probabilities, for a browser without scripts."""
    lines = ["<table><tr><th>word</th><th>probability</th><th>alternatives</th></tr>"]
    for word, log, top in zip(found.tokens, found.log_probabilities, found.top):
        others = ", ".join(f"{text!r} {share:.1%}" for text, share in top)
        cells = (repr(word), f"{np.exp(log):.1%}", others)
        lines.append("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>")
    return "\n".join([*lines, "</table>"])


def content(found: "Explanation") -> dict[str, object]:
    """Everything that the page shows, as JSON holds it."""
    planes, words = planes_that_fit(found)
    left_out = list(found.left_out)
    if len(planes) < len(found.planes):
        left_out.append(f"This page holds {len(planes)} of {len(found.planes)} maps.")
    if words < len(found.tokens):
        left_out.append(f"This page holds {words} of {len(found.tokens)} words.")
    visuals, sentence = pictures(found)
    said = zip(found.tokens, found.log_probabilities, found.top)
    return {
        "words": [{"text": t, "log": log, "top": top} for t, log, top in said][:words],
        "kinds": KINDS,
        "shares": found.shares.mean(1)[:, :words].astype(float).round(4).tolist(),
        "planes": [
            {"layer": layer, "head": head, "name": name_of((layer, head), found)}
            | {"sinks": np.flatnonzero(found.sinks(layer, head)).tolist()}
            | encoded(found.planes[layer, head][:words])
            for layer, head in planes
        ],
        "start": start(found, planes),
        "parts": sorted({KINDS[kind] for kind in found.rows.kinds}),
        "rows": rows(found),
        "visuals": visuals,
        "prompt": found.prompt,
        "stages": [vars(stage) for stage in found.stages],
        "left_out": [*left_out, *sentence],
        "occlusion": [
            {
                "visual": one.visual,
                "frames": one.frames.tolist(),
                "boxes": (one.boxes / np.tile(one.size, 2)).tolist(),
                "drops": {
                    k: drops.astype(float).round(4).tolist() for k, drops in one.drops.items()
                },
            }
            for one in found.occlusion
        ],
    }


def planes_that_fit(found: "Explanation") -> "tuple[list[Key], int]":
    """The first maps and words for which the page has room: three maps at least."""
    rows = max(len(found.rows.tokens), 1)
    words = max(1, min(len(found.tokens), PLANES // (3 * rows)))
    return list(found.planes)[: max(PLANES // (words * rows), 3)], words


def start(found: "Explanation", planes: "list[Key]") -> int:
    """The map to show first: the layer that is aimed best."""
    return planes.index(found.suggested) if found.suggested in planes else 0


def name_of(key: "Key", found: "Explanation") -> str:
    """What a map is called in the list."""
    layer, head = key
    if layer is None:
        return "mean of all layers and heads"
    words = f"layer {layer}, " + ("mean of its heads" if head is None else f"head {head}")
    return words + " (suggested)" * (key == found.suggested)


def encoded(plane: np.ndarray) -> dict[str, object]:
    """A map [T V] as bytes: 255 times the root of each weight over its word's largest one.

    A patch of a grid has a tenth of a base patch's area, and weights of as much less.
    """
    wide = plane.astype(np.float32)
    largest = wide.max(1, keepdims=True)
    steps = np.round(255 * np.sqrt(wide / np.maximum(largest, 1e-30))).astype(np.uint8)
    return {"largest": largest[:, 0].astype(float).tolist(), "values": base64_of(steps)}


def rows(found: "Explanation") -> dict[str, str]:
    """What each row is; boxes in parts of the source's sides."""
    sizes = np.array([visual.segment.size for visual in found.visuals])
    sizes = sizes.reshape(len(found.visuals), 2)  # also of none
    parts = found.rows.boxes / np.tile(sizes, 2)[found.rows.visuals]
    boxes = np.nan_to_num(np.round(parts * (NOWHERE - 1)), nan=NOWHERE).astype(np.uint16)
    frames = np.where(found.rows.frames < 0, NOWHERE, found.rows.frames).astype(np.uint16)
    return {
        "boxes": base64_of(boxes),
        "kinds": base64_of(found.rows.kinds),
        "visuals": base64_of(found.rows.visuals.astype(np.uint16)),
        "frames": base64_of(frames),
    }


def base64_of(array: np.ndarray) -> str:
    """The bytes of an array, the low ones first, as a page's script reads them."""
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode()


def pictures(found: "Explanation") -> tuple[list[dict[str, object]], list[str]]:
    """(each visual with its pictures and tiles, what was left out of them in sentences)."""
    shown_once = (v.segment.tiles if isinstance(v.segment, Clip) else 1 for v in found.visuals)
    room = PICTURES // max(sum(shown_once), 1)
    shrunk, visuals = False, []
    for number, (visual, source) in enumerate(zip(found.visuals, found.sources)):
        segment = visual.segment
        count = len(segment.times) if isinstance(segment, Clip) else 1
        images = []
        for frame in range(count):
            image, smaller = data_uri(found, number, frame, room, 320 if count > 1 else LONGEST)
            images.append(image)
            shrunk |= smaller
        first, end = np.searchsorted(found.rows.visuals, [number, number + 1]).tolist()
        entry = {
            "source": source,
            "size": segment.size,
            "times": getattr(segment, "times", ()),
            "images": images,
            "first": first,
            "end": end,
            "token": int(found.rows.tokens[first]),
            "views": views(found, segment) if isinstance(segment, Picture) else [],
        }
        visuals.append(entry)
    return visuals, ["Pictures are smaller than the model saw them."] if shrunk else []


def data_uri(
    found: "Explanation", number: int, frame: int, room: int, longest: int
) -> tuple[str, bool]:
    """(a picture of at most `room` bytes as a data URI, whether it had to be made smaller)."""
    visual, first = found.visuals[number], longest
    while True:
        file = io.BytesIO()
        picture = as_seen(visual.segment, visual.pixels, found.config, longest, frame)
        picture.save(file, "JPEG", quality=QUALITY)
        if len(file.getvalue()) <= room or longest <= 32:
            text = base64.b64encode(file.getvalue()).decode()
            return f"data:image/jpeg;base64,{text}", longest < first
        longest -= longest // 3


def views(found: "Explanation", picture: Picture) -> list[dict[str, object]]:
    """How a picture lies on its grid of tiles, and on its base tile."""
    config, made = found.config, []
    side = config.vision.side
    if picture.grid is not None:
        down, right = picture.grid.shape
        capped = ", interpolated from more" if picture.grid.shape != shown(picture) else ""
        rows, columns = picture.grid.tiles
        text = f"grid: {rows} x {columns} tiles, {down} x {right} patches{capped}"
        made.append(("grid", picture.grid.tiles, fits_of(picture, config), text))
    text = f"base tile, {picture.mode}: {side} x {side} patches"
    made.append(("base tile", (1, 1), tile_fits(picture, config), text))
    return [
        {
            "name": name,
            "tiles": tiles,
            "canvas": [tiles[1] * config.tile, tiles[0] * config.tile],
            "inner": [fit.offset for fit in fits]
            + [fit.offset + fit.length * fit.scale for fit in fits],
            "text": text,
        }
        for name, tiles, fits, text in made
    ]


def shown(picture: Picture) -> tuple[int, int]:
    """(rows, columns) of the grid's patches that show the picture, before they are capped."""
    assert picture.grid is not None
    rows, columns = picture.grid.rows, picture.grid.columns
    return rows.stop - rows.start, columns.stop - columns.start
