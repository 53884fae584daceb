"""Whole models under test: recorded steps, the embedded checkpoint's answers, rows of a batch.

in:  a device and a dtype      out: rows as those of right_rule.py
The embedded checkpoint answers questions on drawn scenes in float32, on the device and on the CPU:
the answers must be equal. In 16 bits the logits of rows that are decoded together, and of each row
alone, obey the 2x rule: against float64 their error is at most twice that of the torch path.
Read right_shapes.py first. Read next: right_children.py.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import llava_min
from llava_min.cache import Cache
from llava_min.engine.handle import Model
from llava_min.engine.step import Step, decoding
from llava_min.kernels import choose
from llava_min.model import Network, finished
from llava_min.weights.tiny import scenes

from .right_rule import largest_gap, name_of, same_bits

KINDS = {"plain": None, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
ROOT = Path(__file__).parents[2]
SCENES = 200
TOGETHER = 20  # scenes that are answered together


def row(kernel: str, dtype, check: str, shape: str, ok: bool, error: float, allowed: float) -> dict:
    """A row of right_rule.py about a whole model."""
    return {
        "kernel": kernel,
        "dtype": name_of(dtype),
        "check": check,
        "shape": shape,
        "size": 0,
        "ok": bool(ok),
        "error": error,
        "allowed": allowed,
    }


# Recorded steps ----------------------------------------------------------------


def filled_cache(network: Network, lengths: list[int], room: int, dtype, kind) -> Cache:
    """A cache in which each row has read a prompt of its own length."""
    cache = Cache.empty(
        network.config.text, len(lengths), max(lengths) + room, dtype, kind, network.device
    )
    for index, length in enumerate(lengths):
        ids = torch.arange(length, device=network.device)[None] * 7 % 40
        network.decoder(network.decoder.embed(ids), cache.row(index))
        cache.row(index).advance(length)
    return cache


@torch.inference_mode()
def recorded_steps(
    network: Network, dtype: torch.dtype, kind: str, lengths: list[int], tokens: int
) -> Iterator[dict]:
    """A Step of two rows gives the bits of `model.decode`; again after the cache has grown."""
    caches = [filled_cache(network, lengths, tokens + 1, dtype, KINDS[kind]) for _ in range(2)]
    ids, known = [3, 4], network.config.text.vocab_size
    for check in ("a recorded step is an ordinary one", "so is a second step, in a grown cache"):
        step, wrong = Step(network, caches[1], known), 0
        for _ in range(tokens):
            ordinary = network.decode(torch.tensor(ids, device=network.device), caches[0])
            logits, likely = step(ids)
            ids = ordinary.argmax(-1).tolist()
            wrong += not same_bits(logits, ordinary) or likely != ids
        yield row(f"Step {kind}", dtype, check, f"{tokens} tokens", not wrong, wrong, 0)
        for cache in caches:
            cache.grow(cache.capacity + tokens)


# The embedded checkpoint's answers ----------------------------------------------


def requests(first: int, count: int) -> list[dict]:
    """Questions on drawn scenes number first .. first + count."""
    found = []
    for number in range(first, first + count):
        rng = np.random.default_rng([number, 20261121])
        scene = scenes.draw_scene(rng, (int(rng.integers(90, 300)), int(rng.integers(90, 300))))
        questions = scenes.picture_questions(rng, scene)
        question = questions[int(rng.integers(len(questions)))][1]
        found.append({"question": question, "images": [scenes.render(scene)], "max_tokens": 40})
    return found


def answers(model: Model, first: int, count: int, together: int) -> list[str]:
    """The model's answers, `together` of them in a batch."""
    texts, stop = [], first + count
    for start in range(first, stop, together):
        batch = requests(start, min(together, stop - start))
        texts += [answer.text for answer in model.generate_batch(batch)]
    return texts


