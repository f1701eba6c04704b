"""`torchmetrics.Metric` classes over the pure functions of this package.

States are sums and counts wherever that is exact, so batches and processes add up to the whole data; only the pooled
AUC and a GAUC by given ids must keep their entries. A class validates its options when it is made. Nothing to average
gives 0 (AUC and GAUC: 0.5), never NaN, so that a Lightning sanity check on two batches cannot poison a checkpoint's
score.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from rerankzoo.metrics import classification, diversity, permutation, ranking
from rerankzoo.metrics._checks import check_fraction, check_option, check_positive, check_shape

GroupBy = Literal["row", "ids"]


class _RequestMean(Metric):
    """Mean over requests, kept as a sum and a count."""

    is_differentiable = False
    higher_is_better: bool | None = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def _add(self, values: Tensor) -> None:
        self.total = self.total + values.sum()
        self.count = self.count + values.numel()

    def compute(self) -> Tensor:
        """Returns the mean over all requests seen, a scalar."""
        return self.total / self.count.clamp(min=1)


class _RankingMetric(_RequestMean):
    """Mean over requests of a function of slates, relevance and mask."""

    def __init__(self, function: Callable[..., Tensor], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function = function
        # An empty batch makes the function check its options now, not after the first epoch.
        function(torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, 1))

    def update(self, slates: Tensor, relevance: Tensor, mask: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            slates: (B, M) int64 positions into the candidates, -100 pads.
            relevance: (B, N) labels of the candidates.
            mask: (B, N) bool, True where the label is known.
        """
        self._add(self.function(slates, relevance, mask))


class NDCG(_RankingMetric):
    """Mean of `ndcg_at_k`, which explains the options.

    Example:
        >>> metric = NDCG(k=2)
        >>> metric.update(torch.tensor([[2, 0]]), torch.tensor([[1.0, 2.0, 0.0]]))
        >>> metric.compute()
        tensor(0.2398)
    """

    def __init__(
        self,
        k: int,
        *,
        gain: ranking.Gain = "linear",
        ideal: ranking.Ideal = "candidates",
        empty: ranking.Empty = "zero",
        **kwargs: Any,
    ) -> None:
        super().__init__(partial(ranking.ndcg_at_k, k=k, gain=gain, ideal=ideal, empty=empty), **kwargs)


class MeanAveragePrecision(_RankingMetric):
    """Mean of `average_precision_at_k`, which explains the options.

    Example:
        >>> metric = MeanAveragePrecision(k=2)
        >>> metric.update(torch.tensor([[2, 0]]), torch.tensor([[1, 1, 0]]))
        >>> metric.compute()
        tensor(0.2500)
    """

    def __init__(
        self,
        k: int,
        *,
        denominator: ranking.PrecisionDenominator = "truncated",
        empty: ranking.Empty = "zero",
        **kwargs: Any,
    ) -> None:
        super().__init__(partial(ranking.average_precision_at_k, k=k, denominator=denominator, empty=empty), **kwargs)


