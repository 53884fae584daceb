"""Parts of a decoder as ranks of torch.distributed: what they send each other.

in:  a Split, the rank of this process, how the ranks meet
out: Ranks, the team of a Leader (engine/leader.py), and how a rank follows

Along the stages of a pipeline each header goes with its rows from rank to rank: while a stage reads
one chunk of a prompt, the stage before it reads the next. Where ranks share the heads of a layer,
two sums a layer join what they computed. Tiles go from the leader straight to each rank, and their
features come straight back. Orders have a group of their own, in which a rank waits for as long as
nobody asks; in the midst of a step it waits for SECONDS.
This file alone knows torch.distributed, and a model in one process never imports it.
Read engine/leader.py, engine/towers.py first. Read next: engine/followers.py.
Agrees with: Megatron-LM (arXiv 1909.08053) in where the sums are; chunked pipelines as in
Mnemosyne (arXiv 2409.17264).
"""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..decoder import Decoder
from ..errors import RankError
from ..planning.split import Split
from .leader import Header, Stage
from .towers import Tiles

SECONDS = 300  # that a rank waits for another in the midst of a step; a chunk on a CPU takes some
PATIENCE = 4  # seconds in which engine/followers.py ends all, once one rank has died
FOREVER = timedelta(days=365)  # that it waits for the next question
Order = Header | Tiles
ORDERS: dict[str, type[Header] | type[Tiles]] = {"step": Header, "tiles": Tiles}


def message_of(order: Order) -> Tensor:
    """An order as bytes of JSON; nothing that a rank gets is ever unpickled."""
    name = next(name for name, kind in ORDERS.items() if isinstance(order, kind))
    text = json.dumps([name, asdict(order)])
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def order_of(message: Tensor) -> Order:
    """The order of such bytes."""
    name, fields = json.loads(bytes(message.tolist()))
    return ORDERS[name](**fields)


def joined() -> bool:
    """Whether this process is a rank."""
    return dist.is_initialized()


def leave() -> None:
    """Be no rank any more."""
    if joined():
        dist.destroy_process_group()


@contextlib.contextmanager
def talking() -> Iterator[None]:
    """RankError where what is sent does not arrive; who started that rank says more, and sooner."""
    try:
        yield
    except RuntimeError as error:
        time.sleep(PATIENCE)
        raise RankError(f"Another rank is gone: {str(error).splitlines()[0][:200]}") from None


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
        self.check()
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

    def look(self, order: Tiles, tiles: Tensor, tower: nn.Module) -> Tensor:
        self.check()
        self.midst = True
        own, *others = (tiles.cpu() if self.staged else tiles).split(order.counts)
        away = [(rank, some) for rank, some in enumerate(others, start=1) if len(some)]
        with talking():
            self.tell_heads(order)
            self.tell_next(order)
            sent = [dist.isend(some, dst=rank) for rank, some in away]  # while it looks itself
        features = [tower(own.to(tiles.device))]
        for rank, some in away:
            features.append(features[0].new_empty(len(some), *features[0].shape[1:]))
            self.receive(features[-1], rank, None)
        with talking():
            for one in sent:
                assert one is not None
                one.wait()
        self.midst = False
        return torch.cat(features)

    def check(self) -> None:
        """RankError where a step has failed."""
        if self.midst:
            raise RankError("A step has failed, and the other ranks cannot go on.")

    def end(self) -> None:
        """Let the others end, unless they wait in the midst of a step, for their launcher."""
        if self.midst:
            return
        with contextlib.suppress(RankError), talking():
            self.tell_heads(None)
            self.tell_next(None)

    # What is sent

    def tell_heads(self, order: Order | None) -> None:
        """An order to those who share this stage's heads, by the first of them."""
        if self.first_head:
            for rank in range(self.rank + 1, self.rank + self.split.tensor):
                self.tell(order, rank)

    def tell(self, order: Order | None, rank: int) -> None:
        """An order to another rank, its length first; one of no length is the end."""
        message = torch.empty(0, dtype=torch.uint8) if order is None else message_of(order)
        dist.send(torch.tensor([len(message)]), dst=rank, group=self.control)
        if len(message):
            dist.send(message, dst=rank, group=self.control)

    def tell_next(self, order: Order | None) -> None:
        """An order to the next stage, by the first of this one."""
        if self.first_head and not self.last:
            self.tell(order, self.rank + self.split.tensor)

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
        """Do what the orders say until one says that it is over."""
        while (order := self.next_order()) is not None:
            if isinstance(order, Tiles):
                self.look_too(order, stage)
            else:
                self.run(order, stage)
        with talking():
            self.tell_next(None)

    def run(self, header: Header, stage: Stage) -> None:
        """Its part of a step: rows from the stage before, or from the leader, and on from here."""
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

    def look_too(self, order: Tiles, stage: Stage) -> None:
        """Its share of some tiles, straight from the leader and back; the next stage first."""
        with talking():
            self.tell_next(order)
        if not (count := order.counts[self.rank]):
            return
        shape = count, order.side, order.side, 3
        tiles = torch.empty(shape, dtype=torch.uint8, device=self.device)
        self.receive(tiles, 0, None)
        features = stage.look(tiles)
        with talking():
            self.send(features, 0, None)

    def next_order(self) -> Order | None:
        """Wait for an order, and hand it to those who share this stage's heads."""
        source, length = self.rank - self.split.tensor, torch.zeros(1, dtype=torch.int64)
        if not self.first_head:
            source = self.rank - self.rank % self.split.tensor
        with talking():
            dist.recv(length, src=source, group=self.control)
            message = torch.empty(int(length), dtype=torch.uint8)
            if len(message):
                dist.recv(message, src=source, group=self.control)
            order = order_of(message) if len(message) else None
            self.tell_heads(order)
        return order


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
