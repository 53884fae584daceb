"""Work that is made to be repeated: on CUDA a graph, recorded once and replayed by one launch.

in:  work on tensors that keep their addresses
out: the same work, done again by each call, and its results

Python needs longer to launch the kernels of a decode step or of one tile than a GPU needs to run
them. A recording repeats the same kernels at the same addresses. So nothing in the work may depend
on a number of the host or wait for the device. On a CPU the same work runs unrecorded, which is how
it is tested without a GPU; and so it does while somebody watches, edits or traces (trace.py).
Read next: engine/step.py.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from .. import trace
from ..kernels import choose

TILES = (8, 4, 2, 1)  # tiles of a recording of the tower: any number is a sum of these
Results = TypeVar("Results")


def recorded(device: torch.device) -> bool:
    """Whether work on a device is recorded: on CUDA, where the kernels are Triton's."""
    return device.type == "cuda" and choose.explained(device)[0] == "triton"


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside a `with` block Python collects no garbage.

    Where an older graph is part of a circle, ending it spoils what is being recorded. Other threads
    may do as they like: the recording looks at its own alone.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


class Recording(Generic[Results]):
    """`work`, which takes nothing, done again by each call."""

    def __init__(
        self,
        work: Callable[[], Results],
        device: torch.device,
        undo: Callable[[], None] | None = None,
        shared: torch.cuda.CUDAGraph | None = None,
    ):
        """On CUDA: do the work once on a stream of its own, `undo` it, and record it.

        The first time compiles its kernels; recording runs nothing. No observer sees either.
        `work` is kept, and must not lead back to what keeps the recording: memory of a device is
        to be free when its owner goes, not when Python looks for circles.
        `shared`: a graph that never runs at the same time, whose memory is used.
        """
        self.work = work
        self.graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            with trace.unobserved():
                self.record(undo, shared)

    def record(self, undo: Callable[[], None] | None, shared: torch.cuda.CUDAGraph | None) -> None:
        """Do the work once, undo it, and record it: see __init__."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.work()
            if undo is not None:
                undo()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        pool = None if shared is None else shared.pool()
        with uncollected(), torch.cuda.graph(self.graph, pool, capture_error_mode="thread_local"):
            self.results = self.work()

    def __call__(self) -> Results:
        """The results of the work; a replay writes them over those of the one before."""
        if self.graph is None or trace.observed():
            return self.work()
        self.graph.replay()
        return self.results


class Pass:
    """A pass of a tower over a fixed number of tiles, recorded over tensors of its own."""

    def __init__(self, tower: nn.Module, tiles: Tensor, shared: torch.cuda.CUDAGraph | None):
        self.tiles = tiles.clone()
        self.recording = Recording(partial(tower, self.tiles), tiles.device, shared=shared)

    def __call__(self, tiles: Tensor) -> Tensor:
        """[B S S 3] uint8 -> features [B N D]."""
        self.tiles.copy_(tiles)
        return self.recording().clone()  # the next replay overwrites it


class RecordedTower(nn.Module):
    """A vision tower whose passes over 8, 4, 2 and 1 tiles are recorded, each when it comes again.

    The first pass of a number of tiles is an ordinary one, so that a single picture never waits for
    a recording.
    """

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.tower = tower
        self.passes: dict[int, Pass | None] = {}  # by tiles; None: seen once

    def forward(self, tiles: Tensor) -> Tensor:
        """[B S S 3] uint8 -> features [B N D]; unrecorded where plain torch was asked for."""
        if choose.chosen() == "reference":
            return self.tower(tiles)
        features = [self.part(part) for part in torch.split(tiles, sums(len(tiles)))]
        return features[0] if len(features) == 1 else torch.cat(features)

    def part(self, tiles: Tensor) -> Tensor:
        """The same of as many tiles as a recording has; it is made when they come again."""
        count = len(tiles)
        if count not in self.passes:
            self.passes[count] = None
            return self.tower(tiles)
        recorded = self.passes[count] or Pass(self.tower, tiles, self.any_graph())
        self.passes[count] = recorded
        return recorded(tiles)

    def any_graph(self) -> torch.cuda.CUDAGraph | None:
        """A graph that is there, if any: only one of them runs at a time, so all share memory."""
        graphs = (one.recording.graph for one in self.passes.values() if one is not None)
        return next((graph for graph in graphs if graph is not None), None)


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
