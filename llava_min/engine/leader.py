"""A decoder in several parts: the first leads, the others work for it, on other devices or ranks.

in:  the parts of a decoder, each with its share of the weights
out: a Leader in the place of the network's decoder

The leader has text, media, projector, sampling and the user. Before or after its own blocks it
sends a Header, which says in whose cache and after how many tokens the rows belong. So the others
keep no count of their own, and nothing needs to be told when a cache is rewound. What is done to
the rows of a cache travels with the next header. Ctrl-C is raised when the step it came in is over,
so that no part is left in the midst of it.
Read planning/split.py, engine/rows.py, decoder.py first. Read next: engine/towers.py.

B rows of a batch, T new tokens, D width.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from .. import trace
from ..base.memory import memory_guard
from ..cache import Cache
from ..decoder import Block, Decoder
from ..errors import ParameterError
from ..model import Network
from .rows import Move, Places

if TYPE_CHECKING:
    from .towers import Tiles


@dataclass(frozen=True)
class Header:
    """What every part does next: T new tokens of some rows of a cache, after those they have seen.

    cache: its number; it has `rows` rows with room for `capacity` tokens. first, starts: the rows
    that are read, and how many tokens each has seen. kept: newest tokens whose stream is wanted.
    moves: what happened to rows of the cache before (engine/rows.py). forget: numbers of caches
    that are gone.
    """

    cache: int
    rows: int
    capacity: int
    first: int
    starts: tuple[int, ...]
    new: int
    kept: int
    dtype: str  # of the rows, as torch calls it
    moves: tuple[Move, ...]
    forget: tuple[int, ...]


class Stage:
    """Some blocks of a decoder, or their heads, with their part of every cache of the leader.

    And a vision tower.
    """

    def __init__(self, network: Network, kv_dtype: torch.dtype | None):
        self.decoder, self.tower, self.kv_dtype = network.decoder, network.vision, kv_dtype
        self.weight: Tensor = self.decoder.blocks.get_parameter("0.attention_norm.weight")
        self.caches: dict[int, Places] = {}

    def cache(self, header: Header) -> Cache:
        """Its part of the header's rows, made or grown where it must be."""
        for number in header.forget:
            self.caches.pop(number, None)
        places = self.caches.get(header.cache)
        if places is None or len(places.first) != header.rows:
            sizes, kept = (header.rows, header.capacity), (self.weight.dtype, self.kv_dtype)
            empty = Cache.empty(self.decoder.config, *sizes, *kept, self.weight.device)
            places = self.caches[header.cache] = Places(empty)
        whole = places.cache
        whole.grow(header.capacity)
        for move in header.moves:
            places.do(move)
        part = whole.rows(header.first, header.first + len(header.starts))
        part.host_lengths[:] = header.starts
        part.lengths.copy_(torch.from_numpy(part.host_lengths))
        return part

    @torch.inference_mode()
    @memory_guard("follow")
    def run(self, header: Header, rows: Tensor) -> Tensor:
        """The stream [B T D] before its blocks -> the stream after them."""
        with on(self.weight.device):
            return whole_stream(self.decoder, rows, self.cache(header))

    @torch.inference_mode()
    @memory_guard("follow")
    def look(self, tiles: Tensor) -> Tensor:
        """Tiles [B S S 3] -> features [B N D]."""
        with on(self.weight.device):
            return self.tower(tiles)


def whole_stream(decoder: Decoder, rows: Tensor, cache: Cache) -> Tensor:
    """Rows through all blocks of a decoder, with what the last one adds.

    The kernel of a norm adds it, and rounds the sum as the next block would find it.
    """
    stream, update = decoder.through(rows, cache)
    block = decoder.blocks[-1]
    assert isinstance(block, Block)
    return block.mlp_norm.added(stream, update)[0]


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """While this lasts, kernels are launched on a device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


class Team(Protocol):
    """The other parts, as the leader sees them."""

    @property
    def parts(self) -> int:
        """All parts, with the leader's."""

    def begin(self, header: Header, rows: Tensor) -> None:
        """Let those who share the leader's blocks have the rows."""

    def finish(self, header: Header, stream: Tensor) -> Tensor:
        """The stream after the leader's blocks -> the last header.kept rows after all blocks."""

    def look(self, order: "Tiles", tiles: Tensor, tower: nn.Module) -> Tensor:
        """Tiles [B S S 3] -> features [B N D], the first ones by the leader's tower."""


