"""Configuration of EG-Rerank."""

from __future__ import annotations

from typing import Literal

from huggingface_hub.dataclasses import strict

from rerankzoo.models.pointer_generator import PointerConfig


@strict
class EGRerankConfig(PointerConfig):
    """Sizes and supervised losses of `EGRerankForReranking`; see also `PointerConfig`.

    Args:
        decoder: What reads the slate so far: a causal Transformer that looks at the candidates, too, or the `"lstm"` of
            the published model, for which `num_decoder_layers` counts nothing.
    """

    model_type = "egrerank"

    decoder: Literal["transformer", "lstm"] = "transformer"


__all__ = ["EGRerankConfig"]
