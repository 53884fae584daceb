"""Every launch of the product, at the shapes of the published checkpoints.

in:  a GPU to pretend      out: Launches, one for each different machine code
The product itself is called, on tensors without memory: towers, decoders with chunks of a prompt
and single steps, caches of 16 and 8 bits, weights of 16, 8 and 4. Layers after the second launch
what the second does, so there are two. In float32 attention and products of matrices go to torch.
Read ../shapes.py, signatures.py first. Read next: candidates.py.

B rows of a batch, T new tokens.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import torch

from llava_min.cache import Cache
from llava_min.config import LlavaConfig, Quantization
from llava_min.kernels import choose
from llava_min.model import Network
from llava_min.weights import load, packed

from ..shapes import TEXTS, TOWERS
from .signatures import GPUS, Launch, recording

DTYPES = (torch.bfloat16, torch.float16)
CACHES = {"16": None, "int8": torch.int8, "fp8": torch.float8_e4m3fn}
WEIGHTS = {
    "16": None,
    "int4": Quantization(4),
    "int8": Quantization(8),
    "int4, head too": Quantization(4, head=4),
    "int4, groups of 64": Quantization(4, 64),
    "int4, groups of 32": Quantization(4, 32),
}
# weights and cache: 8 bits in one of them, not in both, as no launch depends on both
KINDS = [("16", "16"), ("16", "int8"), ("16", "fp8"), ("int4", "16"), ("int8", "16")]
RARE = [(weights, "16") for weights in list(WEIGHTS)[3:]]  # of the 7B alone
NEW = (1, 2, 3, 5, 9, 40, 2000)  # tokens that come together: each takes another way through kernels
ROWS = (1, 4, 20, 40)  # of a batch
FP8_FROM = 89  # older parts cannot convert fp8, and the product refuses it there
LAYERS = 2


def settings(text: str, tower: str, weights: Quantization | None = None) -> LlavaConfig:
    """A checkpoint's configuration from two names, cut to two layers."""
    speech = replace(TEXTS[text], num_layers=LAYERS, tied=False)
    sight = replace(TOWERS[tower], num_layers=LAYERS)
    return LlavaConfig("llava_onevision", sight, speech, "", quantization=weights)


def model(config: LlavaConfig, dtype: torch.dtype) -> Network:
    """A model without memory, laid out as `load` leaves it on a GPU."""
    made = load.on_meta(config)
    for parameter in made.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    with patch.object(packed, "PART", 2**40), choose.pretending(GPUS[90]):
        packed.ready(made)  # whole layers at a time
    return made


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def use_tower(tower: str, dtype: torch.dtype) -> None:
    """One tile and eight, through tower and projector."""
    made = model(settings("embedded", tower), dtype)
    side = made.config.tile
    for tiles in (1, 8):
        made.projector(made.vision(empty(tiles, side, side, 3, dtype=torch.uint8)))


def read_prompts(made: Network, cache: Cache, sizes: tuple[int, ...] = NEW) -> None:
    """Chunks of prompts, after an empty cache and a filled one."""
    dtype = made.decoder.norm.weight.dtype
    for seen in (0, cache.capacity - max(sizes)):
        cache.host_lengths[:] = seen
        for new in sizes:
            rows = empty(1, new, made.config.text.hidden_size, dtype=dtype)
            made.decoder.logits(made.decoder(rows, cache)[:, -1:])


def write_tokens(made: Network, cache: Cache) -> None:
    """One step of every row of the cache, as it is recorded."""
    made.decode(empty(len(cache.host_lengths), dtype=torch.long), cache.on_device())


def use_decoder(text: str, dtype: torch.dtype, weights: str, cache: str) -> None:
    """Prompts of one row, and steps of several numbers of rows, of one decoder."""
    made = model(settings(text, "embedded", WEIGHTS[weights]), dtype)
    made.projector(empty(1, 36, made.config.vision.hidden_size, dtype=dtype))
    for rows in ROWS:
        memory = Cache.empty(made.config.text, rows, 8192, dtype, CACHES[cache], "meta")
        write_tokens(made, memory)
        if rows == 1:
            read_prompts(made, memory)


def calls(number: int, dtypes: tuple[torch.dtype, ...] = DTYPES) -> Iterator[Callable[[], None]]:
    """Calls of the product, the most used models first."""
    for dtype in dtypes:
        for tower in TOWERS:
            yield partial(use_tower, tower, dtype)
        often = [(text, *kind) for text in TEXTS for kind in KINDS]
        for text, weights, cache in often + [("7B", *kind) for kind in RARE]:
            if cache != "fp8" or number >= FP8_FROM:
                yield partial(use_decoder, text, dtype, weights, cache)


def distinct(number: int, some: Iterable[Callable[[], None]]) -> dict[str, Launch]:
    """The launches of some calls by key: one for each different machine code."""
    found: dict[str, Launch] = {}
    with recording(number, lambda launch: found.setdefault(launch.key, launch)):
        with torch.inference_mode():
            for call in some:
                call()
    return found


def product(number: int, dtypes: tuple[torch.dtype, ...] = DTYPES) -> dict[str, Launch]:
    """Every launch of the product on a GPU, by key."""
    return distinct(number, calls(number, dtypes))


LOOSE = {
    # constants of each kernel that only places are computed from
    "attention_kernel": {"KV_HEADS"},
    "decode_kernel": {"GROUP"},
    "combine_kernel": {"GROUP"},
    "linear_kernel": {"K"},
    "bytes_kernel": {"K"},
    "dequantise_kernel": {"K", "GROUP"},
    "write_kernel": {"HEADS", "KV_HEADS"},
}


def kind(launch: Launch) -> tuple:
    """What shapes the code of a launch: two of one kind have the same loop but for some numbers.

    Of int4's bias and shares of sums, which come after the loop, the first launch has all.
    """
    some = launch.arguments[: 3 if launch.name == "linear_kernel" else None]
    types = tuple(
        str(argument.dtype) if isinstance(argument, torch.Tensor) else None for argument in some
    )
    loose = LOOSE.get(launch.name, {"WIDTH"})
    options = {name: value for name, value in launch.options.items() if name not in loose}
    if "USED" in options:  # rows of a tile of the tensor cores, which are 16 at least
        options["USED"] = max(16, options["USED"])
    return launch.name, types, tuple(sorted(options.items()))


def one_of_each(launches: dict[str, Launch]) -> list[Launch]:
    """The first launch of every kind: that of the most used model."""
    first: dict[tuple, Launch] = {}
    for launch in launches.values():
        first.setdefault(kind(launch), launch)
    return list(first.values())
