"""Constraints on slates: what a shop does not leave to the model.

`Exclude`, `Pin`, `AtMost`, `MinDistance` and `AtLeast` say which slates may be shown, `Boost` which items are
preferred. Any number of them hold together, for every strategy, every model and in mining. They are a mask and a bias
on the scorer's scores: excluded candidates stay visible to the model, and a slate's scores are the scorer's own.

A request's slate fills M positions, or as many as there are candidates that are not excluded. `bind` checks, before
anything is decoded, that every request has such a slate; the decoding routines then choose among the candidates after
which the slate can be completed (`rerankzoo.generation.feasibility`), so that none ever breaks a constraint.

B requests, N candidates, M positions, K items listed for a request.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from rerankzoo.batch import PADDING, Batch
from rerankzoo.errors import InfeasibleConstraintError, RerankingDataError, shown
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.generation.feasibility import FIRST_BUDGET, Cap, Need, Pinned, SlateRules

#: Candidates: a mask (B, N), or indexes (B, K) where -100 pads. For `RerankingPipeline` also item ids: a list for all
#: requests, or one list per request.
Items = Tensor | Sequence[Any]
#: Kinds of the candidates: integers (B, N), negative for none; or the name of a categorical candidate field.
Categories = Tensor | str

C = TypeVar("C", bound="Constraint")


class Constraint(ABC):
    """One demand on slates. Tensors in it belong to a batch: they have its B rows and its N candidates."""

    @abstractmethod
    def apply(self, draft: Draft) -> None:
        """Adds itself to the rules of a batch.

        Raises:
            ValueError: If it does not fit the batch.
        """

    def rows(self: C, rows: slice, num_candidates: int | None = None) -> C:
        """The same demand on some of the requests.

        Args:
            rows: Which.
            num_candidates: The most that any of them has, where the batch is cut to so many.
        """
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}  # type: ignore[arg-type]
        own = {key: value[rows] for key, value in values.items() if isinstance(value, Tensor) or _is_nested(value)}
        for key, value in own.items():
            if isinstance(value, Tensor) and not _is_indexes(key, value):
                own[key] = value[:, :num_candidates]
        return replace(self, **own)  # type: ignore[type-var]

    def check_fit(self, num_requests: int, num_candidates: int | None) -> None:
        """Refuses tensors and lists of a number of requests or candidates that is not the batch's.

        Args:
            num_requests: B.
            num_candidates: N; `None` where it is not known.

        Raises:
            RerankingDataError: If there is another number of lists of ids.
            ValueError: If the shape of a tensor is another.
        """
        for entry in fields(self):  # type: ignore[arg-type]
            value = getattr(self, entry.name)
            if _is_nested(value) and (len(value) != num_requests or not all(map(_is_list, value))):
                message = f"{self}: item ids must be one list, or one list for each of the {num_requests} rows"
                raise RerankingDataError(message, field=entry.name)
            if isinstance(value, Tensor):
                expected = (num_requests, None if _is_indexes(entry.name, value) else num_candidates)
                shape = tuple(value.shape)
                if len(shape) != 2 or any(size not in (None, own) for size, own in zip(expected, shape, strict=True)):
                    raise ValueError(f"{self}: {entry.name} has shape {shape}, the batch {expected}")

    def located(self: C, find: Callable[[Sequence[Any]], Tensor]) -> C:
        """The same demand with item ids replaced by masks (B, N), which `find` looks up."""
        items = getattr(self, "items", None)
        if items is None or isinstance(items, Tensor):
            return self
        return replace(self, items=find(items))  # type: ignore[type-var]

    def __repr__(self) -> str:
        parts: list[str] = []
        for entry in fields(self):  # type: ignore[arg-type]
            value = getattr(self, entry.name)
            text = f"tensor{tuple(value.shape)}" if isinstance(value, Tensor) else shown(value)
            parts += [] if value is None else [f"{entry.name}={text}"]
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True, eq=False, repr=False)
class Exclude(Constraint):
    """Items that must not be shown. The slate gets shorter where fewer than M candidates are left.

    Args:
        items: The items, see `Items`.
    """

    items: Items

    def apply(self, draft: Draft) -> None:
        """See `Constraint.apply`."""
        draft.usable = draft.usable & ~draft.candidates(self.items, self)


@dataclass(frozen=True, eq=False, repr=False)
class Pin(Constraint):
    """The item at a position; one of several items, where several are named.

    Args:
        items: The item, or those of which one must stand there, see `Items`. Requests for which none is named, by an
            empty row of a mask, of indexes or of ids, are not concerned.
        position: Where, counted from 0.

    Raises:
        ValueError: If the position is negative.
    """

    items: Items
    position: int

    def __post_init__(self) -> None:
        _require_integer(self.position, "position of Pin", 0)

    def apply(self, draft: Draft) -> None:
        """See `Constraint.apply`."""
        if self.position >= draft.slate_size:
            raise ValueError(f"{self}: position {self.position} is not one of the {draft.slate_size} of the slate")
        draft.pins.append(Pinned(draft.candidates(self.items, self), self.position))

    def located(self, find: Callable[[Sequence[Any]], Tensor]) -> Pin:
        """See `Constraint.located`.

        Raises:
            InfeasibleConstraintError: If an item is asked for that is no candidate: a mask could not tell it from a
                request that asks for nothing.
        """
        located = super().located(find)
        if isinstance(self.items, Tensor) or len(self.items) == 0:
            return located
        nested = any(isinstance(entry, list | tuple) for entry in self.items)
        named = torch.tensor([len(entry) > 0 for entry in self.items]) if nested else torch.ones(1, dtype=torch.bool)
        lacking = named & ~located.items.any(-1)  # type: ignore[union-attr]
        if lacking.any():
            message, row = f"{self} names no candidate of the request", int(lacking.int().argmax())
            raise InfeasibleConstraintError(message, row=row, constraints=(repr(self),))
        return located


@dataclass(frozen=True, eq=False, repr=False)
class AtMost(Constraint):
    """At most so many items of each category, in the whole slate or among any `window` consecutive positions.

    Args:
        limit: k, at least 1.
        categories: The candidates' categories, see `Categories`. Of a field, values that the extractor does not know
            are one category (two of them might be the same), and missing ones are none.
        window: w, at least 1; `None` for the whole slate.

    Raises:
        ValueError: If a number is out of its range.
    """

    limit: int
    categories: Categories
    window: int | None = None

    def __post_init__(self) -> None:
        _require_integer(self.limit, "limit of AtMost", 1)
        if self.window is not None:
            _require_integer(self.window, "window of AtMost", 1)

    def apply(self, draft: Draft) -> None:
        """See `Constraint.apply`."""
        window = draft.slate_size if self.window is None else min(self.window, draft.slate_size)
        draft.caps.append(Cap(draft.labels(self.categories, self), self.limit, window))


@dataclass(frozen=True, eq=False, repr=False)
class MinDistance(Constraint):
    """Two items of a category stand at least so many positions apart; 2 means never side by side.

    The same as `AtMost(1, categories, window=distance)`.

    Args:
        distance: d, at least 1.
        categories: See `AtMost`.

    Raises:
        ValueError: If the distance is not positive.
    """

    distance: int
    categories: Categories

    def __post_init__(self) -> None:
        _require_integer(self.distance, "distance of MinDistance", 1)

    def apply(self, draft: Draft) -> None:
        """See `Constraint.apply`."""
        window = min(self.distance, draft.slate_size)
        draft.caps.append(Cap(draft.labels(self.categories, self), 1, window))


@dataclass(frozen=True, eq=False, repr=False)
class AtLeast(Constraint):
    """At least so many items of a group, anywhere in the slate.

    Args:
        count: j, at least 1.
        items: The group, see `Items`.

    Raises:
        ValueError: If the count is not positive.
    """

    count: int
    items: Items

    def __post_init__(self) -> None:
        _require_integer(self.count, "count of AtLeast", 1)

    def apply(self, draft: Draft) -> None:
        """See `Constraint.apply`."""
        draft.needs.append(Need(draft.candidates(self.items, self), self.count))


@dataclass(frozen=True, eq=False, repr=False)
class Boost(Constraint):
    """Adds to the scores of items whenever one is chosen from; never makes a slate impossible.

    In the scorer's own unit: log-probability, or value of the slate for an evaluator. Boosts decide what is chosen,
    beams are compared with all boosts of their items, but the scores that come back are the scorer's own.

    Args:
        bias: A finite number for all `items`, or one per candidate (B, N).
        items: The items of a single number, see `Items`.

    Raises:
        ValueError: If the bias is not finite, or not exactly one of a tensor and `items` is given.
    """

    bias: float | Tensor
    items: Items | None = None

    def __post_init__(self) -> None:
        if isinstance(self.bias, Tensor) != (self.items is None):
            raise ValueError("Boost takes a number and items, or a tensor (B, N) without items")
        finite = self.bias.isfinite().all() if isinstance(self.bias, Tensor) else math.isfinite(self.bias)
        if not finite:
            raise ValueError(f"bias of {self} must be finite; use Exclude or Pin for what is certain")

    def apply(self, draft: Draft) -> None:
        """See `Constraint.apply`."""
        if isinstance(self.bias, Tensor):
            draft.check_shape(self.bias, self, "bias")
            bias = self.bias.to(draft.usable.device)
        else:
            bias = draft.candidates(self.items, self).float() * self.bias
        draft.bias = bias if draft.bias is None else draft.bias + bias


def check_types(constraints: Sequence[Constraint]) -> None:
    """Refuses what is no list of constraints.

    Raises:
        ValueError: If it is one constraint alone, or something else is among them.
    """
    if not isinstance(constraints, list | tuple):
        raise ValueError(f"constraints must be a list, got {constraints!r}")
    for constraint in constraints:
        if not isinstance(constraint, Constraint):
            raise ValueError(f"constraints must be objects such as Exclude or AtMost, got {constraint!r}")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_nested(value: Any) -> bool:
    """Whether a constraint's entry is one list of item ids per request."""
    return _is_list(value) and any(map(_is_list, value))


