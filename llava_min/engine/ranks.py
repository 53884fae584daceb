"""One model over several processes or devices: the first leads, the others follow its decoder.

in:  a Split; for each part, its share of the weights
out: a Leader in the place of the network's decoder, for which the other parts work

Rank 0 has text, media, tower, sampling and the user. Before or after its own blocks it sends a
Header, which says in whose cache and after how many tokens the rows belong. So the others keep no
count of their own, and nothing needs to be told when a cache is rewound. Along the stages of a
pipeline each header goes with its rows from rank to rank: while a stage reads one chunk of a
prompt, the stage before it reads the next. Where ranks share the heads of a layer, two sums a layer
join what they computed.
Headers have a group of their own, in which a rank waits for as long as nobody asks. Ctrl-C is
raised when the step it came in is over, on every rank. If any rank dies, all end, with one line.
Read planning/split.py, weights/share.py, decoder.py first. Read next: engine/followers.py.
Agrees with: Megatron-LM (arXiv 1909.08053) in where the sums are; chunked pipelines as in
Mnemosyne (arXiv 2409.17264).

B rows of a batch, T new tokens, D width.
"""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from .. import trace
from ..base.memory import memory_guard
from ..cache import Cache
from ..decoder import Block, Decoder
from ..errors import LlavaMinError, ParameterError
from ..planning.split import Split
from .rows import Move, Places

SECONDS = 300  # that a rank waits for another in the midst of a step; a chunk on a CPU takes some
PATIENCE = 4  # seconds in which engine/followers.py ends all, once one rank has died
FOREVER = timedelta(days=365)  # that it waits for the next question


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

    def message(self) -> Tensor:
        """It as bytes of JSON; nothing that a rank gets is ever unpickled."""
        return torch.frombuffer(bytearray(json.dumps(asdict(self)).encode()), dtype=torch.uint8)

    @classmethod
    def of(cls, message: Tensor) -> "Header":
        """The header of such bytes."""
        return cls(**json.loads(bytes(message.tolist())))


class Stage:
    """Some blocks of a decoder, or their heads, with their part of every cache of the leader."""

    def __init__(self, decoder: Decoder, kv_dtype: torch.dtype | None):
        self.decoder, self.kv_dtype = decoder, kv_dtype
        self.weight: Tensor = decoder.blocks.get_parameter("0.attention_norm.weight")
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


# Over processes ------------------------------------------------------------------


class Gone(LlavaMinError):
    """Another rank does not answer any more."""


def joined() -> bool:
    """Whether this process is a rank."""
    return dist.is_initialized()


def leave() -> None:
    """Be no rank any more."""
    dist.destroy_process_group()


@contextlib.contextmanager
def talking() -> Iterator[None]:
    """Gone where what is sent does not arrive; who started that rank says more, and sooner."""
    try:
        yield
    except RuntimeError as error:
        time.sleep(PATIENCE)
        raise Gone(f"Another rank is gone: {str(error).splitlines()[0][:200]}") from None


