"""UniRank (2026): slates filled in any order, by masked denoising."""

from __future__ import annotations

from rerankzoo.models.unirank.configuration_unirank import UniRankConfig
from rerankzoo.models.unirank.generation_unirank import UniRankGenerationConfig
from rerankzoo.models.unirank.modeling_unirank import UniRankForReranking

__all__ = ["UniRankConfig", "UniRankForReranking", "UniRankGenerationConfig"]
