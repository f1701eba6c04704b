from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
import torch

from rerankzoo.batch import BUILT_IN, ENTRIES, Entry, gather_candidates, pad, register_entry, trim
from rerankzoo.errors import RerankingDataError, SchemaError
from rerankzoo.features import FeatureSchema, RerankingFeatureExtractor, TargetSpec
from rerankzoo.features.utility import candidate_utility, position_utility, slate_utility


def test_keys_are_distinct() -> None:
    assert len(BUILT_IN) == 20  # families register others


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
    with pytest.raises(ValueError, match="got 2 and 1"):
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


def test_trim_cuts_what_is_padding_in_every_request_and_pad_brings_it_back() -> None:
    batch = {
        "candidate_mask": torch.tensor([[True, False, True, False, False]]),
        "candidate_numeric": torch.arange(5.0).view(1, 5, 1),
        "slates": torch.tensor([[[2, -100, -100], [-100, -100, -100]]]),
        "soft_labels": torch.ones(1, 2, 3, 5),
        "request_index": torch.tensor([7]),
    }
    cut = trim(batch)
    assert {name: list(tensor.shape) for name, tensor in cut.items()} == {
        "candidate_mask": [1, 3],
        "candidate_numeric": [1, 3, 1],
        "slates": [1, 1, 1],
        "soft_labels": [1, 1, 1, 3],
        "request_index": [1],
    }
    padded = pad(cut, N=5, S=2, M=3, B=2)
    assert padded["slates"].tolist() == [[[2, -100, -100], [-100] * 3], [[-100] * 3] * 2]
    assert padded["candidate_mask"].tolist() == [[True, False, True, False, False], [False] * 5]
    assert padded["request_index"].tolist() == [7, -1]
    assert trim({"candidate_mask": torch.zeros(2, 4, dtype=torch.bool)})["candidate_mask"].shape == (2, 1)


def test_a_family_registers_its_own_entry_once() -> None:
    entry = Entry("BSM", label=True)
    register_entry("reference_log_probs", entry)
    try:
        register_entry("reference_log_probs", entry)
        assert pad({"reference_log_probs": torch.ones(1, 1, 1)}, M=2)["reference_log_probs"].tolist() == [[[1.0, 0.0]]]
        with pytest.raises(ValueError, match="is registered as"):
            register_entry("reference_log_probs", Entry("BS"))
    finally:
        del ENTRIES["reference_log_probs"]
    with pytest.raises(ValueError, match="'reference_log_probs' is not registered"):
        pad({"reference_log_probs": torch.ones(1, 1, 1)}, M=2)
    with pytest.raises(ValueError, match="axes that begin with B"):
        register_entry("strange", Entry("NB"))


def test_the_gain_of_a_grade_is_what_a_batch_holds() -> None:
    target = TargetSpec(name="grade", candidate_feedback="grades", gain="exponential")
    schema = FeatureSchema(name="graded", item_id="item_id", fields=(), targets=(target,))
    assert FeatureSchema.from_dict(schema.to_dict()) == schema
    extractor = RerankingFeatureExtractor(schema).fit([{"item_id": [1, 2, 3]}])
    row = {"item_id": [1, 2, 3], "grades": [0, None, 4], "slate": [2, 0], "grade": [4, 0]}
    batch = extractor(row)
    assert batch["candidate_feedback"].tolist() == [[[0.0], [0.0], [15.0]]]
    assert batch["candidate_feedback_mask"].tolist() == [[True, False, True]]
    assert slate_utility(batch["feedback"], batch["slates"], batch["candidate_value"], schema).tolist() == [[15.0]]
    for name, wrong in (("grades", [0, 25, 0]), ("grade", [-1, 0])):
        with pytest.raises(RerankingDataError, match=f"field '{name}', row 0: a grade from 0 to 24 is required"):
            extractor({**row, name: wrong})
    with pytest.raises(SchemaError, match="gain of target 'grade' must be one of linear, exponential"):
        TargetSpec(name="grade", gain="squared")  # type: ignore[arg-type]


PARTS_SCHEMA = FeatureSchema(
    name="parts", item_id="item_id", fields=(), targets=(TargetSpec(name="click"),), propensity="chance"
)
PART = {"item_id": [7, 8], "slate": [None, None, 1], "click": [None, 0, 1], "chance": [None, None, 0.5]}


def test_a_slate_may_be_a_part_of_a_page() -> None:
    extractor = RerankingFeatureExtractor(PARTS_SCHEMA).fit([PART])
    whole = {"item_id": [7, 8], "slate": [1, 0], "click": [0.0, 1.0], "chance": [0.5, 1.0]}
    for rows in ([PART, whole], pa.Table.from_pylist([PART, whole])):
        batch = extractor(rows)
        assert batch["slates"].tolist() == [[[-100, -100, 1]], [[1, 0, -100]]]
        assert batch["feedback"][..., 0].tolist() == [[[0.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]]]
        assert batch["propensity"].tolist() == [[[0.0, 0.0, 0.5]], [[0.5, 1.0, 0.0]]]
        assert trim(batch)["slates"].shape == (2, 1, 3)
    assert extractor(PART)["slates"].tolist() == [[[-100, -100, 1]]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"click": [None, 1, 1]}, "field 'click', row 0: 1.0 at a position that 'slate' leaves open"),
        ({"click": [None, 0, None]}, "field 'click', row 0: feedback is required, got None"),
        ({"chance": [0.5, None, 0.5]}, "field 'chance', row 0: 0.5 at a position that 'slate' leaves open"),
        ({"chance": [None, None, 0.0]}, "field 'chance', row 0: a probability in .0, 1. is required, got 0.0"),
        ({"slate": [1, None, 1]}, "field 'slate', row 0: candidate 1 appears twice"),
        ({"slate": [None, None, 2]}, "field 'slate', row 0: slate index 2 is outside 0..1"),
        ({"slate": [None, None, None]}, "field 'slate', row 0: a candidate index is required at one position"),
    ],
)
def test_what_a_part_of_a_page_may_not_say(changes: dict[str, Any], message: str) -> None:
    extractor = RerankingFeatureExtractor(PARTS_SCHEMA).fit([PART])
    with pytest.raises(RerankingDataError, match=message):
        extractor({**PART, **changes})
