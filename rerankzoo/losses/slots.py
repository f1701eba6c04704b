"""Masked denoising of slates: which slots are hidden, and what it costs not to find what stands there.

B requests, N candidates, M positions, S slates, K = M * M ways to hide slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rerankzoo.losses._precision import in_single_precision


def hidden_slots(slates: Tensor) -> Tensor:
    """Ways to hide some slots of each slate: every number of slots in a row, from every one, going round at the end.

    Args:
        slates: (B, S, M), -100 pads.

    Returns:
        (B, S, K, M), True where a slot is hidden. A slate of m items has m (m - 1) + 1 ways; the others hide nothing.

    Example:
        >>> hidden_slots(torch.tensor([[[4, 7, -100]]])).long()[0, 0].unique(dim=0).tolist()
        [[0, 0, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0]]
    """
    size, real = slates.shape[-1], slates >= 0
    length = real.sum(-1)[..., None, None]  # (B, S, 1, 1)
    place = torch.arange(size, device=slates.device)
    first, number = place.repeat(size), place.repeat_interleave(size) + 1  # (K,)
    hidden = (place - first.unsqueeze(-1)) % length.clamp_min(1) < number.unsqueeze(-1)
    number, first = number.unsqueeze(-1), first.unsqueeze(-1)
    once = (first < length) & ((number < length) | ((number == length) & (first == 0)))
    return hidden & once & real.unsqueeze(2)


@in_single_precision
def masked_slot_loss(log_probs: Tensor, slates: Tensor, hidden: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy of what stands in hidden slots: the mean over the ways to hide, of the mean over hidden slots.

    Args:
        log_probs: (B, S, K, M, N), log-probabilities at each slot, given those that are not hidden.
        slates: (B, S, M), indexes into the candidates, -100 pads.
        hidden: (B, S, K, M), see `hidden_slots`.
        weights: (B, S, M), of each position's cross-entropy.

    Returns:
        (B, S); 0 for an empty slate.

    References:
        UniRank (arXiv 2605.10527), training objective, with the ways to hide counted instead of drawn.

    Example:
        >>> hidden = torch.tensor([[[[True, False], [True, True]]]])
        >>> log_probs = torch.full((1, 1, 2, 2, 2), 0.5).log()
        >>> masked_slot_loss(log_probs, torch.tensor([[[0, 1]]]), hidden, torch.tensor([[[1.0, 0.0]]]))
        tensor([[0.5199]])
    """
    index = slates.clamp_min(0)[:, :, None, :, None].expand(*hidden.shape, 1)
    cost = -log_probs.gather(-1, index).squeeze(-1).masked_fill(~hidden, 0.0) * weights.unsqueeze(2)
    ways = cost.sum(-1) / hidden.sum(-1).clamp_min(1)  # (B, S, K)
    return ways.sum(-1) / hidden.any(-1).sum(-1).clamp_min(1)
