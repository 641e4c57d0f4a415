"""Vision transformer: patches instead of words, a longer sequence than the text encoder, more attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from serving.models.builtin.attention import TransformerBlock


class Vit(nn.Module):
    """Image classifier after Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", with mean pooling."""

    def __init__(
        self, size: int = 96, patch: int = 8, width: int = 192, depth: int = 4, heads: int = 6, classes: int = 100
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
        self.encoder = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, 3, size, size) to (batch, classes)."""
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.encoder(tokens)).mean(dim=1))
