"""Configuration of GReF."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import share_field, size_field, weight_field
from rerankzoo.models.pointer_generator import PointerConfig


@strict
class GReFConfig(PointerConfig):
    """Sizes and losses of `GReFForReranking`; see also `PointerConfig`.

    Args:
        utility_quantile: 0 by default: all that was shown is learned, as in the paper's pre-training.
        max_position_embeddings: Upstream ranks that have an embedding of their own; candidates further down share the
            last one.
        num_heads: H, items that one pass of the decoder points at.
        ordered_weight: Weight of the ordered loss: within the items of a pass, what was clicked is preferred further
            up. From logs with feedback only, and for more than one head.
    """

    model_type = "gref"
    training_fields = PointerConfig.training_fields | {"ordered_weight"}

    utility_quantile: float | int = share_field(default=0.0)
    max_position_embeddings: int = size_field(default=64)
    num_heads: int = size_field(default=2)
    ordered_weight: float | int = weight_field(default=0.1)


__all__ = ["GReFConfig"]
