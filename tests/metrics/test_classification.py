from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankzoo.metrics.classification import auc, calibration, gauc, grouped_auc, log_loss


def pairwise_auc(scores: list[float], labels: list[int]) -> float:
    positives = [s for s, y in zip(scores, labels, strict=True) if y]
    negatives = [s for s, y in zip(scores, labels, strict=True) if not y]
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    return wins / (len(positives) * len(negatives))


def test_auc_by_hand_with_a_tie():
    # Pairs (0.8, 0.4), (0.8, 0.6), (0.4, 0.4) tie, (0.4, 0.6) lost: 2.5 of 4.
    assert auc(torch.tensor([0.8, 0.4, 0.4, 0.6]), torch.tensor([1, 1, 0, 0])).item() == pytest.approx(2.5 / 4)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.booleans()), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_grouped_auc_agrees_with_all_pairs(entries):
    scores, groups, labels = (list(column) for column in zip(*entries, strict=True))
    expected, sizes = {}, {}
    for group in sorted(set(groups)):
        s = [score for score, g in zip(scores, groups, strict=True) if g == group]
        y = [int(label) for label, g in zip(labels, groups, strict=True) if g == group]
        if 0 < sum(y) < len(y):
            expected[group], sizes[group] = pairwise_auc(s, y), (sum(y), len(y) - sum(y))
    predictions, targets, ids = torch.tensor(scores) / 7, torch.tensor(labels), torch.tensor(groups) * 1000 - 7
    result = grouped_auc(predictions, targets, ids)
    assert result.auc.tolist() == pytest.approx(list(expected.values()))
    assert list(zip(result.positives.tolist(), result.negatives.tolist(), strict=True)) == list(sizes.values())
    if 0 < sum(labels) < len(labels):
        assert auc(predictions, targets).item() == pytest.approx(pairwise_auc(scores, labels))


def test_auc_is_exact_where_float32_sums_would_not_be():
    size = 200_000
    scores = torch.arange(size).double()
    labels = torch.arange(size) % 2
    pairs = (size // 2) ** 2
    assert auc(scores, labels).item() == pytest.approx(((size // 2) * (size // 2 + 1) / 2) / pairs, abs=1e-12)


# Row 0: AUC 1/2 of 3 entries, 1 positive. Row 1: AUC 1 of 4 entries, 3 positives. Row 2: one class.
PREDICTIONS = torch.tensor([[0.5, 0.9, 0.1, 0.0], [0.9, 0.8, 0.7, 0.1], [0.3, 0.2, 0.1, 0.0]])
LABELS = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 0], [0, 0, 0, 0]])
MASK = torch.tensor([[True, True, True, False], [True] * 4, [True] * 4])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("uniform", 0.75), ("impressions", (3 * 0.5 + 4) / 7), ("positives", (0.5 + 3) / 4)],
)
def test_gauc_weights_by_hand(weights, expected):
    assert gauc(PREDICTIONS, LABELS, MASK, weights=weights).item() == pytest.approx(expected)
    ids = torch.tensor([8, 3, 5])[:, None].expand(3, 4)
    assert gauc(PREDICTIONS, LABELS, MASK, ids, weights=weights).item() == pytest.approx(expected)


def test_gauc_groups_may_span_rows():
    user = torch.tensor([0, 1, 1])[:, None].expand(3, 4)
    row_one = pairwise_auc([0.9, 0.8, 0.7, 0.1, 0.3, 0.2, 0.1, 0.0], [1, 1, 1, 0, 0, 0, 0, 0])
    assert gauc(PREDICTIONS, LABELS, MASK, user, weights="uniform").item() == pytest.approx((0.5 + row_one) / 2)


def test_pooled_auc_differs_from_gauc():
    predictions, labels = torch.tensor([[0.9, 0.8], [0.2, 0.1]]), torch.tensor([[1, 0], [1, 0]])
    assert gauc(predictions, labels).item() == 1
    assert auc(predictions, labels).item() == 0.75


def test_masked_entries_may_hold_anything():
    predictions, labels = PREDICTIONS.clone(), LABELS.clone()
    predictions[0, 3], labels[0, 3] = math.nan, -100
    for function in (auc, gauc, log_loss, calibration):
        assert torch.equal(function(predictions, labels, MASK), function(PREDICTIONS, LABELS, MASK))


def test_undefined_values_are_not_nan():
    one_class = torch.tensor([1, 1])
    assert auc(torch.tensor([0.1, 0.2]), one_class).item() == 0.5
    assert gauc(torch.tensor([[0.1, 0.2]]), one_class[None]).item() == 0.5
    nothing = torch.tensor([False, False])
    assert auc(torch.tensor([0.1, 0.2]), one_class, nothing).item() == 0.5
    assert log_loss(torch.tensor([0.1, 0.2]), one_class, nothing).item() == 0
    assert calibration(torch.tensor([0.5]), torch.tensor([0])).item() == math.inf
    assert calibration(torch.tensor([0.0]), torch.tensor([0])).item() == 1


def test_log_loss_by_hand_and_clipping():
    predictions, labels = torch.tensor([0.8, 0.3]), torch.tensor([1, 0])
    assert log_loss(predictions, labels).item() == pytest.approx(-(math.log(0.8) + math.log(0.7)) / 2)
    for wrong, label in ((0.0, 1), (1.0, 0)):
        for eps in (1e-3, 1e-15):
            value = log_loss(torch.tensor([wrong]), torch.tensor([label]), eps=eps).item()
            assert value == pytest.approx(-math.log(eps), rel=1e-5)
    soft = log_loss(torch.tensor([0.5]), torch.tensor([0.25])).item()
    assert soft == pytest.approx(math.log(2))


def test_calibration_by_hand():
    assert calibration(PREDICTIONS, LABELS, MASK).item() == pytest.approx((1.5 + 2.5 + 0.6) / 4)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"predictions, row 0, position 1: 1.5 is outside \[0, 1\]"):
        log_loss(torch.tensor([[0.5, 1.5]]), torch.tensor([[0, 1]]))
    with pytest.raises(ValueError, match=r"labels, row 1: 2 is neither 0 nor 1"):
        auc(torch.tensor([0.5, 0.2]), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"predictions, row 0: nan is not finite"):
        auc(torch.tensor([math.nan, 0.2]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="labels has shape"):
        auc(torch.tensor([0.5, 0.2]), torch.tensor([0]))
    with pytest.raises(ValueError, match="have no rows to group by"):
        gauc(torch.tensor([0.5, 0.2]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="weights must be one of"):
        gauc(PREDICTIONS, LABELS, weights="users")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eps must lie strictly between 0 and 1, got 0"):
        log_loss(torch.tensor([0.5]), torch.tensor([1]), eps=0)
