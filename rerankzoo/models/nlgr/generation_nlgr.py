"""The decoding parameter of NLGR."""

from __future__ import annotations

from typing import Any

from rerankzoo.errors import shown
from rerankzoo.generation import RerankingGenerationConfig


class NLGRGenerationConfig(RerankingGenerationConfig):
    """See `RerankingGenerationConfig`, whose strategies go by the model's scores of single candidates.

    Args:
        num_refinements: Switches to editing: the upstream order is edited so many times, and of the slates on the
            way the one is taken of which the model is surest.
    """

    extra_parameters = ("num_refinements",)
    strategies = {**RerankingGenerationConfig.strategies, "num_refinements": "edits"}  # noqa: RUF012

    def validate(self, strict: bool = False, **kwargs: Any) -> None:
        """See `RerankingGenerationConfig.validate`."""
        super().validate(strict, **kwargs)
        number = self.num_refinements
        if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
            raise ValueError(f"num_refinements must be a positive integer, got {shown(number)}")


__all__ = ["NLGRGenerationConfig"]
