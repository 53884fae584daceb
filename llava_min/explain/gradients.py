"""The gradient of an answer's score: the decoder once more, as torch can differentiate it.

in:  rows of a prompt [T D], ids of an answer
out: the natural logarithm of the answer's probability, a function of the rows

The decoder writes into a cache and runs kernels, through which no gradient comes. This is the same
arithmetic without a cache, with the formulas of the kernels. It keeps what each layer made, so it
is for prompts of a few thousand rows.
Read decoder.py, explain/forced.py first. Read next: engine/explaining.py.
Agrees with: decoder.py (tested), and with differences (gradcheck in float64).

T rows, D width, E head dimension.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..decoder import Block, Decoder, RMSNorm
from ..errors import ParameterError
from ..kernels import activation, norm, rope
from ..weights.packed import Packed
from .forced import log_probabilities


def normed(layer: RMSNorm, rows: Tensor) -> Tensor:
    """RMSNorm by its formula, as no kernel has a gradient: [... D] -> [... D]."""
    return norm.rms_norm_torch(rows, layer.weight, layer.eps)


def mixed(block: Block, decoder: Decoder, rows: Tensor, angles: Tensor) -> Tensor:
    """What attention adds to the stream: [1 T D] -> [1 T D]."""
    config = decoder.config
    qkv = block.qkv(normed(block.attention_norm, rows))
    query, key, value = rope.split(qkv, config.num_heads, config.num_kv_heads)
    query, key, value = (
        x.transpose(1, 2) for x in (rope.rotate(query, angles), rope.rotate(key, angles), value)
    )
    attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return block.output(attended.transpose(1, 2).flatten(2))


def logits(decoder: Decoder, rows: Tensor) -> Tensor:
    """Rows [T D] -> logits after each of them [T V]."""
    stream = rows[None]
    angles = decoder.angles(torch.arange(len(rows), device=rows.device)[None], rows.dtype)
    for block in decoder.blocks:
        assert isinstance(block, Block)
        stream = stream + mixed(block, decoder, stream, angles)
        hidden = activation.swiglu_torch(block.gate_up(normed(block.mlp_norm, stream)))
        stream = stream + block.down(hidden)
    return decoder.logits(normed(decoder.norm, stream))[0]


def answer_score(decoder: Decoder, rows: Tensor, ids: list[int]) -> Tensor:
    """The logarithm of the probability of ids after a prompt's rows [T D], to be differentiated.

    ParameterError where the weights are packed.
    """
    if any(isinstance(layer, Packed) for layer in linears(decoder)):
        raise ParameterError("Gradients need weights that are not packed: load without bits.")
    said = decoder.embedding.weight[torch.tensor(ids[:-1], dtype=torch.long, device=rows.device)]
    whole = logits(decoder, torch.cat([rows, said]))
    return log_probabilities(whole[len(rows) - 1 :], ids).sum()


def linears(decoder: Decoder) -> list[nn.Module]:
    """The layers through which a gradient must come."""
    names = ("qkv", "output", "gate_up", "down")
    inner = [getattr(block, name) for block in decoder.blocks for name in names]
    return inner if decoder.head is None else [*inner, decoder.head]


def gradient(decoder: Decoder, rows: Tensor, ids: list[int]) -> Tensor:
    """How the logarithm of the answer's probability changes with each number of the rows: [T D]."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = rows.clone().requires_grad_()
        return torch.autograd.grad(answer_score(decoder, leaf, ids), leaf)[0]
