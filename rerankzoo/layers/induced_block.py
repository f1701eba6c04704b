"""Attention among many through a few learned points. No config, no model.

B batch, Q tokens that read, K tokens that are read, P points, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rerankzoo.layers.transformer import MultiHeadAttention


class ReadingBlock(nn.Module):
    """A pre-norm block that reads another sequence: cross-attention, feed-forward; each with a residual.

    Arguments are those of `TransformerBlock`.
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
        num_points: P.
        hidden_size: D.
        *sizes: Further arguments of `TransformerBlock`, of both readings.

    References:
        Lee et al., Set Transformer (2019), ISAB; SetRank (2020), IMSAB.
    """

    def __init__(self, num_points: int, hidden_size: int, *sizes: Any) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.empty(num_points, hidden_size))
        self.gather, self.spread = (ReadingBlock(hidden_size, *sizes) for _ in range(2))

    def forward(self, hidden: Tensor, mask: Tensor | None = None, implementation: str = "sdpa") -> Tensor:
        """Runs the block on `hidden` (B, Q, D); `mask` says which of them may be read (see `attend`)."""
        points = self.points.unsqueeze(0).expand(hidden.shape[0], -1, -1)
        points = self.gather(points, hidden, mask, implementation)
        return self.spread(hidden, points, None, implementation)
