"""A model on the meta device -> the same model filled from a checkpoint, exact both ways.

in:  LlavaConfig, Checkpoint, dtype, device
out: Network with every parameter filled, or CheckpointError

Every tensor of the checkpoint is used once or dropped by a named rule. What is dropped is not read,
so it may be of any dtype. Every parameter of the model is filled once, whole, with its own shape.
Anything else is an error: nothing is ever left at random. Peak memory is the model and one tensor.
Read weights/names.py, weights/tied.py, weights/share.py first. Read next: weights/packed.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..config import LlavaConfig
from ..errors import CheckpointError, NumericsError, shown
from ..model import Network
from . import names, packed
from .checkpoint import Checkpoint
from .index import ELSEWHERE
from .share import Share

Tensors = Iterator[tuple[str, Tensor]]  # of a checkpoint, by name


class Uninitialised(TorchFunctionMode):
    """Parameters on the meta device, and no drawing of random numbers for them.

    Drawing on meta would change nothing, but it imports a second's worth of torch's compiler.
    """

    def __torch_function__(
        self,
        function: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        given = dict(kwargs or {})
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else given["tensor"]
        if function is torch.empty:
            given["device"] = "meta"
        return function(*args, **given)


def on_meta(config: LlavaConfig) -> Network:
    """The model without memory: shapes only."""
    with Uninitialised():
        model = Network(config)
        if config.quantization is not None:
            packed.swap(model)
        return model.eval().requires_grad_(False)


def fill(
    model: Network,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: str,
    progress: Callable[[int, int], None] | None = None,
    convert: Sequence[Callable[[Tensors], Tensors]] = (),
    share: Share | None = None,
) -> None:
    """Fill the meta model from the checkpoint, cast to `dtype`, on `device`.

    progress(done, total) is called after each tensor. Each of `convert` may change the stream of
    (name, tensor) on its way. share: the part of the checkpoint that the model is, if not all.
    """
    config = model.config
    share = share or Share.whole(config.text)
    wanted = {key: shape for key, shape in pieces(model, config).items() if share.holds(key[0])}
    filled: dict[tuple[str, str | None], str] = {}
    used = checkpoint.only(
        lambda name: unused(name, config) is None and share.own(names.ours(name)[0]) is not None
    )
    tensors: Tensors = used.tensors(progress, share.cut)
    for change in convert:
        tensors = change(tensors)
    for name, tensor in tensors:
        own, piece = names.ours(name)
        own = share.own(own) or own
        shape = wanted.get((own, piece))
        if shape is None:
            expected = f"no such tensor in a {config.family} checkpoint"
            raise refused(shown(name), expected, list(tensor.shape))
        if (own, piece) in filled:
            raise refused(shown(name), "once", f"again beside {shown(filled[own, piece])}")
        if tuple(tensor.shape) != shape:
            raise refused(shown(name), f"shape {list(shape)}", list(tensor.shape))
        kind = model.get_parameter(own).dtype
        if not kind.is_floating_point and tensor.dtype != kind:
            raise refused(shown(name), str(kind), str(tensor.dtype))
        check_finite(name, tensor)
        place(model, config, own, piece, tensor, dtype, device)
        filled[own, piece] = name
    missing = [own for own, piece in wanted if (own, piece) not in filled]
    if missing:
        no_tower = all(own.startswith("vision.") for own in missing)
        first = ", ".join(name for name, _ in names.theirs(missing[0], "hf"))
        found = f"none ({len(missing)} missing in all)"
        hint = f"The tower is not there. {ELSEWHERE}" if no_tower else ""
        raise refused(first, "in the checkpoint", found, hint)


def refused(name: str, expected: str, found: object, hint: str = "") -> CheckpointError:
    """The error of a tensor that is not what the model needs."""
    return CheckpointError("cannot load the weights", name, expected, found, hint)


def pieces(model: nn.Module, config: LlavaConfig) -> dict[tuple[str, str | None], tuple[int, ...]]:
    """{(our name, slice or None): the shape that fills it} of every parameter."""
    wanted = {}
    for own, parameter in model.named_parameters():
        stored = [piece for _, piece in names.theirs(own, "hf")]
        for piece in stored:
            shape = list(parameter.shape)
            if piece is not None:
                rows = names.slices(own, config)[piece]
                shape[0] = rows.stop - rows.start
            wanted[own, piece] = tuple(shape)
    return wanted


def place(
    model: nn.Module,
    config: LlavaConfig,
    own: str,
    piece: str | None,
    tensor: Tensor,
    dtype: torch.dtype,
    device: str,
) -> None:
    """Put the tensor where it belongs; the parameter is allocated when its first piece arrives."""
    module_name, _, parameter_name = own.rpartition(".")
    module = model.get_submodule(module_name)
    parameter = getattr(module, parameter_name)
    dtype = dtype if parameter.is_floating_point() else parameter.dtype  # codes are no numbers
    if parameter.is_meta:
        parameter = nn.Parameter(
            torch.empty(parameter.shape, dtype=dtype, device=device), requires_grad=False
        )
        setattr(module, parameter_name, parameter)
    target = parameter if piece is None else parameter[names.slices(own, config)[piece]]
    target.copy_(tensor)


def check_finite(name: str, tensor: Tensor) -> None:
    """NumericsError, with the first place of it, where a tensor holds NaN or infinity."""
    low, high = tensor.aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        where = int(torch.nonzero(~torch.isfinite(tensor.flatten()))[0])
        raise NumericsError(
            "cannot use the weights",
            shown(name),
            "finite numbers",
            f"{tensor.flatten()[where].item()} at index {where}",
        )


def unused(name: str, config: LlavaConfig) -> str | None:
    """Why the tensor of a checkpoint's name is not used, or None where it is."""
    own, _ = names.ours(name)
    if own == "decoder.head.weight" and config.text.tied:
        return "the head is the embedding"
    return names.dropped(own, config.vision.num_layers)
