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

    def forward(self, positions: Tensor, candidates: Tensor, mask: Tensor | None = None) -> Tensor:
        """Scores every candidate for every position.

        Args:
            positions: (B, M, D).
            candidates: (B, N, D).
            mask: (B, N), True where a candidate is real; `None` if the caller takes care of padding.

        Returns:
            Logits (B, M, N), the smallest finite number where a candidate is padding.
        """
        logits = self.query(positions) @ candidates.transpose(-1, -2) * self.scale
        if mask is None:
            return logits
        return logits.masked_fill(~mask.unsqueeze(1), torch.finfo(logits.dtype).min)
