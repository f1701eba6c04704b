"""Any table of requests as flat numpy columns with offsets, read once; everything after that is vectorised.

Accepted: one dict row, a list of dict rows, a dict of columns, a pandas DataFrame, a pyarrow Table or RecordBatch, a
`datasets.Dataset`. Whoever hands in an object of a library has imported it: only loaded modules are looked at.

Python objects and Arrow arrays have a reader each. One Arrow table made of everything was measured: a request of 50
candidates would take 0.9 ms instead of 0.3, errors of mixed types would lose their row, and serving would need pyarrow.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, count, islice
from operator import itemgetter
from types import NoneType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from rerankzoo.errors import RerankingDataError, shown

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
LeafKind = Literal["int", "float", "bool", "string", "null"]

KIND_OF_DTYPE: dict[str, LeafKind] = {"i": "int", "u": "int", "f": "float", "b": "bool"}
#: Of what JSON holds; other types are looked at one by one.
_KIND_OF_TYPES: dict[frozenset[type], LeafKind] = {
    frozenset(): "null",
    frozenset({int}): "int",
    frozenset({float}): "float",
    frozenset({int, float}): "float",
    frozenset({bool}): "bool",
    frozenset({str}): "string",
}
_SCALARS: tuple[tuple[tuple[type, ...], LeafKind], ...] = (
    ((NoneType,), "null"),
    ((bool, np.bool_), "bool"),
    ((int, np.integer), "int"),
    ((float, np.floating), "float"),
    ((str,), "string"),
)
_DTYPE_OF_KIND = {"int": np.int64, "null": np.int64, "float": np.float64, "bool": np.bool_}
INT64_MAX = np.iinfo(np.int64).max
_MOST_NAMES = 30  # of columns in a message


@dataclass(kw_only=True)
class Column:
    """One column, flattened. While it is read, what was read so far, for the place of an error."""

    name: str
    kind: LeafKind = "null"  # of the leaves; "null" if all are missing
    #: (n,) the leaves of all rows; for strings, indexes into `strings`. Missing leaves hold 0.
    values: npt.NDArray[Any] = field(default_factory=lambda: np.empty(0))
    #: One array per list level, outermost first: entry i holds `offsets[i]:offsets[i + 1]` of the next level.
    offsets: tuple[IntArray, ...] = ()
    #: One mask per list level, then one for the leaves: True where an entry is missing; `None` if none is.
    nulls: tuple[BoolArray | None, ...] = ()
    strings: Sequence[str] = ()  # the distinct ones, or more
    first_row: int = 0  # its number in the data that the caller passed in

    def row(self, index: int, level: int | None = None) -> int:
        """Returns the row that an entry of a level (default: a leaf) belongs to."""
        for offsets in reversed(self.offsets[:level]):
            index = int(np.searchsorted(offsets, index, side="right")) - 1
        return index + self.first_row

    def value(self, index: int) -> Any:
        """Returns a leaf that is not missing as a Python object."""
        value = self.values[index].item()
        return self.strings[value] if self.kind == "string" else value

    def first_present(self) -> int:
        """Returns the index of the first leaf that is not missing."""
        return 0 if self.nulls[-1] is None else int((~self.nulls[-1]).argmax())

    def error(self, message: str, index: int, level: int | None = None) -> RerankingDataError:
        """Returns an error about an entry of a level (default: a leaf)."""
        return RerankingDataError(message, field=self.name, row=self.row(index, level))

    def refuse(self, wrong: BoolArray, message: str, level: int | None = None, *values: npt.NDArray[Any]) -> None:
        """Raises if an entry of a level (default: a leaf) is wrong; the message's `{}` stand for its `values`."""
        if wrong.any():
            index = int(wrong.argmax())
            raise self.error(message.format(*(value[index] for value in values)), index, level)

    def refuse_nulls(self, what: str | None, advice: str = "") -> None:
        """Raises if a list or (unless `what` is None) a leaf is missing."""
        for level, null in enumerate(self.nulls if what else self.nulls[:-1]):
            if null is not None:
                kind = what if level == len(self.offsets) else "a list"
                self.refuse(null, f"{kind} is required, got None{advice}", level)


