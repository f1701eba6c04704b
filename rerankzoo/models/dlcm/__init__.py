"""DLCM (SIGIR 2018): a recurrent reading of the best of the upstream list."""

from __future__ import annotations

from rerankzoo.models.dlcm.configuration_dlcm import DLCMConfig
from rerankzoo.models.dlcm.modeling_dlcm import DLCMForReranking

__all__ = ["DLCMConfig", "DLCMForReranking"]
