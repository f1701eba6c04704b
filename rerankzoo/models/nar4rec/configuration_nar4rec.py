"""Configuration of NAR4Rec's generator and evaluator."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import RerankingConfig, TrainingLog, share_field, size_field, weight_field


@strict
class NAR4RecConfig(RerankingConfig):
    """Sizes and loss terms of `NAR4RecForReranking` and `NAR4RecEvaluator`; see also `RerankingConfig`.

    Args:
        num_hidden_layers: Layers of the candidate encoder; layers of the evaluator.
        num_position_layers: Layers of the position encoder (self-attention among positions, cross-attention to the
            candidates).
        utility_threshold: A logged slate whose utility reaches it is trained with likelihood, one below it with
            unlikelihood (paper: sequence-level unlikelihood training). `None` until the training data is known; the
            Lightning module sets it to the quantile below.
        utility_quantile: The quantile of the logged utility on the training split that becomes the threshold. Not
            stated in our sources.
        likelihood_weight: Weight of the likelihood of slates that reach the threshold.
        unlikelihood_weight: Weight of the unlikelihood of slates below it. Not stated in our sources.
        contrastive_weight: Weight of the contrastive loss on the candidate representations.
        position_contrastive_weight: Weight of the same loss on the position states (the paper's third term, which our
            sources name without a formula; there at most 0.1).
        contrastive_margin: rho of the contrastive losses (SimCTG uses 0.5).
        evaluator_is_causal: Whether the evaluator predicts a position's feedback from the items down to it, as people
            read, or from the whole slate. The paper says "sequence model"; both do equally well here.

    Raises:
        ValueError: If a name is unknown.
        huggingface_hub.errors.StrictDataclassError: If a value has the wrong type or is out of its range.
    """

    model_type = "nar4rec"
    training_fields = RerankingConfig.training_fields | {
        "utility_quantile",
        "likelihood_weight",
        "unlikelihood_weight",
        "contrastive_weight",
        "position_contrastive_weight",
        "contrastive_margin",
    }
    measured_fields = frozenset({"utility_threshold"})

    num_hidden_layers: int = size_field(default=2)
    num_position_layers: int = size_field(default=1)
    utility_threshold: float | int | None = None
    utility_quantile: float | int = share_field(default=0.5)
    likelihood_weight: float | int = weight_field(default=1.0)
    unlikelihood_weight: float | int = weight_field(default=1.0)
    contrastive_weight: float | int = weight_field(default=1.0)
    position_contrastive_weight: float | int = weight_field(default=0.0)
    contrastive_margin: float | int = weight_field(default=0.5)
    evaluator_is_causal: bool = True

    def adapt_to_log(self, log: TrainingLog) -> None:
        """Sets the utility threshold, unless it was given; see `RerankingConfig.adapt_to_log`."""
        if self.utility_threshold is None:
            self.utility_threshold = log.utility_quantile(float(self.utility_quantile))


__all__ = ["NAR4RecConfig"]