class Ragged:
    """Where each row's values lie in a flat array, `offsets[i]:offsets[i + 1]`, and in a padded one."""

    def __init__(self, offsets: IntArray, min_width: int = 0) -> None:
        self.offsets = offsets
        self.lengths: IntArray = offsets[1:] - offsets[:-1]
        self.rows = len(self.lengths)
        self.width = max(int(self.lengths.max(initial=0)), min_width)
        self.total = int(offsets[-1])
        #: Whether no row needs padding.
        self.full = self.total == self.rows * self.width

    @cached_property
    def mask(self) -> BoolArray:
        """(B, width), True where a value is real."""
        return np.arange(self.width) < self.lengths[:, None]

    def place(self, flat: npt.NDArray[Any], padded: npt.NDArray[Any]) -> None:
        """Writes (total, ...) to the places of (B, width, ...) that are real."""
        if self.full:
            padded[...] = flat.reshape(padded.shape)
        else:
            padded[self.mask] = flat  # of one value each, and of another type, far faster than by index

    def pad(self, flat: npt.NDArray[Any], fill: float = 0) -> npt.NDArray[Any]:
        """Pads (total, ...) to (B, width, ...)."""
        shape = (self.rows, self.width, *flat.shape[1:])
        if self.full:
            return flat.reshape(shape)
        # np.zeros gets its pages zeroed by the system and is several times faster than np.full here.
        padded = np.zeros(shape, dtype=flat.dtype)
        if fill != 0:
            padded.fill(fill)
        self.place(flat, padded)
        return padded

    def check_same(self, column: Column, what: str) -> None:
        """Raises if the outermost lists of `column` have other lengths; `what` says whose lengths are right."""
        if (column.offsets[0] != self.offsets).any():
            lengths = np.diff(column.offsets[0])
            index = int((lengths != self.lengths).argmax())
            raise column.error(f"{lengths[index]} entries, but {what} has {self.lengths[index]}", index, 0)


class Table:
    """Rows by column: a dict of columns or a pandas DataFrame; other sources derive from it.

    `first_row` is the number of the first row in the data that the caller passed in, `length` that of all rows there.
    """

    def __init__(self, data: Any, rows: int, first_row: int = 0, length: int | None = None) -> None:
        self._data = data
        self.rows = rows
        self.first_row = first_row
        self._length = rows if length is None else length

    @cached_property
    def names(self) -> frozenset[str]:
        """The columns that there are."""
        return frozenset(self._data)

    def is_nested(self, name: str) -> bool:
        """Whether the rows of a column are lists of lists."""
        return any(is_list(entry) for row in self._values(name) if is_list(row) for entry in row)

    def column(self, name: str, depth: int) -> Column:
        """Reads a column whose rows are `depth` nested lists; a `RerankingDataError` if it is not there or no such."""
        column = Column(name=name, first_row=self.first_row)
        values = self._values(name)
        for _ in range(depth):
            if type(values) is list and len(values) == 1 and type(values[0]) is list:
                values = values[0]
                column.offsets += (np.array((0, len(values)), dtype=np.int64),)
                column.nulls += (None,)
            else:
                values = _open_lists(values, column)
        _read_leaves(values, column)
        return column

    def slice(self, start: int, stop: int) -> Table:
        """A range of rows."""
        return Table(self._data, min(stop, self.rows) - start, self.first_row + start, self._length)

    def _values(self, name: str) -> Any:
        if name not in self.names:
            raise missing_column(name, self._data)
        values = self._data[name]
        if not is_list(values):
            raise RerankingDataError(f"a column must be a list, got {shown(values)}", field=name)
        if _is_a(values, "pandas", "DataFrame"):
            raise RerankingDataError(f"{values.shape[1]} columns have this name", field=name)
        if len(values) != self._length:
            raise RerankingDataError(f"the column has {len(values)} rows, others have {self._length}", field=name)
        part = getattr(values, "iloc", values)[self.first_row : self.first_row + self.rows]  # pandas, by place
        return _as_sequence(part, Column(name=name))


