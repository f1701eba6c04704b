from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankzoo.metrics.ranking import (
    average_precision_at_k,
    hit_at_k,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    reciprocal_rank_at_k,
)

FUNCTIONS = [ndcg_at_k, average_precision_at_k, recall_at_k, precision_at_k, hit_at_k, reciprocal_rank_at_k]

# Row 0: labels 3, 0, 1, 2, 0 and shown 2, 1, 0, 3 -> displayed labels 1, 0, 3, 2; three positives.
# Row 1: no positives.
SLATES = torch.tensor([[2, 1, 0, 3], [0, 1, 2, 3]])
RELEVANCE = torch.tensor([[3.0, 0.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]])


def dcg(gains: list[float]) -> float:
    return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"k": 3}, dcg([1, 0, 3]) / dcg([3, 2, 1])),
        ({"k": 2}, dcg([1, 0]) / dcg([3, 2])),
        ({"k": 3, "gain": "exponential"}, dcg([1, 0, 7]) / dcg([7, 3, 1])),
        ({"k": 2, "ideal": "slate"}, dcg([1, 0]) / dcg([3, 2])),
        ({"k": 9}, dcg([1, 0, 3, 2]) / dcg([3, 2, 1, 0, 0])),
    ],
)
def test_ndcg_by_hand(options, expected):
    assert ndcg_at_k(SLATES, RELEVANCE, **options)[0].item() == pytest.approx(expected)


def test_ndcg_ideals_differ_when_the_slate_misses_positives():
    slates = torch.tensor([[1, 2]])
    labels = RELEVANCE[:1]  # displayed 0, 1
    assert ndcg_at_k(slates, labels, k=2).item() == pytest.approx(dcg([0, 1]) / dcg([3, 2]))
    assert ndcg_at_k(slates, labels, k=2, ideal="slate").item() == pytest.approx(dcg([0, 1]) / dcg([1, 0]))
    # The best order is over the whole slate, also where the cut is shorter.
    assert ndcg_at_k(slates, labels, k=1, ideal="slate").item() == 0


def test_ndcg_with_slate_ideal_calls_a_slate_without_positives_empty():
    slates, labels = torch.tensor([[1, 4]]), RELEVANCE[:1]
    assert ndcg_at_k(slates, labels, k=2, ideal="slate", empty="one").tolist() == [1]
    assert ndcg_at_k(slates, labels, k=2, ideal="candidates", empty="one").tolist() == [0]


@pytest.mark.parametrize(
    ("k", "denominator", "expected"),
    [
        (4, "truncated", (1 + 2 / 3 + 3 / 4) / 3),
        (4, "retrieved", (1 + 2 / 3 + 3 / 4) / 3),
        (3, "retrieved", (1 + 2 / 3) / 2),
        (3, "truncated", (1 + 2 / 3) / 3),
        (2, "truncated", 1 / 2),
        (2, "retrieved", 1.0),
        (2, "all", 1 / 3),
    ],
)
def test_average_precision_by_hand(k, denominator, expected):
    value = average_precision_at_k(SLATES, RELEVANCE, k=k, denominator=denominator)[0].item()
    assert value == pytest.approx(expected)


def test_average_precision_of_a_miss_is_zero_under_every_denominator_and_not_empty():
    slates, labels = torch.tensor([[1, 4]]), RELEVANCE[:1]
    for denominator in ("truncated", "retrieved", "all"):
        assert average_precision_at_k(slates, labels, k=2, denominator=denominator, empty="one").tolist() == [0]


def test_recall_precision_hit_and_reciprocal_rank_by_hand():
    assert recall_at_k(SLATES, RELEVANCE, k=3)[0].item() == pytest.approx(2 / 3)
    assert recall_at_k(SLATES, RELEVANCE, k=2, denominator="truncated")[0].item() == pytest.approx(1 / 2)
    assert recall_at_k(SLATES, RELEVANCE, k=2)[0].item() == pytest.approx(1 / 3)
    assert precision_at_k(SLATES, RELEVANCE, k=3)[0].item() == pytest.approx(2 / 3)
    assert precision_at_k(SLATES, RELEVANCE, k=10)[0].item() == pytest.approx(3 / 10)
    slates = torch.tensor([[4, 1, 2]])
    assert hit_at_k(slates, RELEVANCE[:1], k=2).tolist() == [0]
    assert hit_at_k(slates, RELEVANCE[:1], k=3).tolist() == [1]
    assert reciprocal_rank_at_k(slates, RELEVANCE[:1], k=2).tolist() == [0]
    assert reciprocal_rank_at_k(slates, RELEVANCE[:1], k=3).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_empty_requests(function):
    full = function(SLATES, RELEVANCE, k=3)
    assert full.shape == (2,)
    assert full[1] == 0
    assert function(SLATES, RELEVANCE, k=3, empty="one")[1] == 1
    assert torch.equal(function(SLATES, RELEVANCE, k=3, empty="skip"), full[:1])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_unknown_labels_count_as_irrelevant_even_if_nan(function):
    mask = torch.tensor([[False, True, True, True, True], [True] * 5])
    unknown = RELEVANCE.clone()
    unknown[0, 0] = math.nan
    zeroed = RELEVANCE.clone()
    zeroed[0, 0] = 0
    assert torch.equal(function(SLATES, unknown, mask, k=3), function(SLATES, zeroed, k=3))
    assert not torch.equal(function(SLATES, RELEVANCE, k=3), torch.zeros(2))


