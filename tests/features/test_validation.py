"""Every bad row is named: field, row and value, before any tensor exists."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from rerankzoo.errors import RerankingDataError, SchemaError
from rerankzoo.features import FeatureSchema, FieldSpec, RerankingFeatureExtractor

Rows = list[dict[str, Any]]
NAN, INFINITY = math.nan, math.inf


@pytest.fixture
def extractor(schema: FeatureSchema, rows: Rows) -> RerankingFeatureExtractor:
    return RerankingFeatureExtractor(schema).fit(rows)


# field, its value in row 1, words of the message
BAD_VALUES: list[tuple[str, Any, list[str]]] = [
    ("user", 7, ["mixed", "7"]),
    ("user", 1.5, ["mixed", "1.5"]),
    ("item_id", [], ["empty candidate set"]),
    ("item_id", None, ["list", "None"]),
    ("item_id", 12, ["list", "12"]),
    ("item_id", [12, None], ["item id", "None"]),
    ("item_id", [12, 14.5], ["14.5"]),
    ("item_id", [12, NAN], ["nan"]),
    ("item_id", [12, True], ["mixed", "True"]),
    ("item_id", [12, "a"], ["mixed", "'a'"]),
    ("item_id", [12, 2**70], [str(2**70)]),
    ("item_id", [12, np.uint64(2**64 - 1)], [str(2**64 - 1)]),
    ("brand", ["y"], ["1 entries", "'item_id' has 2"]),
    ("brand", None, ["list", "None"]),
    ("brand", ["y", 3], ["mixed", "3"]),
    ("brand", "yy", ["list", "'yy'"]),
    ("price", [2.0, "dear"], ["mixed", "'dear'"]),
    ("price", [2.0, NAN], ["nan", "use None"]),
    ("price", [2.0, INFINITY], ["inf"]),
    ("price", [2.0, 1e39], ["1e+39"]),
    ("price", [2.0, 10**400], ["is too large"]),
    ("price", [2.0, -1.0], ["log1p", "-1.0"]),
    ("price", [2.0, 5.0, 1.0], ["3 entries", "'item_id' has 2"]),
    ("price", [2.0, {"eur": 3}], ["{'eur': 3}"]),
    ("price", [2.0, None], ["value", "None"]),
    ("age", "old", ["mixed", "'old'"]),
    ("age", NAN, ["nan"]),
    ("age", [40], ["[40]"]),
    ("age", np.datetime64("2020-01-01", "ns"), ["datetime64"]),
    ("past", np.array(["2020-01-01"], "datetime64[ns]"), ["datetime64"]),
    ("price", torch.zeros(2, device="meta"), ["cannot read Tensor"]),
    ("vector", [[0.0, 1.0], [1.0]], ["length 2", "length 1"]),
    ("vector", [[0.0, 1.0], [1.0, NAN]], ["nan"]),
    ("vector", [[0.0, 1.0], 3.0], ["list", "3.0"]),
    ("past", ["a"], ["mixed", "'a'"]),
    ("past", 3, ["list", "3"]),
    ("slate", [2], ["slate index 2", "0..1"]),
    ("slate", [-1], ["slate index -1", "0..1"]),
    ("slate", [0, 0], ["candidate 0", "twice"]),
    ("slate", [0, 1, 0], ["3 slate positions", "2 candidates"]),
    ("slate", [], ["empty slate"]),
    ("slate", None, ["list", "None"]),
    ("slate", [None], ["candidate index", "None"]),
    ("click", [1.0, 0.0], ["2 entries", "'slate' has 1"]),
    ("click", [None], ["feedback", "None"]),
    ("click", [NAN], ["nan"]),
    ("click", 1.0, ["list", "1.0"]),
    ("probability", [0.0], ["(0, 1]", "0.0"]),
    ("probability", [1.5], ["(0, 1]", "1.5"]),
    ("liked", [1.0], ["1 entries", "'item_id' has 2"]),
    ("liked", [1.0, INFINITY], ["inf"]),
]


@pytest.mark.parametrize(("name", "value", "words"), BAD_VALUES)
def test_bad_value_in_dict_rows(
    extractor: RerankingFeatureExtractor, rows: Rows, name: str, value: Any, words: list[str]
) -> None:
    rows[1][name] = value
    with pytest.raises(RerankingDataError) as caught:
        extractor(rows)
    assert (caught.value.field, caught.value.row) == (name, 1)
    for word in [f"{name!r}", "row 1", *words]:
        assert word in str(caught.value)


ARROW_VALUES = [
    (name, value, words)
    for name, value, words in BAD_VALUES
    if not any(
        word
        in (
            "mixed",
            "cannot read Tensor",
            "datetime64",
            "is too large",
            "list",
            "[40]",
            "{'eur': 3}",
            str(2**70),
            str(2**64 - 1),
        )
        for word in words
    )
    or value is None
]


@pytest.mark.parametrize(("name", "value", "words"), ARROW_VALUES)
def test_bad_value_in_an_arrow_slice(
    extractor: RerankingFeatureExtractor, rows: Rows, name: str, value: Any, words: list[str]
) -> None:
    bad = {**rows[1], name: value}
    table = pa.Table.from_pylist([rows[0], rows[0], bad, rows[0]]).slice(1)
    with pytest.raises(RerankingDataError) as caught:
        extractor(table)
    # In Arrow a float among the ids makes all of them floats; the first odd one is still the one named.
    assert (caught.value.field, caught.value.row) == (name, 1)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "column", "words"),
    [
        ("price", [["1", "3", "8"], ["2", "5"]], ["number", "'1'"]),
        ("item_id", [["a", "b", "c"], ["d", "e"]], ["fitted on int", "'a'", "string"]),
        ("brand", [[1, 2, 3], [4, 5]], ["fitted on string", "1", "int"]),
        ("past", [["a"], []], ["fitted on int", "'a'"]),
        ("user", [1, 2], ["fitted on string", "1"]),
        ("slate", [[0.0], [1.0]], ["int", "0.0"]),
        ("click", [["yes", "no"], ["no"]], ["number", "'yes'"]),
    ],
)
@pytest.mark.parametrize("convert", [lambda rows: rows, pa.Table.from_pylist, pd.DataFrame])
def test_wrong_type_of_a_whole_column(
    extractor: RerankingFeatureExtractor,
    rows: Rows,
    convert: Callable[[Rows], Any],
    name: str,
    column: list[Any],
    words: list[str],
) -> None:
    for row, value in zip(rows, column, strict=True):
        row[name] = value
    with pytest.raises(RerankingDataError) as caught:
        extractor(convert(rows))
    assert (caught.value.field, caught.value.row) == (name, 0)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("price", pa.array([1.0, 2.0]), ["list", "double"]),
        ("age", pa.array([[1.0], [2.0]]), ["single value", "list<"]),
        ("vector", pa.array([[1.0, 2.0, 3.0], [1.0, 2.0]]), ["2 deep", "list<"]),
        ("age", pa.array([1, 2], pa.timestamp("s")), ["timestamp"]),
        ("slate", pa.array([1, 2]), ["list", "int64"]),
    ],
)
def test_wrong_arrow_type_concerns_the_whole_column(
    extractor: RerankingFeatureExtractor, rows: Rows, name: str, array: pa.Array, words: list[str]
) -> None:
    table = pa.Table.from_pylist(rows)
    table = table.set_column(table.column_names.index(name), name, array)
    with pytest.raises(RerankingDataError) as caught:
        extractor(table)
    assert (caught.value.field, caught.value.row) == (name, None)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["user", "age", "item_id", "brand", "price", "vector", "past", "click", "order"])
@pytest.mark.parametrize("convert", [lambda rows: rows, lambda rows: rows[0], pa.Table.from_pylist, pd.DataFrame])
def test_missing_column(
    extractor: RerankingFeatureExtractor, rows: Rows, convert: Callable[[Rows], Any], name: str
) -> None:
    for row in rows:
        del row[name]
    with pytest.raises(RerankingDataError, match="missing column") as caught:
        extractor(convert(rows))
    assert (caught.value.field, caught.value.row) == (name, None)


def test_column_missing_in_one_row(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    del rows[1]["slate"]
    with pytest.raises(RerankingDataError, match="missing column") as caught:
        extractor(rows)
    assert (caught.value.field, caught.value.row) == ("slate", 1)


def test_pandas_nan_asks_for_none(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    rows[1]["age"] = None
    frame = pd.DataFrame(rows)
    assert frame["age"].dtype == np.float64
    with pytest.raises(RerankingDataError, match=r"nan.*use None") as caught:
        extractor(frame)
    assert (caught.value.field, caught.value.row) == ("age", 1)
    assert extractor(frame.astype({"age": "Int64"}))["request_numeric"][1].tolist() == [0.0]


def test_nested_slates_name_the_row_of_the_bad_slate(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    for row in rows:
        row.update(slate=[[0], [1, 0]], click=[[1], [0, 0]], order=[[0], [0, 0]], probability=[[1.0], [0.5, 0.5]])
    assert extractor(rows)["slates"].shape == (2, 2, 2)
    for change, name in (
        ({"slate": [[0], [1, 1]]}, "slate"),
        ({"slate": [[0], []]}, "slate"),
        ({"slate": [0, 1]}, "slate"),
        ({"click": [[1], [0]]}, "click"),
        ({"click": [[1]]}, "click"),
        ({"click": [1, 0]}, "click"),
    ):
        with pytest.raises(RerankingDataError) as caught:
            extractor([rows[0], {**rows[1], **change}])
        assert (caught.value.field, caught.value.row) == (name, 1), change


# field, its value in row 0 (two slates of two positions over three candidates), words of the message
BAD_MINED: list[tuple[str, Any, list[str]]] = [
    ("slate_weights", [1.0], ["1 entries", "'slate' has 2"]),
    ("slate_weights", [1.0, -0.5], ["negative", "-0.5"]),
    ("slate_weights", [1.0, NAN], ["nan"]),
    ("slate_weights", [1.0, None], ["weight", "None"]),
    ("slate_weights", None, ["list", "None"]),
    ("soft_labels", None, ["list", "None"]),
    ("soft_labels", [[[0.25, 0.25, 0.5], [0.5, 0.5, 0.0]]], ["1 entries", "'slate' has 2"]),
    ("soft_labels", [[[0.25, 0.25, 0.5]], [[1.0, 0.0, 0.0]]], ["1 entries", "'slate' has 2"]),
    ("soft_labels", [[[0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [1.0, 0.0]]], ["2 entries", "'item_id' has 3"]),
    ("soft_labels", [[[1, 0, 0], [1, 0, 0]], [[1, 0, 0], [0.5, 0, 0.25]]], ["sum to 1", "0.75"]),
    ("soft_labels", [[[1, 0, 0], [1, 0, 0]], [[1, 0, 0], [2.0, 0, -1.0]]], ["negative", "-1.0"]),
    ("soft_labels", [[[1, 0, 0], [1, 0, 0]], [[1, 0, 0], [1, 0, NAN]]], ["nan"]),
    ("soft_labels", [[[1, 0, 0], [1, 0, 0]], [[1, 0, 0], [1, 0, None]]], ["number", "None"]),
    ("soft_labels", [[[1, 0, 0], [1, 0, 0]], [[1, 0, 0], [0.5, 0.5, 0]]], ["position 2", "candidate 1", "before"]),
]


@pytest.mark.parametrize(("name", "value", "words"), BAD_MINED)
@pytest.mark.parametrize("convert", [lambda rows: rows, pa.Table.from_pylist])
def test_bad_mined_value(
    extractor: RerankingFeatureExtractor,
    mined_rows: Rows,
    convert: Callable[[Rows], Any],
    name: str,
    value: Any,
    words: list[str],
) -> None:
    with pytest.raises(RerankingDataError) as caught:
        extractor(convert([mined_rows[1], {**mined_rows[0], name: value}, mined_rows[1]]))
    assert (caught.value.field, caught.value.row) == (name, 1)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["soft_labels", "slate_weights", "slate_values"])
def test_names_of_mined_columns_are_taken(name: str) -> None:
    field = FieldSpec(name=name, group="candidate", kind="numeric")
    with pytest.raises(SchemaError, match=f"column '{name}' is both an input and a label"):
        FeatureSchema(name="s", item_id="item", fields=(field,))
    with pytest.raises(SchemaError, match=f"label column '{name}' appears 2 times"):
        FeatureSchema(name="s", item_id="item", fields=(), slate=name)


def test_fit_counts_rows_over_slices(schema: FeatureSchema, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerankzoo.features.encoding._SLICE_ROWS", 2)
    bad = {**rows[1], "price": [2.0, NAN]}
    for data in ([*rows, rows[0], bad], pa.Table.from_pylist([*rows, rows[0], bad])):
        with pytest.raises(RerankingDataError, match="nan") as caught:
            RerankingFeatureExtractor(schema).fit(data)
        assert (caught.value.field, caught.value.row) == ("price", 3)


def test_fit_refuses_types_that_change_between_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerankzoo.features.encoding._SLICE_ROWS", 1)
    schema = FeatureSchema(
        name="s", item_id="item", fields=(FieldSpec(name="user", group="request", kind="categorical", hash_size=9),)
    )
    with pytest.raises(RerankingDataError, match="fitted on int values, got 'a'") as caught:
        RerankingFeatureExtractor(schema).fit([{"user": 1, "item": [1]}, {"user": "a", "item": [1]}])
    assert caught.value.row == 1


@pytest.mark.parametrize("data", [3, "rows", [1], [], pa.table({"item_id": pa.array([], pa.list_(pa.int64()))})])
def test_what_is_no_table_is_refused(extractor: RerankingFeatureExtractor, data: Any) -> None:
    with pytest.raises(RerankingDataError, match="item_id"):
        extractor(data)


def test_columns_of_different_lengths(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["age"].append(3)
    with pytest.raises(RerankingDataError, match="3 rows, others have 2"):
        extractor(columns)


def test_an_unfitted_extractor_is_refused(schema: FeatureSchema, rows: Rows, tmp_path: Any) -> None:
    extractor = RerankingFeatureExtractor(schema)
    assert "not fitted" in repr(extractor)
    for use in (lambda: extractor.schema, lambda: extractor(rows), lambda: extractor.save_pretrained(tmp_path)):
        with pytest.raises(SchemaError, match="fit"):
            use()
