"""Losses of lists: how scores order items whose relevance is known, whatever the scores mean otherwise.

All take scores (..., N), relevance (..., N), not negative, and a mask (..., N), True where an item's relevance is
known; they return (...), 0 for a list of one item, or without a relevant one. Relevance is a gain, as it counts in
NDCG: 1 for a click, 2^y - 1 for a grade y. Where a paper speaks of labels instead, of which it takes exponentials, they
are log2(1 + relevance): a click's 1 again, and the grade y. ValueError, on the CPU, if a known relevance is negative or
not finite; elsewhere the loss is NaN then, and training stops at it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.losses._precision import in_single_precision


@in_single_precision
def softmax_ranking_loss(scores: Tensor, relevance: Tensor, mask: Tensor) -> Tensor:
    """Softmax cross-entropy: `-sum_i r_i log softmax(s)_i / sum_i r_i`.

    References:
        Bruch et al., An Analysis of the Softmax Cross Entropy Loss for Learning-to-Rank with Binary Relevance (2019).

    Example:
        >>> softmax_ranking_loss(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([True, True]))
        tensor(0.6931)
    """
    relevance = _known(relevance, mask)
    return _cross_entropy(scores, relevance, mask)


@in_single_precision
def listnet_loss(scores: Tensor, relevance: Tensor, mask: Tensor) -> Tensor:
    """ListNet's top-one cross-entropy: `-sum_i softmax(y)_i log softmax(s)_i`, y = log2(1 + relevance).

    References:
        Cao et al., Learning to Rank: From Pairwise Approach to Listwise Approach (ICML 2007).

    Example:
        >>> listnet_loss(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([True, True]))
        tensor(0.6931)
    """
    relevance = _known(relevance, mask)
    return _cross_entropy(scores, (1 + relevance).log2().exp().masked_fill(~mask, 0), mask, relevance)


@in_single_precision
def attention_rank_loss(scores: Tensor, relevance: Tensor, mask: Tensor) -> Tensor:
    """The attention rank loss: cross-entropy with `a_i = exp(y_i)` of relevant items, 0 of others, normalised.

    References:
        Ai et al., Learning a Deep Listwise Context Model for Ranking Refinement (SIGIR 2018).

    Example:
        >>> attention_rank_loss(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([True, True]))
        tensor(0.6931)
    """
    relevance = _known(relevance, mask)
    return _cross_entropy(scores, (1 + relevance).log2().exp().masked_fill(relevance <= 0, 0), mask)


@in_single_precision
def listmle_loss(scores: Tensor, relevance: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of the order by relevance: every relevant item chosen before those that are less so.

    `-sum over relevant i of (s_i - log sum over j with r_j <= r_i of exp(s_j))`: without ties ListMLE, whose items of
    no relevance are left in any order. Tied items do not have the arbitrary order that the paper gives them: all of
    them compete (as in Breslow's likelihood), so the loss does not depend on the order of the input.

    References:
        Xia et al., Listwise Approach to Learning to Rank (ICML 2008).

    Example:
        >>> listmle_loss(torch.zeros(3), torch.tensor([1.0, 3.0, 0.0]), torch.ones(3, dtype=torch.bool))  # log 6
        tensor(1.7918)
    """
    relevance = _known(relevance, mask)
    ranked = relevance.masked_fill(~mask, -1.0).sort(dim=-1, descending=True)
    own = _floored(scores, mask).gather(-1, ranked.indices)
    below = own.flip(-1).logcumsumexp(-1).flip(-1)  # over the item and all behind it
    falling = -ranked.values.contiguous()
    first = torch.searchsorted(falling, falling)  # of the items that are as relevant
    relevant = ranked.values > 0
    return (below.gather(-1, first) - own).masked_fill(~relevant, 0.0).sum(-1)


@in_single_precision
def lambda_loss(scores: Tensor, relevance: Tensor, mask: Tensor, k: int | None = None) -> Tensor:
    """Logistic loss of pairs, weighed by what an exchange of the two would change of NDCG@k.

    `sum over r_i > r_j of |r_i - r_j| |1/D_i - 1/D_j| / ideal DCG@k x log(1 + exp(s_j - s_i))`, D = log2(1 + rank) of
    the order by the current scores, 1/D = 0 beyond k: LambdaRank's weights as the LambdaLoss framework has them. Pairs
    of which neither item is among the first k weigh nothing.

    Args:
        scores: (..., N).
        relevance: (..., N).
        mask: (..., N).
        k: Cut of the NDCG; default: none.

    References:
        Burges, From RankNet to LambdaRank to LambdaMART (2010); Wang et al., The LambdaLoss Framework for Ranking
        Metric Optimization (CIKM 2018), section 5.

    Example:
        >>> lambda_loss(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([True, True]))  # (1 - 1/log2 3) log 2
        tensor(0.2558)
    """
    relevance = _known(relevance, mask)
    size = scores.shape[-1]
    k = min(k or size, size)
    discount = 1 / torch.arange(2, size + 2, device=scores.device, dtype=scores.dtype).log2()
    discount = discount.masked_fill(torch.arange(size, device=scores.device) >= k, 0.0)
    ideal = (relevance.sort(dim=-1, descending=True).values * discount).sum(-1)
    order = _floored(scores.detach(), mask).argsort(dim=-1, descending=True, stable=True)
    s, r, known = scores.masked_fill(~mask, 0.0).gather(-1, order), relevance.gather(-1, order), mask.gather(-1, order)
    # In this order the first k meet all others; two of the first k meet twice.
    difference = r[..., :k, None] - r[..., None, :]
    weight = difference.abs() * (discount[:k, None] - discount).abs()
    weight[..., :k] *= 0.5
    weight = weight.masked_fill(~(known[..., :k, None] & known[..., None, :]), 0.0)
    lost = F.softplus(-difference.sign() * (s[..., :k, None] - s[..., None, :]))
    return (weight * lost).sum((-1, -2)) / ideal.masked_fill(ideal == 0, 1.0)


