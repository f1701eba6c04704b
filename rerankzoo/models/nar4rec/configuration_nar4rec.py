"""Configuration of NAR4Rec's generator and evaluator."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from rerankzoo.models.base import ImitationConfig, size_field, weight_field


@strict
class NAR4RecConfig(ImitationConfig):
    """Sizes and loss terms of `NAR4RecForReranking` and `NAR4RecEvaluator`; see also `ImitationConfig`.

    A logged slate that reaches the utility threshold is trained with likelihood, one below it with unlikelihood (paper:
    sequence-level unlikelihood training). How the threshold is set is not stated in our sources.

    Args:
        num_hidden_layers: Layers of the candidate encoder; layers of the evaluator.
        num_position_layers: Layers of the position encoder (self-attention among positions, cross-attention to the
            candidates).
        likelihood_weight: Weight of the likelihood of slates that reach the threshold.
        unlikelihood_weight: Weight of the unlikelihood of slates below it. Not stated in our sources.
        contrastive_weight: Weight of the contrastive loss on the candidate representations.
        position_contrastive_weight: Weight of the same loss on the position states (the paper's third term, which our
            sources name without a formula; there at most 0.1).
        contrastive_margin: rho of the contrastive losses (SimCTG uses 0.5).
        evaluator_is_causal: Whether the evaluator predicts a position's feedback from the items down to it, as people
            read, or from the whole slate. The paper says "sequence model"; both do equally well here.
    """

    model_type = "nar4rec"
    training_fields = ImitationConfig.training_fields | {
        "likelihood_weight",
        "unlikelihood_weight",
        "contrastive_weight",
        "position_contrastive_weight",
        "contrastive_margin",
    }

    num_hidden_layers: int = size_field(default=2)
    num_position_layers: int = size_field(default=1)
    likelihood_weight: float | int = weight_field(default=1.0)
    unlikelihood_weight: float | int = weight_field(default=1.0)
    contrastive_weight: float | int = weight_field(default=1.0)
    position_contrastive_weight: float | int = weight_field(default=0.0)
    contrastive_margin: float | int = weight_field(default=0.5)
    evaluator_is_causal: bool = True


__all__ = ["NAR4RecConfig"]
