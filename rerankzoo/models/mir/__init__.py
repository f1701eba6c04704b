"""MIR (SIGIR 2022): candidates as a set meet the user's history as a list that fades."""

from __future__ import annotations

from rerankzoo.models.mir.configuration_mir import MIRConfig
from rerankzoo.models.mir.modeling_mir import MIRForReranking

__all__ = ["MIRConfig", "MIRForReranking"]
