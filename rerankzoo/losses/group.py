"""What the slates of a group are worth against one another, and a policy that learns it."""

from __future__ import annotations

import torch
from torch import Tensor

from rerankzoo.losses._precision import in_single_precision

#: Values that differ by less than this share of the largest are the same.
_ROUNDING = 1e-5
_NEVER = torch.finfo(torch.float32).min


@in_single_precision
def standardised(values: Tensor, mask: Tensor) -> Tensor:
    """Values of a group in standard deviations from their mean, which alone can be compared between requests.

    Args:
        values: (B, S, ...).
        mask: (B, S, ...), True where a value counts: not of slates that stand in the group twice.

    Returns:
        (B, S, ...), 0 elsewhere, and throughout a group whose values are all the same. The deviation is that of the
        population.

    Example:
        >>> standardised(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([[-1.,  1.,  0.]])
    """
    centred, scale = _centred(values, mask)
    variance = centred.square().sum(1, keepdim=True) / _count(mask)
    return centred / variance.masked_fill(variance <= (_ROUNDING * scale).square(), torch.inf).sqrt()


@in_single_precision
def advantages(values: Tensor, mask: Tensor, normalise: bool) -> Tensor:
    """What values (B, S, ...) are above the mean of their group, or `standardised`; 0 where they do not count.

    Example:
        >>> advantages(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]), normalise=False)
        tensor([[-1.,  1.,  0.]])
    """
    return standardised(values, mask) if normalise else _centred(values, mask)[0]


@in_single_precision
def group_targets(values: Tensor, mask: Tensor) -> Tensor:
    """The policy that a group's values ask for: `softmax_s((V_s - mean V) / deviation)`.

    Args:
        values: (B, S), what the slates are worth.
        mask: (B, S), True where a slate counts.

    Returns:
        (B, S), sums to 1 over the slates that count, which are on a par where all are worth the same; 0 elsewhere.

    References:
        GoalRank (arXiv 2509.22046), the reference policy of a group.

    Example:
        >>> group_targets(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([[0.1192, 0.8808, 0.0000]])
    """
    return standardised(values, mask).masked_fill(~mask, _NEVER).softmax(1).masked_fill(~mask, 0.0)


@in_single_precision
def group_loss(log_likelihood: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of a policy with `group_targets`: `-sum_s q_s log pi(l_s)`.

    Args:
        log_likelihood: (B, S), log pi of each slate.
        values: (B, S), what the slates are worth.
        mask: (B, S), True where a slate counts.

    Returns:
        (B,); 0 for a group whose slates are all worth the same, of which there is nothing to learn.

    References:
        GoalRank (arXiv 2509.22046), equation 5; groups without spread are left out there, too.

    Example:
        >>> group_loss(torch.tensor([[-2.0, -1.0]]), torch.tensor([[1.0, 3.0]]), torch.tensor([[True, True]]))
        tensor([1.1192])
    """
    told = standardised(values, mask).abs().amax(1) > 0
    weights = group_targets(values, mask) * told.unsqueeze(1)
    return -(weights * log_likelihood.masked_fill(~mask, 0.0)).sum(1)


def _count(mask: Tensor) -> Tensor:
    return mask.sum(1, keepdim=True).clamp_min(1)


def _centred(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Values less their mean, 0 where they do not count, and the largest of them (B, 1, ...)."""
    values = values.masked_fill(~mask, 0.0)
    centred = (values - values.sum(1, keepdim=True) / _count(mask)).masked_fill(~mask, 0.0)
    return centred, values.abs().amax(1, keepdim=True)
