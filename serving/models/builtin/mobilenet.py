"""Depthwise-separable convolutional network: many small kernels, bound by memory traffic and launch cost."""

from __future__ import annotations

from torch import Tensor, nn


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.Hardswish(),
    )


class _InvertedResidual(nn.Module):
    """Expand by a 1x1 convolution, filter each channel alone, project back."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.body = nn.Sequential(
            _convolution(inputs, hidden, 1),
            _convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.keeps_shape = stride == 1 and inputs == outputs

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, inputs, H, W) to (batch, outputs, H / stride, W / stride)."""
        filtered = self.body(image)
        return image + filtered if self.keeps_shape else filtered


class MobileNet(nn.Module):
    """Image classifier after Sandler et al. 2018, "MobileNetV2": inverted residuals with depthwise filters."""

    def __init__(self, expansion: int = 4, classes: int = 100) -> None:
        super().__init__()
        layers: list[nn.Module] = [_convolution(3, 16, 3, stride=2)]
        inputs = 16
        for outputs, blocks, stride in ((24, 2, 2), (32, 3, 2), (64, 3, 2), (96, 2, 1), (160, 2, 2)):
            for block in range(blocks):
                layers.append(_InvertedResidual(inputs, outputs, stride if block == 0 else 1, expansion))
                inputs = outputs
        layers.append(_convolution(inputs, 4 * inputs, 1))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(4 * inputs, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, 3, H, W) to (batch, classes)."""
        return self.head(self.features(image).mean(dim=(2, 3)))
