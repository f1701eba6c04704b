"""Attention among the fields of an item. Plain modules: flat arguments, no config.

B requests, N candidates, F fields of a candidate, R fields of the request, E field width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class InterFieldAttention(nn.Module):
    """Every field of an item attends to all fields of the item and of the request, with a residual; one head.

    All items of a batch are one call of (B * N) x F queries. The fields of the request are keys and values only.

    Args:
        field_size: E; keep it small, for the cost grows with F x E^2 per candidate and can exceed the encoder's.
        dropout: Probability of dropping an attention weight while training.
    """

    def __init__(self, field_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale = field_size**-0.5
        self.dropout = dropout
        self.query = nn.Linear(field_size, field_size)
        self.key_value = nn.Linear(field_size, 2 * field_size)
        self.output = nn.Linear(field_size, field_size)

    def forward(self, candidates: Tensor, request: Tensor) -> Tensor:
        """Lets the fields of each candidate attend.

        Spelled out: fused attention kernels are made for long sequences and handle items one by one; for a dozen fields
        two batched matrix products are faster.

        Args:
            candidates: (B, N, F, E).
            request: (B, R, E); R may be 0.

        Returns:
            (B, N, F, E).
        """
        read = torch.cat([request.unsqueeze(1).expand(-1, candidates.shape[1], -1, -1), candidates], dim=2)
        read, query = read.flatten(0, 1), self.query(candidates).flatten(0, 1)
        # Mapped apart from one another, keys and values are contiguous: matrix products are faster on those.
        weight, bias = self.key_value.weight.chunk(2), self.key_value.bias.chunk(2)
        key, value = F.linear(read, weight[0], bias[0]), F.linear(read, weight[1], bias[1])
        weights = torch.bmm(query * self.scale, key.transpose(1, 2)).softmax(-1)
        if self.training:
            weights = F.dropout(weights, self.dropout)
        return candidates + self.output(torch.bmm(weights, value)).view(candidates.shape)
