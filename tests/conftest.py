"""Tiny data that every test may use: a schema with all kinds of fields, random rows, a fitted extractor, batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from rerankzoo.data.folder import write_data_folder
from rerankzoo.features import FeatureSchema, FieldSpec, RerankingFeatureExtractor, TargetSpec
from tests.hub.processes import client, command_line, forks, hub  # noqa: F401

# Helpers are no test files themselves: pytest would leave their assertions without an explanation.
pytest.register_assert_rewrite("tests.models.common", "tests.generation.common")

# One thread, here and in the processes that tests start: the last bits of a sum depend on the number of threads, and
# tests of reproducibility compare files.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """Takes back what a test has put into the environment.

    Lightning's launchers tell one another there where the first process is; those of a later test would wait for it.
    """
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


Rows = list[dict[str, Any]]

#: Candidates of the eight rows: fewer than, as many as and more than the four positions of a slate.
SIZES = (6, 3, 7, 4, 2, 6, 5, 7)
SLATE_SIZE = 4


#: All groups, kinds and options of fields, and two targets of which one has a value.
TINY_SCHEMA = FeatureSchema(
    name="tiny",
    item_id="item_id",
    fields=(
        FieldSpec(name="user_id", group="request", kind="categorical"),
        FieldSpec(name="hour", group="request", kind="numeric", transforms=("standardize",)),
        FieldSpec(name="item_id", group="candidate", kind="categorical"),
        FieldSpec(name="brand", group="candidate", kind="categorical", hash_size=5),
        FieldSpec(name="price", group="candidate", kind="numeric", transforms=("log1p", "standardize")),
        FieldSpec(name="picture", group="candidate", kind="dense", size=3),
        FieldSpec(name="upstream_score", group="candidate", kind="numeric"),
        FieldSpec(name="past_items", group="history", kind="categorical", shares="item_id"),
    ),
    targets=(
        TargetSpec(name="click", weight=1.0, candidate_feedback="candidate_click"),
        TargetSpec(name="order", weight=0.5, value="price"),
    ),
    upstream_score="upstream_score",
)


@pytest.fixture(scope="session")
def schema() -> FeatureSchema:
    return TINY_SCHEMA


def random_row(rng: np.random.Generator, size: int, num_slates: int | None) -> dict[str, Any]:
    """One request; `num_slates` None gives a flat slate column, a number a nested one."""
    length = min(size, SLATE_SIZE)
    slates = [rng.permutation(size)[:length].tolist() for _ in range(num_slates or 1)]
    clicks = rng.integers(0, 2, (len(slates), length)).astype(float).tolist()
    orders = rng.integers(0, 2, (len(slates), length)).astype(float).tolist()
    return {
        "user_id": int(rng.integers(5)),
        "hour": float(rng.integers(24)),
        "item_id": rng.choice(20, size, replace=False).tolist(),
        "brand": [f"brand-{number}" for number in rng.integers(8, size=size)],
        "price": rng.uniform(0.5, 3.0, size).tolist(),
        "picture": rng.normal(size=(size, 3)).tolist(),
        "upstream_score": rng.normal(size=size).tolist(),
        "past_items": rng.choice(20, rng.integers(0, 4)).tolist(),
        "slate": slates[0] if num_slates is None else slates,
        "click": clicks[0] if num_slates is None else clicks,
        "order": orders[0] if num_slates is None else orders,
        "candidate_click": rng.integers(0, 2, size).astype(float).tolist(),
    }


@pytest.fixture(scope="session")
def make_rows() -> Callable[..., Rows]:
    """`make_rows(seed, sizes, num_slates)`: rows with the given numbers of candidates (and of slates, if nested)."""

    def make(seed: int = 0, sizes: tuple[int, ...] = SIZES, num_slates: tuple[int, ...] | None = None) -> Rows:
        rng = np.random.default_rng(seed)
        counts = num_slates or (None,) * len(sizes)
        return [random_row(rng, size, count) for size, count in zip(sizes, counts, strict=True)]

    return make


@pytest.fixture(scope="session")
def rows(make_rows: Callable[..., Rows]) -> Rows:
    return make_rows()


@pytest.fixture(scope="session")
def extractor(schema: FeatureSchema, make_rows: Callable[..., Rows]) -> RerankingFeatureExtractor:
    """Fitted on more rows than `rows`, so that most of their ids are known."""
    return RerankingFeatureExtractor(schema).fit(make_rows(seed=0) + make_rows(seed=1))


@pytest.fixture
def batch(extractor: RerankingFeatureExtractor, rows: Rows) -> dict[str, Tensor]:
    """Eight requests with 2 to 7 candidates and one slate of 2 to 4 positions each."""
    return extractor(rows)


@pytest.fixture
def mined_batch(extractor: RerankingFeatureExtractor, make_rows: Callable[..., Rows]) -> dict[str, Tensor]:
    """Like `batch`, with one to three slates per request."""
    return extractor(make_rows(seed=2, num_slates=(1, 3, 2, 1, 2, 3, 1, 2)))


@pytest.fixture(scope="session")
def data_folder(
    schema: FeatureSchema, make_rows: Callable[..., Rows], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A data folder of 24 training rows, which are also its validation rows, and 8 test rows."""
    folder = tmp_path_factory.mktemp("tiny-data")
    train = pa.Table.from_pylist([row for seed in (0, 1, 3) for row in make_rows(seed)])
    tables = {"train": train, "validation": train, "test": pa.Table.from_pylist(make_rows(4))}
    write_data_folder(folder, tables, schema, {"source": "test", "protocol": "random rows"})
    return folder
