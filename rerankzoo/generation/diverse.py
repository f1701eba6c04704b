"""MMR and DPP: a scorer's relevance against how alike the items of a slate are. Nothing is trained for them.

B requests, N candidates, M positions, C numbers that say what an item is.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from rerankzoo.batch import Batch, widened
from rerankzoo.errors import SchemaError
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.generation.configuration import RerankingGenerationConfig
from rerankzoo.generation.constraints.rules import SlateRules
from rerankzoo.generation.scorer import Scorer
from rerankzoo.generation.search import Decoded, Rows

#: What is left of an item's squared length where the slate says all of it: a determinant is never 0.
_LEAST = 1e-6
_LARGEST = 1e15  # squares of larger numbers leave single precision
_INFINITE = float("inf")


class DiverseGenerationConfig(RerankingGenerationConfig):
    """Decoding parameters of models whose scores are relevance; see `RerankingGenerationConfig` for the others.

    Args:
        mmr_diversity: Switches to maximal marginal relevance: the weight of novelty, in [0, 1]; 0 sorts.
        dpp_diversity: Switches to a determinantal point process: the weight of variety, in [0, 1]; 0 sorts.
    """

    extra_parameters = ("mmr_diversity", "dpp_diversity")
    shares = (*RerankingGenerationConfig.shares, *extra_parameters)
    strategies = {  # noqa: RUF012
        **RerankingGenerationConfig.strategies,
        "mmr_diversity": "mmr",
        "dpp_diversity": "dpp",
    }


class Variety(Protocol):
    """What items add to the variety of a slate."""

    def gains(self) -> Tensor:
        """(B, N), of each candidate as the next item."""

    def choose(self, index: Tensor) -> None:
        """Puts the candidates (B,) into the slates."""


class MaximalMarginalRelevance:
    """An item adds the less, the more it is like the most similar one of the slate: `-max_j cos(i, j)`; 0 at first.

    Args:
        vectors: (B, N, C), of length 1; those of 0 are like no other.

    References:
        Carbonell and Goldstein, The Use of MMR, Diversity-Based Reranking (SIGIR 1998).
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self.closest: Tensor | None = None  # (B, N)

    def gains(self) -> Tensor:
        """See `Variety.gains`."""
        return torch.zeros_like(self.vectors[..., 0]) if self.closest is None else -self.closest

    def choose(self, index: Tensor) -> None:
        """See `Variety.choose`."""
        closeness = _closeness(self.vectors, index)
        self.closest = closeness if self.closest is None else torch.maximum(self.closest, closeness)


class DeterminantalPointProcess:
    """An item adds `log det S(slate and item) - log det S(slate)`, S the cosines: the volume that the items span.

    By the incremental Cholesky factor of S, O(N C) a step. With relevance r and diversity a the slate is the greedy one
    of the L-ensemble `L = diag(q) S diag(q)`, `q = exp((1 - a) r / 2 a)`.

    Args:
        vectors: (B, N, C), of length 1; those of 0 are like no other.

    References:
        Chen et al., Fast Greedy MAP Inference for Determinantal Point Process to Improve Recommendation Diversity
        (NeurIPS 2018), algorithm 1.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors
        self.left = torch.ones_like(vectors[..., 0])  # (B, N), squared lengths of what the slate does not span
        self.factors: list[Tensor] = []  # (B, N) each, columns of the factor

    def gains(self) -> Tensor:
        """See `Variety.gains`."""
        return self.left.clamp_min(_LEAST).log()

    def choose(self, index: Tensor) -> None:
        """See `Variety.choose`."""
        column, chosen = _closeness(self.vectors, index), index.unsqueeze(-1)
        for factor in self.factors:
            column = column - factor * factor.gather(1, chosen)
        column = column / self.left.gather(1, chosen).clamp_min(_LEAST).sqrt()
        self.factors.append(column)
        self.left = self.left - column.square()


def _closeness(vectors: Tensor, index: Tensor) -> Tensor:
    """Cosines (B, N) of all candidates with those chosen (B,)."""
    chosen = vectors.gather(1, index.view(-1, 1, 1).expand(-1, 1, vectors.shape[-1]))
    return torch.bmm(chosen, vectors.transpose(1, 2)).squeeze(1)


VARIETIES: dict[str, type[MaximalMarginalRelevance] | type[DeterminantalPointProcess]] = {
    "mmr": MaximalMarginalRelevance,
    "dpp": DeterminantalPointProcess,
}
"""By the name of the strategy."""


def diverse_search(
    scorer: Scorer,
    batch: Batch,
    slate_size: int,
    variety: str,
    diversity: float,
    vectors: Tensor,
    rules: SlateRules | None = None,
) -> Decoded:
    """Takes, at every position, the candidate with the best balance of relevance and what it adds to variety.

    `argmax over those left of (1 - diversity) r_i + diversity g_i`, g of `MaximalMarginalRelevance` or
    `DeterminantalPointProcess`. r is the scorer's score at that position, of whatever scale: 0 at the least and 1 at
    the largest of the request's scores at the first position (ours; the papers have relevance of one scale).

    Args (others as of `greedy_search`):
        variety: `"mmr"` or `"dpp"`.
        diversity: In [0, 1]; 0 is greedy decoding.
        vectors: (B, N, C), what the items are, of any length (see `item_vectors`).

    Returns:
        One slate per request; scores are the scorer's own. KeyError for another variety.
    """
    rows, low, scale = Rows.start(scorer, batch, slate_size, rules), torch.zeros(()), torch.ones(())
    held: Variety = VARIETIES[variety](_of_length_one(vectors))
    for position in range(slate_size):
        scores, cache = scorer.step(rows.state)
        preferences = rows.preferences(scores)
        if position == 0:
            real = scores > -_INFINITE
            low = scores.masked_fill(~real, _INFINITE).amin(-1, keepdim=True)
            scale = (scores.amax(-1, keepdim=True) - low).clamp_min(torch.finfo(scores.dtype).tiny)
        balance = (1 - diversity) * ((preferences - low) / scale) + diversity * held.gains()
        index = balance.masked_fill(preferences == -_INFINITE, -_INFINITE).argmax(-1)
        rows = rows.extend(scores, cache, None, index)
        held.choose(index)
    return rows.decoded(vectors.shape[0])


def item_vectors(batch: Batch, schema: FeatureSchema) -> Tensor:
    """What the candidates are (B, N, C), by the fields that measure diversity, too.

    Raises:
        SchemaError: If the schema has no such fields.
    """
    spans = [(schema.position(name), schema.field(name).size) for name in diversity_fields(schema)]
    if not spans:
        raise SchemaError(f"schema {schema.name!r} has no dense or numeric candidate fields that say what an item is")
    columns = [column for first, size in spans for column in range(first, first + size)]
    return batch["candidate_numeric"][..., columns]


def diversity_fields(schema: FeatureSchema) -> list[str]:
    """The candidate fields whose vectors measure diversity: the dense ones; without any, the numeric ones.

    The upstream score says how good an item is, not what it is, and is left out.
    """
    dense = [spec.name for spec in schema.select("candidate", "dense")]
    numeric = [spec.name for spec in schema.select("candidate", "numeric") if spec.name != schema.upstream_score]
    return dense or numeric


def _of_length_one(vectors: Tensor) -> Tensor:
    """Vectors (..., C) of length 1; those of 0 stay."""
    vectors = widened(vectors).clamp(-_LARGEST, _LARGEST)
    vectors = vectors / vectors.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp_min(_LEAST)
