"""How likely a given answer is, token by token, after a prompt that was read.

in:  a network, a cache of one row after a prompt, the logits of its last token, ids of the answer
out: logits [T V] from which they would be chosen, natural logarithms of probabilities [T]

Read model.py first. Read next: explain/occlusion.py.

T tokens of the answer, V vocabulary.
"""

import torch
from torch import Tensor

from ..cache import Cache
from ..model import Network
from ..segments import Plan, Text


def before(network: Network, logits: Tensor, cache: Cache, ids: list[int]) -> Tensor:
    """Logits [T V] from which T ids would be chosen, one by one, after a prompt of one row.

    logits: [1 V] of the prompt's last token.
    """
    if len(ids) == 1:
        return logits
    more = Plan((Text(tuple(ids[:-1])),), network.config.text.context)
    return torch.cat([logits, network.prefill(more, [], cache, keep="all")])


def log_probabilities(logits: Tensor, ids: list[int]) -> Tensor:
    """The logarithm of each id's probability by its logits [T V]: [T]."""
    chosen = torch.tensor(ids, device=logits.device)
    return logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0]
