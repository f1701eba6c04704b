"""Measures of predicted click (or order) probabilities: AUC, grouped AUC, log-loss, calibration.

Inputs are tensors of any one shape, usually (B, M) or (B, N): `predictions`, `labels` and `mask`, True where the entry
counts (default: all). Entries outside the mask may hold anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from rerankzoo.metrics._checks import as_float, check_fraction, check_option, check_rows, check_shape

GroupWeights = Literal["uniform", "impressions", "positives"]


class GroupedAUC(NamedTuple):
    """AUC of every group that has both classes, G groups in ascending order of their id.

    Attributes:
        auc: (G,) float, ties count one half.
        positives: (G,) int64, number of positives.
        negatives: (G,) int64, number of negatives.
    """

    auc: Tensor
    positives: Tensor
    negatives: Tensor


def auc(predictions: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """P(score of a positive > score of a negative) over all pairs of entries; ties count one half.

    *Pooled*: pairs run across requests (PIER's code, RecBole). The mean over batches of a per-batch AUC (GoalRank's
    evaluator training) depends on the batch size and is not offered; for an AUC within requests see `gauc`. Computed
    from ranks in whole numbers, hence exact up to the last division.

    Args:
        predictions: (...) scores, any monotone scale.
        labels: (...) 0 or 1.
        mask: (...) bool, True where an entry counts.

    Returns:
        Scalar in [0, 1]; 0.5, the value of an uninformative score, if there are not both classes.

    Raises:
        ValueError: On differing shapes, a prediction that is not finite, or a label other than 0 and 1.

    Example:
        >>> auc(torch.tensor([0.9, 0.5, 0.5]), torch.tensor([1, 1, 0]))
        tensor(0.7500)
    """
    pooled = grouped_auc(predictions, labels, torch.zeros_like(predictions, dtype=torch.int64), mask)
    return pooled.auc[0] if pooled.auc.numel() else pooled.auc.new_tensor(0.5)


def grouped_auc(predictions: Tensor, labels: Tensor, groups: Tensor, mask: Tensor | None = None) -> GroupedAUC:
    """AUC within every group; groups without both classes are left out.

    Args:
        predictions: (...) scores, any monotone scale.
        labels: (...) 0 or 1.
        groups: (...) int64 group of every entry.
        mask: (...) bool, True where an entry counts.

    Returns:
        The AUC and the class counts of the groups that have both classes.

    Raises:
        ValueError: As `auc`.

    Example:
        >>> grouped_auc(torch.tensor([0.9, 0.5, 0.3]), torch.tensor([1, 0, 1]), torch.tensor([7, 7, 8])).auc
        tensor([1.])
    """
    check_shape("groups", groups, tuple(predictions.shape), "predictions")
    scores, targets, kept = select_binary(predictions, labels, mask)
    group = torch.unique(groups.reshape(-1)[kept], return_inverse=True)[1]
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

    Args:
        predictions: (...) scores, any monotone scale.
        labels: (...) 0 or 1.
        mask: (...) bool, True where an entry counts.
        groups: (...) int64 group of every entry, for example the user; by default a row (request) is a group.
        weights: A group counts `"uniform"`: once (YOLOR's mean AUC in the list); `"impressions"`: by its entries (DIN);
            `"positives"`: by its positives (RecBole, with users as groups).

    Returns:
        Scalar in [0, 1]; 0.5, the value of an uninformative score, if no group has both classes.

    Raises:
        ValueError: As `auc`, on an unknown option, and for vectors of predictions without `groups`.

    Example:
        >>> predictions = torch.tensor([[0.9, 0.5, 0.3], [0.2, 0.2, 0.2]])
        >>> gauc(predictions, torch.tensor([[0, 1, 0], [1, 1, 0]]), weights="positives")
        tensor(0.5000)
    """
    weighted, weight = gauc_sums(predictions, labels, mask, groups, weights=weights)
    return weighted / weight if weight > 0 else torch.full_like(weighted, 0.5)


