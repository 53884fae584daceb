"""Rules change the logits of an answer's next token before it is chosen, or only watch them.

in:  logits [V] float32 and the answer's ids so far
out: logits [V]

They act before the sampling options do, each on what the one before it left. A banned token gets
logits far below all others rather than minus infinity, which would be taken for a fault.
Read generate.py first. Read next: engine/grammar.py, engine/answers.py.
Agrees with: frequency_penalty, presence_penalty, logit_bias and logprobs of OpenAI's API, and
min_tokens of vLLM's.

V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

BANNED = -1e9
Rule = Callable[[Tensor, list[int]], Tensor]


def penalties(frequency: float, presence: float) -> Rule:
    """Lower each id of the answer by `presence`, and by `frequency` for each time it occurred.

    >>> penalties(0.5, 1.0)(torch.zeros(4), [2, 2, 3])
    tensor([ 0.0000,  0.0000, -2.0000, -1.5000])
    """

    def rule(logits: Tensor, new: list[int]) -> Tensor:
        ids, counts = torch.tensor(new, dtype=torch.long).unique(return_counts=True)
        lowered = logits.clone()
        lowered[ids.to(logits.device)] -= (frequency * counts + presence).to(logits)
        return lowered

    return rule


def bias(amounts: Mapping[int, float]) -> Rule:
    """Add an amount to the logit of each of these ids.

    >>> bias({1: 5.0})(torch.zeros(3), [])
    tensor([0., 5., 0.])
    """
    ids, values = torch.tensor(list(amounts)), torch.tensor(list(amounts.values()))

    def rule(logits: Tensor, new: list[int]) -> Tensor:
        changed = logits.clone()
        changed[ids.to(logits.device)] += values.to(logits)
        return changed

    return rule


def at_least(count: int, ends: tuple[int, ...]) -> Rule:
    """Ban the ids that end an answer until it has `count` tokens.

    >>> at_least(1, (0,))(torch.ones(2), [])[0] == BANNED, at_least(1, (0,))(torch.ones(2), [1])
    (tensor(True), tensor([1., 1.]))
    """

    def rule(logits: Tensor, new: list[int]) -> Tensor:
        if len(new) >= count:
            return logits
        banned = logits.clone()
        banned[list(ends)] = BANNED
        return banned

    return rule


@dataclass(frozen=True)
class Likelihood:
    """A token that was chosen and its log-probability; and the most likely ones at its place."""

    id: int
    log_probability: float
    top: list[tuple[int, float]]


class Likelihoods:
    """Watches how likely each token of an answer is, as Model.score counts it.

    top: how many of the most likely tokens to note at each place. known: ids from there on have no
    meaning.
    """

    def __init__(self, top: int, known: int) -> None:
        self.top, self.known = top, known
        self.logs: list[Tensor] = []  # of places whose token was not known when they were seen
        self.found: list[Likelihood] = []

    def __call__(self, logits: Tensor, new: list[int]) -> Tensor:
        """The logits as they are."""
        self.settle(new)
        self.logs.append(logits.log_softmax(-1)[: self.known])
        return logits

    def settle(self, new: list[int]) -> list[Likelihood]:
        """Those of all tokens of the answer, which are `new`."""
        while len(self.found) < len(new):
            logs = self.logs.pop(0)
            values, ids = logs.topk(min(self.top, len(logs)))
            chosen = new[len(self.found)]
            top = list(zip(ids.tolist(), values.tolist()))
            self.found.append(Likelihood(chosen, float(logs[chosen]), top))
        return self.found
