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


class Pass:
    """A pass of a tower over a fixed number of tiles, recorded over tensors of its own."""

    def __init__(self, tower: VisionTower, tiles: Tensor, pool=None):
        self.tower, self.tiles = tower, tiles.clone()
        self.recording = Recording(self.run, tiles.device, pool=pool)

    def run(self) -> None:
        self.features = self.tower(self.tiles)

    def __call__(self, tiles: Tensor) -> Tensor:
        """[B S S 3] uint8 -> features [B N D]."""
        self.tiles.copy_(tiles)
        self.recording()
        return self.features.clone()  # the next replay overwrites it


class RecordedTower(nn.Module):
    """A vision tower whose passes over 8, 4, 2 and 1 tiles are recorded, each when it comes again.

    The first pass of a number of tiles is an ordinary one, so that a single picture never waits for
    a recording. Under --trace every pass is ordinary.
    """

    def __init__(self, tower: VisionTower):
        super().__init__()
        self.tower, self.config = tower, tower.config
        self.passes: dict[int, Pass | None] = {}  # by tiles; None: seen once

    def forward(self, tiles: Tensor) -> Tensor:
        """[B S S 3] uint8 -> features [B N D]."""
        features = [self.part(part) for part in torch.split(tiles, sums(len(tiles)))]
        return features[0] if len(features) == 1 else torch.cat(features)

    def part(self, tiles: Tensor) -> Tensor:
        count = len(tiles)
        if trace.observed() or count not in self.passes:
            self.passes.setdefault(count)
            return self.tower(tiles)
        if self.passes[count] is None:
            self.passes[count] = Pass(self.tower, tiles, self.pool())
        return self.passes[count](tiles)

    def pool(self):
        """The memory of the graphs that are there: only one of them runs at a time."""
        graphs = (one.recording.graph for one in self.passes.values() if one is not None)
        return next((graph.pool() for graph in graphs if graph is not None), None)


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
