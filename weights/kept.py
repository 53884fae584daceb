"""Whether weights that another program quantised keep their codes, as Packed layers.

in:  LlavaConfig, the folder of the weights
out: LlavaConfig with a Quantization where the codes are those of our own grid

A symmetric grid of 4 bits, (code - 8) * scale with one scale for 32, 64 or 128 neighbours, is the
grid of weights/packed.py: GPTQ without act-order and compressed-tensors W4A16 write it. All linears
of the decoder must be on it. Everything else is multiplied out (weights/foreign.py).
No torch here: a plan asks too.
Read weights/foreign.py, weights/names.py first. Read next: weights/load.py.
"""

import logging
from dataclasses import replace
from pathlib import Path

from ..base.files import read_json
from ..config import LlavaConfig, Quantization
from ..errors import CheckpointError
from . import names
from .foreign import MARKS, Foreign
from .index import index

log = logging.getLogger("llava_min")
BLOCK = 128  # inputs: that of kernels/int4.py, which a plan does not import


def with_kept_codes(config: LlavaConfig, folder: Path) -> LlavaConfig:
    """The configuration, quantised where the folder's own codes stay; a line says so.

    Where the weights are not there yet, config.json alone is believed.
    """
    foreign = Foreign.of(read_json(folder / "config.json", "configuration"))
    if foreign is None or foreign.own_group is None or not fits(config):
        return config
    try:
        stored = index(folder)
    except CheckpointError:
        stored = {}
    if stored and quantised(foreign, list(stored)) != every_linear(config):
        return config
    log.info(f"the codes of {foreign.method} are kept, 4 bits each")
    return replace(config, quantization=Quantization(4, foreign.own_group, head=16))


def fits(config: LlavaConfig) -> bool:
    """Whether every linear of the decoder has whole blocks of inputs."""
    text = config.text
    inputs = text.hidden_size, text.num_heads * text.head_dim, text.intermediate_size
    return not any(count % BLOCK for count in inputs)


def quantised(foreign: Foreign, stored: list[str]) -> set[tuple[str, str | None]]:
    """The parts of the decoder, by our names, that have codes in the files."""
    stems = {stem for stem, end in map(foreign.split, stored) if end in MARKS}
    ours = (names.ours(f"{stem}.weight") for stem in stems)
    return {(name, piece) for name, piece in ours if name.startswith("decoder.")}


def every_linear(config: LlavaConfig) -> set[tuple[str, str | None]]:
    """The parts of all linears of the decoder's blocks, by our names."""
    linears = (
        f"decoder.blocks.{block}.{linear}.weight"
        for block in range(config.text.num_layers)
        for linear in names.LINEARS
    )
    return {(name, piece) for name in linears for _, piece in names.theirs(name, "hf")}
