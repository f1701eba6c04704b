"""Dict rows, dicts of columns and DataFrames as tables of flat columns."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from rerankzoo.errors import RerankingDataError, shown
from rerankzoo.features.columns import (
    INT64_MAX,
    KIND_OF_DTYPE,
    BoolArray,
    Column,
    IntArray,
    LeafKind,
    Table,
    missing_column,
    refuse_beyond_int64,
)


class PythonTable:
    """A dict of columns."""

    def __init__(self, columns: Mapping[str, Any], rows: int, first_row: int = 0) -> None:
        self._columns = columns
        self.rows = rows
        self._first_row = first_row

    def has(self, name: str) -> bool:
        """See `Table`."""
        return name in self._columns

    def _values(self, name: str) -> Any:
        if name not in self._columns:
            raise missing_column(name, self._columns)
        values = self._columns[name]
        if not is_list(values):
            raise RerankingDataError(f"a column must be a list, got {shown(values)}", field=name)
        if len(values) != self.rows:
            raise RerankingDataError(f"the column has {len(values)} rows, others have {self.rows}", field=name)
        return _as_sequence(values)

    def depth(self, name: str) -> int:
        """See `Table`."""
        return 1 + any(is_list(entry) for row in self._values(name) if is_list(row) for entry in row)

    def column(self, name: str, depth: int) -> Column:
        """See `Table`."""
        return _python_column(name, self._values(name), depth, self._first_row)

    def slice(self, start: int, stop: int) -> Table:
        """See `Table`."""
        columns = {name: self._values(name)[start:stop] for name in self._columns}
        return PythonTable(columns, min(stop, self.rows) - start, self._first_row + start)


class RowTable(PythonTable):
    """A list of dict rows; a column is picked out when it is read."""

    def __init__(self, data: Sequence[Mapping[str, Any]], item_id: str, first_row: int = 0) -> None:
        super().__init__({}, len(data), first_row)
        self._unchecked = data
        self._item_id = item_id

    @cached_property
    def _data(self) -> Sequence[Mapping[str, Any]]:
        """The rows, which are checked when they are first read: a slice without the bad one can be."""
        for number, row in enumerate(self._unchecked):
            if not isinstance(row, Mapping):
                message = f"a row must be a dict, got {shown(row)}"
                raise RerankingDataError(message, field=self._item_id, row=self._first_row + number)
        return self._unchecked

    def has(self, name: str) -> bool:
        """See `Table`."""
        return any(name in row for row in self._data)

    def _values(self, name: str) -> Any:
        try:
            return [row[name] for row in self._data]
        except KeyError:
            number = next(number for number, row in enumerate(self._data) if name not in row)
            row = self._first_row + number if self.has(name) else None
            raise missing_column(name, self._data[number], row) from None

    def slice(self, start: int, stop: int) -> Table:
        """See `Table`."""
        return RowTable(self._unchecked[start:stop], self._item_id, self._first_row + start)


class PandasTable:
    """A DataFrame: numpy columns are used as they are, all others (object, string, nullable...) as Python objects."""

    def __init__(self, frame: Any, first_row: int = 0) -> None:
        self._frame = frame
        self.rows = len(frame)
        self._first_row = first_row

    def has(self, name: str) -> bool:
        """See `Table`."""
        return name in self._frame.columns

    def _values(self, name: str) -> Any:
        if not self.has(name):
            raise missing_column(name, self._frame.columns)
        series = self._frame[name]
        if series.ndim > 1:
            raise RerankingDataError(f"{series.shape[1]} columns have this name", field=name)
        if isinstance(series.dtype, np.dtype):
            return series.to_numpy() if series.dtype.kind in KIND_OF_DTYPE else series.tolist()
        # Extension types have a missing value of their own (pd.NA, or NaN in a string column), which means None.
        return [None if null else value for value, null in zip(series.tolist(), series.isna().tolist(), strict=True)]

    def depth(self, name: str) -> int:
        """See `Table`."""
        return PythonTable({name: self._values(name)}, self.rows).depth(name)

    def column(self, name: str, depth: int) -> Column:
        """See `Table`."""
        return _python_column(name, self._values(name), depth, self._first_row)

    def slice(self, start: int, stop: int) -> Table:
        """See `Table`."""
        return PandasTable(self._frame.iloc[start:stop], self._first_row + start)


def is_list(value: Any) -> bool:
    """Whether a value is a list, a tuple or an array with at least one dimension."""
    if isinstance(value, list | tuple):
        return True
    # numpy arrays and anything that turns into one, such as a torch tensor
    return hasattr(value, "__array__") and getattr(value, "ndim", 0) > 0


def _as_sequence(value: Any) -> Any:
    return value if isinstance(value, list | tuple | np.ndarray) else np.asarray(value)


def _python_column(name: str, values: Any, depth: int, first_row: int) -> Column:
    offsets: tuple[IntArray, ...] = ()
    nulls: tuple[BoolArray | None, ...] = ()
    for _ in range(depth):
        partial = Column(name=name, kind="null", values=np.empty(0), offsets=offsets, first_row=first_row)
        values, level_offsets, level_nulls = _split(values, partial)
        offsets += (level_offsets,)
        nulls += (level_nulls,)
    partial = Column(name=name, kind="null", values=np.empty(0), offsets=offsets, first_row=first_row)
    kind, leaves, missing, strings = _leaves(values, partial)
    return Column(
        name=name,
        kind=kind,
        values=leaves,
        offsets=offsets,
        nulls=(*nulls, missing),
        strings=strings,
        first_row=first_row,
    )


def _split(values: Any, column: Column) -> tuple[Any, IntArray, BoolArray | None]:
    """Opens one list level: returns the concatenated lists, their offsets and which of them were `None`."""
    if isinstance(values, np.ndarray) and values.ndim > 1:
        count, length = values.shape[:2]
        flat = values.reshape(count * length, *values.shape[2:])
        return flat, np.arange(count + 1, dtype=np.int64) * length, None
    types = set(map(type, values))
    nulls = None
    if type(None) in types:
        nulls = np.array([value is None for value in values], dtype=np.bool_)
        values = [() if value is None else value for value in values]
    if not types <= {list, tuple, type(None)}:
        for index, value in enumerate(values):
            if not is_list(value):
                raise column.error(f"a list is required, got {shown(value)}", index)
        values = [_as_sequence(value) for value in values]
    offsets = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    return _concatenate(values), offsets, nulls


def _concatenate(values: Sequence[Any]) -> Any:
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    alike = len({(array.dtype, array.shape[1:]) for array in arrays}) == 1
    if alike and arrays[0].dtype.kind in KIND_OF_DTYPE and len(arrays) == sum(len(value) > 0 for value in values):
        return np.concatenate(arrays)
    if len(values) == 1 and not arrays:
        return values[0]
    return list(chain.from_iterable(value.tolist() if isinstance(value, np.ndarray) else value for value in values))


def _leaves(values: Any, column: Column) -> tuple[LeafKind, npt.NDArray[Any], BoolArray | None, Sequence[str]]:
    """Returns kind, array, missing mask and distinct strings of the innermost values."""
    if isinstance(values, np.ndarray):
        if values.ndim > 1:
            raise column.error(f"a single value is required, got {shown(values[0].tolist())}", 0)
        kind = KIND_OF_DTYPE.get(values.dtype.kind)
        if kind is not None:
            return kind, refuse_beyond_int64(values, column), None, ()
        values = values.tolist()
    kind = _kind_of(values, column)
    missing = None
    if None in values:
        missing = np.array([value is None for value in values], dtype=np.bool_)
        if kind != "string":
            values = [0 if value is None else value for value in values]
    if kind == "string":
        strings = [value for value in dict.fromkeys(values) if value is not None]
        codes: dict[str | None, int] = {value: code for code, value in enumerate(strings)}
        codes[None] = 0
        return kind, np.array([codes[value] for value in values], dtype=np.int64), missing, strings
    return kind, _number_array(values, kind, column), missing, ()


def _number_array(values: Sequence[Any], kind: LeafKind, column: Column) -> npt.NDArray[Any]:
    dtype = {"int": np.int64, "null": np.int64, "float": np.float64, "bool": np.bool_}[kind]
    try:
        return np.array(values, dtype=dtype)
    except OverflowError:
        index = next(
            i for i, value in enumerate(values) if _kind_of_type(type(value)) == "int" and not _fits(value, kind)
        )
        raise column.error(f"{shown(values[index])} is too large", index) from None


def _fits(value: int, kind: LeafKind) -> bool:
    # int(): a numpy integer compares in its own width.
    return -INT64_MAX - 1 <= int(value) <= INT64_MAX if kind == "int" else abs(int(value)) <= sys.float_info.max


def _kind_of(values: Sequence[Any], column: Column) -> LeafKind:
    """The common kind of Python scalars; ints among floats are floats, any other mixture is refused."""
    kinds = {_kind_of_type(kind) for kind in set(map(type, values)) - {type(None)}}
    if not kinds:
        return "null"
    if kinds == {"int", "float"}:
        return "float"
    kind = kinds.pop()
    if kind is not None and not kinds:
        return kind
    raise _mixture_error(values, column)


def _mixture_error(values: Sequence[Any], column: Column) -> RerankingDataError:
    present = [(index, value, _kind_of_type(type(value))) for index, value in enumerate(values) if value is not None]
    for index, value, kind in present:
        if kind is None:
            return column.error(f"a number or a string is required, got {shown(value)} ({type(value).__name__})", index)
    _, first, kind = present[0]
    same = {"int", "float"} if kind in ("int", "float") else {kind}
    index, value, other = next(entry for entry in present if entry[2] not in same)
    return column.error(f"mixed types: {shown(value)} ({other}) after {shown(first)} ({kind})", index)


def _kind_of_type(kind: type) -> LeafKind | None:
    if kind is bool or issubclass(kind, np.bool_):
        return "bool"
    if issubclass(kind, int | np.integer):
        return "int"
    if issubclass(kind, float | np.floating):
        return "float"
    return "string" if issubclass(kind, str) else None
