"""Metrics of all that their arguments may be are numbers: huge and tiny labels, empty requests, single candidates."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankzoo.metrics import (
    auc,
    average_precision_at_k,
    bootstrap_mean,
    calibration,
    count_better,
    distinct_2,
    gauc,
    hit_at_k,
    hit_rate_at_share,
    ilad,
    intra_list_distance,
    item_coverage,
    log_loss,
    mean_interval,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    reciprocal_rank_at_k,
    regret_ratio,
)

RANKING = [
    (function, option)
    for function, options in {
        ndcg_at_k: [{"gain": gain, "ideal": i} for gain in ("linear", "exponential") for i in ("candidates", "slate")],
        average_precision_at_k: [{"denominator": name} for name in ("truncated", "retrieved", "all")],
        recall_at_k: [{"denominator": name} for name in ("all", "truncated")],
        precision_at_k: [{}],
        hit_at_k: [{}],
        reciprocal_rank_at_k: [{}],
    }.items()
    for option in options
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64]


@st.composite
def requests(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Slates (B, M), labels (B, N) of one type, from nothing to the largest number of the type, and a mask."""
    num_requests, num_candidates = draw(st.integers(0, 3)), draw(st.integers(0, 5))
    dtype = draw(st.sampled_from(DTYPES))
    top = float(torch.finfo(dtype).max) if dtype.is_floating_point else 2**60
    label = st.one_of(
        st.sampled_from([0.0, 1.0, 64.0, 65.0, 127.0, 128.0, 240.0, 6e4, top]), st.floats(0, min(top, 1e38))
    )
    shape = (num_requests, num_candidates)
    labels = torch.tensor([draw(label) for _ in range(math.prod(shape))], dtype=torch.float64).reshape(shape).to(dtype)
    slate_size = draw(st.integers(0, num_candidates + 1))
    orders = [draw(st.permutations(range(num_candidates))) for _ in range(num_requests)]
    slates = [(list(order) + [-100] * 2)[:slate_size] for order in orders]
    mask = torch.tensor([draw(st.booleans()) for _ in range(math.prod(shape))], dtype=torch.bool).reshape(shape)
    return torch.tensor(slates, dtype=torch.int64).reshape(num_requests, slate_size), labels, mask


@given(requests(), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_ranking_metrics_are_numbers_from_0_to_1(request, k) -> None:
    slates, labels, mask = request
    for function, options in RANKING:
        values = function(slates, labels, mask, k=k, **options)
        assert values.shape == (len(slates),)
        assert ((values >= 0) & (values <= 1 + 1e-5)).all(), (function, options, values)
        assert len(function(slates, labels, k=k, empty="skip", **options)) <= len(slates)
    best = labels.double().argsort(1, descending=True)
    for gain in ("linear", "exponential"):
        values = ndcg_at_k(best, labels, k=k, gain=gain, empty="one")
        torch.testing.assert_close(values, torch.ones_like(values))


@pytest.mark.parametrize("request_size", [(1, 1), (1, 4), (3, 4)])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_no_class_that_is_empty_is_divided_by(label: float, request_size: tuple[int, int]) -> None:
    """Of no positives, and of nothing else, all metrics are numbers, of one request and of one candidate, too."""
    labels = torch.full(request_size, label)
    predictions = torch.linspace(0.1, 0.9, labels.numel()).view_as(labels)
    slates = torch.arange(request_size[1]).expand(request_size)
    assert auc(predictions, labels) == 0.5
    assert all(gauc(predictions, labels, weights=one) == 0.5 for one in ("uniform", "impressions", "positives"))
    assert 0 < log_loss(predictions, labels) < math.log(10) + 1e-6
    assert (calibration(predictions, labels) == math.inf) == (label == 0)  # infinite is no figure: tables leave it out
    assert calibration(torch.zeros_like(labels), torch.zeros_like(labels)) == 1
    for function, options in RANKING:
        for empty, worth in (("zero", 0.0), ("one", 1.0)):
            values = function(slates, labels, k=2, empty=empty, **options)
            assert ((values == worth) if label == 0 else (values > 0) & (values <= 1)).all(), (function, options)
    assert hit_rate_at_share(labels, labels[:, 0], 0.1).tolist() == [1.0] * len(labels)
    assert regret_ratio(labels, labels[:, 0]).tolist() == [0.0] * len(labels)
    assert bootstrap_mean(labels.mean(1)).low == mean_interval(labels.mean(1)).high == label


def exact_ndcg(displayed: list[int], labels: list[int], k: int) -> float:
    discounts = [Fraction(1 / math.log2(rank + 2)) for rank in range(k)]
    sums = [
        sum((2**y - 1) * d for y, d in zip(some, discounts, strict=False))
        for some in (displayed, sorted(labels, reverse=True))
    ]
    return float(sums[0] / sums[1]) if sums[1] else 0.0


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=6), st.integers(1, 6), st.randoms())
@settings(max_examples=40, deadline=None)
def test_exponential_ndcg_agrees_with_exact_integers(labels, k, random) -> None:
    order = random.sample(range(len(labels)), len(labels))
    expected = exact_ndcg([labels[item] for item in order], labels, k)
    value = ndcg_at_k(torch.tensor([order]), torch.tensor([labels]), k=k, gain="exponential").item()
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("ideal", ["candidates", "slate"])
def test_large_labels_leave_the_order_of_small_ones_alone(ideal) -> None:
    """A huge label that is not shown must not make the slate's own ideal underflow."""
    labels = torch.tensor([[3000.0, 1.0, 2.0]])
    value = ndcg_at_k(torch.tensor([[1, 2]]), labels, k=2, gain="exponential", ideal=ideal).item()
    expected = exact_ndcg([1, 2], [1, 2] if ideal == "slate" else [3000, 1, 2], 2)
    assert value == pytest.approx(expected)


