"""Configuration of DLCM."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import size_field
from rerankzoo.models.score_and_sort import ScoreAndSortConfig


@strict
class DLCMConfig(ScoreAndSortConfig):
    """Sizes of `DLCMForReranking`; see also `ScoreAndSortConfig`, whose attention fields it does not use.

    Args:
        list_size: How many candidates, the best of the upstream order, the recurrent network reads. It is as deep as
            this; the paper reads 40.
    """

    model_type = "dlcm"

    list_size: int = size_field(default=40)


__all__ = ["DLCMConfig"]
