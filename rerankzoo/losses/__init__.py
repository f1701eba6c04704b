"""Losses as pure functions; each returns one value per request or slate, never a mean over the batch."""

from __future__ import annotations

from rerankzoo.losses.contrastive import contrastive_loss
from rerankzoo.losses.distillation import hard_label_loss, soft_label_loss
from rerankzoo.losses.feedback import feedback_loss
from rerankzoo.losses.likelihood import (
    likelihood_loss,
    position_log_likelihood,
    slate_mean,
    unlikelihood_loss,
)
from rerankzoo.losses.regression import cumulative_regression_loss

__all__ = [
    "contrastive_loss",
    "cumulative_regression_loss",
    "feedback_loss",
    "hard_label_loss",
    "likelihood_loss",
    "position_log_likelihood",
    "slate_mean",
    "soft_label_loss",
    "unlikelihood_loss",
]
