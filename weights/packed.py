"""Linear layers whose weights are packed: four or eight bits each, or laid out for the processor.

in:  a model on the meta device, or a filled one
out: the same model with Packed layers, or with weights laid out for its device

    packed   uint8 [N K/2] with two codes of four bits in each byte, the even input's in the low
             half, or uint8 [N K] with one code of eight bits
    scale    16 bits [N K/g]: a weight is (code - 8) * scale, or (code - 136) * scale

`swap` puts Packed layers into a model on the meta device, before it is filled. `ready`, after
filling, lays the weights of every layer out for the device that they are on, one layer at a time.
Read weights/load.py first. Read next: weights/quantize.py.

N outputs, K inputs, g group size.
"""

import torch
from torch import Tensor, nn

from ..config import Quantization
from ..errors import CheckpointError
from ..kernels import int4, onednn
from ..model import Network
from .names import LINEARS

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


class Packed(nn.Module):
    """A linear layer of codes and scales.

    Where a device multiplies only four bits, eight are two planes of four, next to each other, and
    every input is multiplied with both.
    """

    def __init__(self, inputs: int, outputs: int, bits: int, group: int, bias: bool):
        super().__init__()
        self.outputs, self.bits, self.planes = outputs, bits, bits // 4
        shape = outputs, inputs * bits // 8
        self.packed = nn.Parameter(torch.empty(shape, dtype=torch.uint8), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(outputs, inputs // group))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def ready(self) -> None:
        """Lay the weights out as the product takes them."""
        packed, scale = self.packed.data, self.scale.data
        del self.packed, self.scale
        rows = int4.outputs_in(PART, packed.shape[1])
        parts = map(self.repacked, packed.split(rows), scale.split(rows))
        self.words, self.scales = int4.joined(list(parts))
        self.arrived = int4.counter(self.words)

    def repacked(self, packed: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Stored bytes and scales of some outputs -> words and scales."""
        whole = int4.repack_eight(packed, scale) if self.bits == 8 else None
        if whole is not None:
            self.planes = 1
            return whole
        return int4.repack(*self.nibbles(packed, scale))

    def nibbles(self, packed: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Stored bytes and scales of some outputs -> codes of four bits [n K] or [n 2K], theirs."""
        if self.bits == 4:
            return singles(packed), scale
        return torch.cat([packed >> 4, packed & 15], 1), torch.cat([16 * scale, scale], 1)

    def forward(self, rows: Tensor) -> Tensor:
        """[... K] -> [... N]."""
        if self.planes == 2:
            rows = torch.cat([rows, rows], -1)
        if self.arrived is not None:
            return int4.linear(rows, self.words, self.scales, None, self.bias, self.arrived)
        product = int4.linear(rows, self.words, self.scales)
        if product.shape[-1] > self.outputs:  # a last block that was filled up
            product = product[..., : self.outputs]
        return product if self.bias is None else product.add_(self.bias)


class CpuLinear(nn.Module):
    """A linear layer in bfloat16 on a CPU: a copy of the weight [N K] in oneDNN's order."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.weight, self.bias = onednn.reorder(weight.data), bias

    def forward(self, rows: Tensor) -> Tensor:
        """[... K] -> [... N]."""
        return onednn.linear(rows, self.weight, self.bias)


def swap(model: Network, wanted: Quantization) -> None:
    """Packed layers in place of the decoder's linears and, unless it keeps 16 bits, its head."""
    text = model.config.text
    for block in model.decoder.blocks:
        for name in LINEARS:
            old = getattr(block, name)
            inputs, outputs = old.in_features, old.out_features
            if inputs % int4.BLOCK:
                expected = f"a multiple of {int4.BLOCK} inputs"
                raise CheckpointError("cannot quantise", f"the decoder's {name}", expected, inputs)
            bias = old.bias is not None
            setattr(block, name, Packed(inputs, outputs, wanted.bits, wanted.group, bias))
    if wanted.head < 16:
        sizes = text.hidden_size, text.vocab_size
        model.decoder.head = Packed(*sizes, wanted.head, wanted.group, bias=False)


def ready(model: Network) -> None:
    """Lay out every layer of a filled model for its device.

    In bfloat16 on a CPU a tied head becomes an ordered copy of the embedding: vocabulary x width x
    2 bytes more (272 MB in 0.5B), for 30% of the bytes that a token reads there.
    """
    places = [(parent, name) for parent in model.modules()
              for name, layer in parent.named_children()
              if isinstance(layer, Packed | nn.Linear)]  # fmt: skip
    for parent, name in places:  # no list of layers: each is let go before the next one
        layer = getattr(parent, name)
        if isinstance(layer, Packed):
            layer.ready()
        elif onednn.pays(layer.weight):
            setattr(parent, name, CpuLinear(layer.weight, layer.bias))
    embedding = model.decoder.embedding.weight
    if model.decoder.head is None and onednn.pays(embedding):
        model.decoder.head = CpuLinear(embedding)
