"""The constraints: `Exclude`, `Pin`, `AtMost`, `MinDistance`, `AtLeast`, `Boost`.

B requests, N candidates, M positions, K items listed for a request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from rerankzoo.batch import PADDING, Batch
from rerankzoo.errors import InfeasibleConstraintError, RerankingDataError, shown
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.generation.constraints.arguments import READ, Categories, Items

C = TypeVar("C", bound="Constraint")


@dataclass(frozen=True, eq=False, repr=False)
class Constraint:
    """One demand on slates. Tensors in it belong to a batch: they have its B rows and its N candidates.

    Raises:
        ValueError: If an argument is out of its range, or not what its type says.
    """

    def __post_init__(self) -> None:
        for argument in fields(self):
            value = getattr(self, argument.name)
            if value is not None or argument.default is not None:
                value = READ[argument.name](value, f"{argument.name} of {type(self).__name__}")
                object.__setattr__(self, argument.name, value)

    def rows(self: C, rows: slice, num_candidates: int | None = None) -> C:
        """The same demand on some of the requests, of which none has more than so many candidates."""
        parts = {}
        for name, value in self._arguments().items():
            if _is_nested(value) or isinstance(value, Tensor):
                parts[name] = value[rows]
            if isinstance(value, Tensor) and not _is_indexes(name, value):
                parts[name] = parts[name][:, :num_candidates]
        return replace(self, **parts)

    def check_fit(self, num_requests: int, num_candidates: int | None) -> None:
        """Refuses tensors and lists of a number of requests or candidates (`None`: any) that is not the batch's.

        Raises:
            RerankingDataError: If there is another number of lists of ids.
            ValueError: If the shape of a tensor is another.
        """
        for name, value in self._arguments().items():
            if _is_nested(value) and (len(value) != num_requests or not all(isinstance(ids, list) for ids in value)):
                message = f"{self}: item ids must be one list, or one list for each of the {num_requests} rows"
                raise RerankingDataError(message, field=name)
            if isinstance(value, Tensor):
                size = "any" if num_candidates is None or _is_indexes(name, value) else num_candidates
                if value.dim() != 2 or len(value) != num_requests or size not in ("any", value.shape[1]):
                    message = f"{name} has shape {tuple(value.shape)}, the batch ({num_requests}, {size})"
                    raise ValueError(f"{self}: {message}")

    def located(self: C, find: Callable[[Sequence[Any]], Tensor]) -> C:
        """The same demand with item ids replaced by masks (B, N), which `find` looks up."""
        ids = getattr(self, "items", None)
        return self if ids is None or isinstance(ids, Tensor) else replace(self, items=find(ids))  # type: ignore[call-arg]

    def mask(self, candidates: Tensor) -> Tensor:
        """(B, N), True for the items that are named; on the device of the mask of real candidates (B, N).

        Raises:
            ValueError: If they are item ids, or indexes outside the candidates.
        """
        items: Items = self.items  # type: ignore[attr-defined]
        if not isinstance(items, Tensor):
            raise ValueError(f"{self}: only RerankingPipeline knows item ids; pass a mask (B, N) or indexes (B, K)")
        items, size = items.to(candidates.device), candidates.shape[1]
        if items.dtype == torch.bool:
            return items
        items = items.long()
        outside = (items != PADDING) & ((items < 0) | (items >= size))
        if outside.any():
            row, column = outside.nonzero()[0].tolist()
            raise ValueError(f"{self}: index {int(items[row, column])} of row {row} is outside 0..{size - 1}")
        return mask_of(items, size)

    def labels(self, batch: Batch, schema: FeatureSchema | None) -> Tensor:
        """(B, N), for each candidate the first one of its category; -1 for none.

        Raises:
            ValueError: If a field is named that is not a categorical one of candidates, or without a schema.
        """
        values: Categories = self.categories  # type: ignore[attr-defined]
        if isinstance(values, str):
            if schema is None:
                raise ValueError(f"{self}: a field's name needs a schema; pass the categories themselves")
            spec = schema.field(values)
            if (spec.group, spec.kind) != ("candidate", "categorical"):
                raise ValueError(
                    f"{self}: {values!r} is a {spec.group} {spec.kind} field, not a candidate categorical one"
                )
            values = batch["candidate_categorical"][..., schema.position(values)]
            values = values.masked_fill(values == 0, -1)  # missing
        values = values.to(batch["candidate_mask"].device)
        return (values.unsqueeze(-1) == values.unsqueeze(1)).byte().argmax(-1).masked_fill(values < 0, -1)

    def _arguments(self) -> dict[str, Any]:
        return {argument.name: getattr(self, argument.name) for argument in fields(self)}

    def __repr__(self) -> str:
        known = {name: value for name, value in self._arguments().items() if value is not None}
        texts = {k: f"tensor{tuple(v.shape)}" if isinstance(v, Tensor) else shown(v) for k, v in known.items()}
        return f"{type(self).__name__}({', '.join(f'{name}={text}' for name, text in texts.items())})"


@dataclass(frozen=True, eq=False, repr=False)
class Exclude(Constraint):
    """Items that must not be shown. The slate gets shorter where fewer than M candidates are left.

    Args:
        items: The items, see `Items`.
    """

    items: Items


@dataclass(frozen=True, eq=False, repr=False)
class Pin(Constraint):
    """The item at a position; one of several items, where several are named.

    Args:
        items: The item, or those of which one must stand there, see `Items`. Requests for which none is named, by an
            empty row of a mask, of indexes or of ids, are not concerned.
        position: Where, counted from 0.
    """

    items: Items
    position: int

    def located(self, find: Callable[[Sequence[Any]], Tensor]) -> Pin:
        """See `Constraint.located`.

        Raises:
            InfeasibleConstraintError: If an item is asked for that is no candidate: a mask could not tell it from a
                request that asks for nothing.
        """
        located = super().located(find)
        if isinstance(self.items, Tensor) or len(self.items) == 0:
            return located
        named = torch.tensor([len(ids) > 0 for ids in self.items] if _is_nested(self.items) else [True])
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
    """

    limit: int
    categories: Categories
    window: int | None = None


