from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

import rerankzoo.metrics as metrics
from rerankzoo.metrics import (
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

B, N, M, K = 24, 6, 4, 3
GENERATOR = torch.Generator().manual_seed(0)
SLATES = torch.rand(B, N, generator=GENERATOR).argsort(1)[:, :M]
RELEVANCE = torch.randint(0, 3, (B, N), generator=GENERATOR) * (torch.arange(B)[:, None] % 4 > 0)
MASK = torch.rand(B, N, generator=GENERATOR) < 0.8
SCORES = torch.randint(0, 8, (B, N), generator=GENERATOR) / 8
LABELS = torch.randint(0, 2, (B, N), generator=GENERATOR)
USERS = (torch.arange(B) % 5)[:, None].expand(B, N)
VALUES = torch.rand(B, 30, generator=GENERATOR)
CHOSEN = VALUES[:, 0]
VECTORS = torch.randn(B, N, 3, generator=GENERATOR)
ITEMS = torch.randint(0, 90, (B, N), generator=GENERATOR)

ranking = (SLATES, RELEVANCE, MASK)
scores = (SCORES, LABELS, MASK)
Case = tuple[Callable[[], Metric], tuple[Tensor, ...], Callable[[], Tensor]]
CASES: dict[str, Case] = {
    "ndcg": (lambda: NDCG(K), ranking, lambda: metrics.ndcg_at_k(*ranking, k=K).mean()),
    "ndcg-options": (
        lambda: NDCG(K, gain="exponential", ideal="slate", empty="skip"),
        ranking,
        lambda: metrics.ndcg_at_k(*ranking, k=K, gain="exponential", ideal="slate", empty="skip").mean(),
    ),
    "map": (
        lambda: MeanAveragePrecision(K, denominator="retrieved", empty="one"),
        ranking,
        lambda: metrics.average_precision_at_k(*ranking, k=K, denominator="retrieved", empty="one").mean(),
    ),
    "recall": (
        lambda: Recall(K, denominator="truncated", empty="skip"),
        ranking,
        lambda: metrics.recall_at_k(*ranking, k=K, denominator="truncated", empty="skip").mean(),
    ),
    "precision": (lambda: Precision(K), ranking, lambda: metrics.precision_at_k(*ranking, k=K).mean()),
    "hit": (lambda: Hit(1), ranking, lambda: metrics.hit_at_k(*ranking, k=1).mean()),
    "mrr": (lambda: MRR(K), ranking, lambda: metrics.reciprocal_rank_at_k(*ranking, k=K).mean()),
    "auc": (AUC, scores, lambda: metrics.auc(*scores)),
    "gauc-rows": (lambda: GAUC(weights="positives"), scores, lambda: metrics.gauc(*scores, weights="positives")),
    "gauc-ids": (
        lambda: GAUC("ids", weights="impressions"),
        (*scores, USERS),
        lambda: metrics.gauc(*scores, USERS, weights="impressions"),
    ),
    "log-loss": (lambda: LogLoss(eps=1e-3), scores, lambda: metrics.log_loss(*scores, eps=1e-3)),
    "calibration": (Calibration, scores, lambda: metrics.calibration(*scores)),
    "hit-rate": (
        lambda: HitRateAtShare(0.3),
        (VALUES, CHOSEN),
        lambda: metrics.hit_rate_at_share(VALUES, CHOSEN, 0.3).mean(),
    ),
    "regret": (Regret, (VALUES, CHOSEN), lambda: metrics.regret_ratio(VALUES, CHOSEN).mean()),
    "ild": (
        lambda: IntraListDistance(K),
        (SLATES, VECTORS),
        lambda: metrics.intra_list_distance(SLATES, VECTORS, k=K).mean(),
    ),
    "ilad": (lambda: ILAD(K), (SLATES, ITEMS % 4), lambda: metrics.ilad(SLATES, ITEMS % 4, k=K).mean()),
    "coverage": (
        lambda: ItemCoverage(90, k=K),
        (SLATES, ITEMS),
        lambda: metrics.item_coverage(SLATES, ITEMS, 90, k=K),
    ),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def fed(metric: Metric, inputs: tuple[Tensor, ...], *bounds: int) -> Metric:
    """Updates the metric with the rows between consecutive bounds."""
    for start, stop in pairwise(bounds):
        metric.update(*(tensor[start:stop] for tensor in inputs))
    return metric


def test_one_batch_equals_the_function(case):
    make, inputs, expected = case
    value = fed(make(), inputs, 0, B).compute()
    assert value.dim() == 0
    torch.testing.assert_close(value, expected())
    assert 0 < value < 2


def test_batches_equal_one_batch(case):
    make, inputs, expected = case
    torch.testing.assert_close(fed(make(), inputs, 0, 5, 6, 17, B).compute(), expected())


def test_two_processes_equal_one(case):
    make, inputs, expected = case
    first, second = fed(make(), inputs, 0, 7, 10), fed(make(), inputs, 10, B)
    merged = copy.deepcopy(first)
    merged.merge_state(second)
    torch.testing.assert_close(merged.compute(), expected())


def test_the_reduction_of_a_process_group_equals_one_process(case):
    """torchmetrics' own synchronisation with the gathering of two processes replaced by two metrics in this one."""
    make, inputs, expected = case
    first, second = fed(make(), inputs, 0, 7, 10), fed(make(), inputs, 10, 12, B)
    other = iter([])

    def gather(tensor: Tensor, group: Any = None) -> list[Tensor]:
        return [tensor, next(other)]

    # Synchronisation visits the states in order of their registration, with list states joined to one tensor first.
    states = [getattr(second, name) for name in second._reductions]
    other = iter([torch.cat(state) if isinstance(state, list) else state for state in states])
    first.sync(dist_sync_fn=gather, distributed_available=lambda: True)
    first._to_sync = False
    torch.testing.assert_close(first.compute(), expected())


def test_reset_forgets(case):
    make, inputs, expected = case
    metric = fed(make(), inputs, 0, 9)
    metric.reset()
    torch.testing.assert_close(fed(metric, inputs, 0, B).compute(), expected())


def test_forward_returns_the_batch_value_and_accumulates(case):
    make, inputs, expected = case
    metric = make()
    batch_value = metric(*(tensor[:9] for tensor in inputs))
    torch.testing.assert_close(batch_value, fed(make(), inputs, 0, 9).compute())
    torch.testing.assert_close(fed(metric, inputs, 9, B).compute(), expected())


def test_survives_pickling(case):
    make, inputs, expected = case
    metric = pickle.loads(pickle.dumps(fed(make(), inputs, 0, 9)))  # noqa: S301
    torch.testing.assert_close(fed(metric, inputs, 9, B).compute(), expected())


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_seen_is_not_nan(case):
    value = case[0]().compute()
    assert value.isfinite()


def test_collections_do_not_confuse_metrics_of_one_state_layout():
    collection = MetricCollection({"ndcg@1": NDCG(1), "ndcg@3": NDCG(3), "mrr": MRR(3)})
    for start in (0, 8, 16):
        collection.update(*(tensor[start : start + 8] for tensor in ranking))
    values = collection.compute()
    torch.testing.assert_close(values["ndcg@1"], metrics.ndcg_at_k(*ranking, k=1).mean())
    torch.testing.assert_close(values["ndcg@3"], metrics.ndcg_at_k(*ranking, k=3).mean())
    torch.testing.assert_close(values["mrr"], metrics.reciprocal_rank_at_k(*ranking, k=3).mean())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NDCG(0), "k must be at least 1"),
        (lambda: NDCG(3, gain="log"), "gain must be one of"),
        (lambda: Recall(3, denominator="retrieved"), "denominator must be one of"),
        (lambda: Hit(3, empty="nan"), "empty must be one of"),
        (lambda: GAUC(weights="users"), "weights must be one of"),
        (lambda: GAUC("user"), "group_by must be one of"),
        (lambda: LogLoss(eps=0.0), "eps must lie"),
        (lambda: HitRateAtShare(1.0), "share must lie"),
        (lambda: HitRateAtShare(0.1, rounding="round"), "rounding must be one of"),
        (lambda: ItemCoverage(0, k=1), "num_items must be at least 1"),
        (lambda: ILAD(0), "k must be at least 1"),
        (lambda: IntraListDistance(0), "k must be at least 1"),
    ],
)
def test_options_are_checked_when_the_metric_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_gauc_wants_ids_exactly_when_it_groups_by_them():
    with pytest.raises(ValueError, match="groups must be given"):
        GAUC("ids").update(*scores)
    with pytest.raises(ValueError, match="groups must be given"):
        GAUC().update(*scores, USERS)


def test_every_public_name_exists_and_others_do_not():
    for name in metrics.__all__:
        assert getattr(metrics, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Novelty'"):
        _ = metrics.Novelty
