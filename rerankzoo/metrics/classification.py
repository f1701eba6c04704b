"""Measures of predicted click (or order) probabilities: AUC, grouped AUC, log-loss, calibration.

All functions share tensors of any one shape, usually (B, M) or (B, N): `predictions`, scores of any monotone scale for
the AUCs, probabilities for the others; `labels`, 0 or 1 for the AUCs, in [0, 1] for the others; and `mask` bool, True
where an entry counts (default: all; others may hold anything). They raise ValueError on differing shapes, an unknown
option, and an entry that is not finite or outside these ranges. They pool entries across requests, so they are no means
over requests: over several batches, keep the entries and call them once.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rerankzoo.metrics._checks import as_float, check_fraction, check_option, check_rows, check_shape, checked_mask

GroupWeights = Literal["uniform", "impressions", "positives"]


class GroupedAUC(NamedTuple):
    """AUC of every group that has both classes, G groups in ascending order of their id."""

    auc: Tensor  # (G,) float, ties count one half
    positives: Tensor  # (G,) int64, number of positives
    negatives: Tensor


def auc(predictions: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """P(score of a positive > score of a negative) over all pairs of entries; ties count one half.

    *Pooled*: pairs run across requests (PIER's code, RecBole). The mean over batches of a per-batch AUC (GoalRank's
    evaluator training) depends on the batch size and is not offered; for an AUC within requests see `gauc`. Computed
    from ranks in whole numbers, hence exact up to the last division. Returns a scalar in [0, 1]; 0.5, the value of an
    uninformative score, if there are not both classes.
    """
    pooled = grouped_auc(predictions, labels, torch.zeros_like(predictions, dtype=torch.int64), mask)
    return pooled.auc[0] if pooled.auc.numel() else pooled.auc.new_tensor(0.5)


def grouped_auc(predictions: Tensor, labels: Tensor, groups: Tensor, mask: Tensor | None = None) -> GroupedAUC:
    """AUC within every group that has both classes; `groups` (...) int64 is the group of every entry."""
    check_shape("groups", groups, tuple(predictions.shape), "predictions")
    scores, targets, kept = _select(predictions, labels, mask, (labels != 0) & (labels != 1), "is neither 0 nor 1")
    group = torch.unique(groups[kept], return_inverse=True)[1]
    positive = targets.long()
    num_groups = int(group.max()) + 1 if group.numel() else 0
    sizes = torch.bincount(group, minlength=num_groups)
    positives = positive.new_zeros(num_groups).index_add_(0, group, positive)
    rank_sums = positive.new_zeros(num_groups).index_add_(0, group, positive * _twice_rank(scores, group, sizes))
    negatives = sizes - positives
    both = (positives > 0) & (negatives > 0)
    positives, negatives, rank_sums = positives[both], negatives[both], rank_sums[both]
    # Mann-Whitney U of the positives; everything is doubled so that the half ranks of ties stay whole numbers.
    twice_u = rank_sums - positives * (positives + 1)
    twice_pairs = 2 * positives * negatives
    return GroupedAUC(twice_u.to(scores.dtype) / twice_pairs.to(scores.dtype), positives, negatives)


def gauc(
    predictions: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    groups: Tensor | None = None,
    *,
    weights: GroupWeights = "impressions",
) -> Tensor:
    """Weighted mean of the AUC within groups; groups without both classes are skipped.

    `groups` (...) int64 is the group of every entry, for example the user; by default a row (request) is a group, and
    vectors have none. By `weights` a group counts `"uniform"`: once (YOLOR's mean AUC in the list); `"impressions"`: by
    its entries (DIN); `"positives"`: by its positives (RecBole, with users as groups). Returns a scalar in [0, 1]; 0.5,
    the value of an uninformative score, if no group has both classes.
    """
    check_option("weights", weights, GroupWeights)
    if groups is None:
        if predictions.dim() < 2:
            raise ValueError(f"predictions of shape {tuple(predictions.shape)} have no rows to group by: give groups")
        rows = torch.arange(len(predictions), device=predictions.device)
        groups = rows.reshape(-1, *[1] * (predictions.dim() - 1)).expand_as(predictions)
    result = grouped_auc(predictions, labels, groups, mask)
    weight = result.positives + result.negatives if weights == "impressions" else result.positives
    if weights == "uniform":
        weight = torch.ones_like(weight)
    return (weight * result.auc).sum() / weight.sum() if len(weight) else result.auc.new_tensor(0.5)


def log_loss(predictions: Tensor, labels: Tensor, mask: Tensor | None = None, *, eps: float = 1e-7) -> Tensor:
    """Mean of -(y log p + (1 - y) log(1 - p)) over entries.

    p is a probability of its own entry. LibRerank feeds a softmax over the list instead, so its log-loss is no click
    log-loss and not comparable. Probabilities of both outcomes are raised to at least `eps`, strictly between 0 and 1,
    which bounds an entry's loss by -log(eps). Returns a scalar >= 0; 0 if there are no entries.
    """
    check_fraction("eps", eps)
    probability, target = _probabilities(predictions, labels, mask)
    # 1 - p is clipped by itself: 1 - eps would round to 1 in float32 for a small eps.
    loss = -(target * probability.clamp(min=eps).log() + (1 - target) * (1 - probability).clamp(min=eps).log())
    return loss.sum() / max(1, loss.numel())


def calibration(predictions: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean prediction / mean label: 1 is calibrated, above 1 predicts too much ("predicted over observed CTR").

    Returns a scalar >= 0. Where nothing is observed: infinity, or 1 if nothing is predicted either.
    """
    probability, target = _probabilities(predictions, labels, mask)
    predicted, observed = probability.sum(), target.sum()
    return torch.where((predicted == 0) & (observed == 0), torch.ones_like(predicted), predicted / observed)


def _select(
    predictions: Tensor, labels: Tensor, mask: Tensor | None, bad_labels: Tensor, problem: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the predictions and labels that count, each (E,), and the mask."""
    check_shape("labels", labels, tuple(predictions.shape), "predictions")
    kept = checked_mask(mask, predictions, "predictions")
    scores = as_float(predictions.detach())
    check_rows("predictions", kept & ~scores.isfinite(), scores, "is not finite")
    check_rows("labels", kept & bad_labels, labels, problem)
    return scores[kept], labels[kept], kept


def _probabilities(predictions: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    bad_predictions, bad_labels = (~((values >= 0) & (values <= 1)) for values in (predictions, labels))
    probability, target, kept = _select(predictions, labels, mask, bad_labels, "is outside [0, 1]")
    check_rows("predictions", kept & bad_predictions, predictions, "is outside [0, 1]")
    return probability, target.to(probability.dtype)


def _twice_rank(scores: Tensor, group: Tensor, sizes: Tensor) -> Tensor:
    """Twice the average rank (1 = lowest) of every entry within its group, as whole numbers; ties share a rank."""
    level = torch.unique(scores, return_inverse=True)[1]
    key = group * (level.max() + 1 if level.numel() else 1) + level
    _, place, counts = torch.unique(key, return_inverse=True, return_counts=True)
    highest = counts.cumsum(0)[place] - (sizes.cumsum(0) - sizes)[group]
    return 2 * highest - counts[place] + 1
