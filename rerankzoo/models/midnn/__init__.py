"""miDNN (IJCAI 2018): a pointwise network that also reads where a candidate stands among the others."""

from __future__ import annotations

from rerankzoo.models.midnn.configuration_midnn import MiDNNConfig
from rerankzoo.models.midnn.modeling_midnn import MiDNNForReranking

__all__ = ["MiDNNConfig", "MiDNNForReranking"]
