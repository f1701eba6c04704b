"""Configuration of the interaction evaluator."""

from __future__ import annotations

from typing import Literal

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import FeedbackConfig, TrainingLog, count_field, size_field, weight_field


@strict
class InteractionEvaluatorConfig(FeedbackConfig):
    """Sizes and parts of `InteractionEvaluator`; see also `FeedbackConfig`.

    Args:
        behaviour: How users come to a position, and so what the likelihood of a slate's feedback is:
            `"independent"`: every position by itself; `"cascade"`: from the top, with a latent end; `"satisfaction"`: a
            cascade that a click ends the more probably, the more the item satisfies; `"memory"`: a cascade in which a
            click changes what is clicked further down, by pairs of items; `"choice"`: at most one item of the whole
            slate. Held-out likelihood tells which (`val/log_likelihood`).
        num_interaction_heads: Heads of the pair channel; half of them are rectified. 0: no pair channel.
        interaction_size: Rank of a head.
        interaction_fields: Fields of candidates that the pair channel reads. `None` until the training data is known:
            the Lightning module names those that belong to the item (its category, say, and not its affinity to the
            user: what items do to one another depends on the items). Without a log: all but the id.
        compares: Whether the pair channel also reads how an item does by itself, and its fields times that: two items
            of a kind are then compared, and not only alike.
        looks_ahead: Whether an item has an effect on those above it: they are then revised when it is added.
        reads_ids: Whether the network that reads an item's fields also reads an embedding of its id. What an id alone
            tells is small and noisy, and mostly a number per item is enough (`item_bias_std`).
        item_bias_std: Standard deviation of the Gaussian prior of a number per item id that is added to the logits; 0:
            no such number.
        denoises_upstream: Whether the upstream scores of all candidates are learned beside the feedback, where the
            schema has them: the prediction, less noisy than the score, becomes a feature, and what it takes to predict
            them of each single item is added to what the pair channel reads.
        num_hidden_layers: Layers of a causal Transformer over the slate, whose states add to the logits through a gate;
            0: none.
        num_logged_positions: A prior weighs as much as one of so many positions. `None` until the training data is
            known; the Lightning module measures it.
    """

    model_type = "interaction"
    training_fields = FeedbackConfig.training_fields | {"item_bias_std"}
    measured_fields = frozenset({"num_logged_positions"})

    behaviour: Literal["independent", "cascade", "satisfaction", "memory", "choice"] = "cascade"
    num_interaction_heads: int = count_field(default=4)
    interaction_size: int = size_field(default=16)
    interaction_fields: list[str] | None = None
    compares: bool = True
    looks_ahead: bool = True
    reads_ids: bool = False
    item_bias_std: float | int = weight_field(default=0.5)
    denoises_upstream: bool = True
    num_hidden_layers: int = count_field(default=0)
    num_logged_positions: int | None = None

    def validate_interaction_fields(self) -> None:
        """Checks that the schema has the fields; called by the strict dataclass."""
        if self.feature_schema is not None and self.interaction_fields is not None:
            known = [field.name for field in self.schema.fields if field.group == "candidate"]
            unknown = sorted(set(self.interaction_fields) - set(known))
            if unknown:
                raise ValueError(f"interaction_fields names {unknown}; the schema's candidate fields are {known}")

    def adapt_to_log(self, log: TrainingLog) -> None:
        """See `RerankingConfig.adapt_to_log`."""
        if self.interaction_fields is None and self.num_interaction_heads:
            self.interaction_fields = log.item_fields()
        if self.num_logged_positions is None:
            self.num_logged_positions = log.num_positions()


__all__ = ["InteractionEvaluatorConfig"]
