"""A decode step that was compiled for this CPU, opened from the cache folder and given its weights.

in:  a decoder laid out for a CPU
out: a step of generate.py, or None where no package was built for such a decoder

A package holds machine code for a decoder of one shape and one format of weights, and no weights:
these are handed over by name, the tensors themselves, so that opening costs neither time nor
memory. It is named after all that it was made with, which is written inside it as well: torch, the
CPU's instructions, the names, shapes and dtypes of the weights, and the code of this project that
was traced. A file that says anything else is not opened, nor is one whose checksums are wrong.
It lies in LLAVA_MIN_CACHE, or ~/.cache/llava_min (XDG_CACHE_HOME moves that), in `compiled`.
torch's loader is called without torch._inductor, whose import would take longer than the opening.
Read engine/step.py first. Read next: engine/compiling.py.
Agrees with: AOTICompiledModel of torch.

V vocabulary.
"""

import functools
import hashlib
import json
import logging
import os
import platform
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import decoder as traced
from .. import generate, trace
from ..base import cpu
from ..base.memory import memory_guard
from ..cache import Cache
from ..decoder import Decoder
from ..generate import Logits
from ..kernels import choose
from ..model import Network
from .step import eager

log = logging.getLogger("llava_min")
Made = dict[str, object]  # what a package was made with, as JSON gives it back
NOTES = "llava_min.json"  # in a package: what it was made with, and small numbers of its own
INDIFFERENT = ("context", "eos_ids")  # of a decoder's config: no step depends on them


def folder() -> Path:
    """Where packages are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("LLAVA_MIN_CACHE") or Path(home, "llava_min")) / "compiled"


def weights_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) of all that a module holds, also of tensors that are no parameters."""
    for name, part in module.named_modules(remove_duplicate=False):
        held = (part._parameters, part._buffers, vars(part))
        for key, value in ((key, value) for one in held for key, value in one.items()):
            if isinstance(value, Tensor):
                yield f"{name}.{key}" if name else key, value


@functools.cache
def code() -> str:
    """A hash of the files whose code is in a package."""
    seen, walk = hashlib.sha256(), Path(traced.__file__).parent
    kernels = Path(choose.__file__).parent
    files = [walk / "decoder.py", walk / "cache.py", *sorted(kernels.glob("*.py"))]
    for file in (*files, Path(__file__).with_name("compiling.py")):
        seen.update(file.name.encode() + file.read_bytes())
    return seen.hexdigest()


def made_with(decoder: Decoder) -> Made:
    """All that a package for this decoder, on this machine, is made with."""
    config = {k: v for k, v in asdict(decoder.config).items() if k not in INDIFFERENT}
    weights = [
        [name, str(tensor.dtype), list(tensor.shape), str(tensor.layout)]
        for name, tensor in sorted(weights_of(decoder), key=lambda pair: pair[0])
    ]
    return {
        "torch": torch.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "instructions": [torch.backends.cpu.get_cpu_capability(), *sorted(cpu.flags())],
        "code": code(),
        "config": config,
        "weights": weights,
    }


def path_of(made: Made) -> Path:
    """Where the package is that was made so."""
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
    return folder() / f"{digest[:32]}.pt2"


def notes_of(path: Path, made: Made) -> dict[str, tuple[str, object]] | None:
    """The small numbers that a package has of its own, by name: each a dtype and its value.

    None where the file is not whole, or was made with anything else.
    """
    try:
        with zipfile.ZipFile(path) as file:
            (name,) = (name for name in file.namelist() if name.endswith(f"/{NOTES}"))
            notes = json.loads(file.read(name))
            if file.testzip() is None and notes["made_with"] == made:
                return notes["numbers"]
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        pass
    return None


class Compiled:
    """A package, open, with the weights of one decoder."""

    def __init__(self, path: Path, decoder: Decoder, numbers: dict[str, tuple[str, object]]):
        self.path, self.decoder = path, decoder
        self.runner = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
        weights = {f"decoder.{name}": tensor for name, tensor in weights_of(decoder)}
        for name, (dtype, value) in numbers.items():
            weights[name] = torch.tensor(value, dtype=getattr(torch, dtype))
        self.weights = {name: weights[name] for name in self.runner.get_constant_fqns()}
        self.runner.load_constants(self.weights, False, True, user_managed=True)

    def takes(self, cache: Cache) -> bool:
        """Whether it makes steps over this cache: one row, of numbers that are multiplied as is."""
        kind = self.decoder.embedding.weight.dtype
        return len(cache.host_lengths) == 1 and cache.keys.dtype == kind

    def step(self, network: Network, cache: Cache, known: int) -> generate.Step:
        """Its steps over a cache of one row; ordinary ones while somebody watches."""
        ordinary = eager(network, cache, known)
        meant = torch.tensor([known])
        layers = *cache.keys.unbind(), *cache.values.unbind()

        @memory_guard("continue the answer")
        @torch.inference_mode()
        def step(ids: list[int]) -> Logits:
            if trace.observed():
                return ordinary(ids)
            places = torch.arange(int(cache.host_lengths[0]) + 1)
            assert len(places) <= cache.capacity, (len(places), cache.capacity)
            logits, likely = self.runner.run([torch.tensor(ids), meant, places, *layers])
            cache.advance(1)
            return logits, likely.tolist()

        return step


def opened(decoder: Decoder) -> Compiled | None:
    """The package for a decoder, None where there is none that is whole."""
    if not folder().is_dir():  # nothing was ever compiled: nothing need be hashed
        return None
    made = made_with(decoder)
    path = path_of(made)
    if not path.exists():
        return None
    numbers = notes_of(path, made)
    if numbers is None:
        log.warning(f"{path} is no whole package for this model, and is not opened.")
        return None
    try:
        return Compiled(path, decoder, numbers)
    except RuntimeError as error:  # such as a temporary folder from which no code may run
        first = str(error).strip().partition("\n")[0]
        log.warning(f"{path} cannot be opened, and the ordinary decode step is used: {first}")
        return None