@dataclass
class Ranks:
    """This process as a rank among others: rank r has the heads r mod T of the stage r // T."""

    split: Split
    rank: int
    device: torch.device
    control: dist.ProcessGroup
    heads: dist.ProcessGroup | None  # those of this stage
    staged: bool = False  # whether rows pass through the host's memory
    free: list[int] = field(default_factory=list)  # bytes, by rank
    midst: bool = False  # whether the others are in a step, or were when it failed

    @classmethod
    def join(
        cls, split: Split, rank: int, device: torch.device, free: int | None, store: str | None
    ) -> "Ranks":
        """Meet the other ranks: through a file, or as torchrun's variables say."""
        cards = torch.cuda.device_count() if device.type == "cuda" else 0
        backend = "nccl" if cards and (store is None or split.ranks <= cards) else "gloo"
        seconds = timedelta(seconds=SECONDS)
        with talking():
            if store is None:
                dist.init_process_group(backend, timeout=seconds)
            else:
                found = dist.FileStore(store, split.ranks)
                found.set(str(rank), "here")  # others may still import torch
                found.wait([str(other) for other in range(split.ranks)], FOREVER)
                dist.init_process_group(
                    backend, store=found, rank=rank, world_size=split.ranks, timeout=seconds
                )
            control = dist.new_group(backend="gloo", timeout=FOREVER)
            heads = None
            for stage in range(split.pipeline if split.tensor > 1 else 0):
                first = stage * split.tensor
                group = dist.new_group(list(range(first, first + split.tensor)))
                heads = group if rank // split.tensor == stage else heads
            rooms = [torch.zeros(1, dtype=torch.int64) for _ in range(split.ranks)]
            dist.all_gather(rooms, torch.tensor([free or 0]), group=control)
        staged = backend == "gloo" and device.type != "cpu"
        return cls(split, rank, device, control, heads, staged, [int(room) for room in rooms])

    @property
    def parts(self) -> int:
        return self.split.ranks

    @property
    def first_head(self) -> bool:
        return self.rank % self.split.tensor == 0

    @property
    def last(self) -> bool:
        return self.rank // self.split.tensor == self.split.pipeline - 1

    def rooms(self) -> list[int]:
        """Bytes free for each stage; on CPUs nothing, since these may share one memory."""
        size = self.split.tensor if self.device.type != "cpu" else 0
        return [sum(self.free[first : first + size])
                for first in range(0, self.split.ranks if size else 0, size or 1)]  # fmt: skip

    def share_sums(self, decoder: Decoder) -> None:
        """Let the blocks add up what the ranks of a stage computed."""
        for block in decoder.blocks:
            for name in ("output", "down") if self.heads is not None else ():
                setattr(block, name, Summed(block.get_submodule(name), self.heads))

    # The leader

    def begin(self, header: Header, rows: Tensor) -> None:
        if self.midst:
            raise Gone("A step has failed, and the other ranks cannot go on.")
        if self.heads is None:
            return
        self.midst = True
        with talking():
            self.tell_heads(header)
            dist.broadcast(rows.contiguous(), src=0, group=self.heads)

    def finish(self, header: Header, stream: Tensor) -> Tensor:
        self.midst = True
        if self.split.pipeline > 1:
            self.pass_on(header, stream)
            stream = stream.new_empty(len(stream), header.kept, stream.shape[2])
            if header.kept:
                self.receive(stream, self.split.ranks - self.split.tensor, self.control)
        self.midst = False
        return stream[:, stream.shape[1] - header.kept :]

    def end(self) -> None:
        """Let the others end, unless they wait in the midst of a step, for their launcher."""
        if self.midst:
            return
        with contextlib.suppress(Gone), talking():
            self.tell_heads(None)
            self.tell_next(None)

    # What is sent

    def tell_heads(self, header: Header | None) -> None:
        """A header to those who share this stage's heads, by the first of them."""
        if self.first_head:
            for rank in range(self.rank + 1, self.rank + self.split.tensor):
                self.tell(header, rank)

    def tell(self, header: Header | None, rank: int) -> None:
        """A header to another rank, its length first; one of no length is the end."""
        message = torch.empty(0, dtype=torch.uint8) if header is None else header.message()
        dist.send(torch.tensor([len(message)]), dst=rank, group=self.control)
        if len(message):
            dist.send(message, dst=rank, group=self.control)

    def tell_next(self, header: Header | None) -> None:
        """A header to the next stage, by the first of this one."""
        if self.first_head and not self.last:
            self.tell(header, self.rank + self.split.tensor)

    def pass_on(self, header: Header, stream: Tensor) -> None:
        """A header, and then each rank's stream, to the next stage."""
        with talking():
            self.tell_next(replace(header, dtype=str(stream.dtype).removeprefix("torch.")))
            self.send(stream, self.rank + self.split.tensor, None)

    def send(self, rows: Tensor, rank: int, group: dist.ProcessGroup | None) -> None:
        through_host = self.staged or group is self.control
        dist.send((rows.cpu() if through_host else rows).contiguous(), dst=rank, group=group)

    def receive(self, rows: Tensor, rank: int, group: dist.ProcessGroup | None) -> None:
        """Rows of a known shape from another rank."""
        with talking():
            if not (self.staged or group is self.control):
                dist.recv(rows, src=rank, group=group)
                return
            arrived = torch.empty(rows.shape, dtype=rows.dtype)
            dist.recv(arrived, src=rank, group=group)
            rows.copy_(arrived)

    # A follower

    def follow(self, stage: Stage) -> None:
        """Do what the headers say until one says that it is over."""
        while (header := self.next_header()) is not None:
            shape = len(header.starts), header.new, stage.decoder.config.hidden_size
            rows = torch.empty(shape, dtype=getattr(torch, header.dtype), device=self.device)
            if self.rank >= self.split.tensor:
                self.receive(rows, self.rank - self.split.tensor, None)
            else:
                with talking():
                    dist.broadcast(rows, src=0, group=self.heads)
            stream = stage.run(header, rows)
            if not self.last:
                self.pass_on(header, stream)
            elif self.first_head and header.kept and self.split.pipeline > 1:
                with talking():
                    self.send(stream[:, header.new - header.kept :], 0, self.control)
        with talking():
            self.tell_next(None)

    def next_header(self) -> Header | None:
        """Wait for a header, and hand it to those who share this stage's heads."""
        source, length = self.rank - self.split.tensor, torch.zeros(1, dtype=torch.int64)
        if not self.first_head:
            source = self.rank - self.rank % self.split.tensor
        with talking():
            dist.recv(length, src=source, group=self.control)
            message = torch.empty(int(length), dtype=torch.uint8)
            if len(message):
                dist.recv(message, src=source, group=self.control)
            header = Header.of(message) if len(message) else None
            self.tell_heads(header)
        return header


class Summed(nn.Module):
    """A layer of which each rank has some inputs: the sum of their products."""

    def __init__(self, layer: nn.Module, group: dist.ProcessGroup | None):
        super().__init__()
        self.layer, self.group = layer, group

    def forward(self, rows: Tensor) -> Tensor:
        """[... K/n] -> [... N]."""
        product = self.layer(rows).contiguous()
        with talking():
            dist.all_reduce(product, group=self.group)
        return product
