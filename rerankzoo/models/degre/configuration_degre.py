"""Configuration of DeGRe's evaluator and generator."""

from __future__ import annotations

from typing import Literal

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import FeedbackConfig, TrainingLog, share_field, size_field, weight_field


@strict
class DeGReConfig(FeedbackConfig):
    """Sizes, heads and loss terms of `DeGReEvaluator` and `DeGReGenerator`; see also `FeedbackConfig`.

    Args:
        num_hidden_layers: Layers of the evaluator's causal Transformer; layers of the generator's candidate encoder.
        num_decoder_layers: Layers of the generator's causal decoder.
        field_size: Width of a field's vector in the attention among the fields of an item. Kept small: its cost per
            candidate grows with the number of fields.
        guide: Of the generator: config of the evaluator that it carries with it, its class in `architectures`, without
            the schema (see `rerankzoo.models.degre.guide`); the Lightning module's argument `guide` sets it. `None`:
            the generator reads fields itself.
        value_head: How the evaluator values prefixes. `"feedback"`: one probability per feedback target and position, a
            prefix is worth the expected utility of its positions. `"cumulative_regression"`: the paper's, the reward
            accumulated over each prefix is regressed. The first is much better in truth (docs/models/degre.md).
        utility_threshold: From plain logs the generator learns the logged slates whose utility reaches it. `None` until
            the training data is known; the Lightning module sets it to the quantile below.
        utility_quantile: The quantile of the logged utility on the training split, or the log it was mined from, that
            becomes the threshold.
        hard_label_weight: From mined slates: weight of the cross-entropy of the slates.
        soft_label_weight: From mined slates: weight of the divergence from the soft labels (paper: alpha).

    Raises:
        ValueError: If a name is unknown.
        huggingface_hub.errors.StrictDataclassError: If a value has the wrong type or is out of its range.
    """

    model_type = "degre"
    training_fields = FeedbackConfig.training_fields | {"utility_quantile", "hard_label_weight", "soft_label_weight"}
    measured_fields = frozenset({"utility_threshold"})

    num_hidden_layers: int = size_field(default=2)
    num_decoder_layers: int = size_field(default=2)
    field_size: int = size_field(default=16)
    guide: dict | None = None
    value_head: Literal["feedback", "cumulative_regression"] = "feedback"
    utility_threshold: float | int | None = None
    utility_quantile: float | int = share_field(default=0.5)
    hard_label_weight: float | int = weight_field(default=1.0)
    soft_label_weight: float | int = weight_field(default=1.0)

    def validate_labels(self) -> None:
        """Checks that something is left to learn; called by the strict dataclass."""
        if self.hard_label_weight == 0 and self.soft_label_weight == 0:
            raise ValueError("hard_label_weight and soft_label_weight are both 0: nothing is left to learn")

    def adapt_to_log(self, log: TrainingLog) -> None:
        """Sets the utility threshold, unless it was given; see `RerankingConfig.adapt_to_log`."""
        if self.utility_threshold is None:
            self.utility_threshold = log.utility_quantile(float(self.utility_quantile))


__all__ = ["DeGReConfig"]
