"""Metrics: pure functions on tensors, and `RequestMean`, the `torchmetrics` class over any of them.

The functions need torch only. The class needs torchmetrics (`pip install "rerankzoo[train]"`) and loads at first use.
`NDCG(k=4)` is short for `RequestMean(ndcg_at_k, k=4)`; so are the other names of `_MEANS` for theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rerankzoo.metrics.classification import auc, calibration, gauc, grouped_auc, log_loss
from rerankzoo.metrics.diversity import distinct_2, ilad, intra_list_distance, item_coverage, order_distance
from rerankzoo.metrics.intervals import (
    Estimate,
    Resampled,
    Spread,
    bootstrap_mean,
    mean_and_spread,
    mean_interval,
    paired_bootstrap,
    resample,
    wilson_interval,
    within_one_error,
)
from rerankzoo.metrics.ranking import (
    average_precision_at_k,
    hit_at_k,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    reciprocal_rank_at_k,
)
from rerankzoo.metrics.slate_rank import (
    RankEstimate,
    count_better,
    estimate_rank,
    hit_rate_at_share,
    regret_ratio,
    sampled_hit_rate,
    utility_share,
)
from rerankzoo.slates import all_slates, real_slates, uniform_slates

if TYPE_CHECKING:
    from rerankzoo.metrics.request_mean import RequestMean

__all__ = [
    "Estimate",
    "RankEstimate",
    "RequestMean",
    "Resampled",
    "Spread",
    "all_slates",
    "auc",
    "average_precision_at_k",
    "bootstrap_mean",
    "calibration",
    "count_better",
    "distinct_2",
    "estimate_rank",
    "gauc",
    "grouped_auc",
    "hit_at_k",
    "hit_rate_at_share",
    "ilad",
    "intra_list_distance",
    "item_coverage",
    "log_loss",
    "mean_and_spread",
    "mean_interval",
    "ndcg_at_k",
    "order_distance",
    "paired_bootstrap",
    "precision_at_k",
    "real_slates",
    "recall_at_k",
    "reciprocal_rank_at_k",
    "regret_ratio",
    "resample",
    "sampled_hit_rate",
    "uniform_slates",
    "utility_share",
    "wilson_interval",
    "within_one_error",
]


_MEANS: dict[str, Callable[..., Tensor]] = {
    "ILAD": ilad,
    "MRR": reciprocal_rank_at_k,
    "NDCG": ndcg_at_k,
    "Hit": hit_at_k,
    "HitRateAtShare": hit_rate_at_share,
    "IntraListDistance": intra_list_distance,
    "MeanAveragePrecision": average_precision_at_k,
    "Precision": precision_at_k,
    "Recall": recall_at_k,
    "Regret": regret_ratio,
}


def __getattr__(name: str) -> Any:
    if name != "RequestMean" and name not in _MEANS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rerankzoo.metrics.request_mean import RequestMean

    return partial(RequestMean, _MEANS[name]) if name in _MEANS else RequestMean
