"""The decoding parameter of NLGR."""

from __future__ import annotations

from rerankzoo.generation import RerankingGenerationConfig


class NLGRGenerationConfig(RerankingGenerationConfig):
    """See `RerankingGenerationConfig`, whose strategies go by the model's scores of single candidates.

    Args:
        num_refinements: Switches to editing: the upstream order is edited so many times, and of the slates on the
            way the one is taken of which the model is surest.
    """

    extra_parameters = ("num_refinements",)
    counts = (*RerankingGenerationConfig.counts, *extra_parameters)
    strategies = {**RerankingGenerationConfig.strategies, "num_refinements": "edits"}  # noqa: RUF012


__all__ = ["NLGRGenerationConfig"]
