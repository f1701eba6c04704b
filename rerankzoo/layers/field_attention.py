"""Attention among the fields of an item. Plain modules: flat arguments, no config.

B requests, N candidates, F fields of a candidate, R fields of the request, E field width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rerankzoo.layers.transformer import attend


class InterFieldAttention(nn.Module):
    """Every field of an item attends to all fields of the item and of the request, with a residual.

    All items of a batch are one call of (B * N) x F queries. The fields of the request are keys and values only: they
    are the same for all candidates and so are projected once per request.

    Args:
        field_size: E; keep it small, for the cost grows with F x E^2 per candidate and can exceed the encoder's.
        num_attention_heads: H; divides E.
        dropout: Probability of dropping an attention weight while training.

    Raises:
        ValueError: If the heads do not divide the width.
    """

    def __init__(self, field_size: int, num_attention_heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        if field_size % num_attention_heads:
            raise ValueError(f"field_size {field_size} is not a multiple of num_attention_heads {num_attention_heads}")
        self.num_attention_heads = num_attention_heads
        self.dropout = dropout
        self.query = nn.Linear(field_size, field_size)
        self.key_value = nn.Linear(field_size, 2 * field_size)
        self.output = nn.Linear(field_size, field_size)

    def forward(self, candidates: Tensor, request: Tensor, implementation: str = "sdpa") -> Tensor:
        """Lets the fields of each candidate attend.

        Args:
            candidates: (B, N, F, E).
            request: (B, R, E); R may be 0.
            implementation: See `attend`.

        Returns:
            (B, N, F, E).
        """
        shared = self.key_value(request).unsqueeze(1).expand(-1, candidates.shape[1], -1, -1)
        key, value = torch.cat([shared, self.key_value(candidates)], dim=2).flatten(0, 1).chunk(2, dim=-1)
        query = self.query(candidates).flatten(0, 1)
        dropout = self.dropout if self.training else 0.0
        mixed = attend(self._split(query), self._split(key), self._split(value), None, implementation, dropout)
        return candidates + self.output(mixed.transpose(1, 2).flatten(2)).view(candidates.shape)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)  # (B * N, H, F, E/H)
