"""Configuration of UniRank."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import RerankingConfig, size_field


@strict
class UniRankConfig(RerankingConfig):
    """Sizes of `UniRankForReranking`; see also `RerankingConfig`.

    Args:
        num_hidden_layers: Layers of the candidate encoder.
        num_slot_layers: Layers over the slots of a slate: self-attention in both directions, cross-attention to the
            candidates.
    """

    model_type = "unirank"

    num_hidden_layers: int = size_field(default=2)
    num_slot_layers: int = size_field(default=2)


__all__ = ["UniRankConfig"]
