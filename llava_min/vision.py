"""The vision tower: tiles -> patch features (SigLIP and CLIP).

in:  tiles [B S S 3] uint8
out: features [B N D], N = (S / patch)^2 patches in reading order

SigLIP has 27 blocks. LLaVA takes the output of the 26th (feature layer -2 of the original), and the
checkpoints store these 26. The 27th and the post-layernorm are not used.
Read image.py first. Read next: projector.py.
Agrees with: SiglipVisionModel and CLIPVisionModel of transformers; arXiv 2303.15343, 2103.00020.

B tiles, S tile side in pixels, N patches, D vision width, H heads, E head dimension.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import VisionConfig
from .kernels import activation, attention, half, norm
from .trace import see


def filled(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers on a device, written there: a copy from the host cannot be part of a recording."""
    return torch.stack([torch.full((), value, dtype=dtype, device=device) for value in values])


def normalise(tiles: Tensor, config: VisionConfig, dtype: torch.dtype) -> Tensor:
    """Tiles [B S S 3] uint8 -> pixels [B 3 S S]: (x / 255 - mean) / std.

    A true division in float32 agrees bit for bit with the reference's float64 product for all 256
    values. A float32 multiplication by 1/255 does not, and a GPU makes one of a division by a
    number of the host.
    """
    wide = torch.promote_types(dtype, torch.float32)
    full, mean, std = (
        filled(values, wide, tiles.device) for values in ((255.0,), config.mean, config.std)
    )
    pixels = (tiles.to(wide) / full - mean) / std
    return see("pixels", pixels.permute(0, 3, 1, 2).to(dtype), "B 3 S S")


class PatchEmbedding(nn.Conv2d):
    """A convolution whose patches do not overlap is a linear layer of whole patches.

    It is computed as one: cuDNN's convolution rounds float32 to the ten bits of TF32.
    """

    def forward(self, pixels: Tensor) -> Tensor:
        """[B 3 S S] -> [B N D]."""
        patch = self.stride[0]
        for axis in (2, 3):  # B 3 P S patch, then B 3 P P patch patch; what is left over is cut
            pixels = pixels.unfold(axis, patch, patch)
        patches = pixels.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        return F.linear(patches, self.weight.flatten(1), self.bias)


class Linear(nn.Linear):
    """A linear layer whose rows or products may be larger than float16 holds (kernels/half.py)."""

    def forward(self, rows: Tensor) -> Tensor:
        return half.linear(rows, self.weight, self.bias)


class LayerNorm(nn.Module):
    """Rows [... D] with mean 0 and variance 1, times a weight, plus a bias."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, rows: Tensor) -> Tensor:
        return norm.layer_norm(rows, self.weight, self.bias, self.eps)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); every linear has a bias."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        width, hidden = config.hidden_size, config.intermediate_size
        self.num_heads, self.activation = config.num_heads, config.activation
        self.attention_norm = LayerNorm(width, config.norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.mlp_norm = LayerNorm(width, config.norm_eps)
        self.up = nn.Linear(width, hidden)
        self.down = Linear(hidden, width)

    def attend(self, normed: Tensor, layer: int) -> Tensor:
        """Normalised patches [B N D] -> what attention adds to the stream [B N D]."""
        query, key, value = self.qkv(normed).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        mixed = attention.bidirectional(query, key, value)
        mixed = see("tower.mixed", mixed, "B N H E", layer)
        return see("tower.attention_update", self.output(mixed.flatten(2)), "B N D", layer)

    def forward(self, patches: Tensor, layer: int) -> Tensor:
        """[B N D] -> [B N D]; `layer` is the block's number."""
        patches = see("tower.stream", patches, "B N D", layer)
        patches = patches + self.attend(self.attention_norm(patches), layer)
        hidden = activation.gelu(self.up(self.mlp_norm(patches)), self.activation)
        return patches + see("tower.mlp_update", self.down(hidden), "B N D", layer)


class VisionTower(nn.Module):
    """Patches, positions, blocks, without the final norm of SigLIP or CLIP.

    LLaVA takes the rows before that norm.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        width, patch = config.hidden_size, config.patch_size
        self.patch_embedding = PatchEmbedding(3, width, patch, stride=patch, bias=config.patch_bias)
        self.class_embedding = nn.Parameter(torch.empty(width)) if config.class_token else None
        self.position_embedding = nn.Embedding(config.num_positions, width)
        self.pre_norm = LayerNorm(width, config.norm_eps) if config.pre_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))

    def forward(self, tiles: Tensor) -> Tensor:
        """[B S S 3] uint8 -> features [B N D]."""
        patches = self.patch_embedding(
            normalise(tiles, self.config, self.patch_embedding.weight.dtype)
        )
        if self.class_embedding is not None:
            patches = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1)
        patches = see("patch_embedding", patches + self.position_embedding.weight, "B N D")
        patches = self.pre_norm(patches)
        for layer, block in enumerate(self.blocks):
            patches = block(patches, layer)
        if self.class_embedding is not None:
            patches = patches[:, 1:]
        return see("features", patches, "B N D")
