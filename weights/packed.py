"""Linear layers whose weights are packed: four or eight bits each, or laid out for the processor.

in:  a model on the meta device, or a filled one
out: the same model with packed layers, or with weights laid out for its device

    four    packed uint8 [N K/2], two codes in each byte, the even input's in the low half;
            scale of 16 bits [N K/g]; a weight is (code - 8) * scale
    eight   packed int8 [N K], scale of 16 bits [N]; a weight is packed * scale

`swap` puts packed layers into a model on the meta device, before it is filled. `ready`, after
filling, lays the weights of every layer out for the device that they are on, one layer at a time.
Read weights/load.py first. Read next: weights/quantize.py.

N outputs, K inputs, g group size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Quantization
from ..errors import CheckpointError
from ..kernels import half, int4, int8, onednn
from ..model import Network
from ..vision import Linear
from . import names

PART = 2**21  # bytes of codes that are laid out at a time: the layouts' temporary copies stay small


def pairs(codes: Tensor) -> Tensor:
    """Codes of four bits, uint8 [N K] -> bytes [N K/2].

    >>> pairs(torch.tensor([[1, 2, 3, 15]], dtype=torch.uint8)).tolist()
    [[33, 243]]
    """
    return codes[:, 0::2] | codes[:, 1::2] << 4


def singles(packed: Tensor) -> Tensor:
    """Bytes [N K/2] -> codes of four bits, uint8 [N K]."""
    return torch.stack([packed & 15, packed >> 4], dim=-1).flatten(1)


class Four(nn.Module):
    """A linear layer of four bits: codes, and a scale for each group of inputs."""

    def __init__(self, inputs: int, outputs: int, group: int, bias: bool):
        super().__init__()
        self.outputs = outputs
        shape = outputs, inputs // 2
        self.packed = nn.Parameter(torch.empty(shape, dtype=torch.uint8), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(outputs, inputs // group))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def ready(self) -> None:
        """Lay the weights out as the product takes them."""
        packed, scale = self.packed.data, self.scale.data
        del self.packed, self.scale
        rows = int4.outputs_in(PART, packed.shape[1])
        parts = zip(packed.split(rows), scale.split(rows))
        self.words, self.scales = int4.joined(
            [int4.repack(singles(codes), scales) for codes, scales in parts]
        )
        self.arrived = int4.counter(self.words)

    def forward(self, rows: Tensor) -> Tensor:
        """[... K] -> [... N]."""
        if self.arrived is not None:
            return int4.linear(rows, self.words, self.scales, self.bias, self.arrived)
        product = int4.linear(rows, self.words, self.scales)
        if product.shape[-1] > self.outputs:  # a last block that was filled up
            product = product[..., : self.outputs]
        return product if self.bias is None else product.add_(self.bias)


class Eight(nn.Module):
    """A linear layer of eight bits, with a scale for each output.

    wide: whether its products may be larger than float16 holds (kernels/half.py).
    """

    def __init__(self, inputs: int, outputs: int, bias: bool, wide: bool = False):
        super().__init__()
        self.wide, shape = wide, (outputs, inputs)
        self.packed = nn.Parameter(torch.empty(shape, dtype=torch.int8), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(outputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def ready(self) -> None:
        """Lay the weights out as the product takes them."""
        packed, scale = self.packed.data, self.scale.data
        del self.packed, self.scale
        self.limit = int8.limit_of(packed)
        self.words, self.scales = int8.repack(packed, scale)

    def forward(self, rows: Tensor) -> Tensor:
        """[... K] -> [... N]."""
        if self.wide and half.too_narrow(rows.dtype, rows):
            rows = rows.float()
        return int8.linear(rows, self.words, self.scales, self.bias, self.limit)


Packed = Four | Eight


class CpuLinear(nn.Module):
    """A linear layer on a CPU: a copy of the weight [N K] in oneDNN's order."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.weight, self.bias = onednn.reorder(weight.data), bias

    def forward(self, rows: Tensor) -> Tensor:
        """[... K] -> [... N]."""
        if rows.requires_grad:  # oneDNN's product has no gradient
            return F.linear(rows, self.weight.to_dense(), self.bias)
        return onednn.linear(rows, self.weight, self.bias)


def swap(model: Network) -> None:
    """Packed layers in place of those that the configuration quantises, the head among them."""
    config = model.config
    wanted, text = config.quantization, config.text
    assert wanted is not None
    if wanted.head < 16:  # a tied head gets weights of its own
        model.decoder.head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
    layers = [
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)
    ]
    for name, old in layers:
        bits, sizes = names.bits(f"{name}.weight", config), (old.in_features, old.out_features)
        if bits == 16:
            continue
        if bits == 4 and sizes[0] % int4.BLOCK:
            expected = f"a multiple of {int4.BLOCK} inputs"
            raise CheckpointError("cannot quantise", f"the layer {name}", expected, sizes[0])
        bias = old.bias is not None
        if bits == 4:
            model.set_submodule(name, Four(*sizes, wanted.group, bias))
        else:
            model.set_submodule(name, Eight(*sizes, bias, isinstance(old, Linear)))


def explained(wanted: Quantization, device: torch.device) -> str:
    """How the weights are stored, and how eight bits are multiplied on a device, for people."""
    form = "a scale for each output" if wanted.bits == 8 else f"groups of {wanted.group}"
    how = f": {int8.explained(device)}" if 8 in (wanted.bits, wanted.head) else ""
    return f"int{wanted.bits}, {form}, head of {wanted.head} bits{how}"


def ready(model: Network) -> None:
    """Lay out every layer of a filled model for its device.

    On a CPU a tied head becomes an ordered copy of the embedding: vocabulary x width x 2 bytes more
    in bfloat16 (272 MB in 0.5B), for 30% of the bytes that a token reads there.
    """
    places = [
        (parent, name)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, Packed | nn.Linear)
    ]
    for parent, name in places:  # no list of layers: each is let go before the next one
        layer = getattr(parent, name)
        if isinstance(layer, Packed):
            layer.ready()
        elif onednn.pays(layer.weight):
            setattr(parent, name, CpuLinear(layer.weight, layer.bias))
    embedding = model.decoder.embedding.weight
    if model.decoder.head is None and onednn.pays(embedding):
        model.decoder.head = CpuLinear(embedding)
