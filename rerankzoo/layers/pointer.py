"""Pointer head: a distribution over a request's own candidates. B requests, M positions, N candidates, D hidden."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PointerHead(nn.Module):
    """Matches position states with candidate states by a scaled dot product.

    The vocabulary is the request's candidate set, so any number of candidates, seen before or not, can be scored.

    Args:
        hidden_size: D.

    References:
        Vinyals et al., Pointer networks (2015).
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.scale = 1.0 / math.sqrt(hidden_size)

    def forward(self, positions: Tensor, candidates: Tensor, mask: Tensor) -> Tensor:
        """Scores every candidate for every position.

        Args:
            positions: (B, M, D).
            candidates: (B, N, D).
            mask: (B, N), True where a candidate is real.

        Returns:
            Logits (B, M, N), the smallest finite number where a candidate is padding.
        """
        logits = self.query(positions) @ candidates.transpose(-1, -2) * self.scale
        return logits.masked_fill(~mask.unsqueeze(1), torch.finfo(logits.dtype).min)

    def keys(self, candidates: Tensor) -> Tensor:
        """What positions are matched with, computed once where they come one by one.

        `positions @ keys.transpose(-1, -2)` are the logits (B, M, N) of `forward`, without a mask.

        Args:
            candidates: (B, N, D).

        Returns:
            (B, N, D).
        """
        if type(self.query) is nn.Linear:
            return candidates @ (self.query.weight * self.scale)
        # Quantised or adapted: what it does to the unit vectors is its matrix.
        unit = torch.eye(candidates.shape[-1], dtype=candidates.dtype, device=candidates.device)
        return candidates @ (self.query(unit).T * self.scale)
