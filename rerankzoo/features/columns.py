"""Any table of requests as flat numpy columns with offsets, read once; everything after that is vectorised.

Accepted: one dict row, a list of dict rows, a dict of columns, a pandas DataFrame, a pyarrow Table or RecordBatch, a
`datasets.Dataset`. Arrow data is viewed where possible, never looped over. pandas, pyarrow and datasets are looked up
only among the modules that are loaded already: whoever hands in such an object has imported its library.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from rerankzoo.errors import RerankingDataError

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
LeafKind = Literal["int", "float", "bool", "string", "null"]

_KIND_OF_DTYPE: dict[str, LeafKind] = {"i": "int", "u": "int", "f": "float", "b": "bool"}
_INT64_MAX = np.iinfo(np.int64).max


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column, flattened.

    Args:
        name: The column's name.
        kind: The type of the leaves; `"null"` if all are missing.
        values: (n,) the leaves of all rows; for strings, indexes into `strings`. Missing leaves hold 0.
        offsets: One array per list level, outermost first: entry i of a level owns `offsets[i]:offsets[i + 1]` of the
            next level.
        nulls: One mask per list level, then one for the leaves: True where an entry is missing; `None` if none is.
        strings: The distinct strings (a superset is allowed).
        first_row: The number of the column's first row in the data that the caller passed in.
    """

    name: str
    kind: LeafKind
    values: npt.NDArray[Any]
    offsets: tuple[IntArray, ...] = ()
    nulls: tuple[BoolArray | None, ...] = (None,)
    strings: Sequence[str] = ()
    first_row: int = 0

    @property
    def missing(self) -> BoolArray | None:
        """Mask of the missing leaves, or `None` if there are none."""
        return self.nulls[-1]

    def row(self, index: int, level: int | None = None) -> int:
        """Returns the row that owns an entry of a level (default: a leaf)."""
        for offsets in reversed(self.offsets[:level]):
            index = int(np.searchsorted(offsets, index, side="right")) - 1
        return index + self.first_row

    def value(self, index: int) -> Any:
        """Returns a leaf as a Python object."""
        if self.kind == "null" or (self.missing is not None and self.missing[index]):
            return None
        value = self.values[index]
        return self.strings[value] if self.kind == "string" else value.item()

    def error(self, message: str, index: int, level: int | None = None) -> RerankingDataError:
        """Returns an error about an entry of a level (default: a leaf)."""
        return RerankingDataError(message, field=self.name, row=self.row(index, level))

    def refuse_nulls(self, what: str, advice: str = "") -> None:
        """Raises if a list or a leaf is missing."""
        for level, null in enumerate(self.nulls):
            if null is not None and null.any():
                kind = what if level == len(self.offsets) else "a list"
                raise self.error(f"{kind} is required, got None{advice}", int(null.argmax()), level)


class Table(Protocol):
    """Rows by column, whatever they were stored in."""

    rows: int

    def has(self, name: str) -> bool:
        """Whether the table has this column."""

    def depth(self, name: str) -> int:
        """How many list levels the column's rows have (at most 2 are looked at)."""

    def column(self, name: str, depth: int) -> Column:
        """Reads a column whose rows are `depth` nested lists."""

    def slice(self, start: int, stop: int) -> Table:
        """A range of rows."""


def read_table(data: Any, item_id: str) -> Table:
    """Wraps any supported input.

    Args:
        data: See the module's description.
        item_id: The list column that every table has; it tells one dict row from a dict of columns.

    Raises:
        RerankingDataError: If the type is not supported or there are no rows.
    """
    table = _wrap(data, item_id)
    if table.rows == 0:
        raise RerankingDataError("the data has no rows", field=item_id)
    return table


def _wrap(data: Any, item_id: str) -> Table:
    if isinstance(data, Mapping):
        if _holds_columns(data, item_id):
            return _PythonTable(columns=data, rows=len(data[item_id]))
        return _RowTable([data], item_id)
    if isinstance(data, list | tuple):
        return _RowTable(data, item_id)
    if _is_a(data, "pandas", "DataFrame"):
        return _PandasTable(data)
    if _is_a(data, "pyarrow", "Table"):
        return _arrow_table(data)
    if _is_a(data, "pyarrow", "RecordBatch"):
        return _arrow_table(sys.modules["pyarrow"].Table.from_batches([data]))
    if _is_a(data, "datasets", "Dataset"):
        return _DatasetTable(data)
    raise RerankingDataError(
        f"cannot read {type(data).__module__}.{type(data).__qualname__}; pass a dict, a list of dicts, a dict of "
        "columns, a pandas DataFrame, a pyarrow Table or a datasets.Dataset",
        field=item_id,
    )


