"""Configuration of EG-Rerank."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from rerankzoo.models.recurrent_pointer import RecurrentPointerConfig


@strict
class EGRerankConfig(RecurrentPointerConfig):
    """Sizes and supervised losses of `EGRerankForReranking`; see `RecurrentPointerConfig`.

    The published model has the decoder `"lstm"`.
    """

    model_type = "egrerank"


__all__ = ["EGRerankConfig"]
