"""Seq2Slate (2018): a pointer network that learns from clicks which item comes next."""

from __future__ import annotations

from rerankzoo.models.seq2slate.configuration_seq2slate import Seq2SlateConfig
from rerankzoo.models.seq2slate.modeling_seq2slate import Seq2SlateForReranking

__all__ = ["Seq2SlateConfig", "Seq2SlateForReranking"]
