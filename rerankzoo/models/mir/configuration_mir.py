"""Configuration of MIR."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import count_field, size_field
from rerankzoo.models.score_and_sort import ScoreAndSortConfig


@strict
class MIRConfig(ScoreAndSortConfig):
    """Sizes of `MIRForReranking`; see also `ScoreAndSortConfig`.

    Args:
        num_hidden_layers: Transformer blocks over the candidates.
        num_history_layers: Transformer blocks over the history; with none, past items do not know one another.
        decay_size: Width of the network that tells the half-life from the user.

    Raises:
        ValueError: If a name is unknown.
        huggingface_hub.errors.StrictDataclassError: If a value has the wrong type or is out of its range.
    """

    model_type = "mir"

    num_hidden_layers: int = size_field(default=2)
    num_history_layers: int = count_field(default=1)
    decay_size: int = size_field(default=32)


__all__ = ["MIRConfig"]
