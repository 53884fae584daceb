"""Logits -> the next token id: greedy, or a draw with temperature, top-k, top-p and min-p.

in:  logits [V] float32, the ids so far      out: one id
Random numbers are keyed by (seed, position): a draw does not depend on the batch, on how the prompt
was chunked, or on what was drawn before.
Read before: model.py. Read next: generate.py.
Agrees with: the logits processors of transformers, in their order; min-p as in arXiv 2407.01082.

V vocabulary.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .errors import NumericsError, ParameterError


@dataclass(frozen=True)
class Sampling:
    """How to choose. temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 do
    nothing.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        limits = {
            "temperature": (0.0, 100.0),
            "top_k": (0, 2**31 - 1),
            "top_p": (0.0, 1.0),
            "min_p": (0.0, 1.0),
            "repetition_penalty": (0.01, 100.0),
            "seed": (0, 2**63 - 1),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            right_type = type(value) in ((int,) if type(low) is int else (int, float))
            if not right_type or not math.isfinite(value) or not low <= value <= high:
                raise ParameterError(
                    "cannot sample",
                    name,
                    f"a{'n integer' if type(low) is int else ' number'} from {low} to {high}",
                    repr(value),
                )
        if self.top_p == 0:
            raise ParameterError("cannot sample", "top_p", "a number above 0", "0")


def next_id(logits: Tensor, ids: list[int], position: int, sampling: Sampling, known: int) -> int:
    """Choose from logits [V] at `position`; ids from `known` on stand for nothing and are never
    chosen.
    """
    if not torch.isfinite(logits[:known]).all():
        raise NumericsError(
            "cannot choose the next token",
            f"logits at position {position}",
            "finite numbers",
            "NaN or infinity",
            "Try --dtype float32.",
        )
    logits = logits[:known]
    if sampling.repetition_penalty != 1 and ids:
        logits = penalised(logits, ids, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return int(logits.argmax())
    order, weights = candidates(logits, sampling)
    return int(order[draw(weights, sampling.seed, position)])


def penalised(logits: Tensor, ids: list[int], penalty: float) -> Tensor:
    """Logits of ids that have occurred are divided by the penalty where positive, multiplied where
    negative.
    """
    seen = torch.tensor(sorted({i for i in ids if 0 <= i < len(logits)}), device=logits.device)
    chosen = logits[seen]
    logits = logits.clone()
    logits[seen] = torch.where(chosen > 0, chosen / penalty, chosen * penalty)
    return logits


def candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """(ids, their probabilities), most likely first, after top-k, top-p and min-p."""
    scaled = logits.double() / sampling.temperature
    weights, order = torch.softmax(scaled - scaled.max(), dim=0).sort(descending=True, stable=True)
    keep = torch.ones_like(weights, dtype=torch.bool)
    if sampling.top_k:
        keep[sampling.top_k :] = False
        weights = weights * keep / (weights * keep).sum()
    keep &= weights.cumsum(0) - weights < sampling.top_p
    keep &= weights >= sampling.min_p * weights[0]
    return order[keep], weights[keep] / weights[keep].sum()


def draw(weights: Tensor, seed: int, position: int) -> int:
    """An index drawn from probabilities [n], by inverting their sum at a number keyed by (seed,
    position).
    """
    uniform = np.random.Generator(np.random.Philox(key=[seed, position])).random()
    return min(int((weights.cumsum(0) <= uniform).sum()), len(weights) - 1)
