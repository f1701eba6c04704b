"""NLGR (WWW 2025): a start list is edited, position by position, towards its better neighbours."""

from __future__ import annotations

from rerankzoo.models.nlgr.configuration_nlgr import NLGRConfig
from rerankzoo.models.nlgr.generation_nlgr import NLGRGenerationConfig
from rerankzoo.models.nlgr.modeling_nlgr import NLGRForReranking

__all__ = ["NLGRConfig", "NLGRForReranking", "NLGRGenerationConfig"]
