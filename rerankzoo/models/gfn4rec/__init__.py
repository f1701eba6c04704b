"""GFN4Rec (KDD 2023): a generative flow network, whose slates are as probable as they are good."""

from __future__ import annotations

from rerankzoo.models.gfn4rec.configuration_gfn4rec import GFN4RecConfig
from rerankzoo.models.gfn4rec.modeling_gfn4rec import GFN4RecForReranking

__all__ = ["GFN4RecConfig", "GFN4RecForReranking"]
