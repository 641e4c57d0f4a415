"""Tiny models of many forms: several tensors, sizes that vary, text, half types; each answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serving.models.served import ModelSpec

IDS: dict[str, Any] = {"shape": (-1,), "datatype": "INT64", "high": 50, "bounded": True}
MASK: dict[str, Any] = {"shape": (-1,), "datatype": "INT64"}
IMAGE: dict[str, Any] = {"shape": (2, 2), "datatype": "UINT8", "high": 5}


class Masked(nn.Module):
    """The mean of embedded tokens that a mask leaves, and their number."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        mask = attention_mask.unsqueeze(-1).float()
        return {"mean": (self.embedding(ids) * mask).sum(1) / mask.sum(1), "count": attention_mask.sum(1)}


class Tagger(nn.Module):
    """Two numbers for each token, which depend on no other."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 2)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.embedding(ids), 2 * ids


class Smooth(nn.Module):
    """Convolutions with strides, as audio models have them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(1, 4, 10, stride=5), nn.Conv1d(4, 2, 3, stride=2)

    def forward(self, signal: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(signal.unsqueeze(1)))).transpose(1, 2)


class Unmasked(nn.Module):
    """The mean over all tokens, padding included: it can be right only without padding."""

    def forward(self, ids: Tensor) -> Tensor:
        return ids.float().mean(1, keepdim=True)


class Half(nn.Module):
    """A linear layer in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def masked() -> nn.Module:
    return Masked()


def detect() -> Any:
    """As many boxes as the brightest corner says."""

    def call(image: np.ndarray) -> dict[str, list[np.ndarray]]:
        counts = [int(one.max()) for one in image]
        return {
            "boxes": [np.arange(4 * n, dtype=np.float32).reshape(n, 4) for n in counts],
            "labels": [np.arange(n, dtype=np.int64) for n in counts],
        }

    return call


def shout() -> Any:
    """Text in, text and its length out."""

    def call(text: np.ndarray) -> dict[str, np.ndarray]:
        upper = [one.upper() for one in text.ravel()]
        return {"loud": np.array(upper, object).reshape(text.shape), "length": np.array([[len(one)] for one in upper])}

    return call


MODELS = {
    "masked": ModelSpec("masked", "tensor_models:masked", inputs={"ids": IDS, "attention_mask": MASK}, max_size=32),
    "tagger": ModelSpec("tagger", "tensor_models:Tagger", inputs={"ids": IDS}, buckets=(4, 16)),
    "smooth": ModelSpec("smooth", "tensor_models:Smooth", inputs={"signal": {"shape": (-1,)}}, buckets=(100, 200)),
    "unmasked": ModelSpec("unmasked", "tensor_models:Unmasked", inputs={"ids": IDS}, buckets=(8, 16)),
    "half": ModelSpec("half", "tensor_models:Half", inputs={"x": {"shape": (4,), "datatype": "BF16"}}),
    "detect": ModelSpec("detect", "tensor_models:detect", inputs={"image": IMAGE}),
    "shout": ModelSpec("shout", "tensor_models:shout", inputs={"text": {"shape": (1,), "datatype": "BYTES"}}),
}  # fmt: skip
