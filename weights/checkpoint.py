"""A checkpoint folder -> named tensors and parsed JSON files, opened carefully and read lazily.

in:  a folder with config.json and safetensors (one file, or shards with an index)
out: Checkpoint: json(name), names, shape(name), tensor(name)

Tensors are read with safetensors' pread backend: a file that is cut short while it is read becomes
an error, where a memory map would kill the process. Nothing in a folder is ever executed, and .bin
files are never opened.
Read weights/hub.py, weights/header.py first. Read next: weights/names.py.
Agrees with: the safetensors format, version 0.4 to 0.8.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..base.files import read_json, regular
from ..errors import CheckpointError, shown
from . import header

PLAIN = re.compile(r"[^./\\:\0][^/\\:\0]*")  # a file name that stays in its folder


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose tensors are known by name, and read one at a time."""

    folder: Path
    shards: dict[str, Path]  # tensor name -> its file

    @classmethod
    def open(cls, folder: str | Path) -> "Checkpoint":
        """List the folder's tensors; CheckpointError where none can be read safely."""
        folder = Path(folder)
        if not os.path.isdir(folder):
            raise CheckpointError(
                "cannot open the checkpoint", shown(str(folder)), "a folder", "none"
            )
        read_json(folder / "config.json", "configuration")
        return cls(folder, index(folder))

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
        self, progress: Callable[[int, int], None] | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of all, shard after shard, one tensor in memory at a time.

        After each, progress(done, total) is called.
        """
        done = 0
        for path in dict.fromkeys(self.shards.values()):
            with open_shard(path) as shard:
                for name in (name for name, where in self.shards.items() if where == path):
                    yield name, read_tensor(shard, name, path)
                    done += 1
                    if progress is not None:
                        progress(done, len(self.shards))


def read_tensor(shard: safe_open, name: str, path: Path) -> Tensor:
    """One tensor of an open shard, after a check of the dtype that it is stored in."""
    dtype = shard.get_slice(name).get_dtype()
    codes = name.endswith(".packed")
    if dtype not in header.DTYPES or codes != (dtype == "U8"):
        floats = ", ".join(key for key in header.DTYPES if key != "U8")
        allowed = "U8" if codes else f"one of {floats}"
        raise CheckpointError(f"cannot load {shown(name)}", path.name, allowed, shown(dtype))
    try:
        return shard.get_tensor(name)
    except (SafetensorError, OSError):
        raise header.damaged(path, f"the whole of {shown(name)}", "the file cut short") from None


def open_shard(path: Path) -> safe_open:
    """An open safetensors file."""
    try:
        return safe_open(path, framework="pt", backend="pread")
    except (SafetensorError, OSError):
        found = f"{path.stat().st_size} bytes that are none"
        raise header.damaged(path, "a whole safetensors file", found) from None


def index(folder: Path) -> dict[str, Path]:
    """{tensor name: file} from model.safetensors, or from the shards that the index names."""
    single, listing = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if listing.exists():
        listed = read_json(listing, "index of the weights")
        if single.exists():
            raise CheckpointError(
                "cannot choose the weights",
                "model.safetensors",
                "either one file or an index with shards",
                "both",
                "Move one of them away.",
            )
        return sharded(folder, listed)
    if not regular(single):
        raise no_weights(folder)
    return dict.fromkeys(header.read_header(single), single)


def no_weights(folder: Path) -> CheckpointError:
    """What is wrong with a folder without safetensors."""
    found, hint = "none", "Is the folder complete?"
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        found = "pickled files only"
        hint = "Pickles can run code when they are opened, so they stay closed. Convert them first."
    return CheckpointError(
        "cannot load the weights", shown(str(folder)), "model.safetensors", found, hint
    )


def sharded(folder: Path, listing: dict[str, object]) -> dict[str, Path]:
    """{tensor name: file} of an index.

    Each shard is inside the folder and holds just what the index says.
    """
    weight_map = listing.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise wrong_index("a weight_map", "none")
    for name in weight_map.values():
        if not isinstance(name, str) or not PLAIN.fullmatch(name):
            raise wrong_index("a plain file name in weight_map", shown(name))
    for name in dict.fromkeys(weight_map.values()):
        what = "cannot load the weights"
        if not regular(folder / name):
            raise CheckpointError(what, shown(name), "a shard in the folder", "none")
        listed = {tensor for tensor, shard in weight_map.items() if shard == name}
        odd = sorted(listed ^ set(header.read_header(folder / name)))
        if odd:
            found = f"a difference at {shown(odd[0])}"
            raise CheckpointError(what, shown(name), "the tensors that the index lists", found)
    return {tensor: folder / shard for tensor, shard in weight_map.items()}


def wrong_index(expected: str, found: str) -> CheckpointError:
    what = "cannot read the index of the weights"
    return CheckpointError(what, "model.safetensors.index.json", expected, found)
