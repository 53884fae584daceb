"""The nonlinearities: SwiGLU of the decoder, and the three different GELUs of towers and projector.

in:  rows [... D] (for SwiGLU [... 2I], gate beside up)      out: [... D] (for SwiGLU [... I])
Three GELUs are not a mistake: CLIP was trained with the quick one, SigLIP with the tanh one, the
projector with the exact one; exchanging them moves logits by 2e-3 to 0.15.
Read next: rope.py. Agrees with: ACT2FN of transformers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

GELUS = ("quick_gelu", "gelu_pytorch_tanh", "gelu")


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where gate is the first half of the last axis and up the second."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu_reference(rows: Tensor, kind: str) -> Tensor:
    """x sigmoid(1.702 x) for quick_gelu, the tanh form for gelu_pytorch_tanh, x Phi(x) for gelu."""
    if kind == "quick_gelu":
        return rows * torch.sigmoid(1.702 * rows)
    return F.gelu(rows, approximate="tanh" if kind == "gelu_pytorch_tanh" else "none")


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up: [... 2I] -> [... I]."""
    return swiglu_reference(gate_up)


def gelu(rows: Tensor, kind: str) -> Tensor:
    """The GELU named `kind`, one of GELUS: [... D] -> [... D]."""
    assert kind in GELUS, kind
    return gelu_reference(rows, kind)
