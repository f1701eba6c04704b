"""Configuration of the pointwise ranker."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import RerankingConfig


@strict
class PointwiseConfig(RerankingConfig):
    """Sizes of `PointwiseForReranking`; see also `RerankingConfig`, whose attention fields it does not use.

    Args:
        num_hidden_layers: Hidden layers of the network after the input layer, each `hidden_size` wide.

    Raises:
        ValueError: If a key is unknown.
        huggingface_hub.errors.StrictDataclassError: If a value has the wrong type or is out of its range.
    """

    model_type = "pointwise"

    num_hidden_layers: int = 2

    def validate_layers(self) -> None:
        """Checks the number of layers; called by the strict dataclass."""
        if self.num_hidden_layers < 1:
            raise ValueError(f"num_hidden_layers must be at least 1, got {self.num_hidden_layers}")


__all__ = ["PointwiseConfig"]
