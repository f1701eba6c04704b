"""Attention among many through a few learned points. No config, no model.

B batch, Q tokens that read, K tokens that are read, P points, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rerankzoo.layers.transformer import MultiHeadAttention


class ReadingBlock(nn.Module):
    """A pre-norm block that reads another sequence: cross-attention, feed-forward; each with a residual.

    Args:
        hidden_size: D.
        num_attention_heads: H; divides D.
        intermediate_size: Width of the feed-forward layer.
        dropout: Probability of dropping a unit of a residual branch while training.
        attention_dropout: Probability of dropping an attention weight while training.
    """

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.query_norm, self.memory_norm = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.attention = MultiHeadAttention(hidden_size, num_attention_heads, attention_dropout, cross=True)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_size, intermediate_size), nn.GELU(), nn.Linear(intermediate_size, hidden_size)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, memory: Tensor, mask: Tensor | None, implementation: str = "sdpa") -> Tensor:
        """What `hidden` (B, Q, D) has read of `memory` (B, K, D), as `mask` allows (see `attend`): (B, Q, D)."""
        read = self.attention(self.query_norm(hidden), self.memory_norm(memory), mask, implementation)
        hidden = hidden + self.dropout(read)
        return hidden + self.dropout(self.feed_forward(self.feed_forward_norm(hidden)))


class InducedBlock(GradientCheckpointingLayer):
    """Tokens see one another through P learned points: the points read them, then they read the points.

    Args:
        hidden_size: D.
        num_attention_heads: H; divides D.
        intermediate_size: Width of the feed-forward layers.
        num_points: P.
        dropout: Probability of dropping a unit of a residual branch while training.
        attention_dropout: Probability of dropping an attention weight while training.

    References:
        Lee et al., Set Transformer (2019), ISAB; SetRank (2020), IMSAB.
    """

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        num_points: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        sizes = (hidden_size, num_attention_heads, intermediate_size, dropout, attention_dropout)
        self.points = nn.Parameter(torch.empty(num_points, hidden_size))
        self.gather, self.spread = ReadingBlock(*sizes), ReadingBlock(*sizes)

    def forward(self, hidden: Tensor, mask: Tensor | None = None, implementation: str = "sdpa") -> Tensor:
        """Runs the block on `hidden` (B, Q, D); `mask` says which of them may be read (see `attend`)."""
        points = self.points.unsqueeze(0).expand(hidden.shape[0], -1, -1)
        points = self.gather(points, hidden, mask, implementation)
        return self.spread(hidden, points, None, implementation)
