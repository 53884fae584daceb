"""Logits -> the next token id: greedy, or a draw with temperature, top-k, top-p and min-p.

in:  logits [V] float32, the ids so far
out: one id

Random numbers are keyed by (seed, position): a draw does not depend on the batch, on how the prompt
was chunked, or on what was drawn before.
Read model.py first. Read next: generate.py.
Agrees with: the logits processors of transformers, in their order; min-p as in arXiv 2407.01082.

V vocabulary.
"""

import numpy as np
import torch
from torch import Tensor

from .errors import NumericsError
from .options import Sampling


def greedy(logits: Tensor, known: int) -> Tensor:
    """The most likely of the first `known` ids, -1 where a logit is not finite: [... V] -> [...].

    It never waits for the device, so that a GPU can record it after the logits.

    >>> greedy(torch.tensor([[1.0, 3.0, 9.0], [2.0, torch.nan, 9.0]]), 2)
    tensor([ 1, -1])
    """
    logits = logits[..., :known]
    largest, likely = logits.max(-1)
    finite = (largest < torch.inf) & (logits.amin(-1) > -torch.inf)  # NaN is both, and neither
    return torch.where(finite, likely, -1)


def next_id(
    logits: Tensor,
    ids: list[int],
    position: int,
    sampling: Sampling,
    known: int,
    likely: int | None = None,
) -> int:
    """Choose an id from logits [V] at `position`.

    Ids from `known` on have no meaning and are never chosen. likely: `greedy` of these logits,
    where it is known already. Raises NumericsError where a logit is not finite.
    """
    logits, chosen = logits[:known], -1
    if sampling.repetition_penalty != 1 and ids:
        logits, likely = penalised(logits, ids, sampling.repetition_penalty), None
    if sampling.temperature == 0:
        chosen = int(greedy(logits, known)) if likely is None else likely  # waits for the device
    elif torch.isfinite(logits).all():
        order, weights = candidates(logits, sampling)
        chosen = int(order[draw(weights, sampling.seed, position)])
    if chosen < 0:
        what, where = "cannot choose the next token", f"logits at position {position}"
        hint = "Try --dtype float32."
        raise NumericsError(what, where, "finite numbers", "NaN or infinity", hint)
    return chosen


def penalised(logits: Tensor, ids: list[int], penalty: float) -> Tensor:
    """Logits with those of ids that have occurred made less likely.

    A positive logit is divided by the penalty, a negative one multiplied.
    """
    known = sorted({i for i in ids if 0 <= i < len(logits)})
    seen = torch.tensor(known, dtype=torch.long, device=logits.device)
    chosen = logits[seen]
    logits = logits.clone()
    logits[seen] = torch.where(chosen > 0, chosen / penalty, chosen * penalty)
    return logits


def candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """(ids, their probabilities), most likely first, after top-k, top-p and min-p."""
    scaled = (logits.double() - logits.max()) / sampling.temperature  # however small that is
    weights, order = torch.softmax(scaled, dim=0).sort(descending=True, stable=True)
    keep = torch.ones_like(weights, dtype=torch.bool)
    if sampling.top_k:
        keep[sampling.top_k :] = False
        weights = weights * keep / (weights * keep).sum()
    keep &= weights.cumsum(0) - weights < sampling.top_p
    keep &= weights >= sampling.min_p * weights[0]
    return order[keep], weights[keep] / weights[keep].sum()


def draw(weights: Tensor, seed: int, position: int) -> int:
    """An index drawn from probabilities [n].

    It inverts their running sum at a random number keyed by (seed, position).
    """
    uniform = np.random.Generator(np.random.Philox(key=[seed, position])).random()
    return min(int((weights.cumsum(0) <= uniform).sum()), len(weights) - 1)
