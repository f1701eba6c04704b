"""Configuration of GoalRank."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from rerankzoo.models.pointer_generator import PointerConfig


@strict
class GoalRankConfig(PointerConfig):
    """Sizes and supervised losses of `GoalRankForReranking`; see `PointerConfig`."""

    model_type = "goalrank"


__all__ = ["GoalRankConfig"]