class Leader(Decoder):
    """A decoder whose blocks are the first ones, or the first heads, and that leads the others."""

    def __init__(self, own: Decoder, team: Team):
        nn.Module.__init__(self)
        self.config, self.embedding, self.blocks = own.config, own.embedding, own.blocks
        self.norm, self.head = own.norm, own.head
        self.team, self.parts = team, team.parts
        self.known: dict[int, StorageWeakRef] = {}  # caches that the others may hold
        self.gone: list[int] = []
        self.moves: dict[int, list[Move]] = {}  # of rows of these, since their newest header

    def forward(self, rows: Tensor, cache: Cache, kept: int | None = None) -> Tensor:
        """As in Decoder, whole as if nothing were shared."""
        if trace.observed() or rows.requires_grad:
            raise ParameterError(
                "What looks at every layer needs the whole decoder in one process."
            )
        with uninterrupted():
            header = self.header(rows, cache, rows.shape[1] if kept is None else kept)
            self.team.begin(header, rows)
            return self.norm(self.team.finish(header, whole_stream(self, rows, cache)))

    def moved(self, cache: Cache, move: Move) -> None:
        """Remember what happened to a row, until the next header tells it."""
        self.moves.setdefault(self.number(cache), []).append(move)

    def number(self, cache: Cache) -> int:
        """What a cache is called: where its lengths are, whose storage all its views share.

        That of a cache which is gone may come again, for another.
        """
        storage = cache.lengths.untyped_storage()
        number = storage.data_ptr()
        if number in self.known and self.known[number].expired():
            self.forget(number)
        self.known.setdefault(number, StorageWeakRef(storage))
        return number

    def forget(self, number: int) -> None:
        """A cache is gone, which the others have yet to be told."""
        del self.known[number]
        self.moves.pop(number, None)
        self.gone.append(number)

    def header(self, rows: Tensor, cache: Cache, kept: int) -> Header:
        """What the others must know."""
        number = self.number(cache)
        for other in [other for other, held in self.known.items() if held.expired()]:
            self.forget(other)
        gone, self.gone = self.gone, []
        starts = tuple(cache.host_lengths.tolist())
        assert len(starts) == len(rows), "the leader counts on the host"
        return Header(
            cache=number,
            rows=cache.lengths.untyped_storage().nbytes() // cache.lengths.element_size(),
            capacity=cache.capacity,
            first=int(cache.lengths.storage_offset()),
            starts=starts,
            new=rows.shape[1],
            kept=kept,
            dtype=str(rows.dtype).removeprefix("torch."),
            moves=tuple(self.moves.pop(number, ())),
            forget=tuple(gone),
        )


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until the work inside is over, so that no rank is left in the midst of it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # which Ctrl-C never reaches
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came and callable(before):
        before(signal.SIGINT, None)


# In one process ------------------------------------------------------------------


@dataclass
class Devices:
    """Stages of a pipeline in this process, each on a device of its own."""

    stages: list[Stage]

    @property
    def parts(self) -> int:
        return 1 + len(self.stages)

    def begin(self, header: Header, rows: Tensor) -> None:
        pass

    def finish(self, header: Header, stream: Tensor) -> Tensor:
        home = stream.device
        for stage in self.stages:
            stream = stage.run(header, stream.to(stage.weight.device))
        return stream[:, header.new - header.kept :].to(home)

    def look(self, order: "Tiles", tiles: Tensor, tower: nn.Module) -> Tensor:
        own, *others = tiles.split(order.counts)
        features = [tower(own)]
        features += [stage.look(some.to(stage.weight.device))
                     for stage, some in zip(self.stages, others) if len(some)]  # fmt: skip
        return torch.cat([some.to(tiles.device) for some in features])
