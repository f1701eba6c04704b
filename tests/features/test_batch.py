from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rerankzoo.features import BATCH_KEYS, FeatureSchema, TargetSpec, gather_candidates, slate_utility
from rerankzoo.features.batch import candidate_utility, position_utility


def test_keys_are_distinct() -> None:
    assert len(set(BATCH_KEYS)) == len(BATCH_KEYS) == 16


def test_gather_is_zero_at_padding() -> None:
    values = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])
    slates = torch.tensor([[[1, 0]], [[0, -100]]])
    expected = torch.tensor([[[[3.0, 4.0], [1.0, 2.0]]], [[[5.0, 6.0], [0.0, 0.0]]]])
    assert torch.equal(gather_candidates(values, slates), expected)
    assert torch.equal(gather_candidates(values, slates[:, 0]), expected[:, 0])
    assert torch.equal(gather_candidates(values[..., 0], slates), expected[..., 0])


def test_gather_passes_gradients_to_the_chosen_candidates_only() -> None:
    values = torch.ones(1, 3, requires_grad=True)
    gather_candidates(values, torch.tensor([[[2, -100]]])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0.0, 0.0, 1.0]]


def make_schema(*weights: float, **entries: Any) -> FeatureSchema:
    targets = tuple(TargetSpec(name=f"target_{number}", weight=weight) for number, weight in enumerate(weights))
    return FeatureSchema(name="two", item_id="item_id", fields=(), targets=targets, **entries)


UTILITY_INPUTS = {
    "candidate_value": torch.tensor([[[1.0, 10.0], [1.0, 20.0]]]),
    "slates": torch.tensor([[[1, 0], [0, -100]]]),
    "feedback": torch.tensor([[[[1.0, 0.5], [0.0, 1.0]], [[1.0, 0.0], [float("nan"), 9.0]]]]),
}


def test_utility_by_hand() -> None:
    # first slate: 1 + 3 * (20 * 0.5 + 10 * 1) = 61; second: 1
    assert slate_utility(schema=make_schema(1.0, 3.0), **UTILITY_INPUTS).tolist() == [[61.0, 1.0]]


def test_discounted_utility_by_hand() -> None:
    # first slate: (1 + 3 * 20 * 0.5) / log2(2) + 3 * 10 / log2(3); second: 1
    found = slate_utility(schema=make_schema(1.0, 3.0, position_discount="log2"), **UTILITY_INPUTS)
    assert found.tolist() == [[pytest.approx(31 + 30 / math.log2(3)), 1.0]]


def test_utility_of_a_candidate_is_that_of_a_slate_with_it_alone() -> None:
    schema = make_schema(1.0, 3.0, position_discount="log2")
    feedback, value = torch.tensor([[[0.5, 0.1], [1.0, 0.0]]]), UTILITY_INPUTS["candidate_value"]
    found = candidate_utility(feedback, value, schema)
    assert found.tolist() == [[pytest.approx(0.5 + 3 * 10 * 0.1), 1.0]]
    alone = slate_utility(feedback.unsqueeze(2), torch.tensor([[[0], [1]]]), value, schema)
    torch.testing.assert_close(found, alone)


def test_mismatches_name_both_sizes() -> None:
    with pytest.raises(ValueError, match="2, slates 1"):
        gather_candidates(torch.zeros(2, 3), torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="the schema has 1 targets, the feedback 2"):
        slate_utility(schema=make_schema(1.0), **UTILITY_INPUTS)


def test_position_utility_adds_up_to_the_slates() -> None:
    schema = FeatureSchema(
        name="s",
        item_id="i",
        fields=(),
        targets=(TargetSpec(name="click"), TargetSpec(name="order", weight=0.5, value="price")),
        position_discount="log2",
    )
    slates = torch.tensor([[[2, 0], [1, -100]]])
    value = torch.tensor([[[1.0, 10.0], [1.0, 20.0], [1.0, 30.0]]])
    feedback = torch.tensor([[[[1.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [torch.nan, 1.0]]]])
    found = position_utility(feedback, slates, value, schema)
    expected = [[1 + 0.5 * 30, 0.5 * 10 / math.log2(3)], [1.0, 0.0]]
    assert found[0].flatten().tolist() == pytest.approx([x for row in expected for x in row])
    assert torch.equal(found.sum(-1), slate_utility(feedback, slates, value, schema))
