"""Does nothing: what a simulated device serves under the names of its profile."""

from __future__ import annotations

from torch import Tensor, nn


class Empty(nn.Module):
    """Takes and gives 16 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, values: Tensor) -> Tensor:
        """Map (batch, 16) to (batch, 16)."""
        return self.linear(values)
