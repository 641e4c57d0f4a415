"""Encoder-decoder convolutional network: large activations, a large output; kept for models not seen in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.ReLU(),
    )


class Unet(nn.Module):
    """Segmentation after Ronneberger et al. 2015, "U-Net": down, up, and a skip at every resolution."""

    def __init__(self, width: int = 24, classes: int = 4) -> None:
        super().__init__()
        self.down_1, self.down_2 = _double(3, width), _double(width, 2 * width)
        self.bottom = _double(2 * width, 4 * width)
        self.grow_2, self.up_2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), _double(4 * width, 2 * width)
        self.grow_1, self.up_1 = nn.ConvTranspose2d(2 * width, width, 2, 2), _double(2 * width, width)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, 3, H, W) to (batch, classes, H, W); H and W are multiples of 4."""
        fine = self.down_1(image)
        middle = self.down_2(self.pool(fine))
        coarse = self.bottom(self.pool(middle))
        middle = self.up_2(torch.cat((middle, self.grow_2(coarse)), dim=1))
        return self.head(self.up_1(torch.cat((fine, self.grow_1(middle)), dim=1)))
