"""Quantise a checkpoint: tensors in, the same tensors out with linears as codes.

in:  (name, tensor) of a checkpoint
out: the same, with codes and scales in place of matrices

    python -m llava_min.weights quantize IN OUT [--group 128] [--method mse] [--head 8]
    python -m llava_min.weights quantize IN OUT --bits 8

Four bits are for the decoder's linears, eight for those of tower and projector too. Norms, biases
and embeddings keep 16 bits. `converted` does all of it: loading with --int4 or --int8 reads through
it. `quantize` writes what it yields, shard by shard, into a folder that appears only when it is
complete. Of four bits the largest magnitude of a group gets the lowest code, so a scale may be
negative: codes reach one step further on that side.
Read weights/packed.py first. Read next: weights/tiny/scenes.py.
Agrees with: Q4_0 of llama.cpp in its use of the sign.

N outputs, K inputs, g group size.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..config import LlavaConfig, Quantization
from ..errors import CheckpointError, OutputError, ParameterError, wrong_value
from ..families import layouts
from . import hub, load, names, packed, tied
from .checkpoint import Checkpoint
from .index import WHOLE

CLIPS = {"rtn": (1.0,), "mse": tuple(1 - 0.03 * step for step in range(13))}  # shares of the range
ROWS = 2**20  # weights that are quantised at a time: their temporary copies stay small
COPIED = ("*.json", "*.txt", "*.jinja", "README*", "LICENSE*")


def codes(weight: Tensor, bits: int, group: int, method: str) -> tuple[Tensor, Tensor]:
    """weight [N K] -> codes uint8 [N K] and scales bfloat16 [N K/g]; of eight bits int8 and [N].

    "rtn" rounds to nearest, so no weight is more than half a step off. "mse" also tries smaller
    steps, which clip the largest weights, and keeps the one with the least squared error for each
    group. Of eight bits the group is a whole row.

    >>> found, scale = codes(torch.tensor([[-4.0, 3.5, 0.0, 1.0]]), bits=4, group=4, method="rtn")
    >>> found.tolist(), scale.tolist()
    ([[0, 15, 8, 10]], [[0.5]])
    """
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    grouped = weight.float().unflatten(1, (-1, group if bits == 4 else weight.shape[1]))
    least, most = grouped.aminmax(dim=-1)
    larger, smaller = torch.maximum(most, -least), torch.minimum(most, -least)
    reach = [(end + 0.5) / (1 + 2**-8) for end in (-low, high)]  # a scale may be rounded down
    step = torch.maximum(larger / min(-low, reach[0]), smaller / reach[1]).clamp(min=1e-30)
    step = torch.where(most > -least, -step, step) if bits == 4 else step
    best = None
    for clip in CLIPS[method]:
        scale = (step * clip).bfloat16()
        wide = scale.float()[..., None]
        rounded = (grouped / wide).round_().clamp_(low, high)
        error = (rounded * wide).sub_(grouped).square_().sum(-1)
        if best is None:
            best, kept, found = error, scale, rounded
            continue
        better = error < best
        best, kept = torch.where(better, error, best), torch.where(better, scale, kept)
        found = torch.where(better[..., None], rounded, found)
    if bits == 8:
        return found.to(torch.int8).flatten(1), kept.flatten()
    return (found - low).to(torch.uint8).flatten(1), kept


def quantised(weight: Tensor, bits: int, wanted: Quantization) -> tuple[Tensor, Tensor]:
    """weight [N K] -> (packed, scale) as packed.py describes them, some rows at a time."""
    rows = max(1, ROWS // weight.shape[1])
    found = [codes(part, bits, wanted.group, wanted.method) for part in weight.split(rows)]
    whole = torch.cat([part for part, _ in found])
    return packed.pairs(whole) if bits == 4 else whole, torch.cat([scale for _, scale in found])


def converted(
    tensors: Iterator[tuple[str, Tensor]], config: LlavaConfig
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a checkpoint -> the same, quantised as config.quantization says."""
    wanted = config.quantization
    assert wanted is not None
    for name, tensor in tensors:
        own, _ = names.ours(name)
        shared = own == "decoder.embedding.weight" and config.text.tied
        bits = names.bits("decoder.head.weight" if shared else own, config)
        if bits == 16 or shared:
            yield name, tensor
        if bits < 16:
            load.check_finite(name, tensor)
            stem = "lm_head" if shared else name.removesuffix(".weight")
            codes, scale = quantised(tensor, bits, wanted)
            yield f"{stem}.packed", codes
            yield f"{stem}.scale", scale


