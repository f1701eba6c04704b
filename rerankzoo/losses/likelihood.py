"""Likelihood and unlikelihood of logged slates under position-wise candidate distributions."""

from __future__ import annotations

import torch
from torch import Tensor

PADDING = -100


def position_log_likelihood(log_probs: Tensor, slates: Tensor) -> Tensor:
    """The log-probability that each position gives to the candidate logged there.

    Args:
        log_probs: (B, M, N), log-probabilities over candidates for each position.
        slates: (B, S, M), indexes into the candidates, -100 where a slate is shorter.

    Returns:
        (B, S, M); 0 at padded positions.

    Example:
        >>> log_probs = torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]]).log()
        >>> position_log_likelihood(log_probs, torch.tensor([[[0, 2]]])).exp()
        tensor([[[0.5000, 0.6000]]])
    """
    logged = slates != PADDING
    index = slates.clamp_min(0).unsqueeze(-1)  # (B, S, M, 1)
    expanded = log_probs.unsqueeze(1).expand(-1, slates.shape[1], -1, -1)  # (B, S, M, N)
    return expanded.gather(-1, index).squeeze(-1).masked_fill(~logged, 0.0)


def likelihood_loss(log_likelihood: Tensor) -> Tensor:
    """Negative log-likelihood of each slate: `-sum_j log p_{y_j j}` (NAR4Rec, sequence-level likelihood).

    Args:
        log_likelihood: (..., M), from `position_log_likelihood`.

    Returns:
        (...), summed over positions.

    Example:
        >>> likelihood_loss(torch.tensor([0.5, 0.6]).log())
        tensor(1.2040)
    """
    return -log_likelihood.sum(-1)


def unlikelihood_loss(log_likelihood: Tensor) -> Tensor:
    """Unlikelihood of each slate: `-sum_j log(1 - p_{y_j j})` (NAR4Rec, sequence-level unlikelihood training).

    A padded position has log-likelihood 0 and cannot be told from a certain one; both contribute nothing, since a
    probability of exactly 1 belongs to a request with a single candidate, from which there is nothing to learn.

    Args:
        log_likelihood: (..., M), from `position_log_likelihood`.

    Returns:
        (...), summed over positions.

    References:
        Welleck et al., Neural text generation with unlikelihood training (2020), for tokens; NAR4Rec (arXiv
        2402.06871) for whole slates.

    Example:
        >>> unlikelihood_loss(torch.tensor([0.5, 0.6]).log())
        tensor(1.6094)
    """
    certain = log_likelihood > -torch.finfo(log_likelihood.dtype).eps
    safe = log_likelihood.masked_fill(certain, -1.0)
    return -log1mexp(safe).masked_fill(certain, 0.0).sum(-1)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, accurate at both ends (Maechler, 2012).

    Both branches are fed with values of their own range, so that the gradient of the one not taken is finite.
    """
    near_zero = x > -0.6931471805599453  # log(1/2)
    upper = torch.where(near_zero, x, -0.5)
    lower = torch.where(near_zero, -1.0, x)
    return torch.where(near_zero, torch.log(-torch.expm1(upper)), torch.log1p(-torch.exp(lower)))
