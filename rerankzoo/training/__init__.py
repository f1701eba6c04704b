"""Training with Lightning: one module for every model, optimiser, callbacks."""

from __future__ import annotations

from rerankzoo.training.callbacks import HubCheckpoint, PretrainedExport, SlateWriter
from rerankzoo.training.module import RerankingModule

__all__ = ["HubCheckpoint", "PretrainedExport", "RerankingModule", "SlateWriter"]
