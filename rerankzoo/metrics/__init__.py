"""Metrics: pure functions on tensors, and `torchmetrics` classes over them.

The functions need torch only. The classes need torchmetrics (`pip install "rerankzoo[train]"`) and load at first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rerankzoo.metrics.classification import auc, calibration, gauc, grouped_auc, log_loss
from rerankzoo.metrics.diversity import distinct_2, ilad, intra_list_distance, item_coverage
from rerankzoo.metrics.intervals import (
    Difference,
    Estimate,
    Spread,
    bootstrap_mean,
    mean_and_spread,
    paired_bootstrap,
    wilson_interval,
)
from rerankzoo.metrics.permutation import (
    RankEstimate,
    all_slates,
    count_better,
    estimate_rank,
    hit_rate_at_share,
    real_slates,
    regret_ratio,
    sample_slates,
    sampled_hit_rate,
    utility_share,
)
from rerankzoo.metrics.ranking import (
    average_precision_at_k,
    hit_at_k,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    reciprocal_rank_at_k,
)

if TYPE_CHECKING:
    from rerankzoo.metrics.modules import (
        AUC,
        GAUC,
        ILAD,
        MRR,
        NDCG,
        Calibration,
        Hit,
        HitRateAtShare,
        IntraListDistance,
        ItemCoverage,
        LogLoss,
        MeanAveragePrecision,
        Precision,
        Recall,
        Regret,
    )

__all__ = [
    "AUC",
    "GAUC",
    "ILAD",
    "MRR",
    "NDCG",
    "Calibration",
    "Difference",
    "Estimate",
    "Hit",
    "HitRateAtShare",
    "IntraListDistance",
    "ItemCoverage",
    "LogLoss",
    "MeanAveragePrecision",
    "Precision",
    "RankEstimate",
    "Recall",
    "Regret",
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
    "ndcg_at_k",
    "paired_bootstrap",
    "precision_at_k",
    "real_slates",
    "recall_at_k",
    "reciprocal_rank_at_k",
    "regret_ratio",
    "sample_slates",
    "sampled_hit_rate",
    "utility_share",
    "wilson_interval",
]


def __getattr__(name: str) -> Any:
    # Every public name that is not imported above is a metric class.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rerankzoo.metrics import modules

    return getattr(modules, name)
