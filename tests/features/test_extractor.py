from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from transformers import AutoFeatureExtractor, PreTrainedConfig

from rerankzoo.batch import ENTRIES, Entry
from rerankzoo.errors import RerankingDataError, SchemaError, SchemaMismatchError
from rerankzoo.features import FeatureSchema, FieldSpec, RerankingFeatureExtractor
from rerankzoo.features.utility import slate_utility

Rows = list[dict[str, Any]]
Batch = dict[str, torch.Tensor]


def same(left: Batch, right: Batch) -> bool:
    return left.keys() == right.keys() and all(
        left[key].dtype == right[key].dtype and torch.equal(left[key], right[key]) for key in left
    )


@pytest.fixture
def extractor(schema: FeatureSchema, rows: Rows) -> RerankingFeatureExtractor:
    return RerankingFeatureExtractor(schema).fit(rows)


def test_batch_by_hand(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    batch = extractor(rows)
    assert set(batch) == set(ENTRIES) - {
        *("slate_weights", "slate_values", "soft_labels", "slate_length", "history_numeric"),
        *("history_time", "history_page"),
    }
    assert all(batch[key].is_contiguous() for key in batch)
    assert batch["request_categorical"].tolist() == [[2], [0]]  # "ann" is the whole vocabulary, None is missing
    assert batch["request_numeric"].tolist() == [[-1.0], [1.0]]  # 30 and 40: mean 35, std 5
    # items 11, 12, 13, 14 are 2..5; brands x, y are 2, 3
    assert batch["candidate_categorical"].tolist() == [[[2, 2], [3, 3], [4, 2]], [[3, 3], [5, 0], [0, 0]]]
    assert batch["candidate_mask"].tolist() == [[True, True, True], [True, True, False]]
    logs = [math.log(price + 1) for price in (1, 3, 8, 2, 5)]
    mean = sum(logs) / 5
    std = math.sqrt(sum((value - mean) ** 2 for value in logs) / 5)
    prices = [(value - mean) / std for value in logs]
    expected = [
        [[0.5, 1, 2, prices[0]], [0.25, 3, 4, prices[1]], [0.125, 5, 6, prices[2]]],
        [[0.75, 0, 1, prices[3]], [0.5, 1, 0, prices[4]], [0, 0, 0, 0]],
    ]
    torch.testing.assert_close(batch["candidate_numeric"], torch.tensor(expected))
    assert batch["candidate_value"].tolist() == [[[1, 1], [1, 3], [1, 8]], [[1, 2], [1, 5], [0, 0]]]
    assert batch["history_categorical"].tolist() == [[[4], [2]], [[0], [0]]]
    assert batch["history_mask"].tolist() == [[True, True], [False, False]]
    assert batch["slates"].tolist() == [[[2, 0]], [[1, -100]]]
    assert batch["feedback"].tolist() == [[[[1, 0.5], [0, 0.25]]], [[[1, 0], [0, 0]]]]
    assert batch["propensity"].tolist() == [[[0.5, 1.0]], [[0.25, 0.0]]]
    assert batch["candidate_feedback"].tolist() == [[[1, 0], [0, 0], [1, 1]], [[0, 1], [1, 0], [0, 0]]]
    assert batch["candidate_feedback_mask"].tolist() == [[True, False, True], [True, True, False]]
    assert batch["request_index"].tolist() == [0, 1]
    # 1 + 2 * (0.5 * 8 + 0.25 * 1) = 9.5 and 1
    utility = slate_utility(batch["feedback"], batch["slates"], batch["candidate_value"], extractor.schema)
    assert utility.tolist() == [[9.5], [1.0]]


def test_dtypes(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    for key, tensor in extractor(rows).items():
        integral = key in ("slates", "request_index") or key.endswith("categorical")
        expected = torch.bool if key.endswith("mask") else torch.int64 if integral else torch.float32
        assert tensor.dtype == expected, key


def test_fitted_schema(extractor: RerankingFeatureExtractor, schema: FeatureSchema) -> None:
    sizes = {field.name: field.num_embeddings for field in extractor.schema.fields if field.kind == "categorical"}
    assert sizes == {"user": 3, "item_id": 6, "brand": 4, "past": 6}
    assert extractor.schema.fingerprint is not None
    assert schema.fingerprint is None


def test_serving_rows_need_no_labels(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    request = {name: rows[1][name] for name in ("user", "age", "item_id", "brand", "price", "score", "vector", "past")}
    request["item_id"] = [12, 99]
    batch = extractor(request)
    assert "slates" not in batch
    assert "candidate_feedback" not in batch
    assert batch["candidate_categorical"].tolist() == [[[3, 3], [1, 0]]]  # 99 is unknown
    assert batch["history_mask"].tolist() == [[False]]


def test_missing_numbers_are_zero_after_the_transforms(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    rows[1].update(age=None, score=[None, 0.5], vector=[None, [None, 2.0]])
    rows[0]["score"] = [None, None, None]
    for data in (rows, pa.Table.from_pylist(rows)):
        batch = extractor(data)
        assert batch["request_numeric"].tolist() == [[-1.0], [0.0]]
        assert batch["candidate_numeric"][1, :, :3].tolist() == [[0, 0, 0], [0.5, 0, 2], [0, 0, 0]]


def columns_of(rows: Rows) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def arrays_of(rows: Rows) -> Rows:
    def convert(value: Any) -> Any:
        return np.array(value) if isinstance(value, list) and value and None not in value else value

    return [{name: convert(value) for name, value in row.items()} for row in rows]


def in_chunks(rows: Rows) -> pa.Table:
    schema = pa.Table.from_pylist(rows).schema
    return pa.concat_tables([pa.Table.from_pylist([row], schema=schema) for row in rows])


def sliced(rows: Rows) -> pa.Table:
    return pa.Table.from_pylist([rows[1], *rows, rows[0]]).slice(1, len(rows))


def other_arrow_types(rows: Rows) -> pa.Table:
    table = pa.Table.from_pylist(rows)
    types = {
        "user": pa.dictionary(pa.int8(), pa.string()),
        "brand": pa.large_list(pa.large_string()),
        "item_id": pa.list_(pa.uint16()),
        "past": pa.large_list(pa.int32()),
        "age": pa.int8(),
        "vector": pa.list_(pa.list_(pa.float32(), 2)),
        "score": pa.large_list(pa.float32()),
        "slate": pa.list_(pa.int16()),
    }
    for name, kind in types.items():
        table = table.set_column(table.column_names.index(name), name, table[name].cast(kind))
    return table


def without_nulls_in_lists(rows: Rows) -> pd.DataFrame:
    # The default conversion turns a null within a list of numbers into NaN, which is an error: those lists stay lists.
    frame = pa.Table.from_pylist(rows).to_pandas()
    assert isinstance(frame["item_id"][0], np.ndarray)
    return frame.assign(bought=[row["bought"] for row in rows])


def nested_dictionary(rows: Rows) -> pa.Table:
    parts = []
    for row in [rows[1], *rows]:  # every chunk has a dictionary of its own
        table = pa.Table.from_pylist([row], schema=pa.Table.from_pylist(rows).schema)
        brands = table["brand"].combine_chunks()
        encoded = pa.ListArray.from_arrays(brands.offsets, brands.values.dictionary_encode())
        parts.append(table.set_column(table.column_names.index("brand"), "brand", encoded))
    return pa.concat_tables(parts).slice(1)


FORMATS: dict[str, Callable[[Rows], Any]] = {
    "tuple": tuple,
    "columns": columns_of,
    "numpy": arrays_of,
    "pandas": pd.DataFrame,
    "pandas from arrow": without_nulls_in_lists,
    "pandas arrow types": lambda rows: pa.Table.from_pylist(rows).to_pandas(types_mapper=pd.ArrowDtype),
    "pandas category": lambda rows: pd.DataFrame(rows).astype({"user": "category"}),
    "arrow": pa.Table.from_pylist,
    "record batch": pa.RecordBatch.from_pylist,
    "arrow chunks": in_chunks,
    "arrow slice": sliced,
    "arrow other types": other_arrow_types,
    "arrow nested dictionary": nested_dictionary,
    "datasets": datasets.Dataset.from_list,
    "datasets shuffled": lambda rows: datasets.Dataset.from_list(rows[::-1]).select([1, 0]),
    "datasets slice": lambda rows: datasets.Dataset.from_list(rows)[:],
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same(
    name: str, schema: FeatureSchema, rows: Rows, extractor: RerankingFeatureExtractor
) -> None:
    data = FORMATS[name](rows)
    assert same(extractor(data), extractor(rows))
    fitted = RerankingFeatureExtractor(schema).fit(data)
    assert fitted.schema == extractor.schema
    assert extractor.decode(torch.tensor([[2, 0], [1, -100]]), data) == [[13, 11], [14]]
    assert extractor.locate([14, 11, 99], data).tolist() == extractor.locate([14, 11, 99], rows).tolist()


TENSORS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "bfloat16": lambda values: values.bfloat16(),
    "float8": lambda values: values.to(torch.float8_e4m3fn),
    "gradient": lambda values: values.requires_grad_(),
    "sparse": lambda values: values.to_sparse(),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_numpy_does_not_take(name: str, extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    rows[1]["price"] = [2.0, 5.0]
    converted = [rows[0], {**rows[1], "price": TENSORS[name](torch.tensor([2.0, 5.0]))}]
    assert same(extractor(converted), extractor(rows))


def test_a_value_that_cannot_be_read_costs_its_row_only(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    parts, errors = extractor.usable([rows[0], {**rows[1], "price": torch.zeros(2, device="meta")}, rows[1]])
    assert [part.rows for part in parts] == [slice(0, 1), slice(2, 3)]
    assert list(errors) == [1]
    assert "cannot read Tensor" in str(errors[1])


ARROW_TYPES: dict[str, Callable[[Rows], pa.Array]] = {
    "list view": lambda rows: pa.array([row["item_id"] for row in rows], pa.list_view(pa.int64())),
    "fixed size list": lambda rows: pa.array([[11, 12], [12, 14]], pa.list_(pa.int64(), 2)),
    "run ends": lambda rows: pa.ListArray.from_arrays([0, 2, 4], pc.run_end_encode(pa.array([11, 12, 12, 14]))),
    "dictionary of integers": lambda rows: pa.ListArray.from_arrays(
        [0, 2, 4], pa.array([11, 12, 12, 14]).dictionary_encode()
    ),
    "extension": lambda rows: pa.ExtensionArray.from_storage(
        pa.opaque(pa.list_(pa.int64()), "ids", "test"), pa.array([[11, 12], [12, 14]])
    ),
}


NO_NUMBERS = [
    pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
    pa.array([{"a": 1}, None]),
    pa.array([[b"a"], [b"b"]]),
    pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array([[1], [2]])),
    pa.array([[[1]], [[2]]], pa.list_view(pa.list_view(pa.int64()))),
]


@pytest.mark.parametrize("array", NO_NUMBERS, ids=lambda array: str(array.type)[:12])
@pytest.mark.parametrize("name", ["item_id", "slate", "user", "price"])
def test_arrow_types_that_are_no_numbers(
    name: str, array: pa.Array, extractor: RerankingFeatureExtractor, rows: Rows
) -> None:
    table = pa.Table.from_pylist(rows)
    for column in (array, pa.chunked_array([array.slice(0, 1), array.slice(1)])):
        with pytest.raises(RerankingDataError):
            extractor(table.set_column(table.column_names.index(name), name, column))


@pytest.mark.parametrize("name", ARROW_TYPES)
def test_every_arrow_type_of_ids(name: str) -> None:
    rows: Rows = [{"item_id": [11, 12]}, {"item_id": [12, 14]}]
    extractor = RerankingFeatureExtractor(FeatureSchema(name="s", item_id="item_id", fields=())).fit(rows)
    table = pa.table({"item_id": ARROW_TYPES[name](rows)})
    assert extractor.decode([[0, 1], [1, 0]], table) == [[11, 12], [14, 12]]


@pytest.mark.parametrize(
    "views", [pa.array(["ann", "bob"], pa.string_view()), pa.array(["ann", "bob"], pa.large_string())]
)
def test_a_dictionary_of_any_strings(views: pa.Array, extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    table = pa.Table.from_pylist(rows)
    users = pa.DictionaryArray.from_arrays(pa.array([0, None], pa.int16()), views)
    assert same(extractor(table.set_column(0, "user", users)), extractor(rows))
    assert same(extractor(table.set_column(0, "user", views)), extractor([rows[0], {**rows[1], "user": "bob"}]))


def digest(batch: Batch) -> str:
    content = hashlib.sha256()
    for key in sorted(batch):
        content.update(f"{key}{batch[key].dtype}{tuple(batch[key].shape)}".encode())
        content.update(batch[key].numpy().tobytes())
    return content.hexdigest()


def test_batches_and_fingerprints_stay_what_they_were(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    """Written down when extractors were first saved: a model of then must see the same numbers for ever."""
    fingerprints = {  # the last bit of a mean that is fitted anew depends on NumPy
        "1": "e0c5db943a4b2a8c1e7428c222a9b7c093deb936985cf56b46da1d8b5e8aac48",
        "2": "80b58e443a50e6d28a1677977c93262ebefdecd4c1a45feedcf7d08b938896af",
    }
    assert extractor.schema.fingerprint == fingerprints[np.__version__.split(".")[0]]
    assert digest(extractor(rows)) == "fb338fe97bfd5fe91cf77c8ca27e7e50e9b9ab01fc15adbb45ec76022eaf7500"
    odd = {
        "user": "\ud800",
        "age": None,
        "item_id": (13, 99, 11),
        "brand": ["z", None, "x"],
        "price": [0, 2.5, 7],
        "score": [None, 1e-30, -3e38],
        "vector": [None, [None, 1.0], [2, 3.5]],
        "past": [12, None, 14],
    }
    batch = extractor([rows[0] | odd, rows[1] | {"past": None}])
    assert digest(batch) == "a90909cfd47df0e98fdc1dfa5f7998373f686496b4b205f9acacdd82ef89859b"


def test_a_request_may_say_how_many_positions_it_has(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    batch = extractor([{**rows[0], "slate_length": 3}, {**rows[1], "slate_length": 1}])
    assert batch["slate_length"].tolist() == [3, 1]
    assert batch["slate_length"].dtype == torch.int64
    for value, words in ((0, "at least one position is required, got 0"), (1.5, "an integer is required, got 1.5")):
        with pytest.raises(RerankingDataError, match=words) as caught:
            extractor([{**rows[0], "slate_length": 1}, {**rows[1], "slate_length": value}])
        assert (caught.value.field, caught.value.row) == ("slate_length", 1)


def test_a_registered_entry_is_the_column_of_its_name(
    extractor: RerankingFeatureExtractor, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, entry in {
        "slate_score": Entry("BS", label=True),
        "reference": Entry("BSM", fill=-1.0, label=True),
        "stock": Entry("BN", torch.int64),
        "times": Entry("BL"),
        "weather": Entry("BF"),
    }.items():
        monkeypatch.setitem(ENTRIES, name, entry)
    assert "stock" not in extractor(rows)
    rows[0].update(slate_score=[0.5], reference=[0.25, 0.75], stock=[3, 0, 1], times=[2, 1], weather=[0.5, 1])
    rows[1].update(slate_score=[1.5], reference=[0.5], stock=[2, 2], times=[], weather=[0, 2])
    for data in (rows, pa.Table.from_pylist(rows)):
        batch = extractor(data)
        assert batch["slate_score"].tolist() == [[0.5], [1.5]]
        assert batch["reference"].tolist() == [[[0.25, 0.75]], [[0.5, -1.0]]]
        assert batch["stock"].tolist() == [[3, 0, 1], [2, 2, 0]]
        assert batch["stock"].dtype == torch.int64
        assert batch["times"].tolist() == [[2, 1], [0, 0]]
        assert batch["weather"].tolist() == [[0.5, 1], [0, 2]]
    for name, value, words in (
        ("stock", [1], "1 entries, but 'item_id' has 2"),
        ("reference", [0.5, 0.5], "2 entries, but 'slate' has 1"),
        ("weather", [1.0], "1 entries, but the first has 2"),
        ("stock", [1.5, 2], "an integer is required, got 1.5"),
    ):
        with pytest.raises(RerankingDataError, match=words) as caught:
            extractor([rows[0], {**rows[1], name: value}])
        assert (caught.value.field, caught.value.row) == (name, 1)


def test_pickles_and_copies(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    for other in (pickle.loads(pickle.dumps(extractor)), copy.deepcopy(extractor)):  # noqa: S301
        assert other.schema == extractor.schema
        assert same(other(rows), extractor(rows))


def test_representations_fit_a_screen(extractor: RerankingFeatureExtractor) -> None:
    fields = tuple(FieldSpec(name=f"field_{number}", group="candidate", kind="numeric") for number in range(300))
    long = RerankingFeatureExtractor(FeatureSchema(name="s", item_id="i", fields=fields))
    for text in (repr(extractor), repr(extractor.schema), repr(long)):
        assert len(text) < 500
    assert "candidate=['item_id', 'score', 'vector', 'brand', 'price']" in repr(extractor)
    assert extractor.schema.fingerprint[:12] in repr(extractor)


def test_batches_are_writable_and_own_their_memory(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    table = pa.Table.from_pylist([rows[0]])
    before = extractor(table)
    changed = extractor(table)
    for tensor in changed.values():
        tensor.zero_()
    assert same(extractor(table), before)


def test_one_row_equals_its_row_in_the_batch(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    whole, single = extractor(rows), extractor(rows[1])
    for key, tensor in single.items():
        if key != "request_index":
            part = whole[key][1]
            assert torch.equal(part[tuple(slice(size) for size in tensor.shape[1:])], tensor[0]), key


def test_nested_slates(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    rows[0].update(slate=[[0], [1, 2]], click=[[1], [0, 1]], order=[[0], [0, 0]], probability=[[1.0], [0.5, 0.5]])
    rows[1].update(slate=[[1]], click=[[1]], order=[[0]], probability=[[1.0]])
    expected = [[[0, -100], [1, 2]], [[1, -100], [-100, -100]]]
    for data in (rows, pa.Table.from_pylist(rows), pd.DataFrame(rows)):
        batch = extractor(data)
        assert batch["slates"].tolist() == expected
        assert batch["feedback"][0, 1, :, 0].tolist() == [0.0, 1.0]
        assert extractor.decode(batch["slates"], data) == [[[11], [12, 13]], [[14], []]]


def test_repeated_candidates_are_allowed(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    rows[0]["item_id"] = [11, 11, 11]
    assert extractor(rows)["candidate_categorical"][0, :, 0].tolist() == [2, 2, 2]
    assert extractor.decode([[1, 0], [0, 1]], rows) == [[11, 11], [12, 14]]


def test_decode_refuses_what_does_not_fit(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    with pytest.raises(RerankingDataError, match=r"slate index 2 is outside 0\.\.1") as caught:
        extractor.decode([[0, 1], [2, 0]], rows)
    assert caught.value.row == 1
    with pytest.raises(RerankingDataError, match="do not fit 2 rows"):
        extractor.decode([[0]], rows)
    with pytest.raises(RerankingDataError, match="float32"):
        extractor.decode(torch.zeros(2, 1), rows)


def test_locate_finds_items_everywhere_or_row_by_row(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    candidates = extractor(rows)["candidate_mask"].shape
    ids = [row["item_id"] for row in rows]
    for items in ([], [11, 14], [14, 99], [[], []], [[11], [11]], [[13, 99], [99]], [[], [14, 14]]):
        found = extractor.locate(items, rows)
        assert (found.shape, found.dtype) == (candidates, torch.bool)
        for row, own in enumerate(ids):
            wanted = items[row] if items and isinstance(items[0], list) else items
            assert [own[place] for place in found[row].nonzero().flatten()] == [item for item in own if item in wanted]


def test_locate_refuses_ids_of_another_type(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    for items, message in ((["a"], "item ids are int, got 'a'"), ([True], "got True"), ([[1]], "each of the 2 rows")):
        with pytest.raises(RerankingDataError, match=message):
            extractor.locate(items, rows)
    with pytest.raises(RerankingDataError, match="each of the 2 rows"):
        extractor.locate([[1], 2], rows)


@pytest.mark.parametrize("convert", [list, pa.Table.from_pylist])
def test_what_was_read_can_be_taken_apart(convert: Any, extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    """Ids, batches and row numbers of a part are those of its rows, read alone."""
    many = [rows[1], *rows, rows[1]]
    encoded = extractor.read(convert(many))
    assert (len(encoded), encoded.rows) == (4, slice(0, 4))
    for first, last in ((0, 1), (1, 3), (2, 4), (0, 4)):
        part, alone = encoded.take(slice(first, last)), extractor.read(many[first:last])
        assert part.rows == slice(first, last)
        assert part.batch.pop("request_index").tolist() == list(range(first, last))
        assert same(part.batch, {key: value for key, value in alone.batch.items() if key != "request_index"})
        slates = torch.tensor([[1, 0]] * (last - first))
        assert part.item_ids.decode(slates) == [row["item_id"][1::-1] for row in many[first:last]]
        assert torch.equal(part.item_ids.locate([14, 11]), alone.item_ids.locate([14, 11]))
    assert extractor.is_single(rows[0])
    assert not any(map(extractor.is_single, (rows, columns_of(rows), pa.Table.from_pylist(rows))))


def test_string_ids_decode(rows: Rows) -> None:
    schema = FeatureSchema(name="s", item_id="sku", fields=())
    extractor = RerankingFeatureExtractor(schema).fit({"sku": ["b", "a", "b"]})
    batch = extractor({"sku": ["b", "a", "c"]})
    assert batch["candidate_categorical"].shape == batch["candidate_numeric"].shape == (1, 3, 0)
    assert batch["request_categorical"].shape == batch["request_numeric"].shape == (1, 0)
    assert batch["candidate_value"].shape == (1, 3, 0)
    assert extractor.decode([[2, 0]], {"sku": ["b", "a", "c"]}) == [["c", "b"]]
    assert extractor.locate(["b", "z"], {"sku": ["b", "a", "c"]}).tolist() == [[True, False, False]]
    assert extractor.locate([["c"], ["a", "b"]], [{"sku": ["a", "c"]}, {"sku": ["b"]}]).tolist() == [
        [False, True],
        [True, False],
    ]


def single_field(**changes: Any) -> FeatureSchema:
    spec = FieldSpec(**{"name": "x", "group": "candidate", **changes})
    return FeatureSchema(name="s", item_id="item", fields=(spec,))


def numbers(values: list[Any], **changes: Any) -> list[Any]:
    data = {"item": list(range(len(values))), "x": values}
    batch = RerankingFeatureExtractor(single_field(**changes)).fit(data)(data)
    result: list[Any] = batch["candidate_numeric"][0].tolist()
    return result


def test_transforms_by_hand() -> None:
    third = pytest.approx
    assert numbers([1, 4, None], kind="numeric") == [[1], [4], [0]]
    assert numbers([0, math.e - 1], kind="numeric", transforms=("log1p",)) == [[0], [third(1)]]
    assert numbers([1, 3, None], kind="numeric", transforms=("standardize",)) == [[-1], [1], [0]]
    assert numbers([7, 7], kind="numeric", transforms=("standardize",)) == [[0], [0]]
    assert numbers([-9, 2, 99], kind="numeric", clip=(0, 10)) == [[0], [2], [10]]
    assert numbers([-9, 3], kind="numeric", clip=(0, 3), transforms=("log1p", "standardize")) == [[third(-1)], [1]]
    assert numbers([1, -1, 0], kind="numeric", transforms=("signed_log1p",)) == [
        [third(math.log(2))],
        [third(-math.log(2))],
        [0],
    ]
    vectors = [[1, 10], [3, 10], None]
    assert numbers(vectors, kind="dense", size=2, transforms=("standardize",)) == [[-1, 0], [1, 0], [0, 0]]
    assert numbers([True, False], kind="numeric") == [[1], [0]]


def test_quantiles_by_hand() -> None:
    places = [0.5 / 256, 0.5, 1 - 0.5 / 256]  # the ends by half a level
    low, middle, high = (NormalDist().inv_cdf(place) for place in places)
    found = numbers([1, 10, 1e6, None], kind="numeric", transforms=("quantile",))
    assert found == [[pytest.approx(low)], [middle], [pytest.approx(high)], [0]]
    tied = numbers([0, 0, 0, 7, 9], kind="numeric", transforms=("quantile",))  # 0 takes the places 0 to 1/2
    assert tied[:3] == [[pytest.approx(NormalDist().inv_cdf(0.25), abs=1e-6)]] * 3
    assert tied[3] == [pytest.approx(NormalDist().inv_cdf(0.75), abs=1e-6)]
    scaled = numbers([1, 10, 1e6], kind="numeric", transforms=("quantile", "standardize"))
    assert scaled == [[pytest.approx(-(1.5**0.5))], [0], [pytest.approx(1.5**0.5)]]
    vectors = [[1, 5], [2, 5], [3, None], None]
    found = numbers(vectors, kind="dense", size=2, transforms=("quantile",))
    assert found == [[pytest.approx(low), 0], [0, 0], [pytest.approx(high), 0], [0, 0]]


def test_quantiles_of_many_values_are_those_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerankzoo.features.encoding._MOST_RANKED", 2_000)
    values = np.random.default_rng(0).permutation(10_000) / 10_000
    tables = [{"item": np.arange(10_000).reshape(shape), "x": values.reshape(shape)} for shape in ((10, -1), (500, -1))]
    fitted = RerankingFeatureExtractor(single_field(kind="numeric", transforms=("quantile",))).fit(tables[0])
    batch = fitted(tables[0])["candidate_numeric"].flatten().double()
    assert (torch.special.ndtr(batch) - torch.from_numpy(values)).abs().max() < 0.05
    monkeypatch.setattr("rerankzoo.features.encoding._SLICE_ROWS", 7)
    again = RerankingFeatureExtractor(fitted.schema).fit(tables[1])
    assert again.schema.fingerprint == fitted.schema.fingerprint  # the sample knows neither rows nor slices


def test_quantiles_are_saved_and_kept(tmp_path: Path) -> None:
    spec = single_field(kind="numeric", transforms=("quantile", "standardize"))
    data, other = ({"item": [0, 1, 2, 3], "x": values} for values in ([1, 2, 3, 9], [5, 6, 70, 80]))
    extractor = RerankingFeatureExtractor(spec).fit(data)
    extractor.save_pretrained(tmp_path)
    loaded = RerankingFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.schema == extractor.schema
    assert same(loaded(other), extractor(other))
    assert same(extractor.extend(other)(other), extractor(other))
    updated = extractor.extend(other, update_statistics=True)
    assert same(updated(other), RerankingFeatureExtractor(spec).fit(other)(other))
    with pytest.raises(SchemaMismatchError, match="field 'x' is ranked otherwise"):
        updated.check_extends(extractor)
    arrays = load_file(tmp_path / "vocabularies.safetensors")
    arrays["quantiles/x"][3] += 1
    save_file(arrays, tmp_path / "vocabularies.safetensors")
    with pytest.raises(SchemaMismatchError, match="quantiles of field 'x' are not those"):
        RerankingFeatureExtractor.from_pretrained(tmp_path)


def test_min_count_and_hashing() -> None:
    data = {"item": [0, 1, 2], "x": ["a", "b", "a"]}
    rare = RerankingFeatureExtractor(single_field(kind="categorical", min_count=2)).fit(data)
    assert rare(data)["candidate_categorical"][0, :, 0].tolist() == [2, 1, 2]
    hashed = RerankingFeatureExtractor(single_field(kind="categorical", hash_size=1000)).fit(data)
    assert hashed.schema.fields[0].num_embeddings == 1002
    other = {"item": [0, 1], "x": ["never seen", None]}
    expected = [int(hashed({"item": [0], "x": ["never seen"]})["candidate_categorical"]), 0]
    assert hashed(other)["candidate_categorical"][0, :, 0].tolist() == expected
    assert 2 <= expected[0] <= 1001


def test_a_field_that_was_always_missing_knows_nothing() -> None:
    extractor = RerankingFeatureExtractor(single_field(kind="categorical")).fit({"item": [0], "x": [None]})
    for value in (3, "a"):
        assert extractor({"item": [0, 1], "x": [value, None]})["candidate_categorical"].tolist() == [[[1], [0]]]


def test_fit_in_slices_equals_fit_at_once(schema: FeatureSchema, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [rows[index % 2] | {"age": index} for index in range(7)]
    whole = RerankingFeatureExtractor(schema).fit(many)
    monkeypatch.setattr("rerankzoo.features.encoding._SLICE_ROWS", 2)
    for data in (many, pa.Table.from_pylist(many), datasets.Dataset.from_list(many), pd.DataFrame(many)):
        sliced_fit = RerankingFeatureExtractor(schema).fit(data)
        left, right = whole(many), sliced_fit(many)
        for key in left:
            torch.testing.assert_close(left[key], right[key])
    assert whole(many)["request_numeric"][:, 0].std(unbiased=False).item() == pytest.approx(1.0)


def test_fit_is_deterministic_and_the_fingerprint_notices_changes(schema: FeatureSchema, rows: Rows) -> None:
    fingerprints = {RerankingFeatureExtractor(schema).fit(rows[::step]).schema.fingerprint for step in (1, 1, -1)}
    extractor = RerankingFeatureExtractor(schema).fit(rows)
    assert extractor.schema.fingerprint in fingerprints
    assert RerankingFeatureExtractor(extractor.schema).fit(rows).schema == extractor.schema
    rows[0]["item_id"] = [11, 12, 15]
    changed = RerankingFeatureExtractor(schema).fit(rows)
    assert changed.schema.fields == extractor.schema.fields
    assert changed.schema.fingerprint != extractor.schema.fingerprint


def test_dict_rows_need_neither_pandas_nor_arrow(
    extractor: RerankingFeatureExtractor, schema: FeatureSchema, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = extractor(rows)
    for module in [name for name in sys.modules if name.split(".")[0] in ("pandas", "pyarrow", "datasets")]:
        monkeypatch.setitem(sys.modules, module, None)
    for data in (rows, columns_of(rows)):
        assert same(RerankingFeatureExtractor(schema).fit(data)(data), expected)


# --- saving and loading ---------------------------------------------------------------------------------------------


def test_save_and_load_are_exact(extractor: RerankingFeatureExtractor, rows: Rows, tmp_path: Any) -> None:
    extractor.save_pretrained(tmp_path / "here")
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [
        "modeling_rerankzoo.py",
        "preprocessor_config.json",
        "vocabularies.safetensors",
    ]
    loaded = RerankingFeatureExtractor.from_pretrained(tmp_path, subfolder="here")
    assert loaded.schema == extractor.schema
    assert same(loaded(rows), extractor(rows))
    loaded.save_pretrained(tmp_path / "again")
    for name in ("preprocessor_config.json", "vocabularies.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def test_an_extractor_without_vocabularies_saves(tmp_path: Any) -> None:
    extractor = RerankingFeatureExtractor(FeatureSchema(name="s", item_id="i", fields=())).fit({"i": [1]})
    extractor.save_pretrained(tmp_path)
    assert RerankingFeatureExtractor.from_pretrained(tmp_path).schema == extractor.schema


def test_auto_feature_extractor_loads_it(extractor: RerankingFeatureExtractor, rows: Rows, tmp_path: Any) -> None:
    class ShopConfig(PreTrainedConfig):
        model_type = "rerankzoo-extractor-test"

    AutoFeatureExtractor.register(ShopConfig, RerankingFeatureExtractor, exist_ok=True)
    extractor.save_pretrained(tmp_path)
    assert same(AutoFeatureExtractor.from_pretrained(tmp_path)(rows), extractor(rows))


def test_a_changed_vocabulary_is_named(extractor: RerankingFeatureExtractor, tmp_path: Any) -> None:
    extractor.save_pretrained(tmp_path)
    path = tmp_path / "vocabularies.safetensors"
    arrays = load_file(path)
    changed = {**arrays, "values/item_id": arrays["values/item_id"] + 1}
    save_file(changed, path)
    with pytest.raises(SchemaMismatchError, match="'item_id'"):
        RerankingFeatureExtractor.from_pretrained(tmp_path)
    save_file({name: array for name, array in arrays.items() if not name.endswith("/brand")}, path)
    with pytest.raises(SchemaMismatchError, match="'brand' is missing"):
        RerankingFeatureExtractor.from_pretrained(tmp_path)


@pytest.mark.parametrize("change", ["statistics", "schema"])
def test_a_changed_configuration_is_refused(extractor: RerankingFeatureExtractor, tmp_path: Any, change: str) -> None:
    extractor.save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    config = json.loads(path.read_text())
    if change == "statistics":
        config["state"]["statistics"]["age"]["mean"] = [36.0]
    else:
        config["schema"]["fields"][1]["clip"] = [0, 50]
    path.write_text(json.dumps(config))
    with pytest.raises(SchemaMismatchError, match="fingerprint"):
        RerankingFeatureExtractor.from_pretrained(tmp_path)


def test_loading_errors(tmp_path: Any) -> None:
    with pytest.raises(OSError, match=r"preprocessor_config\.json"):
        RerankingFeatureExtractor.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="sub_folder"):
        RerankingFeatureExtractor.from_pretrained(tmp_path, sub_folder="x")
    with pytest.raises(SchemaError, match="from_pretrained"):
        RerankingFeatureExtractor.from_dict({})


# --- properties -----------------------------------------------------------------------------------------------------

CANDIDATES = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(-(2**40), 2**40)),
        st.one_of(st.none(), st.text(max_size=3)),
        st.one_of(st.none(), st.floats(-1000, 1000, width=32)),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(CANDIDATES, min_size=1, max_size=5), st.data())
def test_ragged_round_trip(lists: list[list[tuple[Any, ...]]], data: st.DataObject) -> None:
    schema = FeatureSchema(
        name="s",
        item_id="item",
        fields=(
            FieldSpec(name="number", group="candidate", kind="categorical"),
            FieldSpec(name="word", group="candidate", kind="categorical"),
            FieldSpec(name="size", group="candidate", kind="numeric"),
        ),
    )
    rows = []
    for entries in lists:
        number, word, size = (list(column) for column in zip(*entries, strict=True))
        order = data.draw(st.permutations(range(len(entries))))
        rows.append({"item": order, "number": number, "word": word, "size": size})
    arrow = pa.schema(
        {
            "item": pa.list_(pa.int64()),
            "number": pa.list_(pa.int64()),
            "word": pa.list_(pa.string()),
            "size": pa.list_(pa.float64()),
        }
    )
    extractor = RerankingFeatureExtractor(schema).fit(rows)
    batch = extractor(rows)
    table = pa.Table.from_pylist(rows, schema=arrow)
    assert same(extractor(table), batch)
    start = data.draw(st.integers(0, len(rows) - 1))
    assert same(extractor(table.slice(start)), extractor(rows[start:]))
    knowns = [sorted({entry[field] for entries in lists for entry in entries} - {None}) for field in (0, 1)]
    for row, entries in enumerate(lists):
        assert int(batch["candidate_mask"][row].sum()) == len(entries)
        for place, (number, word, size) in enumerate(entries):
            ids = batch["candidate_categorical"][row, place].tolist()
            assert ids == [
                0 if value is None else known.index(value) + 2
                for value, known in zip((number, word), knowns, strict=True)
            ]
            assert batch["candidate_numeric"][row, place].tolist() == [size or 0.0]
    padding = ~batch["candidate_mask"]
    assert not batch["candidate_categorical"][padding].any()
    assert not batch["candidate_numeric"][padding].any()


# --- mined tables ---------------------------------------------------------------------------------------------------


def test_mined_table_by_hand(extractor: RerankingFeatureExtractor, mined_rows: Rows) -> None:
    batch = extractor(mined_rows)
    assert "feedback" not in batch
    assert "propensity" not in batch
    assert batch["slates"].tolist() == [[[2, 0], [1, 2]], [[1, -100], [-100, -100]]]
    assert batch["slate_weights"].tolist() == [[0.75, 0.25], [1.0, 0.0]]
    assert batch["slate_weights"].dtype == batch["soft_labels"].dtype == torch.float32
    assert batch["soft_labels"].tolist() == [
        [[[0.25, 0.25, 0.5], [0.5, 0.5, 0.0]], [[0.25, 0.25, 0.5], [0.125, 0.0, 0.875]]],
        [[[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]],
    ]


def half_table(rows: Rows) -> pa.Table:
    table = pa.Table.from_pylist(rows)
    half = pa.array([row["soft_labels"] for row in rows], pa.list_(pa.list_(pa.list_(pa.float16()))))
    return table.set_column(table.column_names.index("soft_labels"), "soft_labels", half)


@pytest.mark.parametrize(
    "convert",
    [
        pd.DataFrame,
        pa.Table.from_pylist,
        half_table,
        lambda rows: {name: [row[name] for row in rows] for name in rows[0]},
    ],
)
def test_mined_table_in_any_format(extractor: RerankingFeatureExtractor, mined_rows: Rows, convert: Any) -> None:
    assert same(extractor(convert(mined_rows)), extractor(mined_rows))


def test_mined_table_may_lack_soft_labels_and_have_feedback(
    extractor: RerankingFeatureExtractor, mined_rows: Rows
) -> None:
    for row in mined_rows:
        del row["soft_labels"]
    batch = extractor(mined_rows)
    assert "slate_weights" in batch
    assert "soft_labels" not in batch
    for row in mined_rows:
        row["click"] = row["order"] = [[1.0] * len(slate) for slate in row["slate"]]
    assert extractor(mined_rows)["feedback"].shape == (2, 2, 2, 2)
    del mined_rows[0]["order"], mined_rows[1]["order"]
    with pytest.raises(RerankingDataError, match="missing column") as caught:
        extractor(mined_rows)
    assert caught.value.field == "order"


def test_soft_labels_of_flat_slates(extractor: RerankingFeatureExtractor, mined_rows: Rows) -> None:
    for row in mined_rows:
        row.update(slate=row["slate"][0], slate_weights=[1.0], soft_labels=row["soft_labels"][0])
        row["slate_values"] = row["slate_values"][:1]
    batch = extractor(mined_rows)
    assert batch["slate_weights"].tolist() == [[1.0], [1.0]]
    assert batch["soft_labels"].tolist() == [
        [[[0.25, 0.25, 0.5], [0.5, 0.5, 0.0]]], [[[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]]
    ]  # fmt: skip


# --- extending ------------------------------------------------------------------------------------------------------


@pytest.fixture
def newer(rows: Rows) -> Rows:
    """The first row with an item between the known ones (and out of order), another brand, another age."""
    rows[0].update(item_id=[13, 11, 10], brand=["z", "y", "a"], age=50, past=[10], user="bob")
    return rows[:1]


def test_known_ids_stay_and_new_ones_follow(extractor: RerankingFeatureExtractor, newer: Rows) -> None:
    longer = extractor.extend(newer)
    batch = longer(newer)
    # items 11..14 are 2..5, 10 is new: 6; brands x, y are 2, 3, and a, z new: 4, 5
    assert batch["candidate_categorical"].tolist() == [[[4, 5], [2, 3], [6, 4]]]
    assert batch["request_categorical"].tolist() == [[3]]
    assert batch["history_categorical"].tolist() == [[[6]]]
    assert batch["request_numeric"].tolist() == [[3.0]]  # 50 by the mean 35 and the deviation 5 of before
    sizes = {field.name: field.num_embeddings for field in longer.schema.fields if field.kind == "categorical"}
    assert sizes == {"user": 4, "item_id": 7, "brand": 6, "past": 7}
    assert extractor(newer)["candidate_categorical"].tolist() == [[[4, 1], [2, 3], [1, 1]]]  # it stays as it is
    longer.check_extends(extractor)
    with pytest.raises(
        SchemaMismatchError, match=r"'user' has other ids; field 'item_id' has other ids; field 'brand'"
    ):
        extractor.check_extends(longer)


def test_nothing_new_changes_nothing(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    assert extractor.extend(rows[:1]).schema == extractor.schema


def test_statistics_change_only_if_asked(extractor: RerankingFeatureExtractor, rows: Rows) -> None:
    for row, age in zip(rows, (10, 12), strict=True):
        row["age"] = age
    updated = extractor.extend(rows, update_statistics=True)
    assert updated(rows)["request_numeric"].tolist() == [[-1.0], [1.0]]
    updated.check_extends(extractor, other_statistics=True)
    with pytest.raises(SchemaMismatchError, match=r"'age' is standardised otherwise$"):
        updated.check_extends(extractor)


def test_extending_respects_min_count_and_types(schema: FeatureSchema, rows: Rows, newer: Rows) -> None:
    fields = tuple(dataclasses.replace(f, min_count=2) if f.name == "brand" else f for f in schema.fields)
    extractor = RerankingFeatureExtractor(dataclasses.replace(schema, fields=fields)).fit(rows)
    newer[0]["brand"] = ["z", "z", "a"]
    longer = extractor.extend(newer)
    assert longer(newer)["candidate_categorical"][0, :, 1].tolist() == [3, 3, 1]  # of the known ones only y is not rare
    newer[0]["item_id"] = ["13", "11", "10"]
    with pytest.raises(RerankingDataError, match=r"field 'item_id'.*fitted on int values, got '13' \(string\)"):
        extractor.extend(newer)


def test_extended_extractor_is_saved(extractor: RerankingFeatureExtractor, newer: Rows, tmp_path: Any) -> None:
    longer = extractor.extend(newer)
    longer.save_pretrained(tmp_path)
    loaded = RerankingFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.schema == longer.schema
    assert same(loaded(newer), longer(newer))
    loaded.check_extends(extractor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hash_size": 7}, "hash_size of field 'brand' is 7, expected None"),
        ({"min_count": 3}, "min_count of field 'brand' is 3, expected 1"),
        ({"group": "request"}, "group of field 'brand' is 'request', expected 'candidate'"),
        (
            {"kind": "dense", "size": 4},
            "kind of field 'brand' is 'dense', expected 'categorical'; size of field 'brand' is",
        ),
        ({"name": "maker"}, "field 'maker' is not expected; field 'brand' is missing"),
    ],
)
def test_other_columns_are_listed(schema: FeatureSchema, change: dict[str, Any], message: str) -> None:
    fields = tuple(dataclasses.replace(f, **change) if f.name == "brand" else f for f in schema.fields)
    with pytest.raises(SchemaMismatchError, match=message):
        dataclasses.replace(schema, fields=fields).check_same(schema)


def test_every_difference_is_listed(schema: FeatureSchema) -> None:
    targets = (dataclasses.replace(schema.targets[0], weight=3.0),)
    fields = tuple(dataclasses.replace(f, transforms=()) if f.name == "age" else f for f in schema.fields)
    other = dataclasses.replace(schema, name="other", fields=fields, targets=targets, position_discount="log2")
    with pytest.raises(SchemaMismatchError) as caught:
        other.check_same(schema)
    assert str(caught.value) == (
        "schema 'other' is not schema 'shop' (expected): position_discount is 'log2', expected 'none'; "
        "transforms of field 'age' is (), expected ('standardize',); "
        "weight of target 'click' is 3.0, expected 1.0; target 'order' is missing"
    )
    with pytest.raises(SchemaMismatchError, match="the order of fields is"):
        dataclasses.replace(schema, fields=schema.fields[::-1]).check_same(schema)
    dataclasses.replace(schema, name="renamed").check_same(schema)


def test_a_dense_field_of_several_columns_is_that_of_one_column_of_vectors() -> None:
    rows = [{"item_id": [1, 2], "a": [1.0, 2.0], "b": [None, 40]}, {"item_id": [3], "a": [3.0], "b": [10]}]
    options: dict[str, Any] = {"group": "candidate", "kind": "dense", "transforms": ("standardize",)}
    apart = FeatureSchema(name="x", item_id="item_id", fields=(FieldSpec(name="ab", columns=("a", "b"), **options),))
    joined = FeatureSchema(name="x", item_id="item_id", fields=(FieldSpec(name="ab", size=2, **options),))
    assert FeatureSchema.from_dict(apart.to_dict()) == apart
    assert apart.columns() >= {"a", "b"}
    vectors = [{"item_id": row["item_id"], "ab": list(zip(row["a"], row["b"], strict=True))} for row in rows]
    found, expected = RerankingFeatureExtractor(apart).fit(rows), RerankingFeatureExtractor(joined).fit(vectors)
    assert torch.equal(found(rows)["candidate_numeric"], expected(vectors)["candidate_numeric"])
    assert torch.equal(found(pa.Table.from_pylist(rows))["candidate_numeric"], found(rows)["candidate_numeric"])
    with pytest.raises(RerankingDataError, match="field 'b', row 1: 2 entries, but 'a' has 1"):
        found([rows[0], {**rows[1], "b": [1, 2]}])
    with pytest.raises(RerankingDataError, match="field 'b', row 0: a finite float32 number is required"):
        found([{**rows[0], "b": [1.0, math.inf]}])
    request = FieldSpec(name="uv", group="request", kind="dense", columns=("u", "v"))
    schema = FeatureSchema(name="x", item_id="item_id", fields=(request,))
    batch = RerankingFeatureExtractor(schema).fit([{"item_id": [1], "u": 1, "v": 2}])({"item_id": [1], "u": 3, "v": 4})
    assert batch["request_numeric"].tolist() == [[3.0, 4.0]]
    for wrong in ({"columns": ("a", "a")}, {"columns": ("a", 1)}, {"columns": ("a", "b"), "size": 3}):
        with pytest.raises(SchemaError, match="field 'ab'"):
            FieldSpec(name="ab", group="candidate", kind="dense", **wrong)
