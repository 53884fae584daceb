"""From patch features to rows of the decoder: projection, pooling, unpadding, newlines.

in:  features [B N D] of a picture's tiles or of a clip's frames
out: rows [tokens W]

The newline is a learned vector that tells the decoder where a row of patches ends, so that a
one-dimensional sequence keeps its two-dimensional shape.
Read vision.py first. Read next: prompt.py.
Agrees with: prepare_inputs_labels_for_multimodal of LLaVA-NeXT llava_arch.py; pack_image_features
and apply_pooling of transformers modeling_llava_onevision.py.

B tiles or frames, N = P x P patches, D vision width, W decoder width, R rows and C columns of a
patch map.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .anyres import Grid
from .kernels import activation
from .trace import see
from .vision import Linear


class Projector(nn.Module):
    """Two linears with the exact GELU between them ("mlp2x_gelu")."""

    def __init__(self, vision_width: int, width: int):
        super().__init__()
        self.linear_1 = Linear(vision_width, width)
        self.linear_2 = Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        """[B N D] -> [B N W]."""
        hidden = activation.gelu(self.linear_1(features), "gelu")
        return see("projected", self.linear_2(hidden), "B N W")


def square(patches: Tensor) -> Tensor:
    """[B N W] -> [B W P P], P = sqrt(N)."""
    side = math.isqrt(patches.shape[1])
    return patches.transpose(1, 2).unflatten(2, (side, side))


def end_rows(patch_map: Tensor, newline: Tensor) -> Tensor:
    """Append the newline to each row: patch map [... W R C] -> [... R(C+1) W], in reading order."""
    rows = patch_map.movedim(-3, -1)  # ... R C W
    ends = newline.expand(*rows.shape[:-2], 1, -1)
    return torch.cat([rows, ends], dim=-2).flatten(-3, -2)


def picture_rows(projected: Tensor, grid: Grid, newline: Tensor) -> Tensor:
    """The rows of an anyres picture: the base tile, then the grid's patches.

    The grid's patches are unpadded and capped, with a newline after each row. projected:
    [1 + tiles of the grid, N, W].
    """
    tiles = square(projected[1:]).unflatten(0, grid.tiles).permute(2, 0, 3, 1, 4)  # W gr P gc P
    patch_map = see("patch_map", tiles.flatten(3).flatten(1, 2), "W R C")
    patch_map = patch_map[:, grid.rows, grid.columns]
    if patch_map.shape[1:] != grid.shape:
        patch_map = F.interpolate(patch_map[None], grid.shape, mode="bilinear")[0]
    return see("visual_rows", torch.cat([projected[0], end_rows(patch_map, newline)]), "tokens W")


def single_tile_rows(projected: Tensor, newline: Tensor | None) -> Tensor:
    """A picture of one tile [1 N W]: its patches, and one newline where the family has one."""
    rows = projected[0] if newline is None else torch.cat([projected[0], newline[None]])
    return see("visual_rows", rows, "tokens W")


POOLS = {
    "bilinear": lambda m: F.interpolate(
        m, [math.ceil(s / 2) for s in m.shape[2:]], mode="bilinear"
    ),
    "average": lambda m: F.avg_pool2d(m, 2),
    "max": lambda m: F.max_pool2d(m, 2),
}  # [B W P P] -> [B W P/2 P/2]; bilinear rounds up, the others drop an odd last row


def pool(patches: Tensor, mode: str) -> Tensor:
    """Halve a frame's patch map: [B N W] -> [B N' W], by a mode of POOLS."""
    return see("pooled", POOLS[mode](square(patches)).flatten(2).transpose(1, 2), "B N W")


def frames_rows(pooled: Tensor, newline: Tensor | None, position: str) -> Tensor:
    """The rows of some frames of a clip [B N W]; `position` says where newlines go in it.

    "grid": after each row of each frame; "frame": after each frame; "one_token" and "no_token":
    nowhere here (the one token closes the whole clip: see `clip_end`).
    """
    if position == "grid":
        assert newline is not None
        pooled = end_rows(square(pooled), newline)
    elif position == "frame":
        assert newline is not None
        pooled = torch.cat([pooled, newline.expand(len(pooled), 1, -1)], dim=1)
    return see("visual_rows", pooled.flatten(0, 1), "tokens W")


def clip_end(newline: Tensor | None, position: str) -> Tensor | None:
    """What follows the last frame: the newline [1 W] for "one_token", otherwise nothing."""
    if position != "one_token":
        return None
    assert newline is not None
    return see("visual_rows", newline[None], "tokens W")
