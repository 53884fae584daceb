"""The part of a decoder's weights that one rank or device holds.

in:  the whole decoder's sizes; which blocks, and which heads and blocks of the MLP in each of them
out: a configuration of that part, and for each tensor of a checkpoint: its name there, its range

Heads are shared evenly, an MLP in blocks of 128 and so perhaps unevenly: 72B has 231 of them. Rows
of qkv and gate_up and columns of output and down are cut; the sums over columns are added up by
engine/ranks.py. What is no block of the decoder belongs to the first part alone, but for the tower,
which each part may have, to look at some of the tiles.
No torch here: a plan asks too.
Read weights/names.py first. Read next: planning/split.py.
Agrees with: Megatron-LM (arXiv 1909.08053), section 3.
"""

import re
from dataclasses import dataclass, replace

from ..config import LlavaConfig, TextConfig
from . import names

BLOCK = 128  # inputs of the MLP that stay together: those of a scale of packed weights
NUMBERED = re.compile(r"decoder\.blocks\.(\d+)\.(\w+)\.")


@dataclass(frozen=True)
class Share:
    """Blocks [first, stop) of a decoder, and of each the part `head` of `heads`.

    text: the whole decoder. rest: whether tower, projector, embedding, last norm and head are in.
    tower: whether the tower is in, even without the rest.
    """

    text: TextConfig
    first: int
    stop: int
    head: int = 0
    heads: int = 1
    rest: bool = True
    tower: bool = False

    @classmethod
    def whole(cls, text: TextConfig) -> "Share":
        """All of a decoder."""
        return cls(text, 0, text.num_layers)

    @property
    def mlp(self) -> tuple[int, int]:
        """The range of the MLP's inner numbers: all, or so many blocks of 128."""
        size = self.text.intermediate_size
        if self.heads == 1:
            return 0, size
        blocks = size // BLOCK
        return (
            self.head * blocks // self.heads * BLOCK,
            (self.head + 1) * blocks // self.heads * BLOCK,
        )

    def local(self, config: LlavaConfig) -> LlavaConfig:
        """The configuration of this part, as if it were a model of its own."""
        begin, stop = self.mlp
        text = replace(
            self.text,
            num_layers=self.stop - self.first,
            num_heads=self.text.num_heads // self.heads,
            num_kv_heads=self.text.num_kv_heads // self.heads,
            intermediate_size=stop - begin,
        )
        return replace(config, text=text)

    def own(self, name: str) -> str | None:
        """The name in this part of what is called `name` in the whole; None where it is elsewhere.

        Of blocks 4 to 7, decoder.blocks.5.qkv.weight is decoder.blocks.1.qkv.weight.
        """
        block = NUMBERED.match(name)
        if block is None:
            return name if self.holds(name) else None
        number = int(block[1])
        if number >= self.text.num_layers:
            return name  # of no part: loading will say that there is no such tensor
        if not self.first <= number < self.stop:
            return None
        return f"decoder.blocks.{number - self.first}.{name[block.start(2) :]}"

    def holds(self, own: str) -> bool:
        """Whether a parameter of this part's network is filled."""
        seen = self.tower and own.startswith("vision.")
        return self.rest or seen or NUMBERED.match(own) is not None

    def cut(self, name: str, shape: tuple[int, ...]) -> tuple[int, int, int] | None:
        """(axis, begin, stop) of a checkpoint's tensor; None where all of it is wanted.

        Codes and scales are cut at the same fraction as the weights that they stand for.
        """
        own, piece = names.ours(name)
        block = NUMBERED.match(own)
        if self.heads == 1 or block is None:
            return None
        (begin, stop), size = self.mlp, self.text.intermediate_size
        if block[2] in ("qkv", "output"):
            query = piece in ("query", None)
            size = self.text.num_heads if query else self.text.num_kv_heads
            begin, stop = (size * part // self.heads for part in (self.head, self.head + 1))
        elif block[2] not in ("gate_up", "down"):
            return None
        axis = 1 if block[2] in ("output", "down") else 0
        if axis >= len(shape):
            return None
        return axis, begin * shape[axis] // size, stop * shape[axis] // size
