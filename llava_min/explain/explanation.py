"""Explanation: what an answer's words looked at, as numbers, maps and files.

in:  what explain/explaining.py measured
out: maps [H W] on the source picture, shares, .html and .safetensors

Read explain/sinks.py, explain/pictures.py first. Read next: explain/explaining.py.

L layers, H heads, T words, V rows of visuals.
"""

import json
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..config import LlavaConfig
from ..errors import OutputError, ParameterError, shown
from ..request.visuals import Encodable
from .measures import Key
from .occlusion import Occlusion
from .page import page
from .places import spread
from .rows import KINDS, Rows
from .sinks import sinks

UNWRITTEN = "cannot write the explanation"


@dataclass(frozen=True)
class Stage:
    """One stage of an answer: its seconds, and at best (planning/forecast.py), if it is known."""

    name: str
    seconds: float
    at_best: float | None


@dataclass(frozen=True)
class Explanation:
    """How an answer came about, word by word; a word is a token of the answer.

    tokens: the text of each of T words. log_probabilities: natural logarithms, teacher-forced, as
    score() gives them. top: the likeliest words in each place and their probabilities. shares:
    float32 [L H T 6], how much of a head's attention goes to the first token, to text, base tiles,
    grids, frames and newlines (KINDS). planes: float16 [T V] by (layer, head), the weights on each
    row of the visuals; None is the mean of all. The row before a word predicts it, so its weights
    are those of that word. lengths: float16 [V] for each plane, how long the values of a row are
    over those of the median patch. rows: what the V rows are. suggested: the layer whose mean is
    aimed best, (layer, None), or None without visuals. prompt: each token's text, or the number of
    a visual. left_out: what there was no room for, in sentences.
    """

    model: str
    config: LlavaConfig
    answer: str
    token_ids: list[int]
    tokens: list[str]
    log_probabilities: list[float]
    top: list[list[tuple[str, float]]]
    shares: np.ndarray
    planes: dict[Key, np.ndarray]
    lengths: dict[Key, np.ndarray]
    rows: Rows
    visuals: list[Encodable]
    sources: list[str]
    prompt: list[str | int]
    suggested: Key | None
    left_out: list[str] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    occlusion: list[Occlusion] = field(default_factory=list)

    def __repr__(self) -> str:
        """One line: the answer and what is known of it."""
        return (
            f"<Explanation of {self.answer!r}: {len(self.tokens)} words, {len(self.planes)} maps>"
        )

    def weights(self, word: int, layer: int | None = None, head: int | None = None) -> np.ndarray:
        """How much of a word's attention goes to each row of the visuals: float32 [V].

        layer, head: numbers; None is the mean of all. ParameterError: no such word, or a map that
        was not kept.
        """
        if not 0 <= word < len(self.tokens):
            raise ParameterError(f"word must be from 0 to {len(self.tokens) - 1}, not {word}.")
        if (layer, head) not in self.planes:
            raise ParameterError(
                f"The map of layer {layer}, head {head} was not kept; there are "
                f"{shown([*self.planes])}."
            )
        return self.planes[layer, head][word].astype(np.float32)

    def map(
        self,
        word: int,
        layer: int | None = None,
        head: int | None = None,
        *,
        visual: int = 0,
        frame: int | None = None,
        kind: str | None = None,
    ) -> np.ndarray:
        """Where on a picture a word looked: float32 [H W], of the source's size.

        The weight of a row is spread evenly over the pixels of its patch, so that the sum over a
        region is the share of attention that went there. What a patch shows of a border is left
        out. visual: its number. frame: of a clip. kind: "base" or "grid" for that part of a picture
        alone. ParameterError: see `weights`.
        """
        if not 0 <= visual < len(self.visuals):
            raise ParameterError(f"visual must be a number below {len(self.visuals)}.")
        chosen = self.rows.visuals == visual
        if frame is not None:
            chosen &= self.rows.frames == frame
        if kind is not None:
            chosen &= self.rows.kinds == KINDS.index(kind)
        weights = self.weights(word, layer, head)
        width, height = self.visuals[visual].segment.size
        pixels = np.zeros((height, width), np.float32)
        for patches in np.unique(self.rows.kinds[chosen]):
            some = chosen & (self.rows.kinds == patches)
            pixels += spread(weights[some], self.rows.boxes[some], (width, height))
        return pixels

    def sinks(self, layer: int | None = None, head: int | None = None) -> np.ndarray:
        """Which rows get much of a map's weight and have next to nothing to give: bool [V].

        They are patches; explain/sinks.py has the rule. ParameterError: see `weights`.
        """
        self.weights(0, layer, head)
        key = layer, head
        return sinks(self.planes[key], self.lengths[key], self.rows.patches)

    def save(self, path: str | Path) -> None:
        """Write a page to look at (.html), or all numbers (.safetensors).

        ParameterError for another ending, OutputError where it cannot be written.
        """
        path = Path(path)
        if path.suffix not in (".html", ".safetensors"):
            raise ParameterError(
                f"An explanation is saved as .html or .safetensors, not as {shown(path.name)}."
            )
        try:
            if path.suffix == ".html":
                path.write_text(page(self), encoding="utf-8", errors="backslashreplace")
            else:
                save_file(self.tensors(), path, {"llava_min explanation": json.dumps(self.json())})
        except (SafetensorError, OSError) as error:
            found = getattr(error, "strerror", None) or "an error of the file system"
            raise OutputError(UNWRITTEN, shown(str(path)), "a file", found) from None

    def _repr_html_(self) -> str:
        """The page in a frame of its own, as notebooks show it."""
        return f'<iframe width="100%" height="900" srcdoc="{escape(page(self))}"></iframe>'

    def tensors(self) -> dict[str, torch.Tensor]:
        """The numbers by name, as .safetensors holds them."""
        arrays = {f"planes.{layer}.{head}": x for (layer, head), x in self.planes.items()}
        arrays |= {f"lengths.{layer}.{head}": x for (layer, head), x in self.lengths.items()}
        arrays |= {f"rows.{name}": array for name, array in vars(self.rows).items()}
        arrays |= {"shares": self.shares, "token_ids": np.array(self.token_ids)}
        arrays |= {"log_probabilities": np.array(self.log_probabilities)}
        for number, found in enumerate(self.occlusion):
            arrays |= {f"occlusion.{number}.{name}": x for name, x in found.drops.items()}
            arrays[f"occlusion.{number}.boxes"] = found.boxes
            arrays[f"occlusion.{number}.frames"] = found.frames
        return {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in arrays.items()}

    def json(self) -> dict[str, object]:
        """Everything that is no array."""
        names = ("model", "answer", "tokens", "top", "sources", "prompt", "suggested")
        return {
            **{name: getattr(self, name) for name in names},
            "kinds": KINDS,
            "left_out": self.left_out,
            "stages": [asdict(stage) for stage in self.stages],
        }
