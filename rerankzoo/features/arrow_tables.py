"""Arrow tables and data sets as tables of flat columns: viewed where possible, never looped over.

The module needs pyarrow only once it is handed an Arrow object, and finds it among the loaded modules then.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rerankzoo.errors import RerankingDataError
from rerankzoo.features.columns import (
    KIND_OF_DTYPE,
    BoolArray,
    Column,
    IntArray,
    LeafKind,
    Table,
    missing_column,
    refuse_beyond_int64,
)


class ArrowTable:
    """A pyarrow Table."""

    def __init__(self, table: Any, first_row: int = 0) -> None:
        self._table = table
        self.rows = table.num_rows
        self._first_row = first_row

    def has(self, name: str) -> bool:
        """See `Table`."""
        return name in self._table.column_names

    def _array(self, name: str) -> Any:
        if not self.has(name):
            raise missing_column(name, self._table.column_names)
        if self._table.column_names.count(name) > 1:
            raise RerankingDataError(f"{self._table.column_names.count(name)} columns have this name", field=name)
        chunked = self._table.column(name)
        return chunked.chunk(0) if chunked.num_chunks == 1 else chunked.unify_dictionaries().combine_chunks()

    def depth(self, name: str) -> int:
        """See `Table`."""
        depth, kind = 0, self._array(name).type
        while _is_arrow_list(kind):
            depth, kind = depth + 1, kind.value_type
        return depth

    def column(self, name: str, depth: int) -> Column:
        """See `Table`."""
        return _arrow_column(name, self._array(name), depth, self._first_row)

    def slice(self, start: int, stop: int) -> Table:
        """See `Table`."""
        return ArrowTable(self._table.slice(start, stop - start), self._first_row + start)


class DatasetTable:
    """A `datasets.Dataset`: slices are Arrow tables, so that fitting never holds the whole data set."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset.with_format("arrow")
        self.rows = len(dataset)

    @cached_property
    def _whole(self) -> Table:
        return self.slice(0, self.rows)

    def has(self, name: str) -> bool:
        """See `Table`."""
        return name in self._dataset.column_names

    def depth(self, name: str) -> int:
        """See `Table`."""
        return self._whole.depth(name)

    def column(self, name: str, depth: int) -> Column:
        """See `Table`."""
        return self._whole.column(name, depth)

    def slice(self, start: int, stop: int) -> Table:
        """See `Table`."""
        return ArrowTable(self._dataset[start:stop], start)


def _is_arrow_list(kind: Any) -> bool:
    types = sys.modules["pyarrow"].types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _arrow_column(name: str, array: Any, depth: int, first_row: int) -> Column:
    arrow = sys.modules["pyarrow"]
    column_type = array.type
    offsets: tuple[IntArray, ...] = ()
    nulls: tuple[BoolArray | None, ...] = ()
    for _ in range(depth):
        if isinstance(array, arrow.ExtensionArray):
            array = array.storage
        if arrow.types.is_null(array.type):
            offsets += (np.zeros(len(array) + 1, dtype=np.int64),)
            nulls += (np.ones(len(array), dtype=np.bool_),)
            array = arrow.nulls(0)
        elif _is_arrow_list(array.type):
            array, level_offsets, level_nulls = _arrow_split(array)
            offsets += (level_offsets,)
            nulls += (level_nulls,)
        else:
            raise RerankingDataError(f"a list column is required ({depth} deep), got type {column_type}", field=name)
    if _is_arrow_list(array.type):
        what = f"lists of depth {depth} are" if depth else "a single value per row is"
        raise RerankingDataError(f"{what} required, got type {column_type}", field=name)
    kind, values, missing, strings = _arrow_leaves(name, array)
    column = Column(
        name=name,
        kind=kind,
        values=values,
        offsets=offsets,
        nulls=(*nulls, missing),
        strings=strings,
        first_row=first_row,
    )
    refuse_beyond_int64(values, column)
    return column


def _arrow_split(array: Any) -> tuple[Any, IntArray, BoolArray | None]:
    # `import` at run time: pyarrow is loaded (the array is one of its objects), its compute module perhaps not.
    import pyarrow.compute as compute

    lengths = compute.list_value_length(array)
    nulls = None
    if array.null_count:
        nulls = array.is_null().to_numpy(zero_copy_only=False)
        lengths = lengths.fill_null(0)
    offsets = np.zeros(len(array) + 1, dtype=np.int64)
    np.cumsum(lengths.to_numpy(zero_copy_only=False), out=offsets[1:])
    # flatten() respects the slice and skips null lists; without nulls it copies nothing.
    return array.flatten(), offsets, nulls


def _arrow_leaves(name: str, array: Any) -> tuple[LeafKind, npt.NDArray[Any], BoolArray | None, Sequence[str]]:
    types = sys.modules["pyarrow"].types
    if array.null_count == len(array):
        return "null", np.zeros(len(array), dtype=np.int64), np.ones(len(array), dtype=np.bool_), ()
    # A dictionary far longer than the (sliced) data, or one with a null in it, is not worth keeping.
    if types.is_dictionary(array.type):
        keep = types.is_string(array.type.value_type) or types.is_large_string(array.type.value_type)
        if not keep or len(array.dictionary) > len(array) or array.dictionary.null_count:
            array = array.dictionary_decode()
    missing = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    if types.is_string(array.type) or types.is_large_string(array.type) or types.is_string_view(array.type):
        array = array.dictionary_encode()
    if types.is_dictionary(array.type):
        indices = array.indices.fill_null(0) if array.null_count else array.indices
        codes = indices.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
        return "string", codes, missing, array.dictionary.to_numpy(zero_copy_only=False).tolist()
    if not (types.is_integer(array.type) or types.is_floating(array.type) or types.is_boolean(array.type)):
        raise RerankingDataError(f"numbers or strings are required, got type {array.type}", field=name)
    if missing is not None:
        array = array.fill_null(False if types.is_boolean(array.type) else 0)
    values = array.to_numpy(zero_copy_only=False)
    return KIND_OF_DTYPE[values.dtype.kind], values, missing, ()
