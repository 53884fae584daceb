"""A checkpoint folder -> named tensors and parsed JSON files, opened carefully and read lazily.

in:  a folder with config.json and safetensors (one file, or shards with an index)
out: Checkpoint: json(name), names, shape(name), tensor(name)

Tensors are read with safetensors' pread backend: a file that is cut short while it is read becomes
an error, where a memory map would kill the process. Nothing in a folder is ever executed, and .bin
files are never opened.
Read weights/hub.py, weights/index.py, weights/formulas.py first. Read next: weights/names.py.
Agrees with: the safetensors format, version 0.4 to 0.8.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..base.files import read_json, regular
from ..errors import CheckpointError, shown
from . import header
from .foreign import Foreign
from .formulas import multiplied_out
from .index import index
from .slices import Range, Slices

MERGE = "Name the base with -m, and this folder with --lora."
Cut = Callable[[str, tuple[int, ...]], Range | None]  # of a name and shape, what is wanted
PARTS_ONLY = (
    # a file of a folder that is no checkpoint: what the folder is, and what to do with it
    ("adapter_config.json", "an adapter without its base", MERGE),
    ("mm_projector.safetensors", "a projector alone", MERGE),
    ("mm_projector.bin", "a projector alone", MERGE),
)


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose tensors are known by name, and read one at a time."""

    folder: Path
    shards: dict[str, Path]  # tensor name -> its file
    foreign: Foreign | None = None  # how another program quantised it

    @classmethod
    def open(cls, folder: str | Path) -> "Checkpoint":
        """List the folder's tensors; CheckpointError where none can be read safely."""
        folder = Path(folder)
        if not os.path.isdir(folder):
            raise CheckpointError(
                "cannot open the checkpoint", shown(str(folder)), "a folder", "none"
            )
        for name, kind, hint in PARTS_ONLY:
            if regular(folder / name) and not (folder / "config.json").exists():
                what = "cannot open the checkpoint"
                raise CheckpointError(what, shown(str(folder)), "a whole model", kind, hint)
        config = read_json(folder / "config.json", "configuration")
        return cls(folder, index(folder), Foreign.of(config))

    def only(self, wanted: Callable[[str], bool]) -> "Checkpoint":
        """The checkpoint without the tensors whose names are not wanted: none of them is read."""
        kept = {name: path for name, path in self.shards.items() if wanted(name)}
        return replace(self, shards=kept)

    def keeping_codes(self) -> "Checkpoint":
        """The same, of which another program's codes of the decoder are not multiplied out."""
        foreign = None if self.foreign is None else replace(self.foreign, kept=True)
        return replace(self, foreign=foreign)

    def json(self, name: str, what: str) -> dict[str, object]:
        """The JSON object in a file of the folder; `what` says what it is in a message."""
        return read_json(self.folder / name, what)

    def has(self, name: str) -> bool:
        """Whether the folder has a plain file of this name."""
        return regular(self.folder / name)

    @property
    def names(self) -> list[str]:
        return list(self.shards)

    def tensor(self, name: str) -> Tensor:
        """Read one tensor."""
        with open_shard(self.shards[name]) as shard:
            return shard.get_tensor(name)

    def headers(self) -> Iterator[tuple[str, tuple[int, ...], str]]:
        """(name, shape, dtype as stored) of all, without reading any."""
        for path in dict.fromkeys(self.shards.values()):
            with open_shard(path) as shard:
                for name in (name for name, where in self.shards.items() if where == path):
                    part = shard.get_slice(name)
                    yield name, tuple(part.get_shape()), part.get_dtype()

    def tensors(
        self, progress: Callable[[int, int], None] | None = None, cut: Cut | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of all, shard after shard, one tensor in memory at a time.

        After each, progress(done, total) is called. What another program quantised is multiplied
        out, unless its codes are kept. cut: of which tensors only a part is wanted, and read. Of
        what another program quantised all is read, as its codes lie in an order of their own.
        """
        if self.foreign is None:
            return self.stored(progress, cut)
        whole = multiplied_out(self.foreign, self.names, self.stored(progress))
        return whole if cut is None else parts_of(whole, cut)

    def stored(
        self, progress: Callable[[int, int], None] | None = None, cut: Cut | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of all, or of the parts that are wanted, as they are in the files."""
        done = 0
        for path in dict.fromkeys(self.shards.values()):
            slices = Slices(path)
            with open_shard(path) as shard:
                for name in (name for name, where in self.shards.items() if where == path):
                    check_dtype(shard, name, path, self.foreign is not None)
                    part = cut and cut(name, tuple(shard.get_slice(name).get_shape()))
                    yield name, read_tensor(shard, slices, name, part)
                    done += 1
                    if progress is not None:
                        progress(done, len(self.shards))


def parts_of(tensors: Iterator[tuple[str, Tensor]], cut: Cut) -> Iterator[tuple[str, Tensor]]:
    """Of each tensor the part that is wanted."""
    for name, tensor in tensors:
        part = cut(name, tuple(tensor.shape))
        if part is not None:
            axis, begin, stop = part
            tensor = tensor.narrow(axis, begin, stop - begin).clone()
        yield name, tensor


def check_dtype(shard: safe_open, name: str, path: Path, foreign: bool = False) -> None:
    """CheckpointError for a dtype that no weight is stored in.

    foreign: any that another program has for codes and scales is right.
    """
    dtype = shard.get_slice(name).get_dtype()
    codes = name.endswith(".packed")
    known = foreign and dtype in header.DTYPES | header.FOREIGN
    if not known and (dtype not in header.DTYPES or codes != (dtype in header.CODES)):
        floats = ", ".join(key for key in header.DTYPES if key not in header.CODES)
        allowed = " or ".join(header.CODES) if codes else f"one of {floats}"
        raise CheckpointError(f"cannot load {shown(name)}", path.name, allowed, shown(dtype))


def read_tensor(shard: safe_open, slices: Slices, name: str, part: Range | None) -> Tensor:
    """One tensor of an open shard, or a part of it."""
    try:
        if part is None:
            return shard.get_tensor(name)
        stored = shard.get_slice(name)
        return slices.read(name, stored.get_dtype(), tuple(stored.get_shape()), part)
    except (SafetensorError, OSError):
        expected = f"the whole of {shown(name)}"
        raise header.damaged(slices.path, expected, "the file cut short") from None


def open_shard(path: Path) -> safe_open:
    """An open safetensors file."""
    try:
        return safe_open(path, framework="pt", backend="pread")
    except (SafetensorError, OSError):
        found = f"{path.stat().st_size} bytes that are none"
        raise header.damaged(path, "a whole safetensors file", found) from None
