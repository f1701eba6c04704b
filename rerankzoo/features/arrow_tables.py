"""Arrow tables and data sets as tables of flat columns: viewed where possible, never looped over.

Whoever imports the module has pyarrow.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerankzoo.errors import RerankingDataError, in_one_line
from rerankzoo.features.tables import KIND_OF_DTYPE, Column, Table, missing_column, refuse_beyond_int64

_LISTS = (pa.ListArray, pa.LargeListArray, pa.FixedSizeListArray, pa.ListViewArray, pa.LargeListViewArray)
_LEAVES = ("is_integer", "is_floating", "is_boolean", "is_string", "is_large_string", "is_null")


class ArrowTable(Table):
    """A pyarrow Table or RecordBatch, or a `datasets.Dataset`: its slices are tables, so fitting never holds all."""

    def __init__(self, data: Any, first_row: int = 0) -> None:
        super().__init__(data.with_format("arrow") if hasattr(data, "with_format") else data, len(data), first_row)

    @cached_property
    def names(self) -> frozenset[str]:
        """See `Table.names`."""
        return frozenset(self._data.column_names)

    @cached_property
    def _table(self) -> Any:
        return self._data[:] if hasattr(self._data, "with_format") else self._data

    def is_nested(self, name: str) -> bool:
        """See `Table.is_nested`."""
        array = self.array(name)
        return isinstance(array, _LISTS) and isinstance(array.values, _LISTS)

    def slice(self, start: int, stop: int) -> Table:
        """See `Table.slice`."""
        lazy = hasattr(self._data, "with_format")
        part = self._data[start:stop] if lazy else self._data.slice(start, stop - start)
        return ArrowTable(part, self.first_row + start)

    def array(self, name: str) -> Any:
        """A column of numbers or strings in one piece, in types that every library knows."""
        names = self._data.column_names
        if name not in names:
            raise missing_column(name, names)
        if names.count(name) > 1:
            raise RerankingDataError(f"{names.count(name)} columns have this name", field=name)
        array = self._table.column(name)
        try:
            if isinstance(array, pa.ChunkedArray):
                array = array.chunk(0) if array.num_chunks == 1 else array.unify_dictionaries().combine_chunks()
            return _stored_array(array, name)
        except pa.ArrowException as error:  # of types that Arrow has no kernel for
            raise RerankingDataError(
                f"numbers or strings are required, got {in_one_line(error)}", field=name
            ) from error

    def column(self, name: str, depth: int) -> Column:
        """See `Table.column`."""
        column = Column(name=name, first_row=self.first_row)
        array = self.array(name)
        whole_type = array.type
        for _ in range(depth):
            nulls = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
            if pa.types.is_null(array.type):
                array, offsets = pa.nulls(0), np.zeros(len(array) + 1, dtype=np.int64)
            elif isinstance(array, _LISTS):
                array, offsets = array.values, array.offsets.to_numpy().astype(np.int64, copy=False)
            else:
                message = f"a list column is required ({depth} deep), got type {whole_type}"
                raise RerankingDataError(message, field=name)
            column.offsets += (offsets,)
            column.nulls += (nulls,)
        if isinstance(array, _LISTS):
            what = f"lists of depth {depth} are" if depth else "a single value per row is"
            raise RerankingDataError(f"{what} required, got type {whole_type}", field=name)
        _read_leaves(array, column)
        refuse_beyond_int64(column)
        return column


def _stored_array(array: Any, name: str) -> Any:
    """An array, and the lists in it, without extensions, run ends, views and dictionaries: how it is stored.

    Lists that are not missing, and only they, hold values, the first from 0 on.
    """
    types = pa.types
    if isinstance(array, pa.ExtensionArray):
        return _stored_array(array.storage, name)
    if types.is_run_end_encoded(array.type):
        return _stored_array(pc.run_end_decode(array), name)
    if types.is_dictionary(array.type):
        return _stored_array(array.dictionary, name).take(array.indices)
    if types.is_string_view(array.type):
        return array.cast(pa.large_string())
    if isinstance(array, _LISTS):
        large = types.is_large_list(array.type) or types.is_large_list_view(array.type)
        kind = pa.LargeListArray if large else pa.ListArray
        values = _stored_array(array.flatten(), name)  # respects the slice; without missing lists it copies nothing
        if type(array) is kind and not array.null_count and len(array) and array.offsets[0].as_py() == 0:  # as mostly
            return kind.from_arrays(array.offsets, values)
        lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64() if large else pa.int32())
        return kind.from_arrays(offsets, values, mask=array.is_null())
    if not any(getattr(types, leaf)(array.type) for leaf in _LEAVES):
        raise RerankingDataError(f"numbers or strings are required, got type {array.type}", field=name)
    return array


def _read_leaves(array: Any, column: Column) -> None:
    if array.null_count == len(array):
        column.values = np.zeros(len(array), dtype=np.int64)
        column.nulls += (np.ones(len(array), dtype=np.bool_),)
        return
    missing = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else None
    column.nulls += (missing,)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        array = array.dictionary_encode()
        column.kind, column.strings = "string", array.dictionary.to_pylist()
        array = array.indices
    if missing is not None:
        array = array.fill_null(False if pa.types.is_boolean(array.type) else 0)
    column.values = array.to_numpy(zero_copy_only=False)
    if column.kind == "string":
        column.values = column.values.astype(np.int64, copy=False)
    else:
        column.kind = KIND_OF_DTYPE[column.values.dtype.kind]


def has_missing(column: Any) -> bool:
    """Whether a leaf of a column of lists is missing; no list is opened one by one."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    for chunk in chunks:
        while isinstance(chunk, _LISTS):
            chunk = chunk.flatten()
        if chunk.null_count:
            return True
    return False