@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from(["linear", "exponential"]))
@settings(max_examples=30, deadline=None)
def test_padding_of_slates_and_candidates_changes_nothing(seed, k, gain):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (6, 5), generator=generator).float()
    slates = torch.rand(6, 5, generator=generator).argsort(1)[:, :4]
    wide = torch.cat([labels, torch.full((6, 3), 9.0)], 1)
    mask = torch.cat([torch.ones(6, 5), torch.zeros(6, 3)], 1).bool()
    padded = torch.cat([slates, torch.full((6, 2), -100)], 1)
    for function in FUNCTIONS:
        options = {"k": k, "gain": gain} if function is ndcg_at_k else {"k": k}
        torch.testing.assert_close(function(padded, wide, mask, **options), function(slates, labels, **options))


def test_a_padded_position_keeps_its_place():
    slates = torch.tensor([[-100, 0]])
    assert reciprocal_rank_at_k(slates, torch.tensor([[1, 0]]), k=2).item() == 0.5


def reference(name: str, displayed: list[float], labels: list[float], k: int) -> float:
    """Textbook loops, one request at a time."""
    hits = [y > 0 for y in displayed[:k]]
    positives = sum(y > 0 for y in labels)
    if positives == 0:
        return 0.0
    if name == "ndcg_at_k":
        return dcg(displayed[:k]) / dcg(sorted(labels, reverse=True)[:k])
    if name == "average_precision_at_k":
        total = sum(sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit)
        return total / min(positives, k)
    if name == "recall_at_k":
        return sum(hits) / positives
    if name == "precision_at_k":
        return sum(hits) / k
    if name == "hit_at_k":
        return float(any(hits))
    return 1 / (hits.index(True) + 1) if any(hits) else 0.0


@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(1, 7), st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_agrees_with_loops(seed, num_candidates, slate_size, k):
    generator = torch.Generator().manual_seed(seed)
    slate_size = min(slate_size, num_candidates)
    labels = torch.randint(0, 3, (5, num_candidates), generator=generator).double()
    slates = torch.rand(5, num_candidates, generator=generator).argsort(1)[:, :slate_size]
    for function in FUNCTIONS:
        expected = [
            reference(function.__name__, labels[row, slates[row]].tolist(), labels[row].tolist(), k) for row in range(5)
        ]
        assert function(slates, labels, k=k).tolist() == pytest.approx(expected)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"slates, row 1, position 0: 5 is neither -100"):
        hit_at_k(torch.tensor([[0], [5]]), RELEVANCE, k=1)
    with pytest.raises(ValueError, match=r"slates, row 0: candidate 2 appears twice"):
        hit_at_k(torch.tensor([[2, 0, 2]]), RELEVANCE[:1], k=1)
    with pytest.raises(ValueError, match=r"relevance, row 0, position 1: -1.0 is negative"):
        hit_at_k(torch.tensor([[0]]), torch.tensor([[0.0, -1.0]]), k=1)
    with pytest.raises(ValueError, match="slates have 2 rows, relevance has 1"):
        hit_at_k(SLATES, RELEVANCE[:1], k=1)
    with pytest.raises(ValueError, match="mask has shape"):
        hit_at_k(SLATES, RELEVANCE, torch.ones(2, 4).bool(), k=1)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        hit_at_k(SLATES, RELEVANCE, k=0)
    with pytest.raises(ValueError, match="slates must be integers"):
        hit_at_k(SLATES.float(), RELEVANCE, k=1)


@pytest.mark.parametrize(
    ("function", "option"),
    [
        (ndcg_at_k, "gain"),
        (ndcg_at_k, "ideal"),
        (ndcg_at_k, "empty"),
        (average_precision_at_k, "denominator"),
        (recall_at_k, "denominator"),
    ],
)
def test_unknown_options_are_refused(function, option):
    with pytest.raises(ValueError, match=f"{option} must be one of .*'other'"):
        function(SLATES, RELEVANCE, k=1, **{option: "other"})