def gauc_sums(
    predictions: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    groups: Tensor | None = None,
    *,
    weights: GroupWeights = "impressions",
) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of `gauc`, which may be added up over batches that split no group.

    Args:
        predictions: (...) scores, any monotone scale.
        labels: (...) 0 or 1.
        mask: (...) bool, True where an entry counts.
        groups: (...) int64 group of every entry; by default a row is a group.
        weights: As in `gauc`.

    Returns:
        Two scalars: the sum of weight times AUC, and the sum of the weights.

    Raises:
        ValueError: As `gauc`.

    Example:
        >>> gauc_sums(torch.tensor([[0.9, 0.5, 0.3]]), torch.tensor([[0, 1, 0]]))
        (tensor(1.5000), tensor(3.))
    """
    check_option("weights", weights, get_args(GroupWeights))
    result = grouped_auc(predictions, labels, _row_numbers(predictions) if groups is None else groups, mask)
    per_group = {
        "uniform": torch.ones_like(result.positives),
        "impressions": result.positives + result.negatives,
        "positives": result.positives,
    }[weights]
    return (per_group * result.auc).sum(), per_group.sum().to(result.auc.dtype)


def log_loss(predictions: Tensor, labels: Tensor, mask: Tensor | None = None, *, eps: float = 1e-7) -> Tensor:
    """Mean of -(y log p + (1 - y) log(1 - p)) over entries.

    p is a probability of its own entry. LibRerank feeds a softmax over the list instead, so its log-loss is no click
    log-loss and not comparable.

    Args:
        predictions: (...) probabilities.
        labels: (...) in [0, 1].
        mask: (...) bool, True where an entry counts.
        eps: Probabilities of both outcomes are raised to at least this, which bounds an entry's loss by -log(eps).

    Returns:
        Scalar >= 0; 0 if there are no entries.

    Raises:
        ValueError: On differing shapes, a prediction or label outside [0, 1] (logits, for example), or an `eps` that is
            not strictly between 0 and 1.

    Example:
        >>> log_loss(torch.tensor([0.5, 0.25, 0.0]), torch.tensor([1, 0, 0]))
        tensor(0.3269)
    """
    total, count = log_loss_sums(predictions, labels, mask, eps=eps)
    return total / count.clamp(min=1)


def log_loss_sums(
    predictions: Tensor, labels: Tensor, mask: Tensor | None = None, *, eps: float = 1e-7
) -> tuple[Tensor, Tensor]:
    """Numerator and denominator (the number of entries, int64) of `log_loss`, which may be added up over batches.

    Args:
        predictions: (...) probabilities.
        labels: (...) in [0, 1].
        mask: (...) bool, True where an entry counts.
        eps: As in `log_loss`.

    Returns:
        Two scalars: the sum of the losses, and the number of entries.

    Raises:
        ValueError: As `log_loss`.

    Example:
        >>> log_loss_sums(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([1, 0, 1]), torch.tensor([True, True, False]))
        (tensor(1.3863), tensor(2))
    """
    check_fraction("eps", eps)
    probability, target = _probabilities(predictions, labels, mask)
    # 1 - p is clipped by itself: 1 - eps would round to 1 in float32 for a small eps.
    loss = -(target * probability.clamp(min=eps).log() + (1 - target) * (1 - probability).clamp(min=eps).log())
    return loss.sum(), torch.tensor(loss.numel(), device=loss.device)


def calibration(predictions: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean prediction / mean label: 1 is calibrated, above 1 predicts too much ("predicted over observed CTR").

    Args:
        predictions: (...) probabilities.
        labels: (...) in [0, 1].
        mask: (...) bool, True where an entry counts.

    Returns:
        Scalar >= 0. Where nothing is observed: infinity, or 1 if nothing is predicted either.

    Raises:
        ValueError: On differing shapes, or a prediction or label outside [0, 1].

    Example:
        >>> calibration(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([1, 0, 0]))
        tensor(1.5000)
    """
    return calibration_ratio(*calibration_sums(predictions, labels, mask))


