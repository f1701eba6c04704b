"""Any table of requests as flat numpy columns with offsets, read once; everything after that is vectorised.

Accepted: one dict row, a list of dict rows, a dict of columns, a pandas DataFrame, a pyarrow Table or RecordBatch, a
`datasets.Dataset`. pandas, pyarrow and datasets are looked up only among the modules that are loaded already: whoever
hands in such an object has imported its library.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from rerankzoo.errors import RerankingDataError
from rerankzoo.features.arrow_tables import ArrowTable, DatasetTable
from rerankzoo.features.columns import Table
from rerankzoo.features.python_tables import PandasTable, PythonTable, RowTable, is_list


def read_table(data: Any, item_id: str) -> Table:
    """Wraps any supported input, or returns a table that was wrapped before.

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
    if isinstance(data, PythonTable | PandasTable | ArrowTable | DatasetTable):
        return data
    if isinstance(data, Mapping):
        if holds_columns(data, item_id):
            return PythonTable(columns=data, rows=len(data[item_id]))
        return RowTable([data], item_id)
    if isinstance(data, list | tuple):
        return RowTable(data, item_id)
    if _is_a(data, "pandas", "DataFrame"):
        return PandasTable(data)
    if _is_a(data, "pyarrow", "Table"):
        return ArrowTable(data)
    if _is_a(data, "pyarrow", "RecordBatch"):
        return ArrowTable(sys.modules["pyarrow"].Table.from_batches([data]))
    if _is_a(data, "datasets", "Dataset"):
        return DatasetTable(data)
    raise RerankingDataError(
        f"cannot read {type(data).__module__}.{type(data).__qualname__}; pass a dict, a list of dicts, a dict of "
        "columns, a pandas DataFrame, a pyarrow Table or a datasets.Dataset",
        field=item_id,
    )


def _is_a(data: Any, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(data, getattr(loaded, name, ()))


def holds_columns(data: Mapping[str, Any], item_id: str) -> bool:
    """Tells a dict of columns, where the entries of the item id column are lists, from one row, where they are ids."""
    items = data.get(item_id)
    if isinstance(items, np.ndarray) and items.ndim > 1:
        return True
    return is_list(items) and isinstance(items, list | tuple | np.ndarray) and any(is_list(entry) for entry in items)
