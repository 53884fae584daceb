"""Ask a checkpoint what others have published about it, and write down what came out.

in:  a checkpoint as -m names it, a folder of sample pictures
out: a table, one JSON object that can be sent in (--out), exit code 0 or 1

Counts and token ids need no weights (--no-weights), and no sample either: a blank picture of the
published size has as many tokens. With weights come the first logits, greedy answers, the same
answers as a batch, speed and memory, and where transformers is installed each stage beside it.
Greedy answers part ways after a while, between two GPUs already: an answer holds where its first 15
words are the published ones, and how many words agree is told. A logit in 16 bits holds within 1%
of the largest.
Read check/samples.py, check/compare.py first.
"""

from __future__ import annotations  # torch is imported when it is needed

import argparse
import dataclasses
import datetime
import hashlib
import json
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..config import LlavaConfig
from ..errors import LlavaMinError, MemoryBudgetError, OutputError, ParameterError
from ..families.folder import config_of
from ..families.vocabulary import read_tokenizer
from ..options import Options
from ..request.prepare import Prepared, prepare
from ..segments import Text
from ..tokenizer import Tokenizer
from ..weights import hub
from ..weights.checkpoint import Checkpoint
from . import compare
from .published import FILE, Expectation, published, repository
from .samples import SAMPLES, Samples

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

    from ..engine.handle import Model

WORDS = 15  # of an answer, that must be the published ones
COUNTED = {"tokens", "text_tokens", "visual_tokens", "tiles", "ids"}  # without weights
Media = Mapping[str, "Path | Image.Image | np.ndarray"]


@dataclass
class Check:
    """One published figure and ours. holds: None where the two cannot be held to be equal."""

    id: str
    what: str
    expected: Any
    found: Any
    holds: bool | None
    note: str = ""

    def line(self) -> str:
        """A line of the table."""
        verdict = {True: "holds", False: "DIFFERS", None: "reported"}[self.holds]
        words = f"{self.expected!s:.30} / {self.found!s:.30}" if not self.note else self.note
        return f"{self.id:24} {self.what:12} {verdict:9} {words}"


def asked(one: Expectation, media: Media) -> dict[str, Any]:
    """An expectation as the arguments of `generate`."""
    return {
        "question": one.question,
        "images": [media[name] for name in one.images],
        "videos": [media[name] for name in one.videos],
        "raw": one.raw,
        **one.options,
    }


# Without weights --------------------------------------------------------------


def setting(config: LlavaConfig, path: str) -> Any:
    """A field of the configuration by its name, such as text.context."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return list(value) if isinstance(value, tuple) else value


def ids_of(prepared: Prepared) -> list[int | None]:
    """The ids of a prompt's text, None in place of each visual."""
    ids: list[int | None] = []
    for segment in prepared.plan.segments:
        ids += segment.ids if isinstance(segment, Text) else [None]
    return ids


def settings_checks(one: Expectation, config: LlavaConfig) -> Iterator[Check]:
    """Those of an expectation that the configuration answers."""
    for path, expected in one.expected.get("settings", {}).items():
        found = setting(config, path)
        yield Check(one.id, path, expected, found, expected == found)


def prompt_checks(one: Expectation, prepared: Prepared) -> Iterator[Check]:
    """Those of an expectation that the prompt answers."""
    tiles = [segment.tiles for segment in prepared.plan.segments if not isinstance(segment, Text)]
    found = {
        "tokens": prepared.plan.tokens,
        "text_tokens": len(prepared.ids),
        "visual_tokens": prepared.visual_tokens,
        "tiles": sum(tiles),
        "ids": ids_of(prepared),
    }
    for what in found.keys() & one.expected.keys():
        expected = one.expected[what]
        yield Check(one.id, what, expected, found[what], expected == found[what])


def counts(
    known: Sequence[Expectation],
    samples: Samples,
    config: LlavaConfig,
    tokenizer: Tokenizer | None,
) -> Iterator[Check]:
    """Every check that needs no weights."""
    for one in known:
        yield from settings_checks(one, config)
        media = samples.blank(one.media)
        if tokenizer is None or media is None or not one.expected.keys() & COUNTED:
            continue
        given = asked(one, media)
        question, images, videos = (given.pop(key) for key in ("question", "images", "videos"))
        options = Options.of(**given)
        yield from prompt_checks(one, prepare(question, images, videos, options, config, tokenizer))


# With weights -----------------------------------------------------------------


def same_words(found: str, expected: str) -> tuple[int, int]:
    """(words that agree from the first on, words of the published text).

    >>> same_words("A cat, asleep on a bed.", "A cat is asleep"), same_words("Lava", "Lava.")
    ((2, 4), (1, 1))
    """
    ours, theirs = (re.findall(r"\w+", text) for text in (found, expected))
    same = 0
    while same < min(len(ours), len(theirs)) and ours[same] == theirs[same]:
        same += 1
    return same, len(theirs)


