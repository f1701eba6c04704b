"""Requests that were read: their batch, and the ids of their candidates, which slates are turned back into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rerankzoo.batch import PADDING, take, trim
from rerankzoo.errors import RerankingDataError, shown
from rerankzoo.features.encoding import id_type
from rerankzoo.features.tables import INT64_MAX, Column, Ragged, Table


@dataclass(frozen=True)
class ItemIds:
    """The ids of the candidates of some rows: a column of one list per row, and the lengths of these lists."""

    column: Column
    layout: Ragged

    def decode(self, slates: Tensor | npt.NDArray[np.int64] | Sequence[Any]) -> list[list[Any]]:
        """Turns slates (B, M) or (B, S, M) of candidate indexes, without -100, into lists of item ids per row.

        Raises:
            RerankingDataError: If the slates are not integers, have another number of rows, or point outside a row's
                candidates.
        """
        indices = torch.as_tensor(slates).cpu().numpy()
        if indices.dtype.kind not in "iu":
            raise RerankingDataError(f"expected candidate indexes (int), got {indices.dtype}", field="slates")
        if indices.ndim not in (2, 3) or len(indices) != self.layout.rows:
            message = f"slates of shape {indices.shape} do not fit {self.layout.rows} rows"
            raise RerankingDataError(message, field="slates")
        real = indices != PADDING
        shape = (-1, *[1] * (indices.ndim - 1))
        outside = real & ((indices < 0) | (indices >= self.layout.lengths.reshape(shape)))
        if outside.any():
            place = tuple(np.argwhere(outside)[0])
            message = f"slate index {indices[place]} is outside 0..{self.layout.lengths[place[0]] - 1}"
            raise RerankingDataError(message, field="slates", row=int(place[0]))
        items = self.column.values[np.where(real, indices, 0) + self.layout.offsets[:-1].reshape(shape)]
        return _item_lists(items, real, self.column)

    def locate(self, items: Sequence[Any]) -> Tensor:
        """Finds candidates by item ids, looked for in every row, or by one list of item ids per row.

        Returns (B, N) bool, True where a candidate has one of the ids. Ids that no candidate has are left out.

        Raises:
            RerankingDataError: If an id is of another type than the rows' own, or the lists are not one per row.
        """
        rows = self.layout.rows
        nested = any(isinstance(entry, list | tuple) for entry in items)
        if nested and (len(items) != rows or not all(isinstance(entry, list | tuple) for entry in items)):
            message = f"expected one list of item ids, or one for each of the {rows} rows, got {shown(list(items))}"
            raise RerankingDataError(message, field=self.column.name)
        known = [_item_codes(entry, self.column) for entry in (items if nested else [items])]
        values = self.column.values
        parts = np.split(values, self.layout.offsets[1:-1]) if nested else [values]
        located = np.concatenate([np.isin(part, codes) for part, codes in zip(parts, known, strict=True)])
        return torch.from_numpy(self.layout.pad(located))

    def take(self, rows: slice) -> ItemIds:
        """The ids of a range of rows."""
        offsets = self.layout.offsets[rows.start : rows.stop + 1]
        values, first_row = self.column.values[offsets[0] : offsets[-1]], self.column.first_row + rows.start
        layout = Ragged(offsets - offsets[0])
        return ItemIds(replace(self.column, values=values, offsets=(layout.offsets,), first_row=first_row), layout)


def read_item_ids(table: Table, item_id: str) -> ItemIds:
    """Reads the item ids of a table: at least one per row, all int or str, none missing."""
    column = table.column(item_id, 1)
    column.refuse_nulls("an item id")
    layout = Ragged(column.offsets[0])
    column.refuse(layout.lengths == 0, "an empty candidate set", 0)
    id_type(column)
    return ItemIds(column, layout)


@dataclass(frozen=True)
class Encoded:
    """Consecutive rows of a table that were read together."""

    batch: dict[str, Tensor]  # `request_index` counts from the first row of the whole table
    item_ids: ItemIds
    rows: slice  # in the table

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start

    def take(self, rows: slice) -> Encoded:
        """A range of the rows (counted from 0 here), without what is padding in all of them."""
        if rows == slice(0, len(self)):
            return self
        first = self.rows.start
        return Encoded(
            trim(take(self.batch, rows)), self.item_ids.take(rows), slice(first + rows.start, first + rows.stop)
        )


def _item_codes(items: Any, column: Column) -> list[int]:
    """Item ids as they stand in a column's values; -1 for a string that it does not have."""
    kind: Any = str if column.kind == "string" else (int, np.integer)
    for item in items:
        if not isinstance(item, kind) or isinstance(item, bool):
            message = f"item ids are {'str' if kind is str else 'int'}, got {shown(item)}"
            raise RerankingDataError(message, field=column.name)
        if kind is not str and not -INT64_MAX - 1 <= int(item) <= INT64_MAX:
            raise RerankingDataError(f"{shown(item)} is too large", field=column.name)
    codes = {string: code for code, string in enumerate(column.strings)}
    return [codes.get(item, -1) for item in items] if kind is str else list(map(int, items))


def _item_lists(items: npt.NDArray[Any], real: npt.NDArray[np.bool_], column: Column) -> list[Any]:
    if items.ndim > 1:
        return [_item_lists(part, mask, column) for part, mask in zip(items, real, strict=True)]
    values = items[real].tolist()
    return [column.strings[value] for value in values] if column.kind == "string" else values
