"""Likelihood and unlikelihood of logged slates under position-wise candidate distributions."""

from __future__ import annotations

import torch
from torch import Tensor

from rerankzoo.batch import PADDING
from rerankzoo.losses._precision import in_single_precision


@in_single_precision
def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax over the candidates, of which the losses of generators are made.

    Args:
        logits: (..., N), of any precision; the smallest finite number where a candidate cannot be chosen.

    Returns:
        (..., N), at least float32.

    Example:
        >>> log_probabilities(torch.zeros(1, 2, dtype=torch.float16))
        tensor([[-0.6931, -0.6931]])
    """
    return logits.log_softmax(-1)


@in_single_precision
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


@in_single_precision
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


@in_single_precision
def unlikelihood_loss(log_probs: Tensor, slates: Tensor, candidate_mask: Tensor) -> Tensor:
    """Unlikelihood of each slate: `-sum_j log(1 - p_{y_j j})` (NAR4Rec, sequence-level unlikelihood training).

    `1 - p` is summed over the other candidates, `log(1 - p_y) = logsumexp_{v != y} log p_v`: where p rounds to 1, on
    just the slates that need it most, the difference has neither value nor gradient.

    Args:
        log_probs: (B, M, N), log-probabilities over candidates for each position.
        slates: (B, S, M), indexes into the candidates, -100 where a slate is shorter.
        candidate_mask: (B, N), True where a candidate is real.

    Returns:
        (B, S), summed over positions; a padded position and a request with a single candidate, from which there is
        nothing to learn, contribute nothing.

    References:
        Welleck et al., Neural text generation with unlikelihood training (2020), for tokens; NAR4Rec (arXiv
        2402.06871) for whole slates.

    Example:
        >>> log_probs = torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]]).log()
        >>> unlikelihood_loss(log_probs, torch.tensor([[[0, 2]]]), torch.ones(1, 3, dtype=torch.bool))
        tensor([[1.6094]])
    """
    candidate = torch.arange(log_probs.shape[-1], device=log_probs.device)
    others = candidate_mask[:, None, None, :] & (slates.unsqueeze(-1) != candidate)  # (B, S, M, N)
    counted = (slates != PADDING) & others.any(-1)
    floor = torch.finfo(log_probs.dtype).min  # not -inf: the gradient of a sum of nothing is not a number
    log_rest = log_probs.unsqueeze(1).masked_fill(~others, floor).logsumexp(-1)  # (B, S, M)
    return -log_rest.masked_fill(~counted, 0.0).sum(-1)


@in_single_precision
def slate_mean(values: Tensor, slates: Tensor) -> Tensor:
    """The mean over each request's own slates, so that a request's loss does not depend on its neighbours' slates.

    Args:
        values: (B, S), one value per slate.
        slates: (B, S, M); a slate of -100 only is padding, in a batch of requests with different numbers of slates.

    Returns:
        (B,); 0 for a request without slates.

    Example:
        >>> slate_mean(torch.tensor([[1.0, 3.0], [2.0, 9.0]]), torch.tensor([[[0], [1]], [[1], [-100]]]))
        tensor([2., 2.])
    """
    real = (slates != PADDING).any(-1)
    return values.masked_fill(~real, 0.0).sum(-1) / real.sum(-1).clamp_min(1)