def answer_check(one: Expectation, text: str) -> Check:
    """Our answer next to the published one that agrees with it for longest."""
    compared = {answer: same_words(text, answer) for answer in one.expected["answers"]}
    best = max(compared, key=lambda answer: compared[answer][0])
    same, count = compared[best]
    holds = None if one.weights else same >= min(WORDS, count)
    note = f"{same} of {count} words" + (f"; published with {one.weights}" if one.weights else "")
    return Check(one.id, "answer", best, text, holds, note)


def logits_check(one: Expectation, model: Model, rows: Tensor) -> Check:
    """Of the prompt's first rows; where they come before the picture, they say nothing of it.

    rows: of the prompt [T D]; later ones change nothing in earlier ones.
    """
    expected = one.expected["logits"]
    count, columns = len(expected), len(expected[0])
    decoder = model.network.decoder
    weight = decoder.embedding.weight
    first = rows[None, :count].to(weight.device, weight.dtype)
    logits = decoder.logits(decoder(first, model.empty_cache(count)))[0, :, :columns]
    found = [[round(value, 4) for value in row] for row in logits.tolist()]
    largest = max(abs(value) for row in expected for value in row)
    error = max(abs(a - b) for x, y in zip(expected, found) for a, b in zip(x, y))
    note = f"largest difference {error:.4f} of {largest:.2f}"
    holds = None if one.weights else error <= 0.01 * largest
    return Check(one.id, "logits", expected, found, holds, note)


@dataclass
class Asked:
    """What asking a model gave: checks, figures of each answer, and what was left out and why."""

    checks: list[Check] = field(default_factory=list)
    speed: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    peak: int = 0


def ask(model: Model, known: Sequence[Expectation], samples: Samples) -> Asked:
    """Every check that needs weights; one line of the table as each is done."""
    found, requests, texts = Asked(), [], []
    for one in known:
        if not one.expected.keys() & {"answers", "logits"}:
            continue
        media, missing = samples.of(one.media)
        if missing:
            found.left_out += [f"{one.id}: no {sample.file} ({sample.url})" for sample in missing]
            continue
        given = asked(one, media)
        try:
            if "logits" in one.expected:
                found.checks.append(logits_check(one, model, model.embed(**given)))
                print(found.checks[-1].line(), flush=True)
            if "answers" not in one.expected:
                continue
            answer = model.generate(**given)
        except MemoryBudgetError as error:
            found.left_out.append(f"{one.id}: {error}")
            continue
        found.checks.append(answer_check(one, answer.text))
        print(found.checks[-1].line(), flush=True)
        names = ("ttft_s", "prefill_s", "vision_s", "tokens_per_s")
        found.speed[one.id] = {name: answer.timings[name] for name in names}
        found.speed[one.id]["prompt_tokens"] = answer.usage["prompt_tokens"]
        found.peak = max(found.peak, answer.memory["peak_bytes"])
        requests.append(given)
        texts.append(answer.text)
    if len(texts) > 1:
        again = [answer.text for answer in model.generate_batch(requests)]
        same = sum(one == other for one, other in zip(texts, again))
        note = f"{same} of {len(texts)} answers of a batch are the single ones, word for word"
        found.checks.append(Check("batch", "answers", len(texts), same, None, note))
        print(found.checks[-1].line(), flush=True)
    return found


