"""Configuration of miDNN."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import size_field
from rerankzoo.models.score_and_sort import ScoreAndSortConfig


@strict
class MiDNNConfig(ScoreAndSortConfig):
    """Sizes of `MiDNNForReranking`; see also `ScoreAndSortConfig`, whose attention fields it does not use.

    Args:
        num_hidden_layers: Hidden layers of the network after the input layer, each `hidden_size` wide.
    """

    model_type = "midnn"

    num_hidden_layers: int = size_field(default=2)


__all__ = ["MiDNNConfig"]
