"""Decoding: scorers, greedy, beam and contrastive search, sampling. Imports no model."""

from __future__ import annotations

from rerankzoo.batch import Batch
from rerankzoo.generation.beam import BeamStep, beam_search
from rerankzoo.generation.configuration import RerankingGenerationConfig
from rerankzoo.generation.constraints.constraint import AtLeast, AtMost, Boost, Constraint, Exclude, MinDistance, Pin
from rerankzoo.generation.constraints.rules import SlateRules, bind
from rerankzoo.generation.contrastive import contrastive_search
from rerankzoo.generation.diverse import DiverseGenerationConfig, diverse_search, item_vectors
from rerankzoo.generation.ensembles import EvaluatorEnsemble, GeneratorPool
from rerankzoo.generation.evaluator_search import (
    EvaluatorLocalSearch,
    ExhaustiveSearch,
    exhaustive_search,
    local_search,
)
from rerankzoo.generation.mixin import SchemaBound, SlateGenerationMixin, SlateGenerationOutput
from rerankzoo.generation.scorer import Cache, Evaluator, MatrixScorer, ModelScorer, Scorer, ScorerState, StaticScorer
from rerankzoo.generation.search import Decoded, greedy_search, sample_slates

__all__ = [
    "AtLeast",
    "AtMost",
    "Batch",
    "BeamStep",
    "Boost",
    "Cache",
    "Constraint",
    "Decoded",
    "DiverseGenerationConfig",
    "Evaluator",
    "EvaluatorEnsemble",
    "EvaluatorLocalSearch",
    "Exclude",
    "ExhaustiveSearch",
    "GeneratorPool",
    "MatrixScorer",
    "MinDistance",
    "ModelScorer",
    "Pin",
    "RerankingGenerationConfig",
    "SchemaBound",
    "Scorer",
    "ScorerState",
    "SlateGenerationMixin",
    "SlateGenerationOutput",
    "SlateRules",
    "StaticScorer",
    "beam_search",
    "bind",
    "contrastive_search",
    "diverse_search",
    "exhaustive_search",
    "greedy_search",
    "item_vectors",
    "local_search",
    "sample_slates",
]
