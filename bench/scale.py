"""Past one device: what splits should take by arithmetic, beside what they take here.

in:  a shape, whether to go through everything at toy size
out: rows in bench/results/scale-*.jsonl; a table, predicted and measured side by side

Predictions are those of --plan (planning/predict.py); a dry run prints them and measures nothing.
Here means this machine: layers and heads over processes that share its cores or its one card, by
gloo, which shows that the numbers are right and not how fast a link between cards is; and a file of
questions by one process and by two, with a thread each.
Read models.py, checkpoints.py first. Read next: plots.py.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from llava_min.planning.memory import GB, Storage, token_bytes
from llava_min.planning.predict import CARDS, LINKS, predicted
from llava_min.planning.split import Split, block_bytes

from . import checkpoints, ledger, models, shapes

CASES = (
    # shape, bits, tokens of the prompt, ranks that share heads, stages, card, link
    ("7B", None, 224_000, 1, 1, "H100", "NVLink"),
    ("7B", None, 224_000, 2, 1, "H100", "NVLink"),
    ("7B", None, 224_000, 4, 1, "H100", "NVLink"),
    ("7B", None, 224_000, 1, 2, "H100", "NVLink"),
    ("7B", None, 224_000, 1, 4, "H100", "NVLink"),
    ("7B", None, 224_000, 4, 1, "A100", "PCIe"),
    ("7B", None, 224_000, 1, 4, "A100", "PCIe"),
    ("7B", None, 224_000, 2, 1, "H100", "25 Gb Ethernet"),
    ("7B", None, 224_000, 1, 2, "H100", "25 Gb Ethernet"),
    ("7B", None, 3_000, 2, 1, "H100", "NVLink"),
    ("7B", None, 3_000, 1, 2, "H100", "NVLink"),
    ("72B", None, 32_000, 8, 1, "H100", "NVLink"),
    ("72B", None, 32_000, 1, 8, "H100", "NVLink"),
    ("72B", 4, 32_000, 1, 1, "H100", "NVLink"),
    ("72B", 4, 8_000, 4, 1, "RTX 3090", "PCIe"),
    ("72B", 4, 8_000, 1, 4, "RTX 3090", "PCIe"),
)
HEADS = ["model", "prompt", "-tp", "-pp", "cards", "GB a rank", "GB sent", "prompt s", "tokens/s"]
WAYS = ({}, {"pipeline_parallel": 2}, {"tensor_parallel": 2})
QUESTION = "Describe the picture. "


def predictions() -> list[list[str]]:
    """A row of the table for each case, under HEADS; nothing of it was measured."""
    rows = []
    for shape, bits, tokens, tensor, pipeline, card, link in CASES:
        config = models.onevision(shapes.TEXTS[shape], shapes.TOWERS["SigLIP"])
        storage, split = Storage("bfloat16", bits, device="cuda"), Split(tensor, pipeline)
        found = predicted(config, storage, split, tokens, CARDS[card], LINKS[link])
        layers = config.text.num_layers
        held = block_bytes(config, storage) * layers + tokens * token_bytes(config.text, storage)
        rows.append([
            shape + (f" int{bits}" if bits else ""),
            f"{tokens:,}",
            str(tensor),
            str(pipeline),
            f"{split.ranks} x {card}" + (f", {link}" if split.ranks > 1 else ""),
            f"{held / split.ranks / GB:.1f}",
            f"{found.prompt_bytes / GB:.1f}",
            f"{found.prompt:.2g}",
            f"{1 / found.token:.0f}",
        ])  # fmt: skip
    return rows


def table(rows: list[list[str]], heads: list[str]) -> str:
    """Columns under their heads, set to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows)]
    lines = [[text.rjust(width) for text, width in zip(row, widths)] for row in (heads, *rows)]
    return "\n".join(map("  ".join, lines))


def run(shape: str, dry: bool, lines: int, out: Path) -> str:
    """The table of predictions and, unless it is a dry run, what was measured here."""
    found = [f"Predicted, not measured:\n{table(predictions(), HEADS)}"]
    if dry:
        return found[0]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = None if shape == "embedded" else str(checkpoints.folder_of(shape))
    rows = [split_row(shape, folder, device, way) for way in WAYS]
    rows += [batch_row(shape, folder, count, lines) for count in (1, 2)] if device == "cpu" else []
    ledger.keep(out / f"scale-{device}.jsonl", rows)
    for row in rows:
        row["of_first"] = row["per_second"] / next(
            one["per_second"] for one in rows if one["section"] == row["section"]
        )
    cells = [[row["section"], row["name"], f"{row['per_second']:.2f}", f"{row['of_first']:.2f}"]
             for row in rows]  # fmt: skip
    found.append(f"Measured here, {device}:\n{table(cells, ['of', 'way', 'a second', 'ratio'])}")
    return "\n".join(found)


# What is measured ----------------------------------------------------------------------


def split_row(shape: str, folder: str | None, device: str, way: dict[str, int]) -> dict:
    """Tokens of an answer a second of a model that is split so, and seconds of its prompt."""
    told = json.dumps({"folder": folder, "device": device, **way})
    done = subprocess.run([sys.executable, "-m", "bench.scale", told],
                          capture_output=True, text=True, check=True)  # fmt: skip
    name = ", ".join(f"{key} {count}" for key, count in way.items()) or "one process"
    return {"section": "tokens", "shape": shape, "name": name, **json.loads(done.stdout)}


def asked(told: dict) -> dict:
    """In a process of its own: a long text prompt, and an answer."""
    import llava_min

    threads = os.cpu_count() or 1
    torch.set_num_threads(max(1, threads))
    model = llava_min.load(**told, compile=False)
    for _ in range(2):  # the first one warms up
        answer = model.generate(QUESTION * 250, max_tokens=64, ignore_eos=True)
    times = answer.timings
    return {
        "context": answer.usage["prompt_tokens"],
        "prompt_s": times["prefill_s"],
        "per_second": times["tokens_per_s"],
        "ids": answer.token_ids,
    }


def batch_row(shape: str, folder: str | None, count: int, lines: int) -> dict:
    """Answers a second, after loading, of so many processes with one thread each."""
    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place, "in.jsonl"), Path(place, "out.jsonl")
        entries = [{"question": f"What number is {index}?"} for index in range(lines)]
        source.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        words = [sys.executable, "-m", "llava_min", "--batch", source, "-o", target]
        words += ["--threads", "1", "--max-tokens", "32", "--ignore-eos"]
        words += ["-m", folder] if folder else []
        started = [
            subprocess.Popen(words, stderr=subprocess.PIPE, text=True,
                             env=os.environ | {"RANK": str(rank), "WORLD_SIZE": str(count)})
            for rank in range(count)
        ]  # fmt: skip
        told = [process.communicate()[1] for process in started]
        assert len(target.read_bytes().splitlines()) == lines, told
    slowest = max(float(re.search(r"in error, ([\d.]+) s\]", text)[1]) for text in told)
    name = f"{count} process" + "es" * (count > 1)
    return {"section": "batch", "shape": shape, "name": name, "per_second": lines / slowest}


if __name__ == "__main__":
    print(json.dumps(asked(json.loads(sys.argv[1]))))
