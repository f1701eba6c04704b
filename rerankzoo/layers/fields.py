"""What the fields of an item pass through: a gated norm, and attention among them. Plain modules, no config.

B requests, N candidates, F fields of a candidate, R fields of the request, E field width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GatedFieldNorm(nn.Module):
    """A gated, normalised transform of every field, with parameters of its own for each field.

    `y_f = LayerNorm_f(x_f) * sigmoid(G_f x_f + b_f)`. The norm puts fields of any scale on a par; the gate sees the raw
    vector, so what the norm takes away, its size, still decides how much of the field passes.

    DeGRe's figure calls such a block "GLN" and does not spell it out; the formula is ours.

    Args:
        num_fields: F.
        field_size: E.

    References:
        DeGRe (arXiv 2605.25749), method figure; gated linear units after Dauphin et al. (2017).
    """

    def __init__(self, num_fields: int, field_size: int) -> None:
        super().__init__()
        self.field_size = field_size
        self.weight = nn.Parameter(torch.empty(num_fields, field_size))
        self.bias = nn.Parameter(torch.empty(num_fields, field_size))
        self.gate_weight = nn.Parameter(torch.empty(num_fields, field_size, field_size))
        self.gate_bias = nn.Parameter(torch.empty(num_fields, field_size))

    def forward(self, fields: Tensor) -> Tensor:
        """Transforms fields (..., F, E) to (..., F, E)."""
        normed = torch.addcmul(self.bias, F.layer_norm(fields, (self.field_size,)), self.weight)
        rows = fields.reshape(-1, *fields.shape[-2:]).transpose(0, 1)  # (F, rows, E)
        gate = torch.baddbmm(self.gate_bias.unsqueeze(1), rows, self.gate_weight).transpose(0, 1)
        return normed * gate.view(fields.shape).sigmoid()


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
        if type(self.key_value) is nn.Linear:
            # Mapped apart from one another, keys and values are contiguous: matrix products are faster on those.
            weight, bias = self.key_value.weight.chunk(2), self.key_value.bias.chunk(2)
            key, value = F.linear(read, weight[0], bias[0]), F.linear(read, weight[1], bias[1])
        else:  # quantised or adapted
            key, value = self.key_value(read).chunk(2, dim=-1)
        weights = torch.bmm(query * self.scale, key.transpose(1, 2)).softmax(-1)
        if self.training:
            weights = F.dropout(weights, self.dropout)
        return candidates + self.output(torch.bmm(weights, value)).view(candidates.shape)
