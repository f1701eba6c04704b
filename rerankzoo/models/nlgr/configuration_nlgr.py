"""Configuration of NLGR."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import size_field
from rerankzoo.models.score_and_sort import ScoreAndSortConfig


@strict
class NLGRConfig(ScoreAndSortConfig):
    """Sizes of `NLGRForReranking`; see also `ScoreAndSortConfig`, whose losses are those of its scores.

    Args:
        num_hidden_layers: Layers of the candidate encoder.
        num_slot_layers: Layers over the slots of a slate, which read its other items and all candidates.
        position_network: Whether a network of its own says where to edit, beside the item choice; `BestNeighbour` does
            not teach it.

    Raises:
        ValueError: If a name is unknown.
        huggingface_hub.errors.StrictDataclassError: If a value has the wrong type or is out of its range.
    """

    model_type = "nlgr"

    num_hidden_layers: int = size_field(default=2)
    num_slot_layers: int = size_field(default=2)
    position_network: bool = True


__all__ = ["NLGRConfig"]
