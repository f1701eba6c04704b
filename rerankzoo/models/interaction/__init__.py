"""Interaction evaluator (ours): sums over pairs of items, and a likelihood of the user's behaviour."""

from __future__ import annotations

from rerankzoo.models.interaction.configuration_interaction import InteractionEvaluatorConfig
from rerankzoo.models.interaction.modeling_interaction import InteractionEvaluator

__all__ = ["InteractionEvaluator", "InteractionEvaluatorConfig"]
