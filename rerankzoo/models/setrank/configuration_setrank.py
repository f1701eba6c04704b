"""Configuration of SetRank."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import count_field, size_field
from rerankzoo.models.score_and_sort import ScoreAndSortConfig


@strict
class SetRankConfig(ScoreAndSortConfig):
    """Sizes of `SetRankForReranking`; see also `ScoreAndSortConfig`.

    Args:
        num_hidden_layers: Blocks of the encoder.
        num_inducing_points: Learned points through which candidates see one another, so that the cost grows with N and
            not with its square; 0: every candidate attends to every other.
        max_position_embeddings: Upstream ranks that have an embedding of their own, candidates further down share the
            last one; 0: the upstream order is not read.
    """

    model_type = "setrank"

    num_hidden_layers: int = size_field(default=2)
    num_inducing_points: int = count_field(default=0)
    max_position_embeddings: int = count_field(default=0)


__all__ = ["SetRankConfig"]
