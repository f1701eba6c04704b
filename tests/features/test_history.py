"""Past items with numbers, times and pages: in the schema, the extractor and the batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rerankzoo.batch import inputs, pad, trim
from rerankzoo.errors import RerankingDataError, SchemaError
from rerankzoo.features import FeatureSchema, FieldSpec, RerankingFeatureExtractor

SCHEMA = FeatureSchema(
    name="histories",
    item_id="item",
    fields=(
        FieldSpec(name="item", group="candidate", kind="categorical"),
        FieldSpec(name="past_picture", group="history", kind="dense", size=2),
        FieldSpec(name="past_item", group="history", kind="categorical", shares="item"),
        FieldSpec(name="past_price", group="history", kind="numeric", transforms=("standardize",)),
        FieldSpec(name="past_hours", group="history", kind="time"),
        FieldSpec(name="past_page", group="history", kind="page"),
    ),
)
ROWS: list[dict[str, Any]] = [
    {
        "item": [7, 9],
        "past_item": [9, 7],
        "past_price": [3.0, None],
        "past_hours": [30, 2.0],
        "past_page": [7, 1],
        "past_picture": [[1.0, 2.0], [3.0, 4.0]],
    },
    {
        "item": [9],
        "past_item": [5],
        "past_price": [1.0],
        "past_hours": [4.0],
        "past_page": [2],
        "past_picture": [[5.0, 6.0]],
    },
    {"item": [7], "past_item": [], "past_price": [], "past_hours": None, "past_page": None, "past_picture": []},
]


@pytest.fixture
def extractor() -> RerankingFeatureExtractor:
    return RerankingFeatureExtractor(SCHEMA).fit(ROWS)


def test_batch_of_histories_by_hand(extractor: RerankingFeatureExtractor) -> None:
    batch = extractor(ROWS)
    assert batch["history_categorical"].tolist() == [[[3], [2]], [[1], [0]], [[0], [0]]]
    # Prices 3 and 1 are 1 and -1 when standardised, none is the mean.
    assert batch["history_numeric"].tolist() == [[[1, 2, 1], [3, 4, 0]], [[5, 6, -1], [0, 0, 0]], [[0, 0, 0]] * 2]
    # Times are counted in their mean, 12 hours.
    assert batch["history_time"].tolist() == [
        [pytest.approx(2.5), pytest.approx(1 / 6)],
        [pytest.approx(1 / 3), 0],
        [0, 0],
    ]
    assert batch["history_page"].tolist() == [[7, 1], [2, 0], [0, 0]]
    assert batch["history_page"].dtype == torch.int64
    assert batch["history_mask"].tolist() == [[True, True], [True, False], [False, False]]
    assert extractor.schema.history_time == replace(SCHEMA.fields[-2], time_unit=12.0)
    assert extractor.schema.history_page == SCHEMA.fields[-1]
    assert extractor.schema.position("past_hours") == extractor.schema.position("past_page") == 0
    assert {"history_numeric", "history_time", "history_page"} <= inputs(batch).keys()
    assert pad(batch, L=5)["history_time"].shape == pad(batch, L=5)["history_page"].shape == (3, 5)
    assert trim({name: tensor[1:] for name, tensor in batch.items()})["history_numeric"].shape == (2, 1, 3)


def test_times_are_saved_with_their_unit_and_kept_when_extended(
    extractor: RerankingFeatureExtractor, tmp_path: Path
) -> None:
    extractor.save_pretrained(tmp_path)
    loaded = RerankingFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.schema == extractor.schema
    assert torch.equal(loaded(ROWS)["history_time"], extractor(ROWS)["history_time"])
    later = [{**row, "past_hours": [100.0] * len(row["past_item"])} for row in ROWS]
    assert extractor.extend(later).schema.field("past_hours").time_unit == 12.0
    moved = extractor.extend(later, update_statistics=True)
    assert moved.schema.field("past_hours").time_unit == 100.0
    extractor.schema.check_same(moved.schema)  # the same columns
    assert RerankingFeatureExtractor(SCHEMA).fit(ROWS[2:]).schema.field("past_hours").time_unit == 1.0  # nothing seen


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"past_hours": [30, -2.0]}, r"'past_hours', row 0: a time before the request.*got -2.0"),
        ({"past_hours": [30, None]}, r"'past_hours', row 0: a time before the request.*got None"),
        ({"past_hours": [30, float("nan")]}, r"'past_hours', row 0: a finite float32 number"),
        ({"past_hours": [30]}, r"'past_hours', row 0: 1 entries, but 'past_item' has 2"),
        ({"past_page": [1, -2]}, r"'past_page', row 0: a whole number of pages before the request.*got -2"),
        ({"past_page": [1, None]}, r"'past_page', row 0: a whole number of pages before the request.*got None"),
        ({"past_page": [1.5, 2.0]}, r"'past_page', row 0: a whole number of pages before the request.*got 1.5"),
        ({"past_page": [1]}, r"'past_page', row 0: 1 entries, but 'past_item' has 2"),
        ({"past_price": [3.0]}, r"'past_price', row 0: 1 entries, but 'past_item' has 2"),
        ({"past_picture": [[1.0, 2.0]]}, r"'past_picture', row 0: 1 entries, but 'past_item' has 2"),
    ],
)
def test_what_cannot_be_a_history_is_refused(
    extractor: RerankingFeatureExtractor, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(RerankingDataError, match=message):
        extractor([{**ROWS[0], **row}, *ROWS[1:]])


@pytest.mark.parametrize(("kind", "first"), [("time", "past_hours"), ("page", "past_page")])
def test_times_and_pages_are_told_once(kind: Any, first: str) -> None:
    with pytest.raises(SchemaError, match=f"'again' is a second one of kind '{kind}', beside '{first}'"):
        replace(SCHEMA, fields=(*SCHEMA.fields, FieldSpec(name="again", group="history", kind=kind)))
