"""A LoRA adapter is merged into the weights on their way from the checkpoint.

in:  a folder as PEFT writes it: adapter_config.json, adapter_model.safetensors; (name, tensor) of a
     checkpoint
out: the same, each tensor with the adapter's change in it

    W + (alpha / r) B A, with rsLoRA alpha / sqrt(r); with DoRA each output is then scaled to a norm
    that was learned. A tensor that the adapter holds whole (modules_to_save, biases) takes the
    place of the checkpoint's.

The adapter's names may be those of any layout, whatever the checkpoint's is. Every tensor of the
adapter is used once or dropped by the rule that drops the checkpoint's. Peak memory is the model
and one tensor in float32. LLaVA's own training writes its projector into non_lora_trainables.bin, a
pickle, which stays closed; converted to safetensors it is read too.
Read weights/names.py, weights/checkpoint.py first. Read next: weights/load.py.
Agrees with: PeftModel.merge_and_unload of PEFT for LoRA; builder.py of LLaVA for the projector.

N outputs, K inputs, r rank.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..base.files import read_json, regular
from ..config import LlavaConfig
from ..errors import CheckpointError, shown
from ..families.fields import Fields
from . import header, load, names
from .checkpoint import open_shard

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OTHERS = ("non_lora_trainables", "mm_projector")  # of LLaVA's own training, and the projector alone
PICKLES = ("adapter_model.bin", *(f"{name}.bin" for name in OTHERS))
SAFE = re.compile(r"[\w.^$|()\[\]\\-]{1,500}", re.ASCII)
PART = re.compile(r"(.*)\.lora_(embedding_)?([AB]|magnitude_vector)(?:\.\w+)?(?:\.(weight|bias))?")
WITHOUT = (
    # keys of what is no plain LoRA
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
    "megatron_config",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "alora_invocation_tokens",
)
TRANSFORMED = ("pissa", "olora", "loftq", "corda", "lora_ga")  # they change the base itself
Place = tuple[str, str | None]  # our name of a tensor, and the slice of it or None
Scale = Callable[[str, int], float]  # a module's name and its rank -> what B A is multiplied with


@dataclass
class Change:
    """What an adapter does to one tensor.

    name: of the tensor, as the adapter has it. parts: the file and the name in it of "A", "B" and
    "magnitude_vector", or of the "whole" tensor. embedding: B A is transposed.
    """

    name: str
    parts: dict[str, tuple[Path, str]] = field(default_factory=dict)
    embedding: bool = False

    def merged(self, base: Tensor, scale: Scale) -> Tensor:
        """The tensor with the change in it, in float32 where there is arithmetic."""
        found = {part: read(*where) for part, where in self.parts.items()}
        base = found.pop("whole", base)
        if not found:
            return base
        first, second, norms = (found.get(part) for part in ("A", "B", "magnitude_vector"))
        if first is None or second is None or (self.embedding and norms is not None):
            raise refused(self.name, "lora_A and lora_B", ", ".join(sorted(found)))
        if first.ndim != 2 or second.ndim != 2 or len(first) != second.shape[1]:
            raise refused(self.name, "two matrices of one rank", list(first.shape))
        delta = second.float() @ first.float()
        delta = delta.T if self.embedding else delta
        if delta.shape != base.shape:
            raise refused(self.name, f"shape {list(base.shape)}", list(delta.shape))
        module = bare(self.name).removesuffix(".weight")
        merged = base.float() + scale(module, len(first)) * delta
        if norms is not None:
            norm = torch.linalg.vector_norm(merged, dim=1)
            merged *= (norms.float().reshape(norm.shape) / norm)[:, None]
        return merged


@dataclass
class Adapter:
    """The changes of an adapter's folder, by the place of the tensor that each changes."""

    folder: Path
    changes: dict[Place, Change]
    scale: Scale

    @classmethod
    def open(cls, folder: str | Path) -> "Adapter":
        """Read which tensors a folder changes. CheckpointError for what cannot be merged."""
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError("cannot open the adapter", shown(str(folder)), "a folder", "none")
        adapter = cls(folder, {}, lambda module, rank: 1.0)
        if regular(folder / CONFIG):
            adapter.add_lora(Fields(read_json(folder / CONFIG, "adapter"), CONFIG))
        for path in (folder / f"{name}.safetensors" for name in OTHERS):
            if regular(path):
                adapter.add_whole(path)
        closed = [name for name in PICKLES if regular(folder / name)]
        if closed and not regular(folder / closed[0].replace(".bin", ".safetensors")):
            raise pickled(folder / closed[0])
        if not adapter.changes:
            expected = f"{CONFIG} and {WEIGHTS}, or mm_projector.safetensors"
            raise CheckpointError(
                "cannot open the adapter", shown(str(folder)), expected, "neither"
            )
        return adapter

    def add_lora(self, config: Fields) -> None:
        """Add the changes of PEFT's files."""
        check_kind(config)
        path = self.folder / WEIGHTS
        if not regular(path):
            if regular(self.folder / "adapter_model.bin"):
                raise pickled(self.folder / "adapter_model.bin")
            raise CheckpointError("cannot open the adapter", WEIGHTS, "a file", "none")
        self.scale = scale_of(config)
        for name in header.read_header(path):
            match = PART.fullmatch(name)
            if match is None:
                self.change(name).parts["whole"] = path, name
                continue
            module, embedding, part, ending = match.groups()
            if ending == "bias":
                raise refused(name, "no bias of lora_B", "one")
            change = self.change(f"{module}.weight")
            change.parts[part] = path, name
            change.embedding |= embedding is not None

    def add_whole(self, path: Path) -> None:
        """Add tensors that take the place of the checkpoint's."""
        for name in header.read_header(path):
            self.change(name).parts["whole"] = path, name

    def change(self, name: str) -> Change:
        """The change of a tensor, which may be new."""
        return self.changes.setdefault(names.ours(bare(name)), Change(name))

    def applied(
        self, tensors: Iterator[tuple[str, Tensor]], config: LlavaConfig
    ) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of a checkpoint, merged. CheckpointError where a change has no tensor."""
        left = dict(self.changes)
        for own in ("decoder.head.weight", "decoder.embedding.weight") if config.text.tied else ():
            if change := left.get((own, None)):
                raise refused(change.name, "a head of its own in the checkpoint", "the embedding")
        for name, tensor in tensors:
            change = left.pop(names.ours(name), None)
            yield name, tensor if change is None else change.merged(tensor, self.scale)
        for (own, _), change in left.items():
            if names.dropped(own, config.vision.num_layers) is None:
                raise refused(change.name, "a tensor of the checkpoint in 16 or 32 bits", "none")


def bare(name: str) -> str:
    """A tensor's name without what PEFT puts before it and around it."""
    name = re.sub(r"^(base_model\.model\.|base_model\.)", "", name)
    return name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")