def _is_indexes(name: str, value: Tensor) -> bool:
    """Whether a constraint's tensor is (B, K), and not (B, N)."""
    return name == "items" and value.dtype != torch.bool


def _require_integer(value: Any, what: str, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{what} must be an integer of at least {least}, got {value!r}")


@dataclass
class Draft:
    """The rules of a batch while the constraints are read.

    Attributes:
        batch: `candidate_mask` (B, N), and `candidate_categorical` (B, N, F) where constraints name fields.
        slate_size: M.
        schema: Of the batch, where constraints name fields.
        usable: (B, N), real candidates that are not excluded.
        pins: See `SlateRules`, as all that follow.
        caps: Upper limits.
        needs: Lower limits.
        bias: (B, N).
    """

    batch: Batch
    slate_size: int
    schema: FeatureSchema | None
    usable: Tensor
    pins: list[Pinned] = field(default_factory=list)
    caps: list[Cap] = field(default_factory=list)
    needs: list[Need] = field(default_factory=list)
    bias: Tensor | None = None

    def candidates(self, items: Items | None, owner: Constraint) -> Tensor:
        """(B, N), True for the items that a constraint names.

        Raises:
            ValueError: If they are no mask (B, N) and no indexes (B, K) of candidates.
        """
        if not isinstance(items, Tensor):
            raise ValueError(f"{owner}: only RerankingPipeline knows item ids; pass a mask (B, N) or indexes (B, K)")
        if items.dtype == torch.bool:
            self.check_shape(items, owner, "items")
            return items.to(self.usable.device)
        if items.is_floating_point() or items.dim() != 2 or len(items) != len(self.usable):
            raise ValueError(
                f"{owner}: items must be a mask (B, N) or indexes (B, K) for B = {len(self.usable)}, got {items.dtype} "
                f"of shape {tuple(items.shape)}"
            )
        items, size = items.to(self.usable.device), self.usable.shape[1]
        outside = (items != PADDING) & ((items < 0) | (items >= size))
        if outside.any():
            row, place = outside.nonzero()[0].tolist()
            raise ValueError(f"{owner}: index {int(items[row, place])} of row {row} is outside 0..{size - 1}")
        named = torch.zeros(len(items), size + 1, dtype=torch.bool, device=items.device)
        return named.scatter(1, items.masked_fill(items == PADDING, size).long(), True)[:, :size]

    def labels(self, categories: Categories, owner: Constraint) -> Tensor:
        """(B, N), the first candidate of the same category; -1 for none.

        Raises:
            ValueError: If they are no integers (B, N) and no categorical candidate field.
        """
        values = self._field(categories, owner) if isinstance(categories, str) else categories
        self.check_shape(values, owner, "categories")
        if values.is_floating_point():
            raise ValueError(f"{owner}: categories must be integers, got {values.dtype}")
        values = values.to(self.usable.device).long()
        first = (values.unsqueeze(-1) == values.unsqueeze(1)).byte().argmax(-1)
        return first.masked_fill((values < 0) | ~self.usable, -1)

    def check_shape(self, values: Tensor, owner: Constraint, name: str) -> None:
        """Raises unless a tensor of a constraint is (B, N)."""
        if values.shape != self.usable.shape:
            raise ValueError(
                f"{owner}: {name} has shape {tuple(values.shape)}, the batch {tuple(self.usable.shape)} (B, N)"
            )

    def _field(self, name: str, owner: Constraint) -> Tensor:
        """The encoded values (B, N) of a field; -1 where missing."""
        if self.schema is None:
            raise ValueError(f"{owner}: a field's name needs a schema; pass the categories themselves")
        spec = self.schema.field(name)
        if (spec.group, spec.kind) != ("candidate", "categorical"):
            raise ValueError(
                f"{owner}: field {name!r} is a {spec.group} {spec.kind} field, not a candidate categorical one"
            )
        values = self.batch["candidate_categorical"][..., self.schema.position(name)]
        return values.masked_fill(values == 0, -1)


def bind(
    constraints: Sequence[Constraint], batch: Batch, slate_size: int, schema: FeatureSchema | None = None
) -> SlateRules | None:
    """Turns constraints into the rules of a batch, and makes sure that every request has a slate that keeps them.

    Args:
        constraints: Any number of them.
        batch: The requests; `candidate_mask` (B, N), and `candidate_categorical` where a constraint names a field.
        slate_size: M.
        schema: Of the batch, where a constraint names a field.

    Returns:
        What the decoding routines take as `rules`; `None` without constraints.

    Raises:
        ValueError: If a constraint does not fit the batch.
        InfeasibleConstraintError: If a request has no slate; it names the constraints that exclude one another.
    """
    check_types(constraints)
    if not constraints:
        return None
    rules = _read(constraints, batch, slate_size, schema)
    feasible, decided, _ = rules.first
    if feasible.all():
        return rules
    # Proven cases first: they have a cause to name.
    row = int((feasible.int() * 2 + (~decided).int()).argmin())
    length = int(rules.length[row])
    if not decided[row]:
        message = f"no slate of {length} positions was found in {FIRST_BUDGET} steps of search; relax a constraint"
        raise InfeasibleConstraintError(message, row=row, constraints=tuple(map(repr, constraints)))
    places = _conflict(constraints, batch, slate_size, schema, row)
    named = [f"constraints[{place}] {constraints[place]!r}" for place in places]
    raise InfeasibleConstraintError(
        f"no slate of {length} positions keeps {' and '.join(named)}",
        row=row,
        constraints=tuple(repr(constraints[place]) for place in places),
    )


def _read(constraints: Sequence[Constraint], batch: Batch, slate_size: int, schema: FeatureSchema | None) -> SlateRules:
    draft = Draft(batch, slate_size, schema, batch["candidate_mask"])
    for constraint in constraints:
        constraint.apply(draft)
    return SlateRules(draft.usable, slate_size, draft.pins, draft.caps, draft.needs, draft.bias)


def _conflict(
    constraints: Sequence[Constraint], batch: Batch, slate_size: int, schema: FeatureSchema | None, row: int
) -> list[int]:
    """The places of some constraints that exclude one another in a request, none of which can be left out."""
    rows = slice(row, row + 1)
    keys = ("candidate_mask", "candidate_categorical")
    request = {key: batch[key][rows] for key in keys if key in batch}
    alone = [constraint.rows(rows) for constraint in constraints]
    kept = list(range(len(alone)))
    for place in range(len(alone)):
        fewer = [other for other in kept if other != place]
        feasible, decided, _ = _read([alone[other] for other in fewer], request, slate_size, schema).first
        if decided[0] and not feasible[0]:
            kept = fewer
    return kept
