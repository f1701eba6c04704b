"""Flows: policies that draw slates with probabilities proportional to what they are worth.

A generative flow network lets a flow F run from the empty slate over prefixes to slates, and out of slate l as much as
its reward R(l). Where it balances, pi(l) = R(l) / F(empty slate).
"""

from __future__ import annotations

import torch
from torch import Tensor

from rerankzoo.losses._precision import in_single_precision


@in_single_precision
def group_balance(log_likelihood: Tensor, log_rewards: Tensor, mask: Tensor) -> Tensor:
    """Balance within a group of slates, without a flow: the variance of `log R(l_s) - log pi(l_s)`.

    Args:
        log_likelihood: (B, S), log pi.
        log_rewards: (B, S), log R, up to a constant of the request.
        mask: (B, S), True where a slate counts.

    Returns:
        (B,); 0 of fewer than two slates.

    References:
        Richter et al., VarGrad (2020); for flow networks: Zhang et al., 2023, the mean in place of log F.

    Example:
        >>> chances, rewards = torch.tensor([[0.2, 0.8]]), torch.tensor([[1.0, 4.0]])
        >>> group_balance(chances.log(), rewards.log(), torch.tensor([[True, True]]))
        tensor([0.])
    """
    excess = (log_rewards - log_likelihood.masked_fill(~mask, 0.0)).masked_fill(~mask, 0.0)
    count = mask.sum(1, keepdim=True).clamp_min(1)
    centred = (excess - excess.sum(1, keepdim=True) / count).masked_fill(~mask, 0.0)
    return centred.square().sum(1) / count.squeeze(1)


@in_single_precision
def trajectory_balance(log_probs: Tensor, log_flows: Tensor, log_rewards: Tensor, slates: Tensor) -> Tensor:
    """Balance of whole slates: `(log F(empty slate) + sum_t log pi(l_t) - log R(l))^2`.

    Args:
        log_probs: (B, S, M), log-probability of each choice given those above; 0 at padding.
        log_flows: (B, S, M), log F of the prefix above each position, at the first of the empty slate.
        log_rewards: (B, S).
        slates: (B, S, M), -100 pads.

    Returns:
        (B, S); 0 of an empty slate.

    References:
        Malkin et al., Trajectory balance (2022); GFN4Rec (arXiv 2306.02239).

    Example:
        >>> choices, flows = torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[8.0, 4.0]]])
        >>> slates = torch.tensor([[[0, 1]]])
        >>> trajectory_balance(choices.log(), flows.log(), torch.tensor([[2.0]]).log(), slates)
        tensor([[0.]])
    """
    excess = log_flows[..., 0] + log_probs.sum(-1) - log_rewards
    return excess.masked_fill((slates < 0).all(-1), 0.0).square()


@in_single_precision
def detailed_balance(log_probs: Tensor, log_flows: Tensor, log_rewards: Tensor, slates: Tensor) -> Tensor:
    """Balance of every step: `sum_t (log F(l_<t) + log pi(l_t) - log F(l_<=t))^2`, F of a whole slate being R.

    Args and references are those of `trajectory_balance`.

    Returns:
        (B, S), summed over positions; 0 of an empty slate.

    Example:
        >>> choices, flows = torch.tensor([[[0.5, 0.5]]]), torch.tensor([[[8.0, 4.0]]])
        >>> slates = torch.tensor([[[0, 1]]])
        >>> detailed_balance(choices.log(), flows.log(), torch.tensor([[2.0]]).log(), slates)
        tensor([[0.]])
    """
    shown = slates >= 0
    last = shown & ~torch.cat([shown[..., 1:], torch.zeros_like(shown[..., :1])], dim=-1)
    after = torch.cat([log_flows[..., 1:], log_flows[..., :1]], dim=-1)
    after = torch.where(last, log_rewards.unsqueeze(-1), after)
    return (log_flows + log_probs - after).masked_fill(~shown, 0.0).square().sum(-1)
