"""Losses as pure functions; each returns one value per request or slate, never a mean over the batch.

All compute in single precision at least, also under autocast and of half-precision models. Where there is nothing to
learn (no position shown, no second candidate to tell the first one from), the loss is 0 and so are its gradients: it
stays part of the graph, so that distributed training does not wait for parameters without a gradient.
"""

from __future__ import annotations

from rerankzoo.losses._precision import in_single_precision
from rerankzoo.losses.contrastive import contrastive_loss
from rerankzoo.losses.distillation import hard_label_loss, soft_label_loss
from rerankzoo.losses.feedback import (
    cumulative_regression_loss,
    exit_log_likelihood,
    feedback_log_likelihood,
    feedback_loss,
    mean_feedback_loss,
    ordered_regression_loss,
)
from rerankzoo.losses.flow import detailed_balance, group_balance, trajectory_balance
from rerankzoo.losses.graph import graph_log_likelihood, log_transitions
from rerankzoo.losses.group import advantages, group_loss, group_targets, standardised
from rerankzoo.losses.likelihood import (
    likelihood_loss,
    log_probabilities,
    position_log_likelihood,
    slate_mean,
    unlikelihood_loss,
)
from rerankzoo.losses.neighbours import neighbour_loss
from rerankzoo.losses.policy import group_value_loss, policy_gradient_loss, returns_to_go
from rerankzoo.losses.preference import dpo_loss, resorted_slates
from rerankzoo.losses.ranking import (
    RANKING_LOSSES,
    attention_rank_loss,
    lambda_loss,
    listmle_loss,
    listnet_loss,
    softmax_ranking_loss,
    step_cross_entropy,
    step_hinge,
)
from rerankzoo.losses.slots import hidden_slots, masked_slot_loss

__all__ = [
    "RANKING_LOSSES",
    "advantages",
    "attention_rank_loss",
    "contrastive_loss",
    "cumulative_regression_loss",
    "detailed_balance",
    "dpo_loss",
    "exit_log_likelihood",
    "feedback_log_likelihood",
    "feedback_loss",
    "graph_log_likelihood",
    "group_balance",
    "group_loss",
    "group_targets",
    "group_value_loss",
    "hard_label_loss",
    "hidden_slots",
    "in_single_precision",
    "lambda_loss",
    "likelihood_loss",
    "listmle_loss",
    "listnet_loss",
    "log_probabilities",
    "log_transitions",
    "masked_slot_loss",
    "mean_feedback_loss",
    "neighbour_loss",
    "ordered_regression_loss",
    "policy_gradient_loss",
    "position_log_likelihood",
    "resorted_slates",
    "returns_to_go",
    "slate_mean",
    "soft_label_loss",
    "softmax_ranking_loss",
    "standardised",
    "step_cross_entropy",
    "step_hinge",
    "trajectory_balance",
    "unlikelihood_loss",
]
