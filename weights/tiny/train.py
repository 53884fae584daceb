"""Train the embedded checkpoint from scratch, and examine it.

    python -m llava_min.weights.tiny.train                  go on from state.pt, or begin
    python -m llava_min.weights.tiny.train --evaluate       accuracy on fresh scenes

Two stages: the vision tower alone learns to say what each patch shows (cheap, and it saves hours of
the second), then everything learns to answer. Matrices are trained with Muon, the rest with AdamW;
batches depend on (seed, step, worker) alone, so an interrupted training goes on as if nothing had
happened.

The committed file took many sittings: 1,850 steps without the short lessons of FOCUS, then warm
rounds (--warm --sight-steps 0), from that of 110 steps on begun at a mean of earlier weights, which
is better at nearly everything than any of them:
    steps  800, 450, 340, 110, 420, 280, 220 and 180, at 0.2 to 0.4 of the rates
    plans  more pairs; short lessons on what differs (from 340 on), on describing pairs (from 280
           on), long and narrow pictures (STRETCHED, from 220 on); the last one is PLAN
    means  of 450 and 340; A = 0.4 of 450, 0.6 of 110; B = 0.4 A, 0.6 of 420;
           C = 0.4 A, 0.2 of 420, 0.4 of 280; D = 0.4 A, 0.2 of 280, 0.4 of 220;
           the committed file is half D and half of 180
Read lessons.py first. Read next: exam.py.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from ...base.progress import Progress
from ...decoder import Block
from ...engine.load import load
from ...families import layouts
from ...kernels import activation, rope
from ...model import Network
from ...vision import VisionTower
from .. import names
from . import exam, lessons, sight
from .files import FOLDER

# A worker's samples in each step.
PLAN = {"picture": 10, "pair": 15, "clip": 5, "large": 3, "change": 3, "telling": 13, "reading": 2}
SAVE_EVERY, EXAMINE_EVERY = 200, 400


def fresh(config) -> Network:
    """A model with random weights."""
    torch.manual_seed(0)
    model = Network(config)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=0.02)
    return model


def warm() -> Network:
    """The committed checkpoint, in float32, ready to be trained further."""
    return load(FOLDER, dtype="float32").network.requires_grad_(True).train()


def lesson_block(
    block: Block, rows: Tensor, angles: Tensor, hidden: Tensor, heads: int, kv_heads: int
) -> Tensor:
    """A decoder block without a cache, under a mask.

    hidden: [B 1 T T], -1e30 where a token must not look, else 0.
    """
    query, key, value = rope.split(block.qkv(block.attention_norm(rows)), heads, kv_heads)
    query, key = rope.rotate(query, angles), rope.rotate(key, angles)
    key, value = (
        x.repeat_interleave(heads // kv_heads, dim=2).transpose(1, 2) for x in (key, value)
    )
    scores = query.transpose(1, 2) @ key.mT / query.shape[-1] ** 0.5
    mixed = torch.softmax(scores.float() + hidden, dim=-1).to(value.dtype) @ value
    rows = rows + block.output(mixed.transpose(1, 2).flatten(2))
    return rows + block.down(activation.swiglu(block.gate_up(block.mlp_norm(rows))))


def answer_logits(
    model: Network, batch: lessons.Batch, run=lesson_block, visual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(logits at every answer token [n V], their targets [n]).

    The decoder's own blocks, under the lesson's mask. visual: the rows [B R W] of the pictures,
    where they are known already.
    """
    decoder = model.decoder
    if visual is None:
        visual = lessons.visual_rows(model, model.config, batch)
    count, before = len(visual), len(batch.prefix) + visual.shape[1]
    prefix = decoder.embed(torch.tensor([batch.prefix])).expand(count, -1, -1)
    rows = torch.cat([prefix, visual, decoder.embed(torch.from_numpy(batch.ids))], dim=1)
    positions = torch.cat(
        [torch.arange(before).expand(count, -1), before + torch.from_numpy(batch.offsets)], dim=1
    )
    angles, hidden = decoder.angles(positions, torch.float32), lessons.hidden(batch, before)
    for block in decoder.blocks:
        rows = run(
            block, rows, angles, hidden, decoder.config.num_heads, decoder.config.num_kv_heads
        )
    targets = torch.from_numpy(batch.targets)
    answers = targets != lessons.IGNORED
    hidden = decoder.norm(rows[:, before:][answers])
    return decoder.logits(hidden[None])[0], targets[answers]


