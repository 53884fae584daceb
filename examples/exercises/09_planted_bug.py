"""Exercise 9, one hour: find the bug by a property, then mend it.

`attend` below is causal attention: query t is row S - T + t of a prompt of S rows, and sees the
keys up to its own row. It passes the obvious test: on a whole prompt it equals the formula. But
somebody reported that answers change when the prompt is read in chunks.

First write `holds`, a property that any causal attention must have: to read a prompt in pieces is
the same as to read it at once. Give each piece of the queries the keys up to its end, and compare.
It must be false for `attend` as it is, and for other mistakes of that kind. Then mend `attend`.

Read: kernels/attention.py, `causal_mask` and `attention_tiled`.
Check yourself: python examples/exercises/09_planted_bug.py
"""

from collections.abc import Callable

import torch
from torch import Tensor

from llava_min.kernels.attention import attention_formula, causal_mask

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]  # query [T E], key and value [S E] -> [T E]


def holds(attention: Attention) -> bool:
    """Whether a prompt in pieces gives what it gives in one."""
    raise NotImplementedError


def attend(query: Tensor, key: Tensor, value: Tensor, block: int = 16) -> Tensor:
    """Causal attention of query [T E] over key and value [S E], S >= T, some queries at a time."""
    new, total = len(query), len(key)
    before = (total - new) // block * block
    mixed = torch.empty_like(query)
    for first in range(0, new, block):
        rows = query[first : first + block] / query.shape[1] ** 0.5
        last = before + torch.arange(first, first + len(rows))  # the last key that each row sees
        keys = torch.arange(total)
        scores = (rows @ key.T).masked_fill(keys > last[:, None], -torch.inf)
        mixed[first : first + block] = torch.softmax(scores, dim=-1) @ value
    return mixed


# The check: you need not read on. ----------------------------------------------------------


def shifted(offset: Callable[[int], int]) -> Attention:
    """Attention that takes `offset(S - T)` for the number of rows before the queries."""

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        new, seen = len(query), len(key) - len(query)
        mask = torch.ones(new, new + seen, dtype=torch.bool).tril(offset(seen))
        one = query[None, :, None], key[None, None], value[None, None]
        return attention_formula(*one, mask)[0, :, 0]

    return attention


def test():
    assert holds(shifted(lambda seen: seen)), "the property is false for an attention that is right"
    mistakes = {
        "takes the first query for the first row": lambda seen: 0,
        "forgets one row of those before": lambda seen: max(seen - 1, 0),
        "lets a query see one key too many in a chunk": lambda seen: seen + (seen > 0),
        "rounds the rows before down to a multiple of four": lambda seen: seen // 4 * 4,
        "rounds the rows before down to a multiple of sixteen": lambda seen: seen // 16 * 16,
    }
    for mistake, offset in mistakes.items():
        assert not holds(shifted(offset)), f"the property is true for an attention that {mistake}"
    generator = torch.Generator().manual_seed(0)
    for new, seen in ((20, 0), (7, 32), (7, 33), (40, 5), (1, 50)):
        query, key, value = (
            torch.randn(count, 8, generator=generator, dtype=torch.float64)
            for count in (new, new + seen, new + seen)
        )
        one = query[None, :, None], key[None, None], value[None, None]
        expected = attention_formula(*one, causal_mask(new, seen))[0, :, 0]
        right = torch.allclose(attend(query, key, value), expected)
        assert right, f"holds is right; attend is still wrong for {new} rows after {seen}: mend it"


if __name__ == "__main__":
    from judge import judge

    judge(test)
