"""A solution of exercise 12."""

import torch

LOWEST = -1e30  # finite: exp(-inf - (-inf)) would be NaN


def part(query, key, value, first, seen):
    keys = first + torch.arange(len(key))
    last = seen + torch.arange(len(query))
    hidden = (keys > last[:, None])[:, None]  # T 1 s
    scores = (query @ key.T / query.shape[-1] ** 0.5).masked_fill(hidden, -torch.inf)
    maximum = scores.amax(-1).clamp(min=LOWEST)
    weights = torch.exp(scores - maximum[..., None])
    return maximum, weights.sum(-1), weights @ value


def combine(parts):
    maximums, totals, mixes = map(torch.stack, zip(*parts))
    shares = torch.exp(maximums - maximums.amax(0))
    return (mixes * shares[..., None]).sum(0) / (totals * shares).sum(0)[..., None]
