"""One decode step, made to be repeated: on CUDA a graph, recorded once and replayed by one launch.

in:  the newest id of each row      out: logits [B V], overwritten by the next step
A step of a 7B decoder is some 300 kernels of a few microseconds; Python needs longer to launch them
than a GPU to run them. A recording repeats the same kernels at the same addresses, so ids, cache
and lengths stay where they are, and nothing in a step may depend on a number of the host or wait
for the device: the step sees its cache counted on the device alone. On a CPU the same step runs
unrecorded, which is how it is tested without a GPU.
Read before: model.py, generate.py.

B rows of a batch, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .cache import Cache
from .model import Llava


class Step:
    """`model.decode` over one cache, which must not grow meanwhile."""

    def __init__(self, model: Llava, cache: Cache):
        self.model, self.cache, self.on_device = model, cache, cache.on_device()
        self.ids = torch.zeros(len(cache.seen), dtype=torch.long, device=model.device)
        self.graph = self.recorded() if model.device.type == "cuda" else None

    def run(self) -> None:
        """Everything that is recorded."""
        self.logits = self.model.decode(self.ids, self.on_device)

    def recorded(self) -> "torch.cuda.CUDAGraph":
        """Run once, to compile the kernels, on a stream of its own, and take that step back; then
        record, which runs nothing.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.run()
            self.on_device.lengths -= 1
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.run()
        return graph

    def __call__(self, ids: list[int]) -> Tensor:
        """The newest id of each row -> logits [B V]; the cache has seen one token more."""
        assert self.cache.seen.max() < self.cache.capacity, (self.cache.seen, self.cache.capacity)
        self.ids.copy_(torch.tensor(ids), non_blocking=True)
        self.run() if self.graph is None else self.graph.replay()
        self.cache.seen += 1
        return self.logits


def decoding(model: Llava, cache: Cache) -> Callable[[list[int]], Tensor]:
    """How this device makes one step after another: recorded on CUDA; elsewhere `model.decode` as
    it is, which reads no more of the cache than was seen.
    """
    if model.device.type == "cuda":
        return Step(model, cache)
    return lambda ids: model.decode(torch.tensor(ids, device=model.device), cache)
