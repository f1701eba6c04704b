"""NAR4Rec (KDD 2024): non-autoregressive generator and evaluator."""

from __future__ import annotations

from rerankzoo.models.nar4rec.configuration_nar4rec import NAR4RecConfig
from rerankzoo.models.nar4rec.modeling_nar4rec import NAR4RecEvaluator, NAR4RecForReranking

__all__ = ["NAR4RecConfig", "NAR4RecEvaluator", "NAR4RecForReranking"]
