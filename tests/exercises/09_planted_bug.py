"""A solution of exercise 9."""

import torch


def holds(attention) -> bool:
    torch.manual_seed(0)
    for count in (12, 37):
        query, key, value = torch.randn(3, count, 8, dtype=torch.float64)
        whole = attention(query, key, value)
        for piece in (1, 5, 11):
            for first in range(0, count, piece):
                last = min(first + piece, count)
                part = attention(query[first:last], key[:last], value[:last])
                if not torch.allclose(part, whole[first:last]):
                    return False
    return True


def attend(query, key, value, block=16):
    new, total = len(query), len(key)
    before = total - new
    mixed = torch.empty_like(query)
    for first in range(0, new, block):
        rows = query[first : first + block] / query.shape[1] ** 0.5
        last = before + torch.arange(first, first + len(rows))
        keys = torch.arange(total)
        scores = (rows @ key.T).masked_fill(keys > last[:, None], -torch.inf)
        mixed[first : first + block] = torch.softmax(scores, dim=-1) @ value
    return mixed
