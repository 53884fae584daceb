"""Work that is made to be repeated: on CUDA a graph, recorded once and replayed by one launch.

in:  work on tensors that keep their addresses
out: the same work, done again by each call

Python needs longer to launch the kernels of a decode step or of one tile than a GPU needs to run
them. A recording repeats the same kernels at the same addresses. So nothing in the work may depend
on a number of the host or wait for the device. On a CPU the same work runs unrecorded, which is how
it is tested without a GPU.
Read next: engine/step.py.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import trace
from ..vision import VisionTower

TILES = (8, 4, 2, 1)  # tiles of a recording of the tower: any number is a sum of these


class Recording:
    """`work`, which takes and returns nothing, done again by each call."""

    def __init__(
        self,
        work: Callable[[], None],
        device: torch.device,
        undo: Callable[[], None] | None = None,
        pool=None,
    ):
        """On CUDA: do the work once on a stream of its own, `undo` it, and record it.

        The first time compiles its kernels; recording runs nothing. `pool`: memory that is shared
        with another graph.
        """
        self.work, self.graph = work, None
        if device.type != "cuda":
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            work()
            if undo is not None:
                undo()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            work()

    def __call__(self) -> None:
        self.work() if self.graph is None else self.graph.replay()


class RecordedTower(nn.Module):
    """A vision tower whose passes over 8, 4, 2 and 1 tiles are recorded, each when it comes again.

    The first pass of a number of tiles is an ordinary one, so that a single picture never waits for
    a recording. Under --trace every pass is ordinary.
    """

    def __init__(self, tower: VisionTower):
        super().__init__()
        self.tower, self.config = tower, tower.config
        self.seen: set[int] = set()
        self.recordings: dict[int, Recording] = {}
        self.inputs: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}

    def forward(self, tiles: Tensor) -> Tensor:
        """[B S S 3] uint8 -> features [B N D]."""
        parts = list(torch.split(tiles, sums(len(tiles))))
        features = [self.part(part) for part in parts]
        return features[0] if len(parts) == 1 else torch.cat(features)

    def part(self, tiles: Tensor) -> Tensor:
        count = len(tiles)
        if trace.observed() or count not in self.seen:
            self.seen.add(count)
            return self.tower(tiles)
        if count not in self.recordings:
            self.record(tiles)
        self.inputs[count].copy_(tiles)
        self.recordings[count]()
        return self.outputs[count].clone()  # the next replay overwrites it

    def record(self, tiles: Tensor) -> None:
        count = len(tiles)
        self.inputs[count] = tiles.clone()

        def work() -> None:
            self.outputs[count] = self.tower(self.inputs[count])

        graphs = [other.graph for other in self.recordings.values() if other.graph is not None]
        pool = graphs[0].pool() if graphs else None
        self.recordings[count] = Recording(work, tiles.device, pool=pool)


def sums(count: int) -> list[int]:
    """`count` as a sum of the numbers in TILES, the largest first.

    >>> sums(13)
    [8, 4, 1]
    """
    found = []
    for size in TILES:
        found += [size] * (count // size)
        count %= size
    return found
