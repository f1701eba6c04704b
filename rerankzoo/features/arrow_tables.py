"""Arrow tables and data sets as tables of flat columns: viewed where possible, never looped over.

Whoever imports the module has pyarrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerankzoo.errors import RerankingDataError, in_one_line
from rerankzoo.features.tables import KIND_OF_DTYPE, Column, Table, missing_column, refuse_beyond_int64


class ArrowTable(Table):
    """A pyarrow Table or RecordBatch, or a `datasets.Dataset`: its slices are tables, so fitting never holds all."""

    def __init__(self, data: Any, first_row: int = 0) -> None:
        super().__init__(frozenset(data.column_names), len(data), first_row)
        self._data = data.with_format("arrow") if hasattr(data, "with_format") else data

    @cached_property
    def _table(self) -> Any:
        return self._data[:] if hasattr(self._data, "with_format") else self._data

    def is_nested(self, name: str) -> bool:
        """See `Table`."""
        return is_arrow_list(self.array(name).type) and is_arrow_list(self.array(name).type.value_type)

    def column(self, name: str, depth: int) -> Column:
        """See `Table`."""
        column = Column(name=name, first_row=self.first_row)
        with naming_type(name):
            _read_array(self.array(name), depth, column)
        return column

    def slice(self, start: int, stop: int) -> Table:
        """See `Table`."""
        if hasattr(self._data, "with_format"):
            return ArrowTable(self._data[start:stop], self.first_row + start)
        return ArrowTable(self._data.slice(start, stop - start), self.first_row + start)

    def array(self, name: str) -> Any:
        """A column in one piece.

        Raises:
            RerankingDataError: If there is none, or several, of this name.
        """
        names = self._data.column_names
        if name not in names:
            raise missing_column(name, names)
        if names.count(name) > 1:
            raise RerankingDataError(f"{names.count(name)} columns have this name", field=name)
        array = self._table.column(name)
        with naming_type(name):
            if isinstance(array, pa.ChunkedArray):
                array = array.chunk(0) if array.num_chunks == 1 else array.unify_dictionaries().combine_chunks()
            return plain_array(array)


@contextmanager
def naming_type(name: str) -> Iterator[None]:
    """Turns what Arrow says of types that it has no kernel for into an error about the column."""
    try:
        yield
    except pa.ArrowException as error:
        raise RerankingDataError(f"numbers or strings are required, got {in_one_line(error)}", field=name) from error


def is_arrow_list(kind: Any) -> bool:
    """Whether an Arrow type is one of the kinds of list."""
    return any(check(kind) for check in _LIST_CHECKS)


_LIST_CHECKS: tuple[Callable[[Any], bool], ...] = tuple(
    getattr(pa.types, name)
    for name in ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")
)


def plain_array(array: Any) -> Any:
    """An array (not the lists in it) without what says only how it is stored: extensions, run ends, views of strings.

    A dictionary stays one where its values are strings, is not much longer than the (sliced) data, and holds no null.
    """
    types = pa.types
    if isinstance(array, pa.ExtensionArray):
        return plain_array(array.storage)
    if types.is_run_end_encoded(array.type):
        return plain_array(pc.run_end_decode(array))
    if types.is_string_view(array.type):
        return array.cast(pa.large_string())
    if types.is_dictionary(array.type):
        values = plain_array(array.dictionary)
        array = pa.DictionaryArray.from_arrays(array.indices, values)
        keep = types.is_string(values.type) or types.is_large_string(values.type)
        if not keep or len(values) > len(array) or values.null_count:
            return array.dictionary_decode()
    return array


def stored_array(array: Any, name: str) -> Any:
    """A column's array, and the lists in it, in types that every library knows.

    Raises:
        RerankingDataError: If it holds anything but numbers and strings.
    """
    with naming_type(name):
        array = plain_array(array)
    if is_arrow_list(array.type):
        lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        large = pa.types.is_large_list(array.type) or pa.types.is_large_list_view(array.type)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64() if large else pa.int32())
        kind = pa.LargeListArray if large else pa.ListArray
        return kind.from_arrays(offsets, stored_array(array.flatten(), name), mask=array.is_null())
    if pa.types.is_dictionary(array.type):
        return array.dictionary_decode()
    if not _is_leaf(array.type):
        raise RerankingDataError(f"numbers or strings are required, got type {array.type}", field=name)
    return array


def _is_leaf(kind: Any) -> bool:
    names = ("is_integer", "is_floating", "is_boolean", "is_string", "is_large_string", "is_null")
    return any(getattr(pa.types, name)(kind) for name in names)


def _read_array(array: Any, depth: int, column: Column) -> None:
    """Adds all of an array to a column."""
    whole_type = array.type
    for _ in range(depth):
        array = plain_array(array)
        nulls = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
        offsets = np.zeros(len(array) + 1, dtype=np.int64)
        if pa.types.is_null(array.type):
            array = pa.nulls(0)
        elif is_arrow_list(array.type):
            lengths = pc.list_value_length(array) if nulls is None else pc.list_value_length(array).fill_null(0)
            np.cumsum(lengths.to_numpy(zero_copy_only=False), out=offsets[1:])
            array = array.flatten()  # respects the slice and skips null lists; without nulls it copies nothing
        else:
            message = f"a list column is required ({depth} deep), got type {whole_type}"
            raise RerankingDataError(message, field=column.name)
        column.offsets += (offsets,)
        column.nulls += (nulls,)
    array = plain_array(array)
    if is_arrow_list(array.type):
        what = f"lists of depth {depth} are" if depth else "a single value per row is"
        raise RerankingDataError(f"{what} required, got type {whole_type}", field=column.name)
    _read_leaves(array, column)
    refuse_beyond_int64(column.values, column)


def _read_leaves(array: Any, column: Column) -> None:
    types = pa.types
    if array.null_count == len(array):
        column.values = np.zeros(len(array), dtype=np.int64)
        column.nulls += (np.ones(len(array), dtype=np.bool_),)
        return
    missing = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    column.nulls += (missing,)
    if types.is_string(array.type) or types.is_large_string(array.type):
        array = array.dictionary_encode()
    if types.is_dictionary(array.type):
        indices = array.indices.fill_null(0) if missing is not None else array.indices
        column.kind = "string"
        column.values = indices.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
        column.strings = array.dictionary.to_numpy(zero_copy_only=False).tolist()
        return
    if not (types.is_integer(array.type) or types.is_floating(array.type) or types.is_boolean(array.type)):
        raise RerankingDataError(f"numbers or strings are required, got type {array.type}", field=column.name)
    if missing is not None:
        array = array.fill_null(False if types.is_boolean(array.type) else 0)
    column.values = array.to_numpy(zero_copy_only=False)
    column.kind = KIND_OF_DTYPE[column.values.dtype.kind]
