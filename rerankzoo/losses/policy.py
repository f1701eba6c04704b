"""Policy gradients: a generator learns from what slates that it drew were worth."""

from __future__ import annotations

import torch
from torch import Tensor

from rerankzoo.losses._precision import in_single_precision


@in_single_precision
def returns_to_go(gains: Tensor, discount: float) -> Tensor:
    """What is earned from each position on: `R_t = r_t + discount R_{t+1}`.

    Args:
        gains: (..., M), r: what each position adds.
        discount: 1: a choice answers for all that follows; 0: for its own gain only.

    Returns:
        (..., M).

    Example:
        >>> returns_to_go(torch.tensor([1.0, 2.0, 4.0]), discount=0.5)
        tensor([3., 4., 4.])
    """
    total, returns = torch.zeros_like(gains[..., 0]), []
    for gain in reversed(gains.unbind(-1)):
        total = gain + discount * total
        returns.append(total)
    return torch.stack(returns[::-1], dim=-1)


@in_single_precision
def policy_gradient_loss(
    log_probs: Tensor, advantages: Tensor, old_log_probs: Tensor | None = None, clip: float | None = None
) -> Tensor:
    """`-sum_t A_t log pi(l_t)`, whose gradient is the policy gradient; or PPO's clipped form of it.

    With `clip` it is `-sum_t min(rho_t A_t, clamp(rho_t, 1 - clip, 1 + clip) A_t)`, rho_t = pi(l_t) / pi_old(l_t).

    Args:
        log_probs: (B, S, M), log-probability of each choice given those above; 0 at padding.
        advantages: (B, S, M) or (B, S, 1), A: how much better a choice, or its slate, was than expected.
        old_log_probs: (B, S, M), of the policy that the slates were drawn from; with `clip` only.
        clip: How far the ratio of both may go.

    Returns:
        (B, S).

    References:
        Williams, 1992 (REINFORCE); Schulman et al., 2017 (PPO), equation 7.

    Example:
        >>> policy_gradient_loss(torch.tensor([[[-1.0, -2.0]]]), torch.tensor([[[0.5, 1.0]]]))
        tensor([[2.5000]])
        >>> now, old = torch.tensor([[[0.6]]]).log(), torch.tensor([[[0.4]]]).log()
        >>> policy_gradient_loss(now, torch.tensor([[[1.0]]]), old, clip=0.2)
        tensor([[-1.2000]])
    """
    if clip is None or old_log_probs is None:
        return -(advantages * log_probs).sum(-1)
    ratio = (log_probs - old_log_probs).exp()
    bounded = ratio.clamp(1 - clip, 1 + clip)
    shown = (log_probs != 0) | (old_log_probs != 0)  # a sure choice has nothing to learn, and padding is one
    return -torch.minimum(ratio * advantages, bounded * advantages).masked_fill(~shown, 0.0).sum(-1)


@in_single_precision
def group_value_loss(log_likelihood: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """The policy gradient where slates were given and not drawn: `-sum_s p_s A_s`, p_s = pi(l_s) within the group.

    The expected advantage of the policy restricted to the group, which is importance weighting, self-normalised, with
    all slates of the group equally likely to be in it. Unlike `-sum_s A_s log pi(l_s)` it is bounded: nothing is gained
    by making bad slates ever less likely.

    Args:
        log_likelihood: (B, S).
        advantages: (B, S).
        mask: (B, S), True where a slate counts.

    Returns:
        (B,).

    Example:
        >>> chances, both = torch.tensor([[0.3, 0.1]]), torch.tensor([[True, True]])
        >>> group_value_loss(chances.log(), torch.tensor([[1.0, -1.0]]), both)
        tensor([-0.5000])
    """
    floor = torch.finfo(log_likelihood.dtype).min
    within = log_likelihood.masked_fill(~mask, floor).softmax(1)
    return -(within * advantages.masked_fill(~mask, 0.0)).sum(1)
