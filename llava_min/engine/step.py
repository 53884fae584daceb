"""One decode step, made to be repeated, the choice of the most likely token included.

in:  the newest id of each row
out: logits [B V], overwritten by the next step, and the most likely id of each row

A step of a 7B decoder is some 250 kernels of a few microseconds. Ids, cache and lengths keep their
addresses, and the step sees its cache counted on the device alone (engine/recording.py). Where each
row goes on with its most likely token, the next step finds the ids on the device already. A token
then costs one launch and one number that comes back.
Read model.py, generate.py, engine/recording.py first.

B rows of a batch, V vocabulary.
"""

from collections.abc import Callable

import torch

from ..cache import Cache
from ..generate import Chosen
from ..model import Network
from ..sampling import greedy
from .recording import Recording


class Step:
    """`model.decode` over one cache, which must not grow meanwhile.

    Ids from `known` on have no meaning.
    """

    def __init__(self, model: Network, cache: Cache, known: int):
        self.model, self.cache, self.known = model, cache, known
        self.on_device = cache.on_device()
        self.ids = torch.zeros(len(cache.host_lengths), dtype=torch.long, device=model.device)
        self.expected: list[int] = []  # the ids that the step before left on the device
        self.recording = Recording(self.run, model.device, self.undo)

    @torch.inference_mode()
    def run(self) -> None:
        """Everything that is recorded."""
        self.logits = self.model.decode(self.ids, self.on_device)
        self.greedy = greedy(self.logits, self.known)
        self.ids.copy_(self.greedy.clamp(min=0))

    def undo(self) -> None:
        self.on_device.lengths -= 1

    def __call__(self, ids: list[int]) -> Chosen:
        """The newest id of each row -> logits [B V] and `greedy` of them.

        The cache has then seen one token more. Waits for the device once.
        """
        assert self.cache.host_lengths.max() < self.cache.capacity, (
            self.cache.host_lengths,
            self.cache.capacity,
        )
        if ids != self.expected:
            self.ids.copy_(torch.tensor(ids), non_blocking=True)
        self.recording()
        self.cache.host_lengths += 1
        self.expected = self.greedy.tolist()
        return self.logits, self.expected


def decoding(model: Network, cache: Cache, known: int) -> Callable[[list[int]], Chosen]:
    """How this device makes one step after another: recorded on CUDA, elsewhere `model.decode`.

    `model.decode` as it is reads no more of the cache than was seen.
    """
    if model.device.type == "cuda":
        return Step(model, cache, known)
    return lambda ids: (model.decode(torch.tensor(ids, device=model.device), cache), None)
