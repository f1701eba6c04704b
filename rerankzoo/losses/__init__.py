"""Losses as pure functions; each returns one value per request or slate, never a mean over the batch."""

from __future__ import annotations

from rerankzoo.losses.contrastive import contrastive_loss
from rerankzoo.losses.feedback import feedback_loss
from rerankzoo.losses.likelihood import (
    likelihood_loss,
    position_log_likelihood,
    slate_mean,
    unlikelihood_loss,
)

__all__ = [
    "contrastive_loss",
    "feedback_loss",
    "likelihood_loss",
    "position_log_likelihood",
    "slate_mean",
    "unlikelihood_loss",
]
