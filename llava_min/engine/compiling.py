"""One decode step is traced, compiled ahead of time for this CPU, and kept as a package.

in:  a decoder laid out for a CPU
out: a package in the cache folder (engine/compiled.py), or a line that says why there is none;
     `for_device`: the compiled step of a loaded model, where it is wanted and can be had

What is traced is the decoder itself, over one token and a cache of any capacity that has seen any
number of tokens. Weights in an order of their own (kernels/onednn.py) cannot be traced; a tensor of
their shape is in their place, and the product in the package gets the real one. torch makes
constants of numbers that its operators take, such as the group size of four bits: each gets a name
of its own, and its value is written into the package.
A package is built in a folder of its own and gets its name when it is whole. So a build that is
killed leaves nothing that is taken for a package, and of two builds at once the last one stays.
A cache of eight bits is not traced: plain torch reads it in blocks, whose number depends on the
length.
Read engine/compiled.py first.

V vocabulary.
"""

import json
import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..cache import Layer
from ..decoder import Decoder
from ..kernels import choose
from ..model import Network
from .compiled import NOTES, Compiled, made_with, opened, path_of

log = logging.getLogger("llava_min")
Module = TypeVar("Module", bound=nn.Module)
CAPACITY, SEEN = 48, 20  # of the cache of the trace: any numbers that are no sizes of a model
STALE = 24 * 3600  # seconds after which a build's folder is one that was left
OPTIONS = {
    # of torch's compiler
    "aot_inductor.package": True,
    "aot_inductor.package_constants_in_so": False,
    "aot_inductor.package_constants_on_disk_format": "pickle_weights",  # tells its own constants
    "aot_inductor.precompile_headers": False,  # pays from the second package on
    "cpp.dynamic_threads": True,  # as many as when it runs
    "compile_threads": 1,  # no pool of processes, which would outlive the build
}


class OpenLayer(Layer):
    """A layer of one row whose new token is written at a place that only the device knows.

    torch's compiler writes so into the cache itself; into a slice it would write a copy of it all.
    """

    def append(self, tensor: Tensor, row: int, vectors: Tensor) -> None:
        tensor[:, :, self.lengths] = vectors[None]


class OpenCache:
    """What a decoder asks of a Cache, of tensors [1 K S E] for each layer."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], places: Tensor):
        self.pairs, self.lengths = list(zip(keys, values)), places[-1:]
        # a size that the trace keeps open, as an int of numpy could not
        self.host_lengths = np.array([places.shape[0] - 1], dtype=object)

    def layers(self) -> list[Layer]:
        """A view for each layer, in order."""
        return [
            OpenLayer(*pair, None, None, self.lengths, self.host_lengths, index)
            for index, pair in enumerate(self.pairs)
        ]


class OneToken(nn.Module):
    """Network.decode of one row and `greedy` of it, as a function of tensors alone."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        ids: Tensor,
        known: Tensor,
        places: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The newest id [1] -> logits [1 V] and the most likely of the first known [1] ids, [1].

        Its key and value are written into the cache. places: all up to its own, [S]. keys, values:
        of each layer, [1 K capacity E].
        """
        hidden = self.decoder(self.decoder.embed(ids[:, None]), OpenCache(keys, values, places))
        logits = self.decoder.logits(hidden)[:, 0]
        meant = torch.arange(logits.shape[1]) < known
        likely = logits.masked_fill(~meant, -torch.inf).argmax(-1)
        finite = (torch.isfinite(logits) | ~meant).all(-1)
        return logits, likely.masked_fill(~finite, -1)


def stand_in(module: Module) -> Module:
    """The same module, of the same tensors, as one that can be traced.

    Each tensor is a parameter or a buffer, so that it keeps its name, and none is opaque.
    """
    copy = object.__new__(type(module))
    copy.__dict__ = {k: v for k, v in vars(module).items() if not isinstance(v, Tensor)}
    held = {k: v for k, v in vars(module).items() if isinstance(v, Tensor)}
    copy._buffers = module._buffers | {name: traceable(tensor) for name, tensor in held.items()}
    copy._parameters = dict(module._parameters)
    copy._modules = {name: part and stand_in(part) for name, part in module._modules.items()}
    return copy


def traceable(tensor: Tensor) -> Tensor:
    """The tensor, or any of its shape where its order is one that only its operators know."""
    if tensor.layout == torch.strided:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def traced(decoder: Decoder) -> "tuple[torch.export.ExportedProgram, tuple[object, ...]]":
    """One step of a decoder as a program, for any capacity and any number of tokens seen."""
    config, dtype = decoder.config, decoder.embedding.weight.dtype
    shape, layers = (1, config.num_kv_heads, CAPACITY, config.head_dim), range(config.num_layers)
    keys, values = ([torch.zeros(shape, dtype=dtype) for _ in layers] for _ in "kv")
    example = torch.tensor([0]), torch.tensor([1]), torch.arange(SEEN + 1), keys, values
    any_size = torch.export.Dim.DYNAMIC
    sizes = {}, {}, {0: any_size}, *([{2: any_size} for _ in layers] for _ in "kv")
    with torch.no_grad():
        part = OneToken(stand_in(decoder))
        return torch.export.export(part, example, dynamic_shapes=sizes), example


@contextmanager
def each_named(known: set[str]) -> Iterator[None]:
    """Inside a `with` block, a constant that torch's compiler makes has a name that no other has.

    known: the names of weights, which stay. The compiler calls several constants alike, such as
    "x_scale" of every product in eight bits, and by such a name none can be handed over. Constants
    of one value are one.
    """
    from unittest import mock

    from torch._inductor.graph import GraphLowering

    add, numbers = GraphLowering.add_tensor_constant, dict[str, Tensor]()

    def named(graph: GraphLowering, data: Tensor, name: str | None = None) -> object:
        if name not in known:
            data = numbers.setdefault(f"{data.dtype} {data.tolist()}", data)
            name = f"number{len(graph.constants)}"
        return add(graph, data, name)

    with mock.patch.object(GraphLowering, "add_tensor_constant", named):
        yield


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Inside a `with` block, torch says nothing of itself or of a folder that goes anyway."""
    about_folders = logging.getLogger("torch._inductor.utils")
    level = about_folders.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        about_folders.setLevel(logging.ERROR)
        try:
            yield
        finally:
            about_folders.setLevel(level)


