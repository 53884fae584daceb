"""A checkpoint folder, a hub name or the embedded checkpoint becomes a loaded model.

in:  a folder or name, device, dtypes, keys that replace those of config.json
out: Model

Read families/folder.py, weights/load.py first. Read next: engine/handle.py.
"""

import logging
import time
from dataclasses import replace
from functools import partial

import torch

from ..base import memory as memory_errors
from ..errors import ParameterError
from ..families.folder import EMBEDDED, settings_of
from ..kernels import onednn
from ..planning.forecast import free_bytes
from ..tokenizer import read as read_tokenizer
from ..weights import hub, packed, quantize
from ..weights import load as weights
from ..weights.checkpoint import Checkpoint
from .handle import KV_DTYPES, Model
from .prefix import description
from .recording import RecordedTower

log = logging.getLogger("llava_min")
SMALL = 2**25  # weights that a CPU's caches hold: halving their bytes gains nothing
DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}


# Loading -----------------------------------------------------------------------


@memory_errors.memory("load the model")
def load(
    folder=None,
    *,
    device="auto",
    dtype="auto",
    kv_dtype="auto",
    config=None,
    context=None,
    bits=None,
    progress=None,
) -> Model:
    """Load a checkpoint folder, a hub name or the embedded checkpoint, ready to answer.

    With `bits`, 4 or 8, it is quantised while loading. Raises LlavaMinError.
    """
    start = time.perf_counter()
    device, path = pick_device(device), EMBEDDED
    kept = pick_kv_dtype(kv_dtype, device)
    if folder is not None:  # with bits: some keep 16, in all about a byte a weight
        itemsize = pick_dtype(dtype, device, large=True).itemsize if bits is None else 1
        path = hub.find(folder, itemsize, free_bytes(device))
    if restriction := hub.restriction(path):
        log.warning(restriction)
    checkpoint = Checkpoint.open(path)
    tokenizer = read_tokenizer(path)
    settings = settings_of(path, config, context)
    if tokenizer is not None:
        tokenizer.check_rows(settings.text.vocab_size)
    convert = iter
    if bits is not None:
        settings = replace(settings, quantization=quantize.on_load(settings, bits))
        convert = partial(quantize.converted, config=settings)
    network = weights.on_meta(settings)
    large = sum(weight.numel() for weight in network.parameters()) > SMALL
    torch_dtype = pick_dtype(dtype, device, large)
    weights.fill(network, checkpoint, torch_dtype, device, progress, convert)
    made = description(network)
    packed.ready(network)
    if device == "cuda":
        network.vision = RecordedTower(network.vision)
    name = "llava_min embedded toy" if path == EMBEDDED else str(folder)
    seconds = time.perf_counter() - start
    return Model(name, settings, network, tokenizer, made, seconds, settings.ignored, kept)


def pick_device(device: str) -> str:
    """The device by name; "auto" is a GPU where there is one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda", "mps"):
        raise ParameterError("cannot load", "device", "auto, cpu, cuda or mps", repr(device))
    if device == "cuda" and not torch.cuda.is_available():
        raise ParameterError(
            "cannot load", "device", "a CUDA GPU that torch can use", "none", "Use --device cpu."
        )
    return device


def pick_dtype(dtype: str, device: str, large: bool) -> torch.dtype:
    """The dtype by name; "auto" is bfloat16 on a GPU, and on a CPU where it is faster.

    A GPU before sm_80 has no bfloat16 arithmetic and gets float16. A CPU gets bfloat16 only for a
    large model.
    """
    if dtype == "auto" and device == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        return torch.float16
    if dtype == "auto":
        wide = device == "cpu" and not (large and onednn.faster())
        return torch.float32 if wide else torch.bfloat16
    if dtype not in DTYPES:
        raise ParameterError("cannot load", "dtype", f"auto, {', '.join(DTYPES)}", repr(dtype))
    return DTYPES[dtype]


def pick_kv_dtype(kv_dtype: str, device: str) -> torch.dtype | None:
    """The dtype of the cache; "auto" is that of the weights. A GPU converts fp8 from sm_89 on."""
    if kv_dtype not in KV_DTYPES:
        raise ParameterError("cannot load", "kv_dtype", ", ".join(KV_DTYPES), repr(kv_dtype))
    old = device == "cuda" and torch.cuda.get_device_capability() < (8, 9)
    if kv_dtype == "fp8" and (old or device == "mps"):
        expected = "a GPU of compute capability 8.9 or newer, or a CPU, for fp8"
        raise ParameterError("cannot load", "kv_dtype", expected, device, "Use int8.")
    return KV_DTYPES[kv_dtype]
