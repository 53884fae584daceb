"""A solution of exercise 2."""

from torch import Tensor


def kept(probabilities: Tensor, top_p: float) -> list[int]:
    found, total = [], 0.0
    for token in probabilities.argsort(descending=True, stable=True).tolist():
        if total >= top_p:
            break
        found.append(token)
        total += float(probabilities[token])
    return found
