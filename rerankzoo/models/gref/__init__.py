"""GReF (CIKM 2025): a generator pre-trained on what was shown, then on preferences; several items per decoder pass."""

from __future__ import annotations

from rerankzoo.models.gref.configuration_gref import GReFConfig
from rerankzoo.models.gref.modeling_gref import GReFForReranking

__all__ = ["GReFConfig", "GReFForReranking"]