def calibration_sums(predictions: Tensor, labels: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sums of predictions and of labels, which may be added up over batches before `calibration_ratio`.

    Args:
        predictions: (...) probabilities.
        labels: (...) in [0, 1].
        mask: (...) bool, True where an entry counts.

    Returns:
        Two scalars.

    Raises:
        ValueError: As `calibration`.

    Example:
        >>> calibration_sums(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([1, 0, 0]))
        (tensor(1.5000), tensor(1.))
    """
    probability, target = _probabilities(predictions, labels, mask)
    return probability.sum(), target.sum()


def calibration_ratio(predicted: Tensor, observed: Tensor) -> Tensor:
    """The quotient of `calibration`, with its two limiting cases.

    Args:
        predicted: Scalar, sum of the predictions.
        observed: Scalar, sum of the labels.

    Returns:
        predicted / observed; infinity where only `observed` is 0, and 1 where both are.

    Example:
        >>> calibration_ratio(torch.tensor(3.0), torch.tensor(2.0))
        tensor(1.5000)
    """
    return torch.where((predicted == 0) & (observed == 0), torch.ones_like(predicted), predicted / observed)


def select_binary(predictions: Tensor, labels: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Checks scores and 0/1 labels and keeps the entries inside the mask, flattened.

    Args:
        predictions: (...) scores.
        labels: (...) 0 or 1.
        mask: (...) bool, True where an entry counts.

    Returns:
        Scores (E,) and labels (E,) of the entries that count, and the flattened mask.

    Raises:
        ValueError: As `auc`.

    Example:
        >>> select_binary(torch.tensor([0.5, 0.25, 0.75]), torch.tensor([1, 0, 9]), torch.tensor([True, True, False]))
        (tensor([0.5000, 0.2500]), tensor([1, 0]), tensor([ True,  True, False]))
    """
    return _select(predictions, labels, mask, lambda y: (y != 0) & (y != 1), "is neither 0 nor 1")


def _row_numbers(values: Tensor) -> Tensor:
    if values.dim() < 2:
        raise ValueError(f"predictions of shape {tuple(values.shape)} have no rows to group by: give groups")
    rows = torch.arange(values.size(0), device=values.device)
    return rows.reshape(-1, *[1] * (values.dim() - 1)).expand_as(values)


def _select(
    predictions: Tensor, labels: Tensor, mask: Tensor | None, is_bad: Callable[[Tensor], Tensor], problem: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the predictions and labels that count, flattened, and the flattened mask; `is_bad` judges the labels."""
    check_shape("labels", labels, tuple(predictions.shape), "predictions")
    if mask is not None:
        check_shape("mask", mask, tuple(predictions.shape), "predictions")
    kept = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask.bool()
    scores = as_float(predictions.detach())
    check_rows("predictions", kept & ~scores.isfinite(), scores, "is not finite")
    check_rows("labels", kept & is_bad(labels), labels, problem)
    flat = kept.reshape(-1)
    return scores.reshape(-1)[flat], labels.reshape(-1)[flat], flat


def _probabilities(predictions: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    outside = "is outside [0, 1]"
    probability, target, kept = _select(predictions, labels, mask, _outside_unit, outside)
    bad = kept.reshape(predictions.shape) & _outside_unit(predictions)
    check_rows("predictions", bad, predictions, outside)
    return probability, target.to(probability.dtype)


def _outside_unit(values: Tensor) -> Tensor:
    return ~((values >= 0) & (values <= 1))


def _twice_rank(scores: Tensor, group: Tensor, sizes: Tensor) -> Tensor:
    """Twice the average rank (1 = lowest) of every entry within its group, as whole numbers; ties share a rank."""
    level = torch.unique(scores, return_inverse=True)[1]
    key = group * (level.max() + 1 if level.numel() else 1) + level
    _, place, counts = torch.unique(key, return_inverse=True, return_counts=True)
    highest = counts.cumsum(0)[place] - (sizes.cumsum(0) - sizes)[group]
    return 2 * highest - counts[place] + 1