class RowTable(Table):
    """A list of dict rows; a column is picked out when it is read."""

    @cached_property
    def names(self) -> frozenset[str]:
        """See `Table.names`."""
        return frozenset[str]().union(*self._data)

    def slice(self, start: int, stop: int) -> Table:
        """See `Table.slice`."""
        rows = self._data[start:stop]
        return RowTable(rows, len(rows), self.first_row + start)

    def _values(self, name: str) -> Any:
        # Rows are checked when they are read, not before: a slice without the bad one can be used.
        if set(map(type, self._data)) != {dict}:
            for number, row in enumerate(self._data, self.first_row):
                if not isinstance(row, Mapping):
                    raise RerankingDataError(f"a row must be a dict, got {shown(row)}", field=name, row=number)
        try:
            return list(map(itemgetter(name), self._data))
        except KeyError:
            number = next(number for number, row in enumerate(self._data) if name not in row)
            place = self.first_row + number if name in self.names else None
            raise missing_column(name, self._data[number], place) from None


def read_table(data: Any, item_id: str) -> Table:
    """Wraps any supported input with a row, or returns a table that was wrapped before.

    The column of item ids, which every table has, tells one dict row from a dict of columns.
    """
    if isinstance(data, Mapping):
        table = Table(data, len(data[item_id])) if holds_columns(data, item_id) else RowTable([data], 1)
    elif isinstance(data, list | tuple):
        table = RowTable(data, len(data))
    elif isinstance(data, Table):
        table = data
    elif _is_a(data, "pandas", "DataFrame"):
        table = Table(data, len(data))
    elif _is_a(data, "pyarrow", "Table", "RecordBatch") or _is_a(data, "datasets", "Dataset"):
        from rerankzoo.features.arrow_tables import ArrowTable  # needs pyarrow, which is there now

        table = ArrowTable(data)
    else:
        raise RerankingDataError(
            f"cannot read {type(data).__module__}.{type(data).__qualname__}; pass a dict, a list of dicts, a dict of "
            "columns, a pandas DataFrame, a pyarrow Table or a datasets.Dataset",
            field=item_id,
        )
    if table.rows == 0:
        raise RerankingDataError("the data has no rows", field=item_id)
    return table


def _is_a(data: Any, module: str, *names: str) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(data, tuple(getattr(loaded, name, NoneType) for name in names))


def holds_columns(data: Mapping[str, Any], item_id: str) -> bool:
    """Tells a dict of columns, where the entries of the item id column are lists, from one row, where they are ids."""
    items = data.get(item_id)
    if isinstance(items, list | tuple):
        return not set(map(type, items)) <= {int, str} and any(map(is_list, items))
    return isinstance(items, np.ndarray) and (items.ndim > 1 or (items.ndim == 1 and any(map(is_list, items))))


def missing_column(name: str, available: Iterable[str], row: int | None = None) -> RerankingDataError:
    """Returns the error for a column that is not there; `available` are the ones that are."""
    names = [shown(other) for other in islice(available, _MOST_NAMES + 1)]
    listed = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
    return RerankingDataError(f"missing column; there are {listed}", field=name, row=row)


def is_list(value: Any) -> bool:
    """Whether a value is a list, a tuple or whatever turns into an array with a dimension, such as a torch tensor."""
    return isinstance(value, list | tuple) or (hasattr(value, "__array__") and getattr(value, "ndim", 0) > 0)


def _as_sequence(value: Any, column: Column, index: int | None = None) -> Any:
    """A list-like value as a list, a tuple or an array; errors are about this entry of the column, or all of it."""
    if isinstance(value, list | tuple):
        return value
    try:
        if _is_a(value, "pandas", "Series"):
            if isinstance(value.dtype, np.dtype):
                return value.to_numpy() if value.dtype.kind in KIND_OF_DTYPE else value.tolist()
            # Extension types have a missing value of their own (pd.NA, or NaN in a string column), which means None.
            return [None if null else entry for entry, null in zip(value.tolist(), value.isna().tolist(), strict=True)]
        if isinstance(value, torch.Tensor):
            # numpy lacks some half precisions, all of which float32 holds exactly.
            value = value.float() if value.is_floating_point() and value.itemsize < 4 else value
            return value.detach().to_dense().numpy(force=True)
        if isinstance(value, np.ma.MaskedArray):
            return value.tolist()  # what is masked is None there
        array = np.asarray(value)
        return list(array) if array.dtype.kind in "mM" else array  # `tolist` makes integers of dates
    except Exception as error:  # of whatever library the value is; it is the value that cannot be used
        message = f"cannot read {type(value).__name__}: {' '.join(str(error).split())[:120]}"
        row = None if index is None else column.row(index, len(column.offsets))
        raise RerankingDataError(message, field=column.name, row=row) from error


