"""rerankzoo: generative list re-ranking with PyTorch Lightning and a Hugging Face-style API."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rerankzoo.models.registry import family_names, find_name, register_on_demand

__version__ = "0.1.0.dev0"

#: Where each public name lives, but for those of the model families, which say so themselves. Names are imported when
#: first used: training needs more packages than serving, and the command line starts at once.
_HOME = {
    "AtLeast": "rerankzoo.generation",
    "AtMost": "rerankzoo.generation",
    "AutoModelForReranking": "rerankzoo.models.auto",
    "Boost": "rerankzoo.generation",
    "EvaluatorEnsemble": "rerankzoo.generation",
    "EvaluatorLocalSearch": "rerankzoo.generation",
    "ExhaustiveSearch": "rerankzoo.generation",
    "Exclude": "rerankzoo.generation",
    "FeatureSchema": "rerankzoo.features.schema",
    "FieldSpec": "rerankzoo.features.schema",
    "GeneratorPool": "rerankzoo.generation",
    "HubError": "rerankzoo.errors",
    "InfeasibleConstraintError": "rerankzoo.errors",
    "MinDistance": "rerankzoo.generation",
    "OutputError": "rerankzoo.errors",
    "Pin": "rerankzoo.generation",
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
    "example": "rerankzoo.shipped",
}

register_on_demand()


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return __dir__()
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name.startswith("_") or not name[0].isupper():  # a module that is not imported yet, or what inspectors look for
        raise AttributeError(f"module 'rerankzoo' has no attribute {name!r}")
    return find_name(name)


def __dir__() -> list[str]:
    exported = (import_module(f"rerankzoo.models.{family}").__all__ for family in family_names())
    return sorted({*_HOME, *(name for names in exported for name in names), "__version__"})
