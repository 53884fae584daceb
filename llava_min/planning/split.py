"""How a model is split over ranks or devices: which heads and which blocks each of them holds.

in:  a configuration, the numbers of ranks, what is free on each device
out: a Share for each rank; ParameterError where it does not divide, with what does

Rank r holds the part r mod T of the heads of stage r // T, with T ranks that share heads. The first
rank of all also holds projector, embedding and head. Every rank has the tower, and looks at some of
the tiles.
No torch here: --plan asks too.
Read weights/share.py, planning/memory.py first. Read next: engine/ranks.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from ..config import LlavaConfig
from ..errors import ParameterError, wrong_value
from ..segments import Plan, Text
from ..weights.share import BLOCK, Share
from .memory import (
    Memory,
    Storage,
    alone,
    pass_bytes,
    prefill_bytes,
    row_bytes,
    tower_weight_bytes,
    weight_bytes,
)


@dataclass(frozen=True)
class Split:
    """`tensor` ranks share the heads of each layer, and `pipeline` stages share the layers."""

    tensor: int = 1
    pipeline: int = 1

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline

    def check(self, config: LlavaConfig) -> None:
        """ParameterError where the model cannot be split so, with the numbers that can be."""
        text = config.text
        if self.pipeline > text.num_layers:
            raise ParameterError(
                f"--pipeline-parallel {self.pipeline} is more than the {text.num_layers} layers "
                "that the decoder has."
            )
        if reason := undivided(config, self.tensor):
            can = [n for n in range(1, text.num_kv_heads + 1) if not undivided(config, n)]
            numbers = " or ".join(filter(None, (", ".join(map(str, can[:-1])), str(can[-1]))))
            raise ParameterError(
                f"--tensor-parallel {self.tensor} does not go: {reason}. {numbers} would."
            )

    def shares(self, config: LlavaConfig, storage: Storage, rooms: Sequence[int]) -> list[Share]:
        """The part of each rank. rooms: bytes free for each stage, or nothing to share evenly."""
        stages = blocks_of_stages(config, storage, self.pipeline, rooms)
        return [
            Share(config.text, first, stop, head, self.tensor, rest=first == head == 0, tower=True)
            for first, stop in stages
            for head in range(self.tensor)
        ]


@dataclass(frozen=True)
class Way:
    """How a model runs on more than one device.

    It is split over ranks, or over devices of one process, or some of its layers stay in the host's
    memory (offload).
    """

    split: Split
    devices: tuple[str, ...] = ()
    offload: bool = False

    @property
    def whole(self) -> bool:
        """Whether all of it is in one process, on one device."""
        return self.split.ranks == 1 and not self.devices and not self.offload

    @classmethod
    def of(
        cls,
        devices: Sequence[str] | None,
        tensor: int | None,
        pipeline: int | None,
        adapter: object = None,
        offload: bool | None = False,
    ) -> "Way":
        """From the arguments of load(), of which None is the default.

        ParameterError where they are nonsense, or do not go together.
        """
        devices = () if devices is None else devices
        tensor, pipeline = (1 if n is None else n for n in (tensor, pipeline))
        for name, count in (("tensor_parallel", tensor), ("pipeline_parallel", pipeline)):
            if type(count) is not int or count < 1:
                raise wrong_value(name, "a whole number of at least 1", count)
        if not isinstance(offload, bool | None):
            raise wrong_value("offload", "True or False", offload)
        several = isinstance(devices, list | tuple) and all(isinstance(d, str) for d in devices)
        kinds = {device.partition(":")[0] for device in devices} if several else set()
        if not several or len(kinds) > 1 or len(devices) == 1:
            expected = "two or more devices of one kind, as cuda:0,cuda:1"
            raise wrong_value("devices", expected, devices)
        way = cls(Split(tensor, pipeline), tuple(devices), bool(offload))
        if bool(way.devices) + (way.split.ranks > 1) + way.offload > 1:
            raise ParameterError("Of devices, a number of ranks, and offload only one can be used.")
        if adapter is not None and not way.whole:
            raise ParameterError(
                "An adapter is merged into a whole model: it cannot be split here."
            )
        return way


def undivided(config: LlavaConfig, count: int) -> str:
    """Why the heads and MLP of a decoder cannot be shared by so many ranks, or nothing.

    The inputs of a quantised layer are cut between scales only.
    """
    text = config.text
    if count == 1:
        return ""
    if text.num_heads % count or text.num_kv_heads % count:
        return f"{text.num_heads} heads and {text.num_kv_heads} key/value heads do not divide by it"
    if text.intermediate_size % BLOCK or text.intermediate_size // BLOCK < count:
        return f"{text.intermediate_size} numbers of the MLP are not so many blocks of {BLOCK}"
    inputs = text.num_heads // count * text.head_dim
    if config.quantization is not None and inputs % BLOCK:
        return f"{inputs} inputs of a quantised layer are no multiple of {BLOCK}"
    return ""


def blocks_of_stages(
    config: LlavaConfig, storage: Storage, count: int, rooms: Sequence[int]
) -> list[tuple[int, int]]:
    """(first, stop) of each stage's layers: as many as its room is of all room, at least one.

    A stage's room is what is free besides the tower, and in the first one embedding and head.
    """
    layers, tower = config.text.num_layers, tower_weight_bytes(config.vision, storage)
    rest = weight_bytes(config, storage) - block_bytes(config, storage) * layers
    left = [max(0, room - (tower if stage else rest)) for stage, room in enumerate(rooms)]
    if not sum(left):
        left = [1] * count
    ends = [0]
    for stage, part in enumerate(accumulate(left), start=1):
        end = round(layers * part / sum(left))
        ends.append(min(max(end, ends[-1] + 1), layers - (count - stage)))
    return list(zip(ends, ends[1:]))


def block_bytes(config: LlavaConfig, storage: Storage) -> int:
    """Bytes of the weights of one layer."""
    empty = replace(config, text=replace(config.text, num_layers=0))
    more = weight_bytes(config, storage) - weight_bytes(empty, storage)
    return more // config.text.num_layers


def rank_memory(
    config: LlavaConfig, plan: Plan, answer: int, storage: Storage, share: Share
) -> Memory:
    """What a rank needs for a prompt and its answer: as a model of its own, less what it lacks."""
    need = alone(share.local(config), plan, answer, storage)
    if share.rest:
        return need
    _, chunk = storage.portions
    reading = prefill_bytes(share.local(config).text, plan.tokens, storage, chunk)
    reading += row_bytes(config, 2 * min(chunk, plan.tokens), storage)
    most = max((counts[1] for counts in portions_of(plan, storage)), default=0)
    looking = pass_bytes(config.vision, most, storage)
    weights = block_bytes(share.local(config), storage) * (share.stop - share.first)
    weights += tower_weight_bytes(config.vision, storage)
    return Memory(weights, need.cache, max(reading, looking))


def tiles_of_parts(count: int, parts: int) -> list[int]:
    """How many of so many tiles each part looks at: the first ones have one more than the others.

    >>> tiles_of_parts(5, 3), tiles_of_parts(1, 3)
    ([2, 2, 1], [1, 0, 0])
    """
    return [(count + parts - 1 - part) // parts for part in range(parts)]


def portions_of(plan: Plan, storage: Storage) -> list[list[int]]:
    """The tiles of each part, for each portion of the visuals of a plan that is encoded at once."""
    most = storage.portions[0] * storage.towers
    tiles = [segment.tiles for segment in plan.segments if not isinstance(segment, Text)]
    return [
        tiles_of_parts(min(most, count - start), storage.towers)
        for count in tiles
        for start in range(0, count, most)
    ]


@dataclass(frozen=True)
class TileTraffic:
    """Bytes of tiles that the first rank hands to others, and of the features that come back."""

    tiles: int
    features: int

    @classmethod
    def of(cls, config: LlavaConfig, plan: Plan, storage: Storage) -> "TileTraffic":
        """For all visuals of a plan. A tile has three bytes a pixel."""
        vision = config.vision
        away = sum(sum(others) for _, *others in portions_of(plan, storage))
        features = vision.side**2 * vision.hidden_size * storage.wide
        return cls(away * 3 * vision.image_size**2, away * features)


@dataclass(frozen=True)
class Traffic:
    """Bytes that the first rank hands to others and gets from them, for some rows.

    entering: the rows, to each rank that shares its heads. summed: what is added up among these;
    with n ranks in a ring each sends 2 (n - 1) / n of it. passed: the stream, to the next stage.
    back: the stream that is wanted, from the last stage.
    """

    entering: int = 0
    summed: int = 0
    passed: int = 0
    back: int = 0

    @classmethod
    def of(cls, share: Share, split: Split, rows: int, kept: int, size: int) -> "Traffic":
        """For `rows` tokens of which the last `kept` are wanted, in numbers of `size` bytes.

        Two sums a layer: attention's and the MLP's.
        """
        row = share.text.hidden_size * size
        heads, stages = split.tensor > 1, split.pipeline > 1
        return cls(
            entering=heads * rows * row,
            summed=heads * rows * row * 2 * (share.stop - share.first),
            passed=stages * rows * row,
            back=stages * kept * row,
        )

    def sent(self, split: Split) -> int:
        """Bytes that leave the first rank."""
        others = split.tensor - 1
        return self.entering * others + 2 * self.summed * others // split.tensor + self.passed
