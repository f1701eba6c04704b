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
    if isinstance(value, np.ndarray) and value.dtype == bool:
        return torch.from_numpy(value)
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


def _categories(value: Any, what: str) -> Categories:
    if isinstance(value, str):
        return value
    values = _tensor(value, what)
    if values.is_floating_point():
        raise ValueError(f"{what} must be integers (B, N) or the name of a field, got {values.dtype}")
    return values


def _bias(value: Any, what: str) -> float | Tensor:
    values = _tensor(float(value) if isinstance(value, Real) else value, what)
    return values if values.dim() else values.item()


def _tensor(value: Any, what: str) -> Tensor:
    try:
        return value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError):
        raise ValueError(f"{what} must be numbers (B, N), got {shown(value)}") from None


def _integer(value: Any, what: str, least: int) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{what} must be an integer of at least {least}, got {shown(value)}")
    return int(value)


#: How an argument of a constraint is read, by its name; the second value is what an error calls it.
READ: dict[str, Callable[[Any, str], Any]] = {
    "items": _items,
    "categories": _categories,
    "bias": _bias,
    "position": partial(_integer, least=0),
    **dict.fromkeys(("limit", "window", "distance", "count"), partial(_integer, least=1)),
}
