"""GSF (ICTIR 2019): scores of groups of candidates, summed."""

from __future__ import annotations

from rerankzoo.models.gsf.configuration_gsf import GSFConfig
from rerankzoo.models.gsf.modeling_gsf import GSFForReranking

__all__ = ["GSFConfig", "GSFForReranking"]
