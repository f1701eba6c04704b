"""A column of a table as flat numpy arrays with offsets: what every input format is turned into."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from rerankzoo.errors import RerankingDataError, shown

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
LeafKind = Literal["int", "float", "bool", "string", "null"]

KIND_OF_DTYPE: dict[str, LeafKind] = {"i": "int", "u": "int", "f": "float", "b": "bool"}
INT64_MAX = np.iinfo(np.int64).max
_MOST_NAMES = 30  # of columns in a message


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

    def first_present(self) -> int:
        """Returns the index of the first leaf that is not missing."""
        return 0 if self.missing is None else int((~self.missing).argmax())

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


def missing_column(name: str, available: Iterable[str], row: int | None = None) -> RerankingDataError:
    """Returns the error for a column that is not there; `available` are the ones that are."""
    names = [shown(other) for other in islice(available, _MOST_NAMES + 1)]
    listed = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
    return RerankingDataError(f"missing column; there are {listed}", field=name, row=row)


def refuse_beyond_int64(values: npt.NDArray[Any], column: Column) -> npt.NDArray[Any]:
    """Returns `values`, or raises if an unsigned one does not fit int64."""
    if values.dtype == np.uint64 and len(values) and values.max() > INT64_MAX:
        index = int(values.argmax())
        raise column.error(f"{values[index]} is too large", index)
    return values
