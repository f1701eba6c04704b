"""Encoders of sets: of the candidates, and of learned queries that read them. No config, no model.

B requests, N candidates, Q queries, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rerankzoo.layers.transformer import key_mask


class CandidateEncoder(nn.Module):
    """Transformer over the candidates without positions: permutation equivariant."""

    def __init__(self, layers: nn.ModuleList, hidden_size: int) -> None:
        super().__init__()
        self.layers = layers
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, candidates: Tensor, candidate_mask: Tensor, implementation: str) -> Tensor:
        """Encodes candidates (B, N, D) to (B, N, D)."""
        mask = key_mask(candidate_mask)
        for layer in self.layers:
            candidates = layer(candidates, mask=mask, implementation=implementation)
        return self.norm(candidates)


class QueryEncoder(nn.Module):
    """Q learned queries, the same for all requests, that attend to one another and to the candidates.

    Sharing them is what keeps training samples dense (NAR4Rec: position encoder). Positions of a slate, or more.
    """

    def __init__(self, layers: nn.ModuleList, num_queries: int, hidden_size: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(num_queries, hidden_size))
        self.layers = layers
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, candidates: Tensor, candidate_mask: Tensor, implementation: str) -> Tensor:
        """States (B, Q, D) of the queries for encoded candidates (B, N, D)."""
        states = self.queries.unsqueeze(0).expand(candidates.shape[0], -1, -1)
        mask = key_mask(candidate_mask)
        for layer in self.layers:
            states = layer(states, memory=candidates, memory_mask=mask, implementation=implementation)
        return self.norm(states)