def on_load(config: LlavaConfig, bits: int) -> Quantization:
    """The quantisation of --int4 and --int8: rounding to nearest, which takes seconds."""
    if config.quantization is not None:
        raise ParameterError("bits cannot be used with a checkpoint that is quantised already.")
    if bits not in (4, 8):
        raise wrong_value("bits", "4 or 8", bits)
    return Quantization(bits=bits)


def quantize(
    source: str,
    target: str,
    wanted: Quantization,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the checkpoint `source`, a folder or a hub name, quantised, as the new folder `target`.

    Raises CheckpointError for what cannot be read or is quantised already, OutputError for what
    cannot be written. In every case `source` is as it was, and `target` absent or whole.
    """
    checkpoint, place = Checkpoint.open(hub.find(source)), Path(os.path.abspath(target))
    config = tied.with_own_head(layouts.read_config(checkpoint.folder), checkpoint.folder)
    if config.quantization is not None or checkpoint.foreign is not None:
        raise CheckpointError(
            "cannot quantise", str(source), "weights of 16 or 32 bits", "quantised ones"
        )
    if place.exists() or checkpoint.folder.resolve() in (place, *place.resolve().parents):
        found = "it already" if place.exists() else "it inside the checkpoint"
        raise OutputError("cannot write", str(place), "a new folder elsewhere", found)
    config = replace(config, quantization=wanted)
    load.on_meta(config)  # refuses what cannot be quantised before anything is written
    part = None
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}-{os.getpid()}.part")
        part.mkdir()
        write(checkpoint, config, part, progress)
        os.rename(part, place)
        synced(place.parent)
    except (OSError, SafetensorError) as error:
        raise OutputError("cannot write", str(place), "room for it", str(error)) from None
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)
    return place


def write(
    checkpoint: Checkpoint,
    config: LlavaConfig,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """All files of the new checkpoint, each on the disk before the next begins."""
    used = checkpoint.only(lambda name: load.unused(name, config) is None)
    tensors = used.tensors(progress)
    weight_map: dict[str, str] = {}
    for path in dict.fromkeys(used.shards.values()):
        count = sum(where == path for where in used.shards.values())
        part = (next(tensors) for _ in range(count))
        held = dict(in_sixteen_bits(converted(part, config)))
        save_file(held, folder / path.name, metadata={"format": "pt"})
        shutil.copymode(path, folder / path.name)
        weight_map |= dict.fromkeys(held, path.name)
    if set(weight_map.values()) != {WHOLE[0]}:
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    for pattern in COPIED:
        for path in checkpoint.folder.glob(pattern):
            if checkpoint.has(path.name) and not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
    assert config.quantization is not None
    values = checkpoint.json("config.json", "configuration")
    values["quantization_config"] = {
        "quant_method": "llava_min",
        "format": layouts.FORMAT,
        **asdict(config.quantization),
    }
    (folder / "config.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
    for path in [*folder.iterdir(), folder]:
        synced(path)


def in_sixteen_bits(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """What is worth writing: no number in more than 16 bits."""
    for name, tensor in tensors:
        sixteen = tensor.element_size() <= 2
        yield name, (tensor if sixteen else tensor.bfloat16()).contiguous()


def synced(path: Path) -> None:
    """Wait until the disk has it; Windows opens no folder, and waits for what may be written."""
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
