"""Regression of what prefixes of a slate earned."""

from __future__ import annotations

from torch import Tensor

from rerankzoo.losses._precision import in_single_precision

#: Errors beyond it count as much; their squares would overflow.
_LARGEST_ERROR = 1e15


@in_single_precision
def cumulative_regression_loss(values: Tensor, rewards: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of prefix values: `mean over t of (V(l_1..l_t) - sum_{k<=t} r_k)^2`.

    An error beyond 1e15 counts as 1e15, without a gradient.

    Args:
        values: (..., M), the value of the prefix that ends at each position.
        rewards: (..., M), what each position earned.
        mask: (..., M), True where a position was shown.

    Returns:
        (...); 0 for an empty slate.

    References:
        DeGRe (arXiv 2605.25749), cumulative regression head of the evaluator.

    Example:
        >>> import torch
        >>> values, rewards = torch.tensor([1.0, 1.0, 9.0]), torch.tensor([1.0, 2.0, 5.0])
        >>> cumulative_regression_loss(values, rewards, torch.tensor([True, True, False]))
        tensor(2.)
    """
    reached = rewards.masked_fill(~mask, 0.0).cumsum(-1)
    error = (values - reached).masked_fill(~mask, 0.0).clamp(-_LARGEST_ERROR, _LARGEST_ERROR)
    return error.square().sum(-1) / mask.sum(-1).clamp_min(1)
