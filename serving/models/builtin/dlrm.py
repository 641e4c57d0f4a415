"""Recommender: embedding look-ups and a wide MLP whose weights exceed the cache, bound by memory bandwidth."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dlrm(nn.Module):
    """Click predictor after Naumov et al. 2019, "DLRM": one embedding a field, a wide MLP over all of them.

    Every field is categorical (numbers come in buckets), so that one integer tensor is the whole input.
    """

    def __init__(
        self, fields: int = 32, rows: int = 8192, width: int = 32, hidden: tuple[int, ...] = (3072, 3072, 512)
    ) -> None:
        super().__init__()
        self.rows = rows
        self.first_row: Tensor
        self.table = nn.Embedding(fields * rows, width)
        self.register_buffer("first_row", torch.arange(fields) * rows)
        layers: list[nn.Module] = []
        inputs = fields * width
        for outputs in hidden:
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
            inputs = outputs
        self.mlp = nn.Sequential(*layers, nn.Linear(inputs, 1))

    def forward(self, ids: Tensor) -> Tensor:
        """Map (batch, fields) of ids to (batch, 1) of logits; ids wrap around each field's rows."""
        return self.mlp(self.table(ids.remainder(self.rows) + self.first_row).flatten(1))
