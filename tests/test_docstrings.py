"""Examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module
from typing import Any

import pytest
import torch

import rerankzoo
from rerankzoo import FeatureSchema, FieldSpec, PointwiseConfig, PointwiseForReranking, RerankingFeatureExtractor

MODULES = sorted(module.name for module in pkgutil.walk_packages(rerankzoo.__path__, "rerankzoo."))


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What examples use without making it: a schema, rows, a fitted extractor and a model."""
    schema = FeatureSchema(
        name="shop",
        item_id="item_id",
        fields=(
            FieldSpec(name="user_id", group="request", kind="categorical"),
            FieldSpec(name="item_id", group="candidate", kind="categorical"),
            FieldSpec(name="price", group="candidate", kind="numeric"),
        ),
    )
    train = [{"user_id": 7, "item_id": [3, 1, 2], "price": [9.5, 1.0, 2.0]}]
    extractor = RerankingFeatureExtractor(schema).fit(train)
    torch.manual_seed(0)
    model = PointwiseForReranking(PointwiseConfig(feature_schema=extractor.schema.to_dict()))
    return {"torch": torch, "schema": schema, "train": train, "extractor": extractor, "model": model}


@pytest.mark.parametrize("module", MODULES)
def test_examples_are_right(module: str, names: dict[str, Any]) -> None:
    result = doctest.testmod(import_module(module), extraglobs=names, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_there_are_examples_and_none_is_skipped() -> None:
    finder, count = doctest.DocTestFinder(exclude_empty=True), 0
    for module in map(import_module, MODULES):
        for found in finder.find(module):
            count += len(found.examples)
            assert not any(doctest.SKIP in example.options for example in found.examples), found.name
    assert count > 20
