"""A checkpoint folder, a hub name or the embedded checkpoint becomes a loaded model.

in:  a folder or name, device, dtypes, keys that replace those of config.json
out: Model

Read families/folder.py, weights/load.py first. Read next: engine/handle.py.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ..base.memory import memory_guard
from ..errors import ParameterError, wrong_value
from ..families.folder import EMBEDDED, TOY, config_of
from ..families.vocabulary import read_tokenizer
from ..kernels import choose
from ..model import Network
from ..planning.devices import NAMES, default_dtype
from ..planning.forecast import free_bytes, is_large
from ..planning.memory import Storage
from ..planning.split import Way
from ..weights import hub, packed, quantize
from ..weights import load as weights
from ..weights.adapter import Adapter
from ..weights.checkpoint import Checkpoint
from ..weights.kept import with_kept_codes
from ..weights.share import Share
from ..weights.tied import with_own_head
from . import compiling
from .handle import KV_DTYPES, Model
from .offload import offloaded
from .prefix import Description, description
from .recording import RecordedTower, recorded

log = logging.getLogger("llava_min")
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}


# Loading -----------------------------------------------------------------------


@memory_guard("load the model")
def load(
    folder: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    kv_dtype: str = "auto",
    config: Mapping[str, object] | None = None,
    context: int | None = None,
    bits: int | None = None,
    adapter: str | Path | None = None,
    compile: bool | None = None,
    devices: Sequence[str] = (),
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    offload: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Model:
    """Load a checkpoint folder, a hub name or the embedded checkpoint, ready to answer.

    With `adapter`, a folder, a LoRA is merged into it, and with `bits`, 4 or 8, it is quantised
    while loading. compile: see compiling.for_device. devices, tensor_parallel, pipeline_parallel:
    how it is split (engine/several.py). offload: layers that do not fit on the device stay off it
    (engine/offload.py). progress(done, total) is called after each tensor. Raises LlavaMinError.
    """
    start = time.perf_counter()
    way = Way.of(devices, tensor_parallel, pipeline_parallel, adapter, offload)
    device, path = pick_device(way.devices[0] if way.devices else device), EMBEDDED
    kept = pick_kv_dtype(kv_dtype, device)
    if folder is not None:  # with bits: some keep 16, in all about a byte a weight
        itemsize = pick_dtype(dtype, device, large=True).itemsize if bits is None else 1
        path = hub.find(folder, itemsize, free_bytes(device))
    if restriction := hub.restriction(path):
        log.warning(restriction)
    checkpoint = Checkpoint.open(path)
    tokenizer = read_tokenizer(path)
    settings = with_own_head(config_of(path, config, context), path)
    if bits is None and adapter is None:  # an adapter is merged into numbers
        settings = with_kept_codes(settings, path)
        checkpoint = checkpoint if settings.quantization is None else checkpoint.keeping_codes()
    if tokenizer is not None:
        tokenizer.check_rows(settings.text.vocab_size)
    convert: list[Callable[[weights.Tensors], weights.Tensors]] = []
    if adapter is not None:
        convert.append(partial(Adapter.open(adapter).applied, config=settings))
    if bits is not None:
        settings = replace(settings, quantization=quantize.on_load(settings, bits))
        convert.append(partial(quantize.converted, config=settings))
    torch_dtype = pick_dtype(dtype, device, is_large(settings))
    if dtype == "auto":
        log.debug("dtype %s: %s", *default_dtype(device, is_large(settings)))
    log.debug("kernels %s: %s", *choose.explained(torch.device(device)))
    if settings.quantization is not None:
        log.debug("weights %s", packed.explained(settings.quantization, torch.device(device)))
    made: Description = {}

    def part(share: Share, device: str) -> Network:
        """A share of the weights, laid out for a device."""
        network = weights.on_meta(share.local(settings))
        told = progress if share.rest else None
        weights.fill(network, checkpoint, torch_dtype, device, told, convert, share)
        if share.rest:
            made.update(description(network))
        packed.ready(network)
        if recorded(torch.device(device)) and (share.rest or share.tower):
            network.vision = RecordedTower(network.vision)
        return network

    storage = Storage(str(torch_dtype).removeprefix("torch."), bits, device=device)
    if way.whole:
        network = part(Share.whole(settings.text), device)
    elif way.offload:
        network = offloaded(part, settings, storage, device)
    else:
        from .several import assembled  # which most models do without

        chosen: dict[str, object] = {"folder": str(path), "config": config, "context": context}
        chosen |= {"device": device, "dtype": dtype, "kv_dtype": kv_dtype, "bits": bits}
        network = assembled(part, settings, storage, way, kept, chosen)
    ready = compiling.for_device(network, compile, kept)
    name = TOY if path == EMBEDDED else str(folder)
    seconds = time.perf_counter() - start
    return Model(name, settings, network, tokenizer, made, seconds, settings.ignored, kept, ready)


def pick_device(device: str) -> str:
    """The device by name; "auto" is a GPU where there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in NAMES or (index and not (kind == "cuda" and index.isdecimal())):
        raise wrong_value("device", "auto, cpu, cuda, mps or xpu", device)
    count = None if kind == "cpu" else getattr(torch, kind).device_count()
    if count is not None and count <= int(index or 0):
        found = "no CUDA GPU" if kind == "cuda" else f"no {kind} device"
        raise ParameterError(f"torch finds {found} that it can use; --device cpu needs none.")
    return device


def pick_dtype(dtype: str, device: str, large: bool) -> torch.dtype:
    """The dtype by name; "auto" is what planning/devices.py says of such a model and device."""
    if dtype == "auto":
        dtype, _ = default_dtype(device, large)
    if dtype not in DTYPES:
        raise wrong_value("dtype", f"one of auto, {', '.join(DTYPES)}", dtype)
    return DTYPES[dtype]


def pick_kv_dtype(kv_dtype: str, device: str) -> torch.dtype | None:
    """The dtype of the cache; "auto" is that of the weights. A GPU converts fp8 from sm_89 on."""
    if kv_dtype not in KV_DTYPES:
        raise wrong_value("kv_dtype", f"one of {', '.join(KV_DTYPES)}", kv_dtype)
    old = device.startswith("cuda") and torch.cuda.get_device_capability() < (8, 9)
    if kv_dtype == "fp8" and (old or device in ("mps", "xpu")):
        raise ParameterError(
            "kv_dtype fp8 needs a GPU of compute capability 8.9 or newer, or a CPU; "
            "int8 works on any device."
        )
    return KV_DTYPES[kv_dtype]
