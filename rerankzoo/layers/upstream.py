"""What the upstream ranker thinks of an item and a request, less the noise in its scores. No config, no model.

B requests, N candidates, K width of an item, C width of a request.
"""

from __future__ import annotations

from torch import Tensor, cat, nn
from torch.nn import functional as F

from rerankzoo.batch import widened
from rerankzoo.layers.embedding import PackedEmbedding


def upstream_rank(scores: Tensor, mask: Tensor) -> Tensor:
    """Ranks candidates by their upstream score, the best first; equal scores share the best rank of theirs.

    Args:
        scores: (B, N).
        mask: (B, N), True where a candidate is real.

    Returns:
        (B, N) int64, the number of real candidates with a higher score.

    Example:
        >>> upstream_rank(torch.tensor([[0.2, 0.9, 0.2, 0.1]]), torch.tensor([[True, True, True, True]]))
        tensor([[1, 0, 1, 3]])
    """
    scores = scores.masked_fill(~mask, float("-inf"))
    return (scores.unsqueeze(1) > scores.unsqueeze(2)).sum(-1)  # (B, N, N): is k above i?


class UpstreamRankEmbedding(nn.Embedding):
    """A vector for each upstream rank; ranks beyond the last one share it."""

    def of_scores(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Vectors (B, N, D) of the ranks of scores (B, N); see `upstream_rank`."""
        vectors: Tensor = self(upstream_rank(scores, mask).clamp_max(self.num_embeddings - 1))
        return vectors


class UpstreamModel(nn.Module):
    """Predicts the upstream scores of candidates, of which a log holds many more than feedback.

    An item is its vector and a residual of its own under a Gaussian prior, which is learned from its scores: what the
    observed numbers in the vector get wrong about it (its categories are what they are). The score is a small network
    of the item, the request and products of both, and a number per item.

    Args:
        num_items: Ids, padding and unknown ones included.
        item_size: K.
        request_size: C; 0 if nothing is known of requests.
        residual_size: So many of an item's last columns have residuals. Default: all.
        hidden_size: Width of the network.
        residual_std: Standard deviation of the residuals' prior.
        bias_std: Standard deviation of the prior of the number per item.
        rank: Products of item and request.
    """

    def __init__(
        self,
        num_items: int,
        item_size: int,
        request_size: int,
        residual_size: int | None = None,
        hidden_size: int = 32,
        residual_std: float = 0.2,
        bias_std: float = 1.0,
        rank: int = 16,
    ) -> None:
        super().__init__()
        self.residual_std, self.bias_std = residual_std, bias_std
        corrected = item_size if residual_size is None else residual_size
        self.items = PackedEmbedding([num_items], {"candidate": [0]}, corrected + 1)
        self.item_factors = nn.Linear(item_size, rank)
        self.request_factors = nn.Linear(request_size, rank) if request_size else None
        self.item_projection = nn.Linear(item_size + rank, hidden_size)
        self.request_projection = nn.Linear(request_size, hidden_size, bias=False) if request_size else None
        self.score = nn.Linear(hidden_size, 1)

    def forward(self, ids: Tensor, items: Tensor, request: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts scores.

        Args:
            ids: (B, N).
            items: (B, N, K).
            request: (B, C).

        Returns:
            Scores (B, N), and the items' residuals (B, N, K).
        """
        own = self.items(ids.unsqueeze(-1), "candidate").squeeze(-2)
        residuals = F.pad(own[..., 1:], (items.shape[-1] - own.shape[-1] + 1, 0))
        items = items + residuals
        factors = self.item_factors(items)
        if self.request_factors is not None:
            factors = factors * self.request_factors(request).unsqueeze(1)
        hidden = self.item_projection(cat([items, factors], dim=-1))
        if self.request_projection is not None:
            hidden = hidden + self.request_projection(request).unsqueeze(1)
        return self.score(F.gelu(hidden)).squeeze(-1) + own[..., 0], residuals

    def prior(self) -> Tensor:
        """The negative log-density of what belongs to single items."""
        squares = widened(self.items.table.weight).square()
        return squares[:, 0].sum() / (2 * self.bias_std**2) + squares[:, 1:].sum() / (2 * self.residual_std**2)