def read(path: Path, name: str) -> Tensor:
    """One tensor of the adapter, finite."""
    with open_shard(path) as shard:
        tensor = shard.get_tensor(name)
    load.check_finite(name, tensor)
    return tensor


def check_kind(config: Fields) -> None:
    """CheckpointError for an adapter that is no LoRA, or one that changes more than matrices."""
    config.get("peft_type", str, choices=("LORA",))
    for key in WITHOUT:
        if config.values.get(key):
            raise config.refused(key, "none", config.values[key])
    start = config.values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(TRANSFORMED):
        hint = "Convert it to plain LoRA first, as PEFT describes."
        raise config.refused("init_lora_weights", "plain LoRA", start, hint)
    config.get("fan_in_fan_out", bool, False, choices=(False,))
    config.get("lora_bias", bool, False, choices=(False,))


def scale_of(config: Fields) -> Callable[[str, int], float]:
    """How B A is scaled, by a module's name and its rank."""
    alpha = config.positive("lora_alpha", 8.0)
    rank = config.size("r", 8)
    ranks, alphas = patterns_of(config, "rank_pattern"), patterns_of(config, "alpha_pattern")
    root = config.get("use_rslora", bool, False)

    def scale(module: str, found: int) -> float:
        wanted = matching(ranks, module, rank)
        if wanted != found:
            raise config.refused("r", f"{found}, the rank of {shown(module)}", wanted)
        return float(matching(alphas, module, alpha)) / (math.sqrt(found) if root else found)

    return scale


def patterns_of(config: Fields, key: str) -> dict[str, float]:
    """{a name or an expression for the end of modules' names: a number}.

    Only letters, digits, dots and what groups and chooses: no expression that could take forever.
    """
    found = config.get(key, dict, None) or {}
    for pattern, value in found.items():
        if not SAFE.fullmatch(pattern) or type(value) not in (int, float):
            raise config.refused(key, "names of modules with a number each", {pattern: value})
    return found


def matching(patterns: dict[str, float], module: str, default: float) -> float:
    """The value of the first pattern that a module's name ends with, which may be an expression."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def refused(name: str, expected: str, found: object) -> CheckpointError:
    return CheckpointError("cannot merge the adapter", shown(name), expected, found)


def pickled(path: Path) -> CheckpointError:
    """The error of a file that could run code."""
    return CheckpointError(
        "cannot open the adapter",
        shown(path.name),
        "safetensors",
        "a pickle, which could run code",
        "docs/using.md says how to convert it.",
    )
