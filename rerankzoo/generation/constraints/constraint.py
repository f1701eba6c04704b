"""The constraints: `Exclude`, `Pin`, `AtMost`, `MinDistance`, `AtLeast`, `Boost`, and how their arguments are read.

B requests, N candidates, M positions, K items listed for a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rerankzoo.batch import PADDING, Batch
from rerankzoo.errors import InfeasibleConstraintError, RerankingDataError, shown
from rerankzoo.features.schema import FeatureSchema

C = TypeVar("C", bound="Constraint")

#: Candidates: a mask (B, N), or indexes (B, K) where -100 pads. For `RerankingPipeline` also item ids: one, any
#: collection of them for all requests, or one collection per request.
Items = Tensor | Sequence[Any]
#: Kinds of the candidates: integers (B, N), negative for none; or the name of a categorical candidate field.
Categories = Tensor | str


@dataclass(frozen=True, eq=False, repr=False)
class Constraint:
    """One demand on slates, with arguments of the right type and range, else ValueError.

    Tensors in it belong to a batch: they have its B rows and its N candidates.
    """

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            if value is not None or not hasattr(type(self), name):  # None only where it is the default
                object.__setattr__(self, name, _read(name, value, f"{name} of {type(self).__name__}"))

    def rows(self: C, rows: slice, num_candidates: int | None = None) -> C:
        """The same demand on some of the requests, of which none has more than so many candidates."""
        parts = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                parts[name] = value[rows, : _width(name, value, num_candidates)]
            elif _is_nested(value):
                parts[name] = value[rows]
        return replace(self, **parts)

    def check_fit(self, num_requests: int, num_candidates: int | None) -> None:
        """Refuses, by ValueError, tensors and lists of another number of requests or candidates (`None`: any)."""
        for name, value in vars(self).items():
            if _is_nested(value) and (len(value) != num_requests or not all(isinstance(ids, list) for ids in value)):
                message = f"{self}: item ids must be one list, or one list for each of the {num_requests} rows"
                raise RerankingDataError(message, field=name)
            if isinstance(value, Tensor):
                width = _width(name, value, num_candidates)
                if value.dim() != 2 or len(value) != num_requests or width not in (None, value.shape[1]):
                    expected = f"({num_requests}, {'any' if width is None else width})"
                    raise ValueError(f"{self}: {name} has shape {tuple(value.shape)}, the batch {expected}")

    def located(self: C, find: Callable[[Sequence[Any]], Tensor]) -> C:
        """The same demand with item ids replaced by masks (B, N), which `find` looks up.

        InfeasibleConstraintError if no candidate is pinned: a mask could not tell it from a request that asks for none.
        """
        ids = getattr(self, "items", None)
        if ids is None or isinstance(ids, Tensor):
            return self
        mask = find(ids)
        if isinstance(self, Pin) and len(ids) > 0:
            named = torch.tensor([len(of_request) > 0 for of_request in ids] if _is_nested(ids) else [True])
            if (lacking := named & ~mask.any(-1)).any():
                message, row = f"{self} names no candidate of the request", int(lacking.int().argmax())
                raise InfeasibleConstraintError(message, row=row, constraints=(repr(self),))
        return replace(self, items=mask)  # type: ignore[call-arg]

    def mask(self, candidates: Tensor) -> Tensor:
        """(B, N), True for the items that are named; on the device of the mask of real candidates (B, N)."""
        items: Items = self.items  # type: ignore[attr-defined]
        if not isinstance(items, Tensor):
            raise ValueError(f"{self}: only RerankingPipeline knows item ids; pass a mask (B, N) or indexes (B, K)")
        items, size = items.to(candidates.device), candidates.shape[1]
        if items.dtype == torch.bool:
            return items
        items = items.long()
        if (outside := (items != PADDING) & ((items < 0) | (items >= size))).any():
            row, column = outside.nonzero()[0].tolist()
            raise ValueError(f"{self}: index {int(items[row, column])} of row {row} is outside 0..{size - 1}")
        return mask_of(items, size)

    def labels(self, batch: Batch, schema: FeatureSchema | None) -> Tensor:
        """(B, N), for each candidate the first one of its category; -1 for none."""
        values: Categories = self.categories  # type: ignore[attr-defined]
        if isinstance(values, str):
            if schema is None:
                raise ValueError(f"{self}: a field's name needs a schema; pass the categories themselves")
            spec = schema.field(values)
            if (spec.group, spec.kind) != ("candidate", "categorical"):
                got = f"{values!r} is a {spec.group} {spec.kind} field"
                raise ValueError(f"{self}: {got}, not a candidate categorical one")
            values = batch["candidate_categorical"][..., schema.position(values)]
            values = values.masked_fill(values == 0, -1)  # missing
        values = values.to(batch["candidate_mask"].device)
        return (values.unsqueeze(-1) == values.unsqueeze(1)).byte().argmax(-1).masked_fill(values < 0, -1)

    def __repr__(self) -> str:
        known = {name: value for name, value in vars(self).items() if value is not None}
        texts = {k: f"tensor{tuple(v.shape)}" if isinstance(v, Tensor) else shown(v) for k, v in known.items()}
        return f"{type(self).__name__}({', '.join(f'{name}={text}' for name, text in texts.items())})"


@dataclass(frozen=True, eq=False, repr=False)
class Exclude(Constraint):
    """Items that must not be shown. The slate gets shorter where fewer than M candidates are left."""

    items: Items


@dataclass(frozen=True, eq=False, repr=False)
class Pin(Constraint):
    """The item at a position, counted from 0; one of several items, where several are named.

    Requests for which none is named, by an empty row of a mask, of indexes or of ids, are not concerned.
    """

    items: Items
    position: int


@dataclass(frozen=True, eq=False, repr=False)
class AtMost(Constraint):
    """At most so many items of each category, in the whole slate or among any `window` consecutive positions.

    Of a field, values that the extractor does not know are one category (two of them might be the same), and missing
    ones are none.
    """

    limit: int
    categories: Categories
    window: int | None = None


@dataclass(frozen=True, eq=False, repr=False)
class MinDistance(Constraint):
    """Two of a category stand at least so many positions apart: the same as `AtMost(1, categories, window=distance)`.

    2 means never side by side.
    """

    distance: int
    categories: Categories


@dataclass(frozen=True, eq=False, repr=False)
class AtLeast(Constraint):
    """At least so many items of a group, anywhere in the slate."""

    count: int
    items: Items


@dataclass(frozen=True, eq=False, repr=False)
class Boost(Constraint):
    """Adds to the scores of items whenever one is chosen from; never makes a slate impossible.

    In the scorer's own unit: log-probability, or value of the slate for an evaluator. Boosts decide what is chosen,
    beams are compared with all boosts of their items, but the scores that come back are the scorer's own.
    """

    bias: float | Tensor  # finite: a number for all items, or one per candidate (B, N)
    items: Items | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.bias, Tensor) != (self.items is None):
            raise ValueError("Boost takes a number and items, or a tensor (B, N) without items")
        if not torch.as_tensor(self.bias).isfinite().all():
            raise ValueError(f"bias of {self} must be finite; use Exclude or Pin for what is certain")


def constraint_list(constraints: Any) -> list[Constraint]:
    """The constraints of a call: several, one alone, or `None`; ValueError for anything else."""
    if constraints is None or isinstance(constraints, Constraint):
        return [] if constraints is None else [constraints]
    if not isinstance(constraints, Iterable) or isinstance(constraints, str | Mapping):
        raise ValueError(f"constraints must be a list of them, got {shown(constraints)}")
    constraints = list(constraints)
    if wrong := [constraint for constraint in constraints if not isinstance(constraint, Constraint)]:
        raise ValueError(f"constraints must be objects such as Exclude or AtMost, got {shown(wrong[0])}")
    return constraints


def mask_of(items: Tensor, num_candidates: int) -> Tensor:
    """(P, N), True for the candidates that are among items (P, K); -100 is none."""
    mask = torch.zeros(items.shape[0], num_candidates + 1, dtype=torch.bool, device=items.device)
    return mask.scatter(1, items.masked_fill(items < 0, num_candidates), True)[:, :num_candidates]


def _is_nested(value: Any) -> bool:
    """Whether an argument is one list of item ids per request."""
    return isinstance(value, list) and any(isinstance(entry, list) for entry in value)


def _width(name: str, value: Tensor, num_candidates: int | None) -> int | None:
    """Of an argument's tensor: N, or `None` for indexes (B, K)."""
    return None if name == "items" and value.dtype != torch.bool else num_candidates


def _read(name: str, value: Any, what: str) -> Any:
    """An argument of a constraint as what it works with: ids in lists, tables in tensors, Python's own numbers."""
    if name == "items":
        return _items(value, what)
    if name == "bias":
        is_scalar = isinstance(value, Real) or getattr(value, "ndim", 1) == 0
        return float(value) if is_scalar else _table(value, what, "numbers")
    if name == "categories":
        return value if isinstance(value, str) else _table(value, what, "integers")
    least = 0 if name == "position" else 1
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{what} must be an integer of at least {least}, got {shown(value)}")
    return int(value)


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


def _table(value: Any, what: str, kind: str) -> Tensor:
    try:
        table = torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must be {kind} (B, N), got {shown(value)}") from error
    if kind == "integers" and table.is_floating_point():
        raise ValueError(f"{what} must be {kind} (B, N), got {table.dtype}")
    return table
