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

from functools import partial

import torch
from torch import Tensor

from .. import generate
from ..base.memory import memory_guard
from ..cache import Cache
from ..generate import Logits
from ..model import Network
from ..sampling import greedy
from .recording import Recording, recorded


@torch.inference_mode()
def one_step(network: Network, cache: Cache, ids: Tensor, known: int) -> tuple[Tensor, Tensor]:
    """Everything that is recorded: logits [B V] and `greedy` of them [B], which replace the ids."""
    logits = network.decode(ids, cache)
    likely = greedy(logits, known)
    ids.copy_(likely.clamp(min=0))
    return logits, likely


class Step:
    """`Network.decode` over one cache, which must not grow meanwhile.

    Ids from `known` on have no meaning. The first call records.
    """

    def __init__(self, network: Network, cache: Cache, known: int):
        self.network, self.cache = network, cache
        self.on_device = cache.on_device()
        self.ids = torch.zeros(len(cache.lengths), dtype=torch.long, device=network.device)
        self.work = partial(one_step, network, self.on_device, self.ids, known)
        self.expected: list[int] = []  # the ids that the step before left on the device
        self.recording: Recording[tuple[Tensor, Tensor]] | None = None

    def undo(self) -> None:
        """Count back the token that `one_step` has counted on the device."""
        self.on_device.lengths -= 1

    def __call__(self, ids: list[int]) -> Logits:
        """The newest id of each row -> logits [B V] and `greedy` of them.

        The cache has then seen one token more. Waits for the device once.
        """
        longest = int(self.cache.host_lengths.max())
        assert longest < self.cache.capacity, (longest, self.cache.capacity)
        if self.recording is None:
            self.recording = Recording(self.work, self.network.device, self.undo)
        if ids != self.expected:
            self.ids.copy_(torch.tensor(ids), non_blocking=True)
        logits, likely = self.recording()
        self.cache.host_lengths += 1
        self.expected = likely.tolist()
        return logits, self.expected


def decoding(network: Network, cache: Cache, known: int) -> generate.Step:
    """How this device makes one step after another: recorded where the kernels are Triton's.

    These read the lengths on the device. Plain torch is told by Python where a row ends, and so
    reads no more of the cache than was seen. A decoder in several parts is led by the host.
    """
    if network.decoder.parts > 1 or not recorded(network.device):
        return eager(network, cache, known)
    return memory_guard("continue the answer")(Step(network, cache, known).__call__)


def eager(network: Network, cache: Cache, known: int) -> generate.Step:
    """`Network.decode` and `greedy` of it, once for each call."""

    @memory_guard("continue the answer")
    def step(ids: list[int]) -> Logits:
        logits = network.decode(torch.tensor(ids, device=network.device), cache)
        return logits, greedy(logits, known).tolist()

    return step