@given(st.lists(st.floats(-1e308, 1e308), min_size=1, max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_measures_of_values_are_numbers(values, data) -> None:
    chosen = data.draw(st.one_of(st.sampled_from(values), st.floats(-1e308, 1e308)))
    for dtype in (torch.float32, torch.float64):
        top = torch.finfo(dtype).max
        listed = torch.tensor([values], dtype=torch.float64).clamp(-top, top).to(dtype)
        one = torch.tensor([chosen], dtype=torch.float64).clamp(-top, top).to(dtype)
        assert count_better(listed, one).item() == sum(
            value - one.item() > 1e-6 * max(abs(value), abs(one.item())) for value in listed[0].double().tolist()
        )
        assert hit_rate_at_share(listed, one, 0.5).item() in (0, 1)
        assert not regret_ratio(listed, one).isnan().any()
    if len(set(values)) > 1:
        interval = bootstrap_mean(torch.tensor(values, dtype=torch.float64), num_resamples=50)
        assert min(values) * (1 + 1e-9) - 1e-300 <= interval.low or min(values) >= 0
        assert all(map(math.isfinite, (interval.mean, interval.low, interval.high)))


@given(
    st.lists(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=3, max_size=3), min_size=0, max_size=4),
    st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_diversity_is_a_number(vectors, k) -> None:
    num_candidates = len(vectors)
    slates = torch.tensor([[*range(num_candidates), -100]])
    table = torch.tensor(vectors).reshape(1, num_candidates, 3)
    distance = intra_list_distance(slates, table, k=k)
    assert ((distance >= -1e-6) & (distance <= 2 + 1e-6)).all()
    torch.testing.assert_close(intra_list_distance(slates, table.double(), k=k).float(), distance, atol=1e-4, rtol=0)
    items = torch.arange(num_candidates)[None]
    for value in (ilad(slates, items, k=k), item_coverage(slates, items, 9, k=k), distinct_2(slates, items, k=k)):
        assert ((value >= 0) & (value <= 1)).all()


def test_a_vector_that_is_not_shown_may_be_anything() -> None:
    vectors = torch.tensor([[[math.nan, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    assert intra_list_distance(torch.tensor([[1, 2, -100]]), vectors, k=3).tolist() == [1.0]
    with pytest.raises(ValueError, match="vectors, row 0, position 1, 0: nan is not finite"):
        intra_list_distance(torch.tensor([[1, 0]]), vectors, k=2)


@given(st.lists(st.tuples(st.floats(-1e308, 1e308), st.booleans()), min_size=0, max_size=5))
@settings(max_examples=40, deadline=None)
def test_classification_metrics_of_few_entries_are_numbers(entries) -> None:
    scores = torch.tensor([score for score, _ in entries], dtype=torch.float64)
    labels = torch.tensor([label for _, label in entries], dtype=torch.int64)
    groups = torch.zeros(len(entries), dtype=torch.int64)
    for value in (auc(scores, labels), gauc(scores, labels, groups=groups), gauc(scores[None], labels[None])):
        assert 0 <= value <= 1
    probabilities = (scores > 0).double()
    assert 0 <= log_loss(probabilities, labels) < 20
    assert not calibration(probabilities, labels).isnan()
