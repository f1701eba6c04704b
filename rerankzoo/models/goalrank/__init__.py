"""GoalRank (ICLR 2026): a generator alone, taught by what groups of slates are worth against one another."""

from __future__ import annotations

from rerankzoo.models.goalrank.configuration_goalrank import GoalRankConfig
from rerankzoo.models.goalrank.modeling_goalrank import GoalRankForReranking

__all__ = ["GoalRankConfig", "GoalRankForReranking"]
