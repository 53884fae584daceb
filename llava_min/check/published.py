"""What others have published about a checkpoint: counts, token ids, first logits, whole answers.

in:  published.json, which says of each figure where it stands
out: Expectation: a question, its media and options, and what is expected; Sample: a picture or clip

Everything in the file was printed by a public test, a conversion script or a model card. What was
concluded from such a text, and not read in it, says so in its note.
Read next: check/samples.py.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..families.aliases import ALIASES

FILE = Path(__file__).with_name("published.json")
TUPLES = ("checkpoints", "images", "videos", "size")


@dataclass(frozen=True)
class Sample:
    """A picture or clip that others asked about.

    size: (width, height) in pixels, or None; frames: of a clip, 0 for a picture. sha256: of the
    file, where somebody has told it.
    """

    file: str
    url: str
    size: tuple[int, int] | None = None
    frames: int = 0
    sha256: str | None = None


@dataclass(frozen=True)
class Expectation:
    """A question to some checkpoints and what came out.

    question: text with <image> and <video>, or messages; raw: it is the whole prompt. options: as
    of generate.
    weights: how they were stored, where not in 16 bits: no verdict is given on such an answer.
    expected: any of

        tokens, text_tokens, tiles   counts of the prompt
        ids                          of its text, with one id in place of each visual
        settings                     of the configuration, by our names of its fields
        answers                      texts, any of which may come, or beginnings of texts
        logits                       {"rows": n, "values": the first columns of the first n rows}
    """

    id: str
    checkpoints: tuple[str, ...]
    source: str
    expected: Mapping[str, Any]
    question: str | list[dict[str, Any]] = ""
    raw: bool = False
    images: tuple[str, ...] = ()
    videos: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    note: str = ""

    @property
    def media(self) -> tuple[str, ...]:
        """The names of all its samples."""
        return self.images + self.videos


def published(path: Path = FILE) -> tuple[dict[str, Sample], list[Expectation]]:
    """(samples by name, expectations)."""
    stored = json.loads(path.read_text(encoding="utf-8"))
    samples = {name: Sample(**frozen(one)) for name, one in stored["samples"].items()}
    return samples, [Expectation(**frozen(one)) for one in stored["expectations"]]


def frozen(fields: dict[str, Any]) -> dict[str, Any]:
    """The same, those that are tuples here as tuples."""
    return {key: tuple(value) if key in TUPLES else value for key, value in fields.items()}


def repository(name: str, known: list[Expectation]) -> str:
    """The published name of a checkpoint: of an alias, org/name[@revision], or a folder's name.

    >>> some = [Expectation("a", ("org/model-7b",), "", {})]
    >>> [repository(name, some) for name in ("org/model-7b@abc", "/disk/model-7b", "next-video-7b")]
    ['org/model-7b', 'org/model-7b', 'llava-hf/LLaVA-NeXT-Video-7B-hf']
    """
    name = name.partition("@")[0]
    if name in ALIASES:
        return ALIASES[name][0]
    last = Path(name).name
    for one in known:
        for checkpoint in one.checkpoints:
            if name == checkpoint or last == checkpoint.rpartition("/")[2]:
                return checkpoint
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else last
