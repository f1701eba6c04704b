"""Configuration of GSF."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import size_field
from rerankzoo.models.score_and_sort import ScoreAndSortConfig


@strict
class GSFConfig(ScoreAndSortConfig):
    """Sizes of `GSFForReranking`; see also `ScoreAndSortConfig`, whose attention fields it does not use.

    Args:
        num_hidden_layers: Layers of the network of a group, each `hidden_size` wide.
        group_size: Candidates of a group: 2, all pairs, or 1, which makes it pointwise.
    """

    model_type = "gsf"

    num_hidden_layers: int = size_field(default=2)
    group_size: int = size_field(default=2)

    def validate_group_size(self) -> None:
        """Checks that all groups can be read; called by the strict dataclass."""
        if self.group_size > 2:
            raise ValueError(f"group_size: expected 1 or 2, got {self.group_size}")


__all__ = ["GSFConfig"]
