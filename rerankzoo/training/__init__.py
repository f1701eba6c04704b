"""Training with Lightning: one module for every model, optimiser, callbacks."""

from __future__ import annotations

from rerankzoo.training.callbacks import HubCheckpoint, PretrainedExport, SlateWriter
from rerankzoo.training.module import RerankingModule
from rerankzoo.training.resuming import ExactResume, WholeCheckpointIO

__all__ = [
    "ExactResume",
    "HubCheckpoint",
    "PretrainedExport",
    "RerankingModule",
    "SlateWriter",
    "WholeCheckpointIO",
]
