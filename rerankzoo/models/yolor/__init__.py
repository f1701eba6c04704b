"""YOLOR (CIKM 2025): every slate of a request is valued, with contexts that all slates share."""

from __future__ import annotations

from rerankzoo.models.yolor.configuration_yolor import YOLORConfig
from rerankzoo.models.yolor.modeling_yolor import YOLOREvaluator

__all__ = ["YOLORConfig", "YOLOREvaluator"]
