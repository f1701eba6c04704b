"""Pointwise: one score per candidate, whatever is shown around it."""

from __future__ import annotations

from rerankzoo.models.pointwise.configuration_pointwise import PointwiseConfig
from rerankzoo.models.pointwise.modeling_pointwise import PointwiseForReranking

__all__ = ["PointwiseConfig", "PointwiseForReranking"]
