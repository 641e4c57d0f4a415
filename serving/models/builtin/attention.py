"""The pre-norm transformer block that the text and the vision transformer share."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class TransformerBlock(nn.Module):
    """Self-attention and a two-layer MLP, each behind a layer norm and a shortcut (Vaswani et al. 2017, pre-norm)."""

    def __init__(self, width: int, heads: int, expansion: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (batch, length, width) to the same shape."""
        # unflatten and flatten keep the batch size out of a traced graph.
        split = self.to_qkv(self.norm_1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        attended = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.project(attended)
        return tokens + self.mlp(self.norm_2(tokens))
