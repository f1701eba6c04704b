"""Configuration of PRM."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import size_field
from rerankzoo.models.score_and_sort import ScoreAndSortConfig


@strict
class PRMConfig(ScoreAndSortConfig):
    """Sizes of `PRMForReranking`; see also `ScoreAndSortConfig`.

    Args:
        num_hidden_layers: Layers of the encoder.
        max_position_embeddings: Upstream ranks that have an embedding of their own; candidates further down share the
            last one.
    """

    model_type = "prm"

    num_hidden_layers: int = size_field(default=2)
    max_position_embeddings: int = size_field(default=64)


__all__ = ["PRMConfig"]