@in_single_precision
def step_cross_entropy(scores: Tensor, relevance: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of every step of a slate with what is relevant among the items left.

    `sum_t 1/log2(t + 1) sum_i q_ti log(q_ti / softmax(s_t)_i)`, q_t = r_i / sum r over the items that are left at step
    t: `softmax_ranking_loss` less the entropy of its targets, so that nothing is left to lose where they are met.

    Args:
        scores: (..., M, N), of the items at each step.
        relevance: (..., N).
        mask: (..., M, N), True where an item is left and its relevance known.

    Returns:
        (...), the sum over steps; a step without a relevant item counts 0.

    References:
        Bello et al., Seq2Slate: Re-ranking and Slate Optimization with RNNs (arXiv 1810.02019).

    Example:
        >>> left = torch.tensor([[True, True], [False, True]])  # the relevant one is chosen first
        >>> step_cross_entropy(torch.zeros(2, 2), torch.tensor([1.0, 0.0]), left)  # log 2
        tensor(0.6931)
    """
    relevance = _known(relevance.unsqueeze(-2), mask)
    targets = _shares(relevance)
    entropy = -torch.xlogy(targets, targets).sum(-1)
    return _over_steps(_cross_entropy(scores, targets, mask) - entropy)


@in_single_precision
def step_hinge(scores: Tensor, relevance: Tensor, mask: Tensor) -> Tensor:
    """Hinge loss of every step of a slate: the most relevant items left are to be 1 above the others.

    `sum_t 1/log2(t + 1) max(0, 1 - min over the most relevant left of s_t + max over the others left of s_t)`: of
    clicks the published loss; that of grades only the highest left counts as relevant is ours.

    Args and shapes are those of `step_cross_entropy`; a step counts 0 where nothing relevant is left, or nothing else.

    References:
        Bello et al., Seq2Slate: Re-ranking and Slate Optimization with RNNs (arXiv 1810.02019).

    Example:
        >>> step_hinge(torch.tensor([[0.5, 0.0]]), torch.tensor([1.0, 0.0]), torch.tensor([[True, True]]))
        tensor(0.5000)
    """
    relevance = _known(relevance.unsqueeze(-2), mask)
    best = mask & (relevance > 0) & (relevance == relevance.amax(-1, keepdim=True))
    far = torch.finfo(scores.dtype).max / 4  # and not infinite: the difference of two is to be a number
    lowest, highest = scores.masked_fill(~best, far).amin(-1), scores.masked_fill(~mask | best, -far).amax(-1)
    return _over_steps((1 - lowest + highest).clamp_min(0.0))


def _over_steps(losses: Tensor) -> Tensor:
    """The sum over steps (..., M), of which the first ones weigh most."""
    return losses @ (1 / torch.arange(2, losses.shape[-1] + 2, device=losses.device, dtype=losses.dtype).log2())


#: By the name that configs and recipes give them.
RANKING_LOSSES: dict[str, Callable[..., Tensor]] = {
    "softmax": softmax_ranking_loss,
    "listnet": listnet_loss,
    "attention_rank": attention_rank_loss,
    "listmle": listmle_loss,
    "lambda": lambda_loss,
}


def _known(relevance: Tensor, mask: Tensor) -> Tensor:
    """Relevance, 0 where it is not known."""
    relevance = relevance.masked_fill(~mask, 0.0)
    usable = (relevance >= 0) & relevance.isfinite()
    if relevance.device.type == "cpu" and not bool(usable.all()):
        wrong = relevance[~usable][0].item()
        raise ValueError(f"relevance: expected finite numbers of 0 or more, got {wrong}")
    return relevance.masked_fill(~usable, torch.nan)


def _floored(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)


def _cross_entropy(scores: Tensor, weights: Tensor, mask: Tensor, relevance: Tensor | None = None) -> Tensor:
    """Between weights, normalised, and the softmax of scores; 0 for a list without relevance (default: weights)."""
    told = ((weights if relevance is None else relevance) != 0).any(-1)
    log_probs = _floored(scores, mask).log_softmax(-1).masked_fill(~mask, 0.0)
    return -(_shares(weights) * log_probs).sum(-1).masked_fill(~told, 0.0)


def _shares(weights: Tensor) -> Tensor:
    """Weights (..., N) over their sum; 0 where that is."""
    total = weights.sum(-1, keepdim=True)
    return weights / total.masked_fill(total == 0, 1.0)