def write(decoder: Decoder, path: Path, work: Path) -> None:
    """Build a package in the folder `work`, and name it `path` when it is whole.

    While it is built, a variable of the process tells torch's compiler to work there, too.
    """
    from torch._inductor.cpu_vec_isa import pick_vec_isa
    from torch._inductor.utils import fresh_cache
    from torch.export.pt2_archive._package import package_pt2

    part = work / "package.pt2"
    # a cache of its own: nothing of a build that was killed is found
    with fresh_cache(dir=str(work), delete=False), ThreadPoolExecutor(1) as aside:
        aside.submit(pick_vec_isa)  # tries what the C++ compiler knows, while a step is traced
        program, example = traced(decoder)
        known = {*program.state_dict, *program.constants}
        with each_named(known):
            files = torch._inductor.aot_compile(
                program.module(check_guards=False), example, options=OPTIONS
            )
        assert isinstance(files, list)
        (constants,) = (one for one in files if not isinstance(one, str))
        numbers = {
            name: (str(tensor.dtype).removeprefix("torch."), tensor.tolist())
            for name, (tensor, _) in constants.items()
            if name not in known
        }
        notes = json.dumps({"made_with": made_with(decoder), "numbers": numbers})
        files.remove(constants)
        package_pt2(str(part), aoti_files=files, extra_files={NOTES: notes})
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def built(decoder: Decoder) -> bool:
    """Whether a package was built for a decoder; a line says what was built, or why not."""
    from torch._inductor import cpp_builder, exc

    path, start = path_of(made_with(decoder)), time.perf_counter()
    try:
        compiler = cpp_builder.get_cpp_compiler()
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path.parent)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as work:
            log.info(
                f"compiling the decode step with {compiler}, once for this model and CPU: about a "
                "minute. Ctrl-C goes on without it."
            )
            with quiet_torch():
                write(decoder, path, Path(work))
    except exc.InvalidCxxCompiler:
        log.warning("the decode step is not compiled: torch finds no C++ compiler, such as g++.")
        return False
    except KeyboardInterrupt:
        log.warning("compiling was interrupted: the ordinary decode step is used.")
        return False
    except (RuntimeError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        log.warning(f"the decode step is not compiled: {type(error).__name__}: {first}")
        return False
    log.info(f"compiled in {time.perf_counter() - start:.0f} s: {path}")
    return True


def remove_stale(folder: Path) -> None:
    """Remove what builds left that were killed long ago."""
    for left in folder.glob("build-*"):
        with suppress(FileNotFoundError):  # another build ends just now
            if time.time() - left.stat().st_mtime > STALE:
                shutil.rmtree(left, ignore_errors=True)


def for_device(
    network: Network, wanted: bool | None, kv_dtype: torch.dtype | None = None
) -> Compiled | None:
    """The compiled step of a model that is laid out for its device, None for the ordinary one.

    wanted: True builds it where there is none; None takes one that is there; False takes none.
    kv_dtype: of all caches, None for that of the weights.
    """
    path, reason = choose.explained(network.device)
    if path == "cpu" and network.decoder.parts > 1:
        path, reason = "ordinary", "the model is split"
    if path == "cpu" and kv_dtype is not None:
        path, reason = "ordinary", "a cache of 8 bits takes ordinary steps"
    if wanted is False or path != "cpu":
        if wanted:
            log.warning(f"the decode step is not compiled: {reason}.")
        return None
    found = opened(network.decoder)
    if found is None and wanted and built(network.decoder):
        found = opened(network.decoder)
    if found is None:
        log.debug("decode step: ordinary; --compile builds one for this model and CPU")
    else:
        log.debug(f"decode step: compiled, from {found.path}")
    return found
