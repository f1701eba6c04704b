"""Normalisation of the fields of an item. Plain modules: flat arguments, no config.

F fields, E field width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
        normed = torch.addcmul(self.bias, nn.functional.layer_norm(fields, (self.field_size,)), self.weight)
        rows = fields.reshape(-1, *fields.shape[-2:]).transpose(0, 1)  # (F, rows, E)
        gate = torch.baddbmm(self.gate_bias.unsqueeze(1), rows, self.gate_weight).transpose(0, 1)
        return normed * gate.view(fields.shape).sigmoid()
