"""What the upstream ranker thinks of an item and a request, less the noise in its scores. No config, no model.

B requests, N candidates, K width of an item, C width of a request.
"""

from __future__ import annotations

from torch import Tensor, cat, nn
from torch.nn import functional as F

from rerankzoo.batch import widened
from rerankzoo.layers.embedding import PackedEmbedding

_RANK, _WIDTH = 16, 32  # of `UpstreamModel`: products of item and request, and the network
_RESIDUAL_STD, _BIAS_STD = 0.2, 1.0  # of its priors: of items' residuals, and of the number per item


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
        return self(upstream_rank(scores, mask).clamp_max(self.num_embeddings - 1))


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
    """

    def __init__(self, num_items: int, item_size: int, request_size: int, residual_size: int | None = None) -> None:
        super().__init__()
        corrected = item_size if residual_size is None else residual_size
        self.items = PackedEmbedding([num_items], {"candidate": [0]}, corrected + 1)
        self.item_factors = nn.Linear(item_size, _RANK)
        self.request_factors = nn.Linear(request_size, _RANK) if request_size else None
        self.item_projection = nn.Linear(item_size + _RANK, _WIDTH)
        self.request_projection = nn.Linear(request_size, _WIDTH, bias=False) if request_size else None
        self.score = nn.Linear(_WIDTH, 1)

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
        return squares[:, 0].sum() / (2 * _BIAS_STD**2) + squares[:, 1:].sum() / (2 * _RESIDUAL_STD**2)