class CpuAnswers:
    """The answers of the CPU, computed by processes in the background."""

    def __init__(self, count: int, processes: int = 4):
        self.processes, self.texts = [], None
        ends = [count * part // processes for part in range(processes + 1)]
        for first, stop in zip(ends, ends[1:]):
            command = [sys.executable, "-m", __name__, str(first), str(stop - first)]
            self.processes.append(
                subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            )

    def get(self, seconds: float) -> list[str]:
        """Wait for them, `seconds` at most for each process; TimeoutExpired if one needs more."""
        if self.texts is None:
            parts = [process.communicate(timeout=seconds)[0] for process in self.processes]
            self.texts = [text for part in parts for text in json.loads(part)]
        return self.texts

    def end(self) -> None:
        """Kill those that have not ended."""
        for process in self.processes:
            process.kill()
            process.wait()


def answers_equal(
    device: str, expected: list[str], dtype: torch.dtype, together: int, required: bool = True
) -> Iterator[dict]:
    """The answers of a device beside the CPU's.

    Where they are not `required` to be equal, differences are only counted.
    """
    model = llava_min.load(device=device, dtype=name_of(dtype))
    found = answers(model, 0, len(expected), together)
    wrong = [number for number, pair in enumerate(zip(found, expected)) if pair[0] != pair[1]]
    allowed, shape = 0 if required else len(expected), f"{len(expected)} scenes"
    check, right = "equal to the CPU's in float32", len(wrong) <= allowed
    about = row("embedded answers", dtype, check, shape, right, len(wrong), allowed)
    if wrong:
        about["example"] = f"{wrong[0]}: {found[wrong[0]]!r}, not {expected[wrong[0]]!r}"
    yield about


# Rows of a batch ----------------------------------------------------------------


def questions(pictures: bool) -> list[dict]:
    """Questions of different lengths: eight with pictures of different sizes, or two without."""
    if pictures:
        return requests(1000, 7) + [{"question": "What is a star?"}]
    return [{"question": text} for text in ("Is there a star?", "Where?")]


@torch.inference_mode()
def forced(model: Model, prompts: list, ids: list[list[int]], together: bool) -> Tensor:
    """Logits [rows steps V] after each prompt and after each of `ids`, float64."""
    groups = [list(range(len(prompts)))] if together else [[row] for row in range(len(prompts))]
    found = []
    for group in groups:
        room = max(prompts[row].plan.tokens for row in group) + len(ids[0]) + 1
        cache, steps = model.empty_cache(room, len(group)), []
        first = [
            finished(model.reading(prompts[row].plan, prompts[row].visuals, cache.row(at)))[-1]
            for at, row in enumerate(group)
        ]
        steps.append(torch.stack(first).double())
        step = decoding(model.network, cache, model.known_ids)
        for number in range(len(ids[0])):
            logits, _ = step([ids[row][number] for row in group])
            steps.append(logits.to(torch.float64, copy=True))  # the next step overwrites them
        found.append(torch.stack(steps, dim=1))
    return torch.cat(found)


def batches(device: str, dtype: torch.dtype, pictures: bool, steps: int) -> Iterator[dict]:
    """Eight prompts decoded together and alone, both against float64 and beside torch alone."""
    asked = questions(pictures)
    exact_model = llava_min.load(device=device, dtype="float64")
    prompts = [
        exact_model.prepare(one["question"], one.get("images", ()), max_tokens=steps + 1)
        for one in asked
    ]
    ids = [[(5 * row + 3 * step) % 90 + 5 for step in range(steps)] for row in range(len(asked))]
    exact = forced(exact_model, prompts, ids, together=False)
    del exact_model
    model = llava_min.load(device=device, dtype=name_of(dtype))
    with choose.using("reference"):
        by_torch = forced(model, prompts, ids, together=False)
    allowed = 2 * largest_gap(by_torch, exact)
    allowed += torch.finfo(dtype).eps * exact.abs().max().item()
    shape, found = f"{len(asked)} prompts, {steps} steps", {}
    for name, together in (("alone", False), ("together", True)):
        found[name] = forced(model, prompts, ids, together)
        error = largest_gap(found[name], exact)
        yield row(
            f"rows {name}", dtype, "2x rule of the logits", shape, error <= allowed, error, allowed
        )
    wrong = different_tokens(found["together"], found["alone"], exact, allowed)
    yield row("rows together", dtype, "the tokens of rows alone", shape, not wrong, wrong, 0)


def different_tokens(one: Tensor, other: Tensor, exact: Tensor, error: float) -> int:
    """How many most likely tokens differ where the margin is more than twice the error of each."""
    best = exact.topk(2).values
    certain = best[..., 0] - best[..., 1] > 4 * error
    return int(((one.argmax(-1) != other.argmax(-1)) & certain).sum())


if __name__ == "__main__":
    torch.set_num_threads(max(1, torch.get_num_threads() // 4))
    on_cpu = llava_min.load(device="cpu", dtype="float32")
    print(json.dumps(answers(on_cpu, *map(int, sys.argv[1:3]), TOGETHER)))
