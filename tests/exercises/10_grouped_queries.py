"""A solution of exercise 10."""

import torch


def attend(query, key, value):
    kv_heads, _, width = key.shape
    folded = query.reshape(kv_heads, -1, width)  # K G E
    scores = folded @ key.transpose(1, 2) / width**0.5
    return (torch.softmax(scores, dim=-1) @ value).reshape(query.shape)