@dataclass(frozen=True, eq=False, repr=False)
class MinDistance(Constraint):
    """Two items of a category stand at least so many positions apart; 2 means never side by side.

    The same as `AtMost(1, categories, window=distance)`.

    Args:
        distance: d, at least 1.
        categories: See `AtMost`.
    """

    distance: int
    categories: Categories
    limit: ClassVar[int] = 1

    @property
    def window(self) -> int:
        """As of `AtMost`."""
        return self.distance


@dataclass(frozen=True, eq=False, repr=False)
class AtLeast(Constraint):
    """At least so many items of a group, anywhere in the slate.

    Args:
        count: j, at least 1.
        items: The group, see `Items`.
    """

    count: int
    items: Items


@dataclass(frozen=True, eq=False, repr=False)
class Boost(Constraint):
    """Adds to the scores of items whenever one is chosen from; never makes a slate impossible.

    In the scorer's own unit: log-probability, or value of the slate for an evaluator. Boosts decide what is chosen,
    beams are compared with all boosts of their items, but the scores that come back are the scorer's own.

    Args:
        bias: A finite number for all `items`, or one per candidate (B, N).
        items: The items of a single number, see `Items`.
    """

    bias: float | Tensor
    items: Items | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.bias, Tensor) != (self.items is None):
            raise ValueError("Boost takes a number and items, or a tensor (B, N) without items")
        if not torch.as_tensor(self.bias).isfinite().all():
            raise ValueError(f"bias of {self} must be finite; use Exclude or Pin for what is certain")


def constraint_list(constraints: Any) -> list[Constraint]:
    """The constraints of a call: several, one alone, or `None`.

    Raises:
        ValueError: If there is anything else among them.
    """
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
    mask = torch.zeros(len(items), num_candidates + 1, dtype=torch.bool, device=items.device)
    return mask.scatter(1, items.masked_fill(items < 0, num_candidates), True)[:, :num_candidates]


def _is_nested(value: Any) -> bool:
    """Whether an argument is one list of item ids per request."""
    return isinstance(value, list) and any(isinstance(entry, list) for entry in value)


def _is_indexes(name: str, value: Tensor) -> bool:
    """Whether an argument's tensor is (B, K), and not (B, N)."""
    return name == "items" and value.dtype != torch.bool
