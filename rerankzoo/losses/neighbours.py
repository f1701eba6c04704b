"""What an edit of a slate is worth: the gains of all slates that are one edit away."""

from __future__ import annotations

import torch
from torch import Tensor

from rerankzoo.losses._precision import in_single_precision


@in_single_precision
def neighbour_loss(position_log_probs: Tensor, item_log_probs: Tensor, gains: Tensor, position_weight: float) -> Tensor:
    """A policy of edits learns what each of a slate's neighbours gains on the slate.

    With p_j the chance of editing position j, p_jk that of putting candidate k there, and g_jk what that gains:

        -sum_j p_j r_j - position_weight * sum_j q_j log p_j,    r_j = sum_k p_jk g_jk,  q = softmax_j(r_j)

    The first term is the expected gain, exactly; q has no gradient.

    Args:
        position_log_probs: (B, S, M), log p_j; -inf at padding.
        item_log_probs: (B, S, M, N), log p_jk; -inf where a candidate cannot stand.
        gains: (B, S, M, N), g_jk, in units of their own spread; 0 where there is no such edit.
        position_weight: Of the second term.

    Returns:
        (B, S); 0 for a slate whose neighbours are all worth what it is.

    References:
        NLGR (arXiv 2502.06097), L1 + alpha L2. Its rewards are those of one sampled neighbour per position, normalised
        by their sum; expectation and softmax are ours.

    Example:
        >>> positions, items = torch.tensor([[[0.5, 0.5]]]).log(), torch.tensor([[[[0.5, 0.5], [1.0, 0.0]]]]).log()
        >>> gains = torch.tensor([[[[0.0, 2.0], [0.0, 0.0]]]])
        >>> neighbour_loss(positions, items, gains, position_weight=0.2)
        tensor([[-0.3614]])
    """
    real = position_log_probs > float("-inf")
    earned = (item_log_probs.exp() * gains).sum(-1)  # (B, S, M)
    expected = (position_log_probs.exp() * earned).sum(-1)
    floor = torch.finfo(earned.dtype).min
    wanted = earned.detach().masked_fill(~real, floor).softmax(-1) * (gains != 0).any(-1).any(-1, keepdim=True)
    return -expected - position_weight * (wanted * position_log_probs.masked_fill(~real, 0.0)).sum(-1)