def _is_a(data: Any, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(data, getattr(loaded, name, ()))


def _holds_columns(data: Mapping[str, Any], item_id: str) -> bool:
    """In a dict of columns the entries of the item id column are lists, in one row they are ids."""
    items = data.get(item_id)
    if isinstance(items, np.ndarray) and items.ndim > 1:
        return True
    return isinstance(items, list | tuple | np.ndarray) and any(_is_list(entry) for entry in items)


def _missing_column(name: str, available: Any) -> RerankingDataError:
    return RerankingDataError(f"missing column; the data has {', '.join(map(repr, available))}", field=name)


# --- Python objects -------------------------------------------------------------------------------------------------


class _PythonTable:
    """A dict of columns."""

    def __init__(self, columns: Mapping[str, Any], rows: int, first_row: int = 0) -> None:
        self._columns = columns
        self.rows = rows
        self._first_row = first_row

    def has(self, name: str) -> bool:
        return name in self._columns

    def _values(self, name: str) -> Any:
        if name not in self._columns:
            raise _missing_column(name, self._columns)
        values = self._columns[name]
        if not _is_list(values):
            raise RerankingDataError(f"a column must be a list, got {values!r}", field=name)
        if len(values) != self.rows:
            raise RerankingDataError(f"the column has {len(values)} rows, others have {self.rows}", field=name)
        return _as_sequence(values)

    def depth(self, name: str) -> int:
        return 1 + any(_is_list(entry) for row in self._values(name) if _is_list(row) for entry in row)

    def column(self, name: str, depth: int) -> Column:
        return _python_column(name, self._values(name), depth, self._first_row)

    def slice(self, start: int, stop: int) -> Table:
        columns = {name: self._values(name)[start:stop] for name in self._columns}
        return _PythonTable(columns, min(stop, self.rows) - start, self._first_row + start)


class _RowTable(_PythonTable):
    """A list of dict rows; a column is picked out when it is read."""

    def __init__(self, data: Sequence[Mapping[str, Any]], item_id: str, first_row: int = 0) -> None:
        super().__init__({}, len(data), first_row)
        for number, row in enumerate(data):
            if not isinstance(row, Mapping):
                message = f"a row must be a dict, got {row!r}"
                raise RerankingDataError(message, field=item_id, row=first_row + number)
        self._data = data
        self._item_id = item_id

    def has(self, name: str) -> bool:
        return any(name in row for row in self._data)

    def _values(self, name: str) -> Any:
        try:
            return [row[name] for row in self._data]
        except KeyError:
            number = next(number for number, row in enumerate(self._data) if name not in row)
            error = _missing_column(name, self._data[number])
            if not self.has(name):
                raise error from None
            message = f"missing column; the row has {', '.join(map(repr, self._data[number]))}"
            raise RerankingDataError(message, field=name, row=self._first_row + number) from None

    def slice(self, start: int, stop: int) -> Table:
        return _RowTable(self._data[start:stop], self._item_id, self._first_row + start)


class _PandasTable:
    """A DataFrame: numpy columns are used as they are, all others (object, string, nullable...) as Python objects."""

    def __init__(self, frame: Any, first_row: int = 0) -> None:
        self._frame = frame
        self.rows = len(frame)
        self._first_row = first_row

    def has(self, name: str) -> bool:
        return name in self._frame.columns

    def _values(self, name: str) -> Any:
        if not self.has(name):
            raise _missing_column(name, self._frame.columns)
        series = self._frame[name]
        if series.ndim > 1:
            raise RerankingDataError(f"{series.shape[1]} columns have this name", field=name)
        if isinstance(series.dtype, np.dtype):
            return series.to_numpy() if series.dtype.kind in _KIND_OF_DTYPE else series.tolist()
        # Extension types have a missing value of their own (pd.NA, or NaN in a string column), which means None.
        return [None if null else value for value, null in zip(series.tolist(), series.isna().tolist(), strict=True)]

    def depth(self, name: str) -> int:
        return _PythonTable({name: self._values(name)}, self.rows).depth(name)

    def column(self, name: str, depth: int) -> Column:
        return _python_column(name, self._values(name), depth, self._first_row)

    def slice(self, start: int, stop: int) -> Table:
        return _PandasTable(self._frame.iloc[start:stop], self._first_row + start)


def _is_list(value: Any) -> bool:
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
            if not _is_list(value):
                raise column.error(f"a list is required, got {value!r}", index)
        values = [_as_sequence(value) for value in values]
    offsets = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    return _concatenate(values), offsets, nulls


def _concatenate(values: Sequence[Any]) -> Any:
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    alike = len({(array.dtype, array.shape[1:]) for array in arrays}) == 1
    if alike and arrays[0].dtype.kind in _KIND_OF_DTYPE and len(arrays) == sum(len(value) > 0 for value in values):
        return np.concatenate(arrays)
    if len(values) == 1 and not arrays:
        return values[0]
    return list(chain.from_iterable(value.tolist() if isinstance(value, np.ndarray) else value for value in values))


def _leaves(values: Any, column: Column) -> tuple[LeafKind, npt.NDArray[Any], BoolArray | None, Sequence[str]]:
    """Returns kind, array, missing mask and distinct strings of the innermost values."""
    if isinstance(values, np.ndarray):
        if values.ndim > 1:
            raise column.error(f"a single value is required, got {values[0].tolist()!r}", 0)
        kind = _KIND_OF_DTYPE.get(values.dtype.kind)
        if kind is not None:
            return kind, _signed(values, column), None, ()
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
        index = next(i for i, value in enumerate(values) if isinstance(value, int) and not _fits(value, kind))
        raise column.error(f"{values[index]} is too large", index) from None


def _fits(value: int, kind: LeafKind) -> bool:
    return -_INT64_MAX - 1 <= value <= _INT64_MAX if kind == "int" else abs(value) < 1 << 1023


def _kind_of(values: Sequence[Any], column: Column) -> LeafKind:
    """The common kind of Python scalars; ints among floats are floats, any other mixture is refused."""
    kinds = {_kind_of_type(kind) for kind in set(map(type, values)) - {type(None)}}
    if not kinds:
        return "null"
    if kinds == {"int", "float"}:
        return "float"
    if len(kinds) == 1 and None not in kinds:
        return kinds.pop() or "null"
    first: tuple[LeafKind, Any] | None = None
    for index, value in enumerate(values):
        kind = None if value is None else _kind_of_type(type(value))
        if value is not None and kind is None:
            raise column.error(f"a number or a string is required, got {value!r} ({type(value).__name__})", index)
        if first is None and kind is not None:
            first = (kind, value)
        elif first is not None and kind is not None and kind != first[0] and {kind, first[0]} != {"int", "float"}:
            raise column.error(f"mixed types: {value!r} ({kind}) after {first[1]!r} ({first[0]})", index)
    raise column.error("mixed types", 0)


def _kind_of_type(kind: type) -> LeafKind | None:
    if kind is bool or issubclass(kind, np.bool_):
        return "bool"
    if issubclass(kind, int | np.integer):
        return "int"
    if issubclass(kind, float | np.floating):
        return "float"
    return "string" if issubclass(kind, str) else None


def _signed(values: npt.NDArray[Any], column: Column) -> npt.NDArray[Any]:
    if values.dtype == np.uint64 and len(values) and values.max() > _INT64_MAX:
        index = int(values.argmax())
        raise column.error(f"{values[index]} is too large", index)
    return values


# --- Arrow ----------------------------------------------------------------------------------------------------------


class _ArrowTable:
    """A pyarrow Table."""

    def __init__(self, table: Any, first_row: int = 0) -> None:
        self._table = table
        self.rows = table.num_rows
        self._first_row = first_row

    def has(self, name: str) -> bool:
        return name in self._table.column_names

    def _array(self, name: str) -> Any:
        if not self.has(name):
            raise _missing_column(name, self._table.column_names)
        if self._table.column_names.count(name) > 1:
            raise RerankingDataError(f"{self._table.column_names.count(name)} columns have this name", field=name)
        chunked = self._table.column(name)
        return chunked.chunk(0) if chunked.num_chunks == 1 else chunked.unify_dictionaries().combine_chunks()

    def depth(self, name: str) -> int:
        depth, kind = 0, self._array(name).type
        while _is_arrow_list(kind):
            depth, kind = depth + 1, kind.value_type
        return depth

    def column(self, name: str, depth: int) -> Column:
        return _arrow_column(name, self._array(name), depth, self._first_row)

    def slice(self, start: int, stop: int) -> Table:
        return _ArrowTable(self._table.slice(start, stop - start), self._first_row + start)


_arrow_table = _ArrowTable


class _DatasetTable:
    """A `datasets.Dataset`: slices are Arrow tables, so that fitting never holds the whole data set."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset.with_format("arrow")
        self.rows = len(dataset)

    @cached_property
    def _whole(self) -> Table:
        return self.slice(0, self.rows)

    def has(self, name: str) -> bool:
        return name in self._dataset.column_names

    def depth(self, name: str) -> int:
        return self._whole.depth(name)

    def column(self, name: str, depth: int) -> Column:
        return self._whole.column(name, depth)

    def slice(self, start: int, stop: int) -> Table:
        return _ArrowTable(self._dataset[start:stop], start)


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
    _signed(values, column)
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
    if types.is_null(array.type):
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
        return "string", codes, missing, array.dictionary.to_pylist()
    if not (types.is_integer(array.type) or types.is_floating(array.type) or types.is_boolean(array.type)):
        raise RerankingDataError(f"numbers or strings are required, got type {array.type}", field=name)
    if missing is not None:
        array = array.fill_null(False if types.is_boolean(array.type) else 0)
    values = array.to_numpy(zero_copy_only=False)
    return _KIND_OF_DTYPE[values.dtype.kind], values, missing, ()
