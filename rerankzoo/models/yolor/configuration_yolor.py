"""Configuration of YOLOR."""

from __future__ import annotations

from typing import Literal

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import FeedbackConfig, weight_field


@strict
class YOLORConfig(FeedbackConfig):
    """Sizes and loss terms of `YOLOREvaluator`; see also `FeedbackConfig`.

    Args:
        context: What a position knows of the rest of its slate: `"tree"`, YOLOR's, sets at every scale; `"page"`,
            PIER's, one vector of the whole slate.
        pair_weight: Weight of the loss on pairs of a request's slates of which one earned more (paper: alpha, 0.05).
            A log with one slate per request has none.
    """

    model_type = "yolor"
    training_fields = FeedbackConfig.training_fields | {"pair_weight"}

    context: Literal["tree", "page"] = "tree"
    pair_weight: float | int = weight_field(default=0.05)


__all__ = ["YOLORConfig"]
