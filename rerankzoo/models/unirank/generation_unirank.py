"""The decoding parameter of UniRank."""

from __future__ import annotations

from typing import Any

from rerankzoo.errors import shown
from rerankzoo.generation import RerankingGenerationConfig


class UniRankGenerationConfig(RerankingGenerationConfig):
    """See `RerankingGenerationConfig`, whose strategies fill slates from the top.

    Args:
        fill_per_step: Switches to filling in the order of confidence: so many slots, wherever they are, after each look
            at the slate. 1 looks before every choice, the slate's size only once.
    """

    extra_parameters = ("fill_per_step",)
    strategies = {**RerankingGenerationConfig.strategies, "fill_per_step": "confident"}  # noqa: RUF012

    def validate(self, strict: bool = False, **kwargs: Any) -> None:
        """See `RerankingGenerationConfig.validate`."""
        super().validate(strict, **kwargs)
        number = self.fill_per_step
        if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
            raise ValueError(f"fill_per_step must be a positive integer, got {shown(number)}")


__all__ = ["UniRankGenerationConfig"]
