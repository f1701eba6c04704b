"""EG-Rerank and its kin: generators taught by policy gradients from an evaluator's word."""

from __future__ import annotations

from rerankzoo.models.egrerank.configuration_egrerank import EGRerankConfig
from rerankzoo.models.egrerank.modeling_egrerank import EGRerankForReranking

__all__ = ["EGRerankConfig", "EGRerankForReranking"]
