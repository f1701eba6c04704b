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
