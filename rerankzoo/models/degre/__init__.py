"""DeGRe (KDD 2026): look-ahead evaluator and the generator distilled from its search."""

from __future__ import annotations

from rerankzoo.models.degre.configuration_degre import DeGReConfig
from rerankzoo.models.degre.modeling_degre import DeGReEvaluator, DeGReEvaluatorEnsemble, DeGReGenerator

__all__ = ["DeGReConfig", "DeGReEvaluator", "DeGReEvaluatorEnsemble", "DeGReGenerator"]
