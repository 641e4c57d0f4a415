"""Transformer encoder over tokens: matrix products of a middling size, bound by compute."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from serving.models.builtin.attention import TransformerBlock


class Bert(nn.Module):
    """Text classifier after Devlin et al. 2019, "BERT": embeddings, an encoder, the first token's vector."""

    def __init__(
        self,
        vocabulary: int = 8192,
        length: int = 64,
        width: int = 256,
        depth: int = 4,
        heads: int = 4,
        classes: int = 64,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.encoder = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (batch, length) to (batch, classes); ids wrap around the vocabulary."""
        embedded = self.words(tokens.remainder(self.vocabulary)) + self.positions
        return self.head(self.norm(self.encoder(embedded)[:, 0]))
