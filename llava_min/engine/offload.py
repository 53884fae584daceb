"""Layers that stay in the host's memory, and come to the device one ahead of their turn.

in:  how to make a network of one block, from its share of the weights
out: a network whose decoder keeps as many blocks on the device as fit, and streams the others

Two places on the device take turns: while one block computes, the next one is copied into the other
place, on a CUDA stream of its own and from pinned memory. The last block of a pass is followed by
the first one of the next. The kernels and their numbers are those of a model that is all on the
device, so the bits are the same. On a CPU the same two places are used, which is how it is tested.
Read engine/several.py, planning/split.py first. Read next: engine/load.py.
"""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..cache import Cache
from ..config import LlavaConfig, TextConfig
from ..decoder import Decoder
from ..errors import ParameterError
from ..model import Network
from ..planning.forecast import free_bytes
from ..planning.memory import Storage
from ..planning.split import block_bytes
from ..weights.share import Share

SPARE = 4  # one part in so many of what is free is left for cache and activations


def tensors_of(block: nn.Module) -> list[Tensor]:
    """Everything that a block computes with, in a fixed order: parameters, and what became of them.

    Counters of kernels are left out: they are zero between two products.
    """
    found = []
    for module in block.modules():
        held = {**vars(module), **module._parameters}
        found += [value for name, value in sorted(held.items())
                  if isinstance(value, Tensor) and name != "arrived"]  # fmt: skip
    return found


@dataclass
class Place:
    """A block on the device into which any of the streamed ones can be copied."""

    block: nn.Module
    index: int = -1  # which one it holds
    there: torch.cuda.Event | None = None  # when it has been copied
    used: torch.cuda.Event | None = None  # when it has computed


class Streamed(Decoder):
    """A decoder whose first blocks are on the device, and the others in the host's memory."""

    parts = 2

    def __init__(self, own: Decoder, config: TextConfig, held: int, places: list[nn.Module]):
        nn.Module.__init__(self)
        self.config, self.embedding, self.norm, self.head = (
            config,
            own.embedding,
            own.norm,
            own.head,
        )
        self.blocks, self.held = nn.ModuleList(), held
        self.streamed: list[list[Tensor]] = []
        self.places = [Place(block) for block in places]
        cuda = own.embedding.weight.device.type == "cuda"
        self.stream = torch.cuda.Stream() if cuda else None

    def take(self, block: nn.Module) -> None:
        """One block more, kept on the device while there is room for it."""
        if len(self.blocks) < self.held:
            self.blocks.append(block)
        else:
            self.streamed.append([to_host(tensor) for tensor in tensors_of(block)])

    def through(self, rows: Tensor, cache: Cache) -> tuple[Tensor, Tensor | None]:
        """As in Decoder."""
        positions = cache.lengths[:, None] + torch.arange(rows.shape[1], device=rows.device)
        angles, update = self.angles(positions, rows.dtype), None
        layers = cache.layers()
        for block, layer in zip(self.blocks, layers):
            rows, update = block(rows, update, angles, layer)
        for index, layer in enumerate(layers[len(self.blocks) :]):
            place = self.fetch(index)
            if place.there is not None:
                torch.cuda.current_stream().wait_event(place.there)
            self.fetch((index + 1) % len(self.streamed), place)
            rows, update = place.block(rows, update, angles, layer)
            if self.stream is not None:
                place.used = torch.cuda.current_stream().record_event()
        return rows, update

    def fetch(self, index: int, busy: Place | None = None) -> Place:
        """The place that holds a streamed block, or will: it is not `busy`, which computes."""
        for place in self.places:
            if place.index == index:
                return place
        place = next(place for place in self.places if place is not busy)
        place.index = index
        with torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext():
            if self.stream is not None and place.used is not None:
                self.stream.wait_event(place.used)
            for here, there in zip(tensors_of(place.block), self.streamed[index]):
                here.copy_(there, non_blocking=True)
            place.there = None if self.stream is None else self.stream.record_event()
        return place


def offloaded(
    part: Callable[[Share, str], Network], config: LlavaConfig, storage: Storage, device: str
) -> Network:
    """The network with a Streamed decoder. ParameterError on a CPU in bfloat16: oneDNN's order."""
    if (device, storage.dtype, storage.bits) == ("cpu", "bfloat16", None):
        raise ParameterError("offload is for GPUs; to try it on a CPU, choose dtype float32.")
    text = config.text
    network = part(Share(text, 0, 1), device)
    block, held = network.decoder.blocks[0], blocks_in_place(config, storage, device)
    places = [copy.deepcopy(block) for _ in range(2)]
    decoder = Streamed(network.decoder, text, held, places)
    decoder.take(block)
    for index in range(1, text.num_layers):
        share = Share(text, index, index + 1, rest=False)
        decoder.take(part(share, device).decoder.blocks[0])
    network.decoder, network.config = decoder, config
    return network


def blocks_in_place(config: LlavaConfig, storage: Storage, device: str) -> int:
    """How many blocks a device has room for, besides the two places: on a CPU none."""
    if device == "cpu":
        return 0
    free = (free_bytes(device) or 0) * (SPARE - 1) // SPARE
    return max(0, free // block_bytes(config, storage) - 2)


def to_host(tensor: Tensor) -> Tensor:
    """A copy in the host's memory, pinned where a GPU is to read it."""
    host = tensor.cpu() if tensor.device.type != "cpu" else tensor
    return host.pin_memory() if tensor.device.type == "cuda" else host
