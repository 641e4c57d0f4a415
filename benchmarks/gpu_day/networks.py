"""Networks at their real size with random weights, in float16 on a GPU; configs/networks.yaml lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from serving.models.builtin.bert import Bert
from serving.models.builtin.dlrm import Dlrm
from serving.models.builtin.lstm import Lstm
from serving.models.builtin.mobilenet import MobileNet
from serving.models.builtin.vit import Vit
from serving.models.listing import initial_entries
from serving.models.load import load_model
from serving.models.served import ServedModel

REHEARSED = ("mobilenet", "bert", "dlrm")  # on a CPU; two minutes have no time for more
LISTING = Path(__file__).parent / "configs" / "networks.yaml"


class Bottleneck(nn.Module):
    """Three convolutions, narrow in the middle, with a shortcut; the first block of a stage may halve the resolution."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        layers: list[nn.Module] = []
        for taken, given, kernel, step in ((inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)):
            layers += [nn.Conv2d(taken, given, kernel, step, kernel // 2, bias=False), nn.BatchNorm2d(given), nn.ReLU()]
        self.body = nn.Sequential(*layers[:-1])
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, inputs, H, W) to (batch, 4 * width, H / stride, W / stride)."""
        return torch.relu(self.body(image) + self.shortcut(image))


class ResNet50(nn.Module):
    """Image classifier after He et al. 2016, "Deep Residual Learning", with 50 layers of weights."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        layers.append(nn.MaxPool2d(3, 2, 1))
        inputs = 64
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                layers.append(Bottleneck(inputs, 64 << stage, stride=2 if stage > 0 and block == 0 else 1))
                inputs = 256 << stage
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, 1000)

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, 3, H, W) to (batch, 1000)."""
        return self.head(self.features(image).mean(dim=(2, 3)))


class LargeDlrm(Dlrm):
    """The recommender with tables of gigabytes, whose rows repeat: drawing them all would take minutes."""

    def __init__(self, fields: int, rows: int, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__(fields, 1, width, hidden)
        drawn = torch.randn(1 << 14, width)
        repeats = -(-fields * rows // len(drawn))
        self.table = nn.Embedding.from_pretrained(drawn.repeat(repeats, 1)[: fields * rows])
        self.rows = rows
        self.first_row *= rows  # of one row each until here


class HalfOnGpu(nn.Module):
    """A network that computes in float16 on a GPU, and in float32 on a CPU, where few processors have float16.

    It takes float16 numbers, or ids, and returns float16.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def to(self, device: str) -> HalfOnGpu:  # type: ignore[override]
        """Move to a device, in the type that it has there."""
        moved = super().to(device)
        return moved if device == "cpu" else moved.half()

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, ...) to (batch, ...)."""
        if x.is_floating_point():
            x = x.to(next(self.network.parameters()).dtype)
        return self.network(x).half()


def _factory(make: Callable[..., nn.Module], **sizes: Any) -> Callable[[], nn.Module]:
    return lambda: HalfOnGpu(make(**sizes))


resnet50 = _factory(ResNet50)
bert_base = _factory(Bert, vocabulary=30522, length=128, width=768, depth=12, heads=12)
vit_base = _factory(Vit, size=224, patch=16, width=768, depth=12, heads=12, classes=1000)
dlrm = _factory(LargeDlrm, fields=26, rows=1 << 19, width=64, hidden=(1024, 1024, 512, 256))
lstm = _factory(Lstm, features=256, width=1024, layers=2, classes=1000)
mobilenet = _factory(MobileNet, expansion=6, classes=1000)


def load_networks(device: str, models: Sequence[str] = ()) -> list[ServedModel]:
    """What is served in the day: the models given, else these networks on a GPU, and three small built-in ones on a CPU.

    Raises:
        InputError: a model fails on the CPU.
    """
    if models or device == "cpu":
        return [load_model(entry.spec) for entry in initial_entries(models or REHEARSED).values()]
    return [in_half(load_model(entry.spec)) for entry in initial_entries([str(LISTING)]).values()]


def in_half(model: ServedModel) -> ServedModel:
    """The model with the bytes that it has on a GPU; they were counted on the CPU, in float32."""
    return replace(
        model, weight_bytes=model.weight_bytes // 2, activation_bytes_per_item=model.activation_bytes_per_item / 2
    )
