from __future__ import annotations

import copy
from typing import Any

import pytest

from rerankzoo.features import FeatureSchema, FieldSpec, TargetSpec

ROWS: list[dict[str, Any]] = [
    {
        "user": "ann",
        "age": 30,
        "item_id": [11, 12, 13],
        "brand": ["x", "y", "x"],
        "price": [1.0, 3.0, 8.0],
        "score": [0.5, 0.25, 0.125],
        "vector": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
        "past": [13, 11],
        "slate": [2, 0],
        "click": [1.0, 0.0],
        "order": [0.5, 0.25],
        "probability": [0.5, 1.0],
        "liked": [1.0, 0.0, 1.0],
        "bought": [0.0, None, 1.0],
    },
    {
        "user": None,
        "age": 40,
        "item_id": [12, 14],
        "brand": ["y", None],
        "price": [2.0, 5.0],
        "score": [0.75, 0.5],
        "vector": [[0.0, 1.0], [1.0, 0.0]],
        "past": [],
        "slate": [1],
        "click": [1.0],
        "order": [0.0],
        "probability": [0.25],
        "liked": [0.0, 1.0],
        "bought": [1.0, 0.0],
    },
]


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return copy.deepcopy(ROWS)


@pytest.fixture
def mined_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same requests with mined slates, two of the first and one of the second, and no labels of shown ones."""
    for row in rows:
        for name in ("click", "order", "probability"):
            del row[name]
    first = [0.25, 0.25, 0.5]
    rows[0].update(
        slate=[[2, 0], [1, 2]],
        slate_weights=[0.75, 0.25],
        slate_values=[2.0, 1.0],
        soft_labels=[[first, [0.5, 0.5, 0.0]], [first, [0.125, 0.0, 0.875]]],
    )
    rows[1].update(slate=[[1]], slate_weights=[1.0], slate_values=[3.0], soft_labels=[[[0.5, 0.5]]])
    return rows


@pytest.fixture
def schema() -> FeatureSchema:
    return FeatureSchema(
        name="shop",
        item_id="item_id",
        fields=(
            FieldSpec(name="user", group="request", kind="categorical"),
            FieldSpec(name="age", group="request", kind="numeric", transforms=("standardize",)),
            FieldSpec(name="item_id", group="candidate", kind="categorical"),
            FieldSpec(name="score", group="candidate", kind="numeric"),
            FieldSpec(name="vector", group="candidate", kind="dense", size=2),
            FieldSpec(name="brand", group="candidate", kind="categorical"),
            FieldSpec(name="price", group="candidate", kind="numeric", transforms=("log1p", "standardize")),
            FieldSpec(name="past", group="history", kind="categorical", shares="item_id"),
        ),
        targets=(
            TargetSpec(name="click", candidate_feedback="liked"),
            TargetSpec(name="order", weight=2.0, value="price", candidate_feedback="bought"),
        ),
        upstream_score="score",
        propensity="probability",
    )
