"""The decoding parameter of UniRank."""

from __future__ import annotations

from rerankzoo.generation import RerankingGenerationConfig


class UniRankGenerationConfig(RerankingGenerationConfig):
    """See `RerankingGenerationConfig`, whose strategies fill slates from the top.

    Args:
        fill_per_step: Switches to filling in the order of confidence: so many slots, wherever they are, after each look
            at the slate. 1 looks before every choice, the slate's size only once.
    """

    extra_parameters = ("fill_per_step",)
    counts = (*RerankingGenerationConfig.counts, *extra_parameters)
    strategies = {**RerankingGenerationConfig.strategies, "fill_per_step": "confident"}  # noqa: RUF012


__all__ = ["UniRankGenerationConfig"]
