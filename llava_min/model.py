"""The page that puts the others together: encode, prefill, decode."""

import torch
from torch import Tensor, nn

from .config import LlavaConfig
from .decoder import Decoder
from .projector import Projector
from .vision import VisionTower


class Llava(nn.Module):
    """Vision tower, projector, newline, decoder."""

    def __init__(self, config: LlavaConfig):
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision)
        self.projector = Projector(config.vision.hidden_size, config.text.hidden_size)
        self.newline = nn.Parameter(torch.empty(config.text.hidden_size)) if config.newline else None
        self.decoder = Decoder(config.text)
