"""Configuration of YOLOR."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import FeedbackConfig, weight_field


@strict
class YOLORConfig(FeedbackConfig):
    """Sizes and loss terms of `YOLOREvaluator`; see also `FeedbackConfig`.

    Args:
        pair_weight: Weight of the loss on pairs of a request's slates of which one earned more (paper: alpha, 0.05).
            A log with one slate per request has none.
    """

    model_type = "yolor"
    training_fields = FeedbackConfig.training_fields | {"pair_weight"}

    pair_weight: float | int = weight_field(default=0.05)


__all__ = ["YOLORConfig"]