class Recall(_RankingMetric):
    """Mean of `recall_at_k`, which explains the options.

    Example:
        >>> metric = Recall(k=2)
        >>> metric.update(torch.tensor([[2, 0]]), torch.tensor([[1, 1, 0]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def __init__(
        self,
        k: int,
        *,
        denominator: ranking.RecallDenominator = "all",
        empty: ranking.Empty = "zero",
        **kwargs: Any,
    ) -> None:
        super().__init__(partial(ranking.recall_at_k, k=k, denominator=denominator, empty=empty), **kwargs)


class Precision(_RankingMetric):
    """Mean of `precision_at_k`, which explains the options.

    Example:
        >>> metric = Precision(k=2)
        >>> metric.update(torch.tensor([[2, 0]]), torch.tensor([[1, 1, 0]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def __init__(self, k: int, *, empty: ranking.Empty = "zero", **kwargs: Any) -> None:
        super().__init__(partial(ranking.precision_at_k, k=k, empty=empty), **kwargs)


class Hit(_RankingMetric):
    """Mean of `hit_at_k`, which explains the options.

    Example:
        >>> metric = Hit(k=1)
        >>> metric.update(torch.tensor([[2, 0], [0, 1]]), torch.tensor([[1, 1, 0], [1, 0, 0]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def __init__(self, k: int, *, empty: ranking.Empty = "zero", **kwargs: Any) -> None:
        super().__init__(partial(ranking.hit_at_k, k=k, empty=empty), **kwargs)


class MRR(_RankingMetric):
    """Mean of `reciprocal_rank_at_k`, which explains the options.

    Example:
        >>> metric = MRR(k=2)
        >>> metric.update(torch.tensor([[2, 0], [0, 1]]), torch.tensor([[1, 1, 0], [1, 0, 0]]))
        >>> metric.compute()
        tensor(0.7500)
    """

    def __init__(self, k: int, *, empty: ranking.Empty = "zero", **kwargs: Any) -> None:
        super().__init__(partial(ranking.reciprocal_rank_at_k, k=k, empty=empty), **kwargs)


class AUC(Metric):
    """Pooled `auc` over all entries of all requests; keeps them all.

    Example:
        >>> metric = AUC()
        >>> metric.update(torch.tensor([0.9, 0.5, 0.5]), torch.tensor([1, 1, 0]))
        >>> metric.compute()
        tensor(0.7500)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    predictions: list[Tensor]
    labels: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("predictions", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, labels: Tensor, mask: Tensor | None = None) -> None:
        """Adds a batch of scores, labels (0 or 1) and mask of any one shape."""
        scores, targets, _ = classification.select_binary(predictions, labels, mask)
        self.predictions.append(scores)
        self.labels.append(targets)

    def compute(self) -> Tensor:
        """Returns the AUC over all entries seen, a scalar."""
        if len(self.predictions) == 0:
            return torch.tensor(0.5, device=self.device)
        return classification.auc(dim_zero_cat(self.predictions), dim_zero_cat(self.labels))


class GAUC(Metric):
    """Grouped AUC, see `gauc` for the weights.

    Args:
        group_by: `"row"`: every row of a batch (a request) is a group; kept as two sums. `"ids"`: by the `groups` given
            to `update`, for example user ids, where a group may span batches and processes; keeps all entries.
        weights: Weight of a group: `"uniform"`, `"impressions"` or `"positives"`.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: On an unknown option.

    Example:
        >>> metric = GAUC(weights="positives")
        >>> metric.update(torch.tensor([[0.9, 0.5, 0.3], [0.2, 0.2, 0.2]]), torch.tensor([[0, 1, 0], [1, 1, 0]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    weighted: Tensor
    weight: Tensor
    predictions: list[Tensor]
    labels: list[Tensor]
    groups: list[Tensor]

    def __init__(
        self, group_by: GroupBy = "row", *, weights: classification.GroupWeights = "impressions", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_option("group_by", group_by, get_args(GroupBy))
        check_option("weights", weights, get_args(classification.GroupWeights))
        self.group_by = group_by
        self.weights = weights
        for name in ("weighted", "weight") if group_by == "row" else ():
            self.add_state(name, default=torch.tensor(0.0), dist_reduce_fx="sum")
        for name in ("predictions", "labels", "groups") if group_by == "ids" else ():
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self, predictions: Tensor, labels: Tensor, mask: Tensor | None = None, groups: Tensor | None = None
    ) -> None:
        """Adds a batch of scores, labels (0 or 1) and mask of any one shape.

        Args:
            predictions: (...) scores.
            labels: (...) 0 or 1.
            mask: (...) bool, True where an entry counts.
            groups: (...) int64 group of every entry; needed with `group_by="ids"` and refused otherwise.
        """
        if (groups is None) != (self.group_by == "row"):
            raise ValueError(f'group_by={self.group_by!r}: groups must be given with "ids" and only then')
        if groups is None:
            weighted, weight = classification.gauc_sums(predictions, labels, mask, weights=self.weights)
            self.weighted = self.weighted + weighted
            self.weight = self.weight + weight
            return
        check_shape("groups", groups, tuple(predictions.shape), "predictions")
        scores, targets, kept = classification.select_binary(predictions, labels, mask)
        self.predictions.append(scores)
        self.labels.append(targets)
        self.groups.append(groups.reshape(-1)[kept])

    def compute(self) -> Tensor:
        """Returns the weighted mean over all groups seen, a scalar; 0.5 if none has both classes."""
        if self.group_by == "row":
            return torch.where(self.weight > 0, self.weighted / self.weight.clamp(min=1), 0.5)
        if len(self.predictions) == 0:
            return torch.tensor(0.5, device=self.device)
        scores, targets = dim_zero_cat(self.predictions), dim_zero_cat(self.labels)
        return classification.gauc(scores, targets, groups=dim_zero_cat(self.groups), weights=self.weights)


class LogLoss(Metric):
    """Mean `log_loss` over all entries of all requests, from probabilities.

    Args:
        eps: Probabilities of both outcomes are raised to at least this.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If `eps` is not strictly between 0 and 1.

    Example:
        >>> metric = LogLoss()
        >>> metric.update(torch.tensor([0.5, 0.25, 0.0]), torch.tensor([1, 0, 0]))
        >>> metric.compute()
        tensor(0.3269)
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, *, eps: float = 1e-7, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_fraction("eps", eps)
        self.eps = eps
        self.add_state("total", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor, mask: Tensor | None = None) -> None:
        """Adds a batch of probabilities, labels and mask of any one shape."""
        total, count = classification.log_loss_sums(predictions, labels, mask, eps=self.eps)
        self.total = self.total + total
        self.count = self.count + count

    def compute(self) -> Tensor:
        """Returns the mean over all entries seen, a scalar."""
        return self.total / self.count.clamp(min=1)


class Calibration(Metric):
    """`calibration`, mean prediction / mean label, over all entries of all requests; best at 1.

    Example:
        >>> metric = Calibration()
        >>> metric.update(torch.tensor([0.5, 0.5, 0.5]), torch.tensor([1, 0, 0]))
        >>> metric.compute()
        tensor(1.5000)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    predicted: Tensor
    observed: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("predicted", default=torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("observed", default=torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor, mask: Tensor | None = None) -> None:
        """Adds a batch of probabilities, labels and mask of any one shape."""
        predicted, observed = classification.calibration_sums(predictions, labels, mask)
        self.predicted = self.predicted + predicted
        self.observed = self.observed + observed

    def compute(self) -> Tensor:
        """Returns the ratio over all entries seen, a scalar."""
        return classification.calibration_ratio(self.predicted, self.observed)


class HitRateAtShare(_RequestMean):
    """HR@p%: mean of `hit_rate_at_share`, which explains rounding and ties.

    Args:
        share: 0.01 for HR@1%.
        rounding: `"ceil"` or `"floor"`.
        tolerance: Relative margin within which values tie.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: On an unknown rounding or a share that is not strictly between 0 and 1.

    Example:
        >>> metric = HitRateAtShare(0.2)
        >>> metric.update(torch.tensor([[6.0, 5.0, 4.0], [6.0, 5.0, 4.0]]), torch.tensor([6.0, 5.0]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def __init__(
        self, share: float, *, rounding: permutation.Rounding = "ceil", tolerance: float = 1e-6, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_fraction("share", share)
        check_option("rounding", rounding, get_args(permutation.Rounding))
        self.share = share
        self.rounding = rounding
        self.tolerance = tolerance

    def update(self, values: Tensor, chosen: Tensor, mask: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            values: (B, P) value of every slate of the request; P may differ between batches.
            chosen: (B,) value of the generator's slate.
            mask: (B, P) bool, True where a slate counts.
        """
        self._add(permutation.hit_rate_at_share(values, chosen, self.share, self.rounding, self.tolerance, mask))


class Regret(_RequestMean):
    """Mean of `regret_ratio`, which explains signs and zeros.

    Example:
        >>> metric = Regret()
        >>> metric.update(torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([3.0]))
        >>> metric.compute()
        tensor(0.2500)
    """

    higher_is_better = False

    def update(self, values: Tensor, chosen: Tensor, mask: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            values: (B, P) value of every slate of the request; P may differ between batches.
            chosen: (B,) value of the generator's slate.
            mask: (B, P) bool, True where a slate counts.
        """
        self._add(permutation.regret_ratio(values, chosen, mask))


class IntraListDistance(_RequestMean):
    """Mean of `intra_list_distance`.

    Example:
        >>> metric = IntraListDistance(k=3)
        >>> metric.update(torch.tensor([[0, 1, 2]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]]))
        >>> metric.compute()
        tensor(1.3333)
    """

    def __init__(self, k: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive("k", k)
        self.k = k

    def update(self, slates: Tensor, vectors: Tensor) -> None:
        """Adds a batch of slates (B, M) and vectors of the candidates (B, N, D)."""
        self._add(diversity.intra_list_distance(slates, vectors, k=self.k))


class ILAD(_RequestMean):
    """Mean of `ilad`.

    Example:
        >>> metric = ILAD(k=3)
        >>> metric.update(torch.tensor([[0, 1, 2]]), torch.tensor([[5, 5, 8]]))
        >>> metric.compute()
        tensor(0.6667)
    """

    def __init__(self, k: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive("k", k)
        self.k = k

    def update(self, slates: Tensor, categories: Tensor) -> None:
        """Adds a batch of slates (B, M) and categories of the candidates (B, N)."""
        self._add(diversity.ilad(slates, categories, k=self.k))


class ItemCoverage(Metric):
    """`item_coverage` over all requests: one mark per catalogue item, united by maximum over batches and processes.

    Args:
        num_items: Size of the catalogue.
        k: Cut-off, in positions.
        **kwargs: Arguments of `torchmetrics.Metric`.

    Raises:
        ValueError: If `num_items` or `k` is below 1.

    Example:
        >>> metric = ItemCoverage(num_items=4, k=2)
        >>> metric.update(torch.tensor([[2, 0], [0, 1]]), torch.tensor([[3, 1, 0], [3, 2, 0]]))
        >>> metric.compute()
        tensor(0.7500)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    displayed: Tensor

    def __init__(self, num_items: int, *, k: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive("num_items", num_items)
        check_positive("k", k)
        self.num_items = num_items
        self.k = k
        self.add_state("displayed", default=torch.zeros(num_items, dtype=torch.uint8), dist_reduce_fx="max")

    def update(self, slates: Tensor, items: Tensor) -> None:
        """Adds a batch of slates (B, M) and catalogue indexes of the candidates (B, N)."""
        shown = diversity.displayed_items(slates, items, self.num_items, k=self.k)
        self.displayed = torch.maximum(self.displayed, shown)

    def compute(self) -> Tensor:
        """Returns the share of the catalogue that was displayed, a scalar."""
        return self.displayed.sum() / self.num_items
