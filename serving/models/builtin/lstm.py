"""Recurrent network: a chain of small dependent steps over the same weights, bound by the cache."""

from __future__ import annotations

from torch import Tensor, nn


class Lstm(nn.Module):
    """Sequence classifier: two LSTM layers (Hochreiter and Schmidhuber 1997) over a sequence of feature vectors."""

    def __init__(self, features: int = 64, width: int = 384, layers: int = 2, classes: int = 64) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(features, width, layers, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, sequence: Tensor) -> Tensor:
        """Map (batch, length, features) to (batch, classes)."""
        hidden, _ = self.recurrent(sequence)
        return self.head(hidden[:, -1])