def optimizers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks and projector, AdamW for the rest.

    The rest are embeddings, norms, biases and the patch filter.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embedding" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embedding" in n]
    return [
        torch.optim.Muon(matrices, lr=4e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(step: int, steps: int, warmup: int = 50) -> float:
    """The share of the full learning rate: a short warm-up, then a cosine down to 2%."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def average_gradients(model: nn.Module) -> None:
    """The mean over the workers, in one message."""
    if dist.is_initialized():
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients])):
            gradient.copy_(part.view_as(gradient))


def bfloat16() -> torch.autocast:
    """A `with` block in which products are taken in bfloat16."""
    return torch.autocast("cpu", torch.bfloat16)


class Training:
    """One worker's share: model, reader, data, and how many steps of each stage are done."""

    def __init__(self, worker: int, options: argparse.Namespace):
        self.worker, self.options = worker, options
        config = layouts.read_config(FOLDER)
        self.teacher = lessons.Teacher(config, Tokenizer.from_file(str(FOLDER / "tokenizer.json")))
        self.model = warm() if options.warm else fresh(config)
        self.reader = sight.Reader(config.vision.hidden_size)
        self.run = torch.compile(lesson_block, dynamic=True) if options.compile else lesson_block
        self.done = {"sight": 0, "answers": 0}
        self.saved = torch.load(options.state) if options.state.exists() else None
        if self.saved:
            self.model.load_state_dict(self.saved["model"])
            self.done = self.saved["steps"]

    def sight(self, rng: np.random.Generator) -> dict[str, float]:
        """Gradients of one step of the first stage; the losses by name."""
        with bfloat16():
            tower = self.model.vision
            assert isinstance(tower, VisionTower)
            loss = sight.loss(tower, self.reader, rng, 64)
        loss.backward()
        return {"patch": loss.item()}

    def answers(self, rng: np.random.Generator) -> dict[str, float]:
        """Gradients of one step of the second stage; the losses by kind of sample."""
        losses, total = {}, sum(PLAN.values())
        for kind, count in PLAN.items():
            batch = self.teacher.draw(rng, kind, count)
            with bfloat16():
                logits, targets = answer_logits(self.model, batch, self.run)
                each = F.cross_entropy(logits.float(), targets, reduction="none")
            weights = torch.from_numpy(batch.weights)[
                torch.from_numpy(batch.targets) != lessons.IGNORED
            ]
            loss = (each * weights).sum() / weights.sum()
            (loss * count / total).backward()
            losses[kind] = loss.item()
        return losses

    def stage(self, name: str, steps: int) -> None:
        """Train one stage ("sight" or "answers") to its last step, saving as it goes."""
        first = self.done[name]
        trained = nn.ModuleList([self.model.vision, self.reader]) if name == "sight" else self.model
        tools = optimizers(trained)
        full = [tool.param_groups[0]["lr"] for tool in tools]
        if self.saved and self.saved["stage"] == name:
            self.reader.load_state_dict(self.saved["reader"])
            for tool, state in zip(tools, self.saved["optimizers"]):
                tool.load_state_dict(state)
        clock = time.time()
        recent: list[dict[str, float]] = []
        for step in range(first, steps):
            for tool, lr in zip(tools, full):
                tool.param_groups[0]["lr"] = lr * self.options.rate * rate(step, steps)
                tool.zero_grad()
            rng = np.random.default_rng([self.options.seed, name == "sight", step, self.worker])
            recent = [*recent[-24:], getattr(self, name)(rng)]
            average_gradients(trained)
            nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            for tool in tools:
                tool.step()
            self.done[name] = step + 1
            if self.worker == 0:
                left = (time.time() - clock) / (step + 1 - first) * (steps - step - 1)
                self.record(name, steps, recent, left, tools)

    def record(self, name: str, steps: int, recent: list[dict], left: float, tools) -> None:
        """Print, save and examine, each at its own pace."""
        done = self.done[name]
        if done % 25 == 0:
            losses = {kind: np.mean([loss[kind] for loss in recent]) for kind in recent[-1]}
            shown = "  ".join(f"{kind} {loss:.4f}" for kind, loss in losses.items())
            print(f"{name} {done}/{steps}  {shown}  {left / 60:.0f} min left", flush=True)
        if done % SAVE_EVERY == 0 or done == steps:
            state = {
                "stage": name,
                "steps": self.done,
                "model": self.model.state_dict(),
                "reader": self.reader.state_dict(),
                "optimizers": [tool.state_dict() for tool in tools],
            }
            part = self.options.state.with_suffix(".part")
            torch.save(state, part)
            os.replace(part, self.options.state)
            if name == "answers":
                export(self.model, FOLDER)
        if name == "answers" and (done % EXAMINE_EVERY == 0 or done == steps):
            with bfloat16():
                marks = exam.take(
                    self.model, self.teacher, answer_logits, 100, seed=1, controls=False
                )
            print(exam.line(marks), flush=True)


def work(worker: int, options: argparse.Namespace, rendezvous: str) -> None:
    """One worker's training, from the saved state on: sight, then answers."""
    torch.set_num_threads(options.threads)
    if options.workers > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{rendezvous}", rank=worker, world_size=options.workers
        )
    training = Training(worker, options)
    training.stage("sight", options.sight_steps)
    training.stage("answers", options.steps)


def export(model: Network, folder: Path) -> None:
    """Write model.safetensors in the HF layout and bfloat16.

    It has SigLIP's final norm, which published files hold unused.
    """
    width, unused = model.config.vision.hidden_size, "vision_tower.vision_model.post_layernorm"
    tensors = {
        **names.published(model),
        f"{unused}.weight": torch.ones(width),
        f"{unused}.bias": torch.zeros(width),
    }
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.part", metadata={"format": "pt"})
    os.replace(folder / "model.part", folder / "model.safetensors")


def evaluate(options) -> None:
    """Print the accuracy of the checkpoint on fresh scenes, drawn with an unused seed."""
    began, model = time.time(), load(FOLDER)
    torch.set_num_threads(options.workers * options.threads)
    teacher = lessons.Teacher(model.config, Tokenizer.from_file(str(FOLDER / "tokenizer.json")))
    progress = Progress("examining", quiet=False)
    marks = exam.take(
        model.network,
        teacher,
        answer_logits,
        options.samples,
        10**6 + options.seed,
        progress=progress,
    )
    print(exam.table(marks))
    if options.record:
        seconds = time.time() - began
        note = (
            f"{min(len(m.right) for m in marks.values()):,} or more fresh questions a task, seed "
            f"{10**6 + options.seed}, {time.strftime('%Y-%m-%d')}, {platform.machine()} CPU, "
            f"torch {torch.__version__}, {seconds:.0f} s."
        )
        head = {
            "columns": exam.HEADS[0],
            "rule": exam.HEADS[1],
            "note": note,
            "checkpoint": digest(FOLDER / "model.safetensors"),
        }
        rows = [head, *({"task": task, "row": exam.row(task, marks[task])} for task in marks)]
        options.record.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


def digest(path: Path) -> str:
    """The sha256 of a file, which says which checkpoint a result belongs to."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def parser() -> argparse.ArgumentParser:
    """The options of the training."""
    root = argparse.ArgumentParser(
        prog="python -m llava_min.weights.tiny.train", description=__doc__.split("\n")[0]
    )
    counts = {
        "--steps": (2000, "of the second stage"),
        "--sight-steps": (1600, "of the first"),
        "--workers": (2, "processes that share a step"),
        "--threads": (1, "threads of each worker"),
        "--seed": (0, "of the scenes"),
        "--samples": (1000, "a task, with --evaluate"),
    }
    switches = {
        "--compile": "compile the decoder's blocks; needs a C++ compiler",
        "--warm": "begin from the committed weights (and --sight-steps 0)",
        "--evaluate": "examine instead of training",
    }
    for flag, (default, words) in counts.items():
        root.add_argument(flag, type=int, metavar="N", default=default, help=f"{words} ({default})")
    for flag, words in switches.items():
        root.add_argument(flag, action="store_true", help=words)
    root.add_argument(
        "--rate", type=float, default=1.0, metavar="X", help="times the learning rates (1.0)"
    )
    root.add_argument(
        "--state",
        type=Path,
        default=FOLDER / "state.pt",
        metavar="FILE",
        help="where to resume from (%(default)s)",
    )
    root.add_argument("--record", type=Path, metavar="FILE", help="write the result as JSON lines")
    return root


def main() -> None:
    options = parser().parse_args()
    if options.evaluate:
        return evaluate(options)
    with tempfile.TemporaryDirectory() as folder:
        arguments = (options, str(Path(folder) / "rendezvous"))
        if options.workers == 1:
            work(0, *arguments)
        else:
            torch.multiprocessing.spawn(work, arguments, nprocs=options.workers)


if __name__ == "__main__":
    main()
