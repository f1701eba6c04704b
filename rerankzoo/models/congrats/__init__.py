"""CONGRATS (KDD 2026): slates as paths through a graph, likely ones and good ones."""

from __future__ import annotations

from rerankzoo.models.congrats.configuration_congrats import CongratsConfig
from rerankzoo.models.congrats.modeling_congrats import CongratsForReranking

__all__ = ["CongratsConfig", "CongratsForReranking"]