def stages(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """(the comparison with transformers, or None), and why there is none."""
    if not compare.installed():
        return None, "stages: transformers is not installed"
    try:
        rows, missing = compare.beside(folder)
    except (LlavaMinError, OSError, ValueError) as error:  # also what transformers cannot load
        return None, f"stages: {str(error).splitlines()[0]}"
    worst = max(rows, key=lambda row: row[2] / row[3])
    wrong = [stage for stage, _, error, bound in rows if not error <= bound]
    found = {
        "compared": len(rows),
        "first that differs": wrong[0] if wrong else None,
        "worst": {"stage": worst[0], "error": worst[2], "bound": worst[3]},
    }
    return found, "; ".join(missing)


# The row ------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, Any]:
    """What tells the files from others: counts, and a hash of all names, shapes and dtypes."""
    headers = sorted((n, list(s), d) for n, s, d in Checkpoint.open(folder).headers())
    text = json.dumps(headers).encode()
    files = sorted(folder.glob("*.safetensors"))
    return {
        "tensors": len(headers),
        "bytes": sum(path.stat().st_size for path in files),
        "headers_sha256": hashlib.sha256(text).hexdigest(),
        "config_sha256": hashlib.sha256((folder / "config.json").read_bytes()).hexdigest(),
    }


def revision_of(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache."""
    match = re.search(r"snapshots/([0-9a-f]{40})$", folder.resolve().as_posix())
    return match[1] if match else None


def device_of(model: Model) -> dict[str, str]:
    """Where the model ran and in what."""
    import torch

    name = platform.machine()
    if model.network.device.type == "cuda":
        name = torch.cuda.get_device_name(model.network.device)
    stored = model.storage
    bits = {} if stored.bits is None else {"bits": str(stored.bits)}
    return {"device": name, "dtype": stored.dtype, "torch": torch.__version__, **bits}


def version_of(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def verify(
    model: str,
    name: str | None = None,
    *,
    weights: bool = True,
    beside: bool = True,
    samples: Path = SAMPLES,
    fetch: bool = False,
    path: Path = FILE,
    sent_by: str | None = None,
    **load: Any,
) -> dict[str, Any]:
    """The row of a checkpoint, printed as it grows; `parser` says what the arguments are."""
    known_samples, everything = published(path)
    checkpoint = repository(name or model, everything)
    known = [one for one in everything if checkpoint in one.checkpoints]
    have = Samples(known_samples, samples, fetch)
    folder = hub.find(model, files=hub.EVERYTHING if weights else hub.DESCRIPTION)
    print(f"{checkpoint}: {len(known)} published expectations")
    row: dict[str, Any] = {"checkpoint": checkpoint, "revision": revision_of(folder)}
    checks = list(counts(known, have, config_of(folder, None, None), read_tokenizer(folder)))
    for one in checks:
        print(one.line(), flush=True)
    left_out: list[str] = []
    if weights:
        from ..engine.load import load as loaded

        row["files"] = files_of(folder)
        network = loaded(folder, **load)
        found = ask(network, known, have)
        checks += found.checks
        left_out += found.left_out
        row |= device_of(network) | {"speed": found.speed, "peak_bytes": found.peak}
        del network
        if beside:
            row["stages"], why = stages(folder)
            left_out += [why] if why else []
            print(f"stages beside transformers: {json.dumps(row['stages'])}")
    for line in left_out:
        print(f"left out: {line}")
    return row | {
        "checks": [dataclasses.asdict(one) for one in checks],
        "left_out": left_out,
        "samples": have.hashes,
        "version": __version__,
        "transformers": version_of("transformers"),
        "date": datetime.date.today().isoformat(),
        "sent_by": sent_by,
    }


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    root = argparse.ArgumentParser(
        prog="llava-min verify",
        description="Ask a checkpoint what others have published about it.",
        epilog="docs/verified.md says how to send a row in.",
    )
    add = root.add_argument
    add("-m", "--model", required=True, help="folder, alias or hub name")
    add("--as", dest="name", metavar="ORG/NAME", help="what a folder of another name holds")
    add("--out", metavar="FILE.JSON", help="write the row")
    where = "where the sample pictures are (default: samples in the cache folder)"
    add("--samples", type=Path, default=SAMPLES, metavar="FOLDER", help=where)
    add("--fetch", action="store_true", help="fetch the samples that are missing there")
    add("--no-weights", action="store_true", help="compare counts and token ids only")
    add("--no-stages", action="store_true", help="do not compare the stages with transformers")
    add("--device", default="auto", help="where the model runs (%(default)s)")
    add("--dtype", default="float16", help="%(default)s, as most was published")
    add("--sent-by", metavar="NAME", help="who sends the row in")
    return root


def main(given: list[str] | None = None) -> int:
    """Run the command and return its exit code: 1 where something published does not hold."""
    words = parser().parse_args(given)
    try:
        if words.out and not Path(words.out).resolve().parent.is_dir():
            raise ParameterError(f"--out: there is no folder for {words.out}.")
        row = verify(
            words.model,
            words.name,
            weights=not words.no_weights,
            beside=not words.no_stages,
            samples=words.samples,
            fetch=words.fetch,
            sent_by=words.sent_by,
            device=words.device,
            dtype=words.dtype,
        )
        if words.out:
            write(row, Path(words.out))
    except LlavaMinError as error:
        print(f"llava_min: error: {error}", file=sys.stderr)
        return error.exit_code
    return verdict(row)


def verdict(row: Mapping[str, Any]) -> int:
    """Print how it ended; the exit code."""
    checks, compared = row["checks"], row.get("stages")
    wrong = [one for one in checks if one["holds"] is False]
    held = sum(one["holds"] is True for one in checks)
    differs = bool(compared and compared["first that differs"])
    print(f"{held} hold, {len(wrong)} differ, {len(row['left_out'])} left out")
    return 1 if wrong or differs else 0


def write(row: Mapping[str, Any], path: Path) -> None:
    """Write the row as a file."""
    try:
        path.write_text(json.dumps(row, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        expected = "a file that can be written"
        raise OutputError(
            "cannot write the row", str(path), expected, str(error.strerror)
        ) from None
