"""Configuration of GFN4Rec."""

from __future__ import annotations

from typing import Literal

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import weight_field
from rerankzoo.models.pointer_generator import PointerConfig


@strict
class GFN4RecConfig(PointerConfig):
    """Sizes and supervised losses of `GFN4RecForReranking`; see also `PointerConfig`.

    Args:
        balance: How the flow is fitted to what logged or mined slates earned: over whole slates (`"trajectory"`) or
            step by step (`"detailed"`, the better one in the paper). `"group"`: there is no flow, for slates that are
            balanced within groups only.
        flow_weight: Weight of that loss beside the supervised one.
        reward_offset: Added to a slate's utility: its sum is the reward, which must not be negative.
    """

    model_type = "gfn4rec"
    training_fields = PointerConfig.training_fields | {"flow_weight", "reward_offset"}

    balance: Literal["group", "trajectory", "detailed"] = "detailed"
    flow_weight: float | int = weight_field(default=1.0)
    reward_offset: float | int = weight_field(default=1.0)


__all__ = ["GFN4RecConfig"]
