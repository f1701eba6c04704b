"""Configuration of PRM."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import RerankingConfig


@strict
class PRMConfig(RerankingConfig):
    """Sizes of `PRMForReranking`; see also `RerankingConfig`.

    Args:
        num_hidden_layers: Layers of the encoder.
        max_position_embeddings: Upstream ranks that have an embedding of their own; candidates further down share the
            last one.

    Raises:
        ValueError: If a key is unknown.
        huggingface_hub.errors.StrictDataclassError: If a value has the wrong type or is out of its range.
    """

    model_type = "prm"

    num_hidden_layers: int = 2
    max_position_embeddings: int = 64

    def validate_layers(self) -> None:
        """Checks layers and ranks; called by the strict dataclass."""
        for key in ("num_hidden_layers", "max_position_embeddings"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")


__all__ = ["PRMConfig"]
