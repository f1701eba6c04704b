"""Schemas, the feature extractor and the batch that all models read."""

from __future__ import annotations

from rerankzoo.features.batch import BATCH_KEYS, PADDING_INDEX, gather_candidates, slate_utility
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import FeatureSchema, FieldSpec, TargetSpec

__all__ = [
    "BATCH_KEYS",
    "PADDING_INDEX",
    "FeatureSchema",
    "FieldSpec",
    "RerankingFeatureExtractor",
    "TargetSpec",
    "gather_candidates",
    "slate_utility",
]
