"""Distillation of a search into a generator: the slates found (hard) and the values of every choice (soft)."""

from __future__ import annotations

from torch import Tensor

from rerankzoo.batch import PADDING
from rerankzoo.losses._precision import in_single_precision


@in_single_precision
def hard_label_loss(log_probs: Tensor, slates: Tensor) -> Tensor:
    """Cross-entropy of the slates found: `-sum_t log p_t(l_t)`.

    Args:
        log_probs: (B, S, M, N), log-probabilities at each position of each slate, given the items above it.
        slates: (B, S, M), indexes into the candidates, -100 pads.

    Returns:
        (B, S), summed over positions; 0 at padding.

    References:
        DeGRe (arXiv 2605.25749), hybrid distillation, first term.

    Example:
        >>> import torch
        >>> log_probs = torch.tensor([[[[0.5, 0.25, 0.25], [0.0, 0.4, 0.6]]]]).log()
        >>> hard_label_loss(log_probs, torch.tensor([[[0, 2]]]))
        tensor([[1.2040]])
    """
    index = slates.clamp_min(0).unsqueeze(-1)
    chosen = log_probs.gather(-1, index).squeeze(-1)
    return -chosen.masked_fill(slates == PADDING, 0.0).sum(-1)


@in_single_precision
def soft_label_loss(log_probs: Tensor, soft_labels: Tensor, slates: Tensor) -> Tensor:
    """Divergence from what a teacher thinks of every candidate: `sum_t KL(q_t || p_t)`.

    Args:
        log_probs: (B, S, M, N), log-probabilities at each position of each slate, given the items above it; may be -inf
            where the soft label is 0.
        soft_labels: (B, S, M, N), q_t: a distribution over the candidates that are left at position t.
        slates: (B, S, M), indexes into the candidates, -100 pads.

    Returns:
        (B, S), summed over positions; 0 at padding.

    References:
        DeGRe (arXiv 2605.25749), hybrid distillation, second term.

    Example:
        >>> import torch
        >>> p, q = torch.tensor([[[[0.5, 0.5]]]]), torch.tensor([[[[1.0, 0.0]]]])
        >>> soft_label_loss(p.log(), q, torch.tensor([[[0]]]))
        tensor([[0.6931]])
    """
    # A label of 0 says nothing, and 0 x -inf would not be a number.
    counted = (soft_labels > 0) & (slates != PADDING).unsqueeze(-1)
    q = soft_labels.masked_fill(~counted, 1.0)
    divergence = q * (q.log() - log_probs.masked_fill(~counted, 0.0))
    return divergence.masked_fill(~counted, 0.0).sum((-1, -2))
