"""Schemas, the feature extractor and the batch that all models read."""

from __future__ import annotations

from rerankzoo.batch import ENTRIES, PADDING, gather_candidates
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import FeatureSchema, FieldSpec, TargetSpec
from rerankzoo.features.utility import slate_utility

__all__ = [
    "ENTRIES",
    "PADDING",
    "FeatureSchema",
    "FieldSpec",
    "RerankingFeatureExtractor",
    "TargetSpec",
    "gather_candidates",
    "slate_utility",
]