def _open_lists(values: Any, column: Column) -> Any:
    """Opens one list level: returns the concatenated lists, and adds where each begins to the column."""
    nulls = None
    if isinstance(values, np.ndarray) and values.ndim > 1:
        lists, length = values.shape[:2]
        values = values.reshape(lists * length, *values.shape[2:])
        offsets = np.arange(lists + 1, dtype=np.int64) * length
    else:
        types = set(map(type, values))
        if NoneType in types:
            nulls = np.array([value is None for value in values], dtype=np.bool_)
            values = [() if value is None else value for value in values]
        if not types <= {list, tuple, NoneType}:
            for index, value in enumerate(values):
                if not is_list(value):
                    raise column.error(f"a list is required, got {shown(value)}", index)
            values = [_as_sequence(value, column, index) for index, value in enumerate(values)]
        offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
        values = _concatenate(values)
    column.offsets += (offsets,)
    column.nulls += (nulls,)
    return values


def _concatenate(values: Sequence[Any]) -> Any:
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    alike = len({(array.dtype, array.shape[1:]) for array in arrays}) == 1
    if alike and arrays[0].dtype.kind in KIND_OF_DTYPE and len(arrays) == sum(len(value) > 0 for value in values):
        return np.concatenate(arrays)
    return list(chain.from_iterable(value.tolist() if isinstance(value, np.ndarray) else value for value in values))


def _read_leaves(values: Any, column: Column) -> None:
    """Adds the innermost values, their kind, missing mask and distinct strings to a column."""
    if isinstance(values, np.ndarray):
        if values.ndim > 1:
            raise column.error(f"a single value is required, got {shown(values[0].tolist())}", 0)
        if values.dtype.kind in KIND_OF_DTYPE:
            column.kind, column.values = KIND_OF_DTYPE[values.dtype.kind], values
            column.nulls += (None,)
            refuse_beyond_int64(column)
            return
        values = values.tolist()
    types = frozenset(map(type, values))
    column.kind = _KIND_OF_TYPES.get(types - {NoneType}) or _common_kind(values, column)
    column.nulls += (np.array([value is None for value in values], dtype=np.bool_) if NoneType in types else None,)
    if column.kind == "string":
        distinct = dict.fromkeys(values)
        distinct.pop(None, None)
        column.strings = list(distinct)
        codes: dict[str | None, int] = {**dict(zip(distinct, count())), None: 0}
        column.values = np.fromiter(map(codes.__getitem__, values), np.int64, len(values))
        return
    numbers = values if NoneType not in types else [0 if value is None else value for value in values]
    try:
        column.values = np.array(numbers, dtype=_DTYPE_OF_KIND[column.kind])
    except OverflowError:
        most = INT64_MAX if column.kind == "int" else sys.float_info.max
        integers = ((index, int(value)) for index, value in enumerate(numbers) if isinstance(value, int | np.integer))
        index = next(index for index, value in integers if not -most - 1 <= value <= most)
        raise column.error(f"{shown(values[index])} is too large", index) from None


def _common_kind(values: Sequence[Any], column: Column) -> LeafKind:
    """The kind of Python scalars of any type; ints among floats are floats, any other mixture is refused."""
    common: LeafKind = "null"
    first = None
    for index, value in enumerate(values):
        kind = next((kind for types, kind in _SCALARS if isinstance(value, types)), None)
        if kind is None:
            raise column.error(f"a number or a string is required, got {shown(value)} ({type(value).__name__})", index)
        if common == "null":
            common, first = kind, value
        elif {common, kind} == {"int", "float"}:
            common = "float"
        elif kind not in (common, "null"):
            raise column.error(f"mixed types: {shown(value)} ({kind}) after {shown(first)} ({common})", index)
    return common


def refuse_beyond_int64(column: Column) -> None:
    """Raises if an unsigned leaf does not fit int64."""
    if column.values.dtype == np.uint64:
        column.refuse(column.values > INT64_MAX, "{} is too large", None, column.values)
