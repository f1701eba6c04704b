"""Configuration of DeGRe's evaluator and generator."""

from __future__ import annotations

from typing import Literal

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import FeedbackConfig, size_field
from rerankzoo.models.pointer_generator import PointerConfig


@strict
class DeGReConfig(PointerConfig, FeedbackConfig):
    """Sizes, heads and loss terms of `DeGReEvaluator` and `DeGReGenerator`; see also `PointerConfig`, `FeedbackConfig`.

    Args:
        num_hidden_layers: Layers of the evaluator's causal Transformer; layers of the generator's candidate encoder.
        field_size: Width of a field's vector in the attention among the fields of an item. Kept small: its cost per
            candidate grows with the number of fields.
        guide: Of the generator: config of the evaluator that it carries with it, its class in `architectures`, without
            the schema (see `rerankzoo.models.degre.guide`); the Lightning module's argument `guide` sets it. `None`:
            the generator reads fields itself.
        value_head: How the evaluator values prefixes. `"feedback"`: one probability per feedback target and position, a
            prefix is worth the expected utility of its positions. `"cumulative_regression"`: the paper's, the reward
            accumulated over each prefix is regressed. The first is much better in truth (docs/models/degre.md).
            `"ordered_regression"` (SORT-Gen): whether a prefix has at least 1, 2... clicks. `"exit"` (CAVE): feedback
            of positions that are seen, and where the user leaves. One target tells which were seen, and
            `conditional_targets` hangs all others on it, such as `{"click": "seen", "order": "click"}`.
    """

    model_type = "degre"

    field_size: int = size_field(default=16)
    guide: dict | None = None
    value_head: Literal["feedback", "cumulative_regression", "ordered_regression", "exit"] = "feedback"

    def validate_value_head(self) -> None:
        """Checks that the exit head knows what tells which positions were seen; called by the strict dataclass."""
        if self.value_head != "exit" or self.feature_schema is None:
            return
        known = [target.name for target in self.schema.targets]
        alone = [name for name in known if name not in (self.conditional_targets or {})]
        if len(alone) != 1 or len(known) == 1:
            raise ValueError(
                "value_head 'exit' needs conditional_targets that hang all others on one target, that a position was "
                f"seen; of {known}, {alone} depend on none"
            )


__all__ = ["DeGReConfig"]
