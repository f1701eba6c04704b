from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

import rerankzoo.metrics as metrics
from rerankzoo.metrics import RequestMean, auc, distinct_2, hit_at_k, hit_rate_at_share, ndcg_at_k, recall_at_k

B, N, M = 24, 6, 4
GENERATOR = torch.Generator().manual_seed(0)
SLATES = torch.rand(B, N, generator=GENERATOR).argsort(1)[:, :M]
RELEVANCE = torch.randint(0, 3, (B, N), generator=GENERATOR) * (torch.arange(B)[:, None] % 4 > 0)
MASK = torch.rand(B, N, generator=GENERATOR) < 0.8
INPUTS = (SLATES, RELEVANCE, MASK)
OPTIONS = {"k": 3, "gain": "exponential", "empty": "skip"}
EXPECTED = ndcg_at_k(*INPUTS, **OPTIONS).mean()


def fed(metric: RequestMean, *parts: slice) -> RequestMean:
    for part in parts:
        metric.update(*(tensor[part] for tensor in INPUTS))
    return metric


def ndcg() -> RequestMean:
    return RequestMean(ndcg_at_k, **OPTIONS)


def test_batches_add_up_to_all_requests() -> None:
    assert 0 < EXPECTED < 1
    torch.testing.assert_close(fed(ndcg(), slice(0, B)).compute(), EXPECTED)
    metric = fed(ndcg(), slice(0, 5), slice(5, 5), slice(5, 17))
    metric = pickle.loads(pickle.dumps(metric))  # noqa: S301
    torch.testing.assert_close(fed(metric, slice(17, B)).compute(), EXPECTED)
    metric.reset()
    torch.testing.assert_close(metric(*INPUTS), EXPECTED)  # forward gives the batch's own value
    values = torch.rand(B, 30, generator=GENERATOR)
    shares = RequestMean(hit_rate_at_share, share=0.3)
    shares.update(values, values[:, 0])
    torch.testing.assert_close(shares.compute(), hit_rate_at_share(values, values[:, 0], 0.3).mean())


@pytest.mark.parametrize("split", [0, 7, 23])
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_processes_with_uneven_shards_add_up_to_all_requests(split: int) -> None:
    """torchmetrics' own synchronisation with the gathering of two processes replaced by two metrics in this one."""
    first = fed(ndcg(), slice(0, split)) if split else ndcg()
    second = RequestMean(ndcg_at_k, **OPTIONS)
    second.update(SLATES[split:], RELEVANCE[split:].double(), MASK[split:])  # no other type of state in one process
    merged = copy.deepcopy(first)
    merged.merge_state(second)
    torch.testing.assert_close(merged.compute(), EXPECTED)
    others = iter([getattr(second, name) for name in second._reductions])

    def gather(tensor: Tensor, group: Any = None) -> list[Tensor]:
        other = next(others)
        assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape)
        return [tensor, other]

    first.sync(dist_sync_fn=gather, distributed_available=lambda: True)
    first._to_sync = False
    torch.testing.assert_close(first.compute(), EXPECTED)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_seen_is_not_nan() -> None:
    assert ndcg().compute() == 0


def test_collections_do_not_confuse_metrics_that_begin_alike() -> None:
    """After the first batch torchmetrics merges metrics of equal state: here NDCG, hit and both cuts are 0 in it."""
    made = {"ndcg@1": (ndcg_at_k, 1), "ndcg@3": (ndcg_at_k, 3), "hit@3": (hit_at_k, 3)}
    collection = MetricCollection({name: RequestMean(function, k=k) for name, (function, k) in made.items()})
    collection.update(torch.tensor([[0, 1, 2]]), torch.zeros(1, 3))
    collection.update(*INPUTS)
    for name, (function, k) in made.items():
        torch.testing.assert_close(collection.compute()[name], function(*INPUTS, k=k).sum() / (B + 1))


def test_what_cannot_be_a_mean_over_requests_is_refused() -> None:
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `kk`"):
        RequestMean(ndcg_at_k, kk=3)
    with pytest.raises(ValueError, match="gain must be one of 'linear', 'exponential', got 'log'"):
        fed(RequestMean(ndcg_at_k, k=3, gain="log"), slice(0, 2))
    with pytest.raises(ValueError, match="auc gives no value per request"):
        RequestMean(auc).update(torch.rand(4), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ValueError, match="distinct_2 gives no value per request"):
        RequestMean(distinct_2, k=3).update(SLATES, RELEVANCE)
    assert RequestMean(recall_at_k, k=3, sync_on_compute=False).sync_on_compute is False  # torchmetrics' own


def test_every_public_name_exists_and_others_do_not() -> None:
    for name in metrics.__all__:
        assert getattr(metrics, name) is not None
    torch.testing.assert_close(fed(metrics.NDCG(**OPTIONS), slice(0, B)).compute(), EXPECTED)
    with pytest.raises(AttributeError, match="no attribute 'Novelty'"):
        _ = metrics.Novelty
