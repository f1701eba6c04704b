"""PRM (RecSys 2019): listwise self-attention over the upstream list."""

from __future__ import annotations

from rerankzoo.models.prm.configuration_prm import PRMConfig
from rerankzoo.models.prm.modeling_prm import PRMForReranking

__all__ = ["PRMConfig", "PRMForReranking"]
