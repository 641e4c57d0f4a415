"""MLP-mixer: dense products over tokens and over channels, no attention; kept for models not seen in training."""

from __future__ import annotations

from torch import Tensor, nn


class _Mixer(nn.Module):
    """One MLP across the tokens, one across the channels."""

    def __init__(self, tokens: int, width: int, token_hidden: int, channel_hidden: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across_tokens = nn.Sequential(nn.Linear(tokens, token_hidden), nn.GELU(), nn.Linear(token_hidden, tokens))
        self.across_channels = nn.Sequential(
            nn.Linear(width, channel_hidden), nn.GELU(), nn.Linear(channel_hidden, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (batch, tokens, width) to the same shape."""
        tokens = tokens + self.across_tokens(self.norm_1(tokens).transpose(1, 2)).transpose(1, 2)
        return tokens + self.across_channels(self.norm_2(tokens))


class MlpMixer(nn.Module):
    """Image classifier after Tolstikhin et al. 2021, "MLP-Mixer"."""

    def __init__(self, size: int = 96, patch: int = 12, width: int = 256, depth: int = 6, classes: int = 100) -> None:
        super().__init__()
        tokens = (size // patch) ** 2
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.Sequential(*(_Mixer(tokens, width, 2 * tokens, 3 * width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map (batch, 3, size, size) to (batch, classes)."""
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))
