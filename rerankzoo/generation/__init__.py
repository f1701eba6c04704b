"""Decoding: scorers, greedy, beam and contrastive search, sampling. Imports no model."""

from __future__ import annotations

from rerankzoo.batch import Batch
from rerankzoo.generation.beam import BeamStep, beam_search
from rerankzoo.generation.configuration import RerankingGenerationConfig
from rerankzoo.generation.constraints import AtLeast, AtMost, Boost, Constraint, Exclude, MinDistance, Pin, bind
from rerankzoo.generation.contrastive import contrastive_search
from rerankzoo.generation.feasibility import SlateRules
from rerankzoo.generation.greedy import greedy_search
from rerankzoo.generation.mixin import SlateGenerationMixin, SlateGenerationOutput
from rerankzoo.generation.sampling import sample_slates
from rerankzoo.generation.scorer import MatrixScorer, Scorer, ScorerState, SlateEvaluator, StaticScorer
from rerankzoo.generation.search import Decoded

__all__ = [
    "AtLeast",
    "AtMost",
    "Batch",
    "BeamStep",
    "Boost",
    "Constraint",
    "Decoded",
    "Exclude",
    "MatrixScorer",
    "MinDistance",
    "Pin",
    "RerankingGenerationConfig",
    "Scorer",
    "ScorerState",
    "SlateEvaluator",
    "SlateGenerationMixin",
    "SlateGenerationOutput",
    "SlateRules",
    "StaticScorer",
    "beam_search",
    "bind",
    "contrastive_search",
    "greedy_search",
    "sample_slates",
]
