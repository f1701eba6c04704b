"""rerankzoo: generative list re-ranking with PyTorch Lightning and a Hugging Face-style API."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rerankzoo.models.auto import register as _register

__version__ = "0.1.0.dev0"

#: Where each public name lives. Names are imported when first used: training needs more packages than serving.
_HOME = {
    "AtLeast": "rerankzoo.generation",
    "AtMost": "rerankzoo.generation",
    "AutoModelForReranking": "rerankzoo.models.auto",
    "Boost": "rerankzoo.generation",
    "DeGReConfig": "rerankzoo.models.degre",
    "DeGReEvaluator": "rerankzoo.models.degre",
    "DeGReEvaluatorEnsemble": "rerankzoo.models.degre",
    "DeGReGenerator": "rerankzoo.models.degre",
    "Exclude": "rerankzoo.generation",
    "FeatureSchema": "rerankzoo.features.schema",
    "FieldSpec": "rerankzoo.features.schema",
    "HubError": "rerankzoo.errors",
    "InfeasibleConstraintError": "rerankzoo.errors",
    "MinDistance": "rerankzoo.generation",
    "NAR4RecConfig": "rerankzoo.models.nar4rec",
    "NAR4RecEvaluator": "rerankzoo.models.nar4rec",
    "NAR4RecForReranking": "rerankzoo.models.nar4rec",
    "OutputError": "rerankzoo.errors",
    "PRMConfig": "rerankzoo.models.prm",
    "PRMForReranking": "rerankzoo.models.prm",
    "Pin": "rerankzoo.generation",
    "PointwiseConfig": "rerankzoo.models.pointwise",
    "PointwiseForReranking": "rerankzoo.models.pointwise",
    "RerankingDataError": "rerankzoo.errors",
    "RerankingDataModule": "rerankzoo.data.datamodule",
    "RerankingFeatureExtractor": "rerankzoo.features.extractor",
    "RerankingGenerationConfig": "rerankzoo.generation",
    "RerankingModule": "rerankzoo.training.module",
    "RerankingPipeline": "rerankzoo.pipeline",
    "SchemaError": "rerankzoo.errors",
    "SchemaMismatchError": "rerankzoo.errors",
    "SimulatorDataModule": "rerankzoo.data.datamodule",
    "TargetSpec": "rerankzoo.features.schema",
    "UnreadableFileError": "rerankzoo.errors",
}

__all__ = [*_HOME, "__version__"]

_register()


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rerankzoo' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
