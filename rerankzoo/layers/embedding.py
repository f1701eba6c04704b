"""From the ids and numbers of a batch to one vector per candidate. Plain modules: flat arguments, no config.

B requests, N candidates, L history, F fields, E embedding width, D hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn


class PackedEmbedding(nn.Module):
    """The embeddings of all categorical fields in one table: one gather per group of fields.

    A field owns a block of consecutive rows, or shares the block of another field. Id 0 (padding or missing) always
    yields zeros.

    Args:
        num_embeddings: Number of ids of each field that owns a block.
        owners: For each group of fields, the number of the block of each of its fields.
        embedding_size: E.
    """

    def __init__(self, num_embeddings: Sequence[int], owners: Mapping[str, Sequence[int]], embedding_size: int) -> None:
        super().__init__()
        self.num_embeddings = tuple(num_embeddings)
        self.owners = {group: tuple(blocks) for group, blocks in owners.items()}
        self.table = nn.Embedding(max(1, sum(num_embeddings)), embedding_size)
        for group in self.owners:  # persistent: what is not in the checkpoint is lost when built on the meta device
            self.register_buffer(f"{group}_offsets", torch.tensor(self.offsets(group), dtype=torch.int64))

    def offsets(self, group: str) -> list[int]:
        """The first row of each field of a group."""
        starts = [0, *accumulate(self.num_embeddings)]
        return [starts[block] for block in self.owners[group]]

    def forward(self, ids: Tensor, group: str) -> Tensor:
        """Looks up the ids (..., F) of a group of fields.

        Returns:
            (..., F, E).
        """
        rows = ids + self.get_buffer(f"{group}_offsets")
        return self.table(rows) * (ids > 0).unsqueeze(-1)


class FeatureEmbedding(nn.Module):
    """Joins the user's and context's features to every candidate's: one vector per candidate.

    The vector is a linear map of the concatenation of all field embeddings and numeric columns of the request, the
    candidate and the (averaged) history; it is computed group by group, so that the request is projected once and not
    once per candidate.

    Args:
        num_embeddings: Number of ids of each categorical field that owns embeddings.
        owners: For `"request"`, `"candidate"` and `"history"`, the owning field of each categorical field.
        num_numeric: For `"request"` and `"candidate"`, the number of numeric columns.
        embedding_size: E.
        hidden_size: D.
    """

    def __init__(
        self,
        num_embeddings: Sequence[int],
        owners: Mapping[str, Sequence[int]],
        num_numeric: Mapping[str, int],
        embedding_size: int,
        hidden_size: int,
    ) -> None:
        super().__init__()
        self.embedding = PackedEmbedding(num_embeddings, owners, embedding_size)
        widths = {
            group: len(owners[group]) * embedding_size + num_numeric.get(group, 0)
            for group in ("request", "candidate", "history")
        }
        self.candidate_projection = nn.Linear(widths["candidate"], hidden_size)
        # A group without fields has no projection: a parameter that can get no gradient stops distributed training.
        self.request_projection = nn.Linear(widths["request"], hidden_size, bias=False) if widths["request"] else None
        self.history_projection = nn.Linear(widths["history"], hidden_size, bias=False) if widths["history"] else None

    def forward(
        self,
        request_categorical: Tensor,
        request_numeric: Tensor,
        candidate_categorical: Tensor,
        candidate_numeric: Tensor,
        history_categorical: Tensor | None = None,
        history_mask: Tensor | None = None,
    ) -> Tensor:
        """Embeds a batch.

        Args:
            request_categorical: (B, F) int64.
            request_numeric: (B, F).
            candidate_categorical: (B, N, F) int64.
            candidate_numeric: (B, N, F).
            history_categorical: (B, L, F) int64; required where there are history fields.
            history_mask: (B, L), True where an item is real.

        Returns:
            (B, N, D).
        """
        candidates = self._join("candidate", candidate_categorical, candidate_numeric)
        hidden = self.candidate_projection(candidates)
        if self.request_projection is not None:
            request = self._join("request", request_categorical, request_numeric)
            hidden = hidden + self.request_projection(request).unsqueeze(1)
        if self.history_projection is not None:
            hidden = hidden + self.history_projection(self._history(history_categorical, history_mask)).unsqueeze(1)
        return hidden

    def _join(self, group: str, categorical: Tensor, numeric: Tensor) -> Tensor:
        embedded = self.embedding(categorical, group).flatten(-2)  # (..., F * E)
        return torch.cat([embedded, numeric], dim=-1)

    def _history(self, categorical: Tensor | None, mask: Tensor | None) -> Tensor:
        """The mean embedding (B, F * E) of the user's past items; zeros without any."""
        if categorical is None or mask is None:
            raise ValueError("this model has history fields: the batch needs history_categorical and history_mask")
        embedded = self.embedding(categorical, "history").flatten(-2)  # (B, L, F * E)
        total = (embedded * mask.unsqueeze(-1)).sum(1)
        return total / mask.sum(1, keepdim=True).clamp_min(1)
