"""What people hand to a constraint, as what it works with: ids in lists, tables in tensors, Python's own numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rerankzoo.errors import shown

#: Candidates: a mask (B, N), or indexes (B, K) where -100 pads. For `RerankingPipeline` also item ids: one, any
#: collection of them for all requests, or one collection per request.
Items = Tensor | Sequence[Any]
#: Kinds of the candidates: integers (B, N), negative for none; or the name of a categorical candidate field.
Categories = Tensor | str


def _items(value: Any, what: str) -> Items:
    if isinstance(value, Tensor | np.ndarray) and value.dtype in (bool, torch.bool):
        return torch.as_tensor(value)
    if isinstance(value, Tensor) and not value.is_floating_point():
        return value
    ids = _listed(value, what)
    return [_listed(entry, what) for entry in ids] if isinstance(ids, list) else [ids]


def _listed(value: Any, what: str) -> Any:
    """What a collection of any kind holds, as a list; a single value as it is."""
    if value is None or isinstance(value, Mapping | Tensor) or hasattr(value, "columns"):
        raise ValueError(f"{what} must be item ids, a mask (B, N) or indexes (B, K), got {shown(value)}")
    for convert in ("to_pylist", "tolist"):  # of Arrow; of numpy and pandas
        value = getattr(value, convert)() if hasattr(value, convert) else value
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else value


def _table(value: Any, what: str, integers: bool = False) -> Tensor:
    try:
        table = torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value))
    except (TypeError, ValueError):
        table = None
    if table is None or (integers and table.is_floating_point()):
        got = shown(value) if table is None else table.dtype
        raise ValueError(f"{what} must be {'integers' if integers else 'numbers'} (B, N), got {got}")
    return table


def _integer(value: Any, what: str, least: int = 1) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{what} must be an integer of at least {least}, got {shown(value)}")
    return int(value)


#: How an argument of a constraint is read, by its name; the second value is what an error calls it.
READ: dict[str, Callable[[Any, str], Any]] = {
    "items": _items,
    "categories": lambda value, what: value if isinstance(value, str) else _table(value, what, integers=True),
    "bias": lambda value, what: float(value) if _is_scalar(value) else _table(value, what),
    "position": partial(_integer, least=0),
    **dict.fromkeys(("limit", "window", "distance", "count"), _integer),
}


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Real) or getattr(value, "ndim", 1) == 0
