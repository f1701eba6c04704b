"""SetRank (SIGIR 2020): self-attention over the candidates as a set."""

from __future__ import annotations

from rerankzoo.models.setrank.configuration_setrank import SetRankConfig
from rerankzoo.models.setrank.modeling_setrank import SetRankForReranking

__all__ = ["SetRankConfig", "SetRankForReranking"]
