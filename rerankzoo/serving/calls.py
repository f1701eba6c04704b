"""What a call of the service asks for, and how calls are answered together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rerankzoo import generation
from rerankzoo.errors import InfeasibleConstraintError, RerankingDataError, shown
from rerankzoo.generation import Constraint
from rerankzoo.pipeline import Outcome, RerankingPipeline

MAX_REQUESTS = 1024
#: What one call may cost the others: the largest values of decoding parameters.
MAX_PARAMETERS = {"slate_size": 100, "num_beams": 64, "num_return_sequences": 64}

_MAX_NAMES = 32  # of parameters, and of what a call or a constraint has
# Lists are bounded and end at their first error: of a long list of wrong entries pydantic would tell each.
ItemId = int | str
Ids = Annotated[list[ItemId], Field(max_length=10_000, fail_fast=True)]
Items = Ids | Annotated[list[Ids], Field(max_length=MAX_REQUESTS, fail_fast=True)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _check_length(cls, data: Any) -> Any:
        """Of a million unknown names pydantic would tell each."""
        for entry in (data, data.get("parameters")) if isinstance(data, dict) else ():
            if isinstance(entry, dict) and len(entry) > _MAX_NAMES:
                raise ValueError(f"at most {_MAX_NAMES} names are allowed here, got {len(entry)}")
        return data


class _Constraint(_Strict):
    type: str  # of a subclass: the name of the constraint that its other fields are the arguments of

    def build(self) -> Constraint:
        """The constraint itself."""
        arguments = {name: value for name, value in self if name != "type"}
        return getattr(generation, self.type)(**arguments)


class ExcludeSpec(_Constraint):
    """Items that must not be shown: ids for all requests of the call, or one list of ids for each."""

    type: Literal["Exclude"]
    items: Items


class PinSpec(_Constraint):
    """The item at a position, counted from 0; one of several, where several are named."""

    type: Literal["Pin"]
    items: Items
    position: Count


class AtMostSpec(_Constraint):
    """At most so many items of each value of a field, in the slate or in any `window` positions."""

    type: Literal["AtMost"]
    limit: Count
    categories: str
    window: Count | None = None


class MinDistanceSpec(_Constraint):
    """Two items of one value of a field stand at least so many positions apart."""

    type: Literal["MinDistance"]
    distance: Count
    categories: str


class AtLeastSpec(_Constraint):
    """At least so many of these items."""

    type: Literal["AtLeast"]
    count: Count
    items: Items


class BoostSpec(_Constraint):
    """Adds to the scores of items."""

    type: Literal["Boost"]
    bias: float
    items: Items


AnyConstraint = Annotated[
    ExcludeSpec | PinSpec | AtMostSpec | MinDistanceSpec | AtLeastSpec | BoostSpec, Field(discriminator="type")
]


class RerankCall(_Strict):
    """Requests to rerank, and how.

    `on_error`: `"raise"` refuses the call if any of its requests cannot be used, `"report"` answers the others.
    """

    requests: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_REQUESTS)
    constraints: list[AnyConstraint] = Field([], max_length=32)
    parameters: dict[str, bool | int | float | str] = {}
    on_error: Literal["raise", "report"] = "raise"

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for calls that can be answered together: they differ in requests and in the items of constraints."""
        constraints = (
            tuple((name, value) for name, value in constraint if name != "items") for constraint in self.constraints
        )
        return (*sorted((name, type(value), value) for name, value in self.parameters.items()), *constraints)

    def check(self, pipeline: RerankingPipeline, max_candidates: int) -> None:
        """Refuses, by ValueError, unknown parameters, and what would keep all others waiting."""
        *names, _ = pipeline.model.generation_config_class.names()  # the last one changes what generate() returns
        if unknown := sorted(self.parameters.keys() - set(names)):
            raise ValueError(f"unknown parameters {shown(unknown)}; decoding parameters are {names}")
        for name, most in MAX_PARAMETERS.items():
            value = self.parameters.get(name)
            if isinstance(value, int | float) and value > most:
                raise ValueError(f"{name} must be at most {most} here, got {shown(value)}")
        item_id = pipeline.extractor.schema.item_id
        for row, request in enumerate(self.requests):
            candidates = request.get(item_id)
            if isinstance(candidates, list) and len(candidates) > max_candidates:
                message = f"{len(candidates)} candidates, at most {max_candidates} are allowed"
                raise RerankingDataError(message, field=item_id, row=row)


@dataclass(frozen=True)
class Failure:
    """Why one request has no items."""

    message: str
    field: str | None = None
    row: int | None = None  # within its call

    @classmethod
    def of(cls, error: Exception, first_row: int = 0) -> Failure:
        """What an error says, its row counted from a call's first."""
        row: int | None = getattr(error, "row", None)
        message = getattr(error, "message", str(error))
        return cls(message, getattr(error, "field", None), None if row is None else row - first_row)


#: Of a call: what each of its requests got, or why there is no answer.
Answer = list[list[dict[str, Any]] | Failure] | Exception


def rerank(pipeline: RerankingPipeline, calls: Sequence[RerankCall]) -> list[Answer]:
    """Answers calls of one `key` together, each as if it were alone.

    Where that fails, because of one of them, each is tried alone.
    """
    requests = list(chain.from_iterable(call.requests for call in calls))
    parameters: dict[str, Any] = calls[0].parameters
    try:
        outcomes = iter(pipeline(requests, list(_merged(calls)), "report", **parameters))
    except Exception as error:  # anything: the others must get their answers
        return [error] if len(calls) == 1 else [answer for call in calls for answer in rerank(pipeline, [call])]
    answers: list[Answer] = []
    first_row = 0
    for call in calls:
        of_call: list[Outcome] = [next(outcomes) for _ in call.requests]
        if len(calls) > 1 and any(isinstance(outcome, InfeasibleConstraintError) for outcome in of_call):
            answers += rerank(pipeline, [call])  # its message would tell of the others' items
        else:
            answers.append([Failure.of(it, first_row) if isinstance(it, Exception) else it or [] for it in of_call])
        first_row += len(call.requests)
    return answers


def _merged(calls: Sequence[RerankCall]) -> Iterator[Constraint]:
    """The constraints of calls of one key: as they are of one call, of several with one list of items per request."""
    for specs in zip(*(call.constraints for call in calls), strict=True):
        if len(calls) == 1 or "items" not in type(specs[0]).model_fields:
            yield specs[0].build()
            continue
        items: list[Any] = []
        for call, spec in zip(calls, specs, strict=True):
            nested = any(isinstance(entry, list) for entry in spec.items)
            if nested and len(spec.items) != len(call.requests):
                raise ValueError(f"{len(spec.items)} lists of items for {len(call.requests)} requests")
            items += spec.items if nested else [spec.items] * len(call.requests)
        yield specs[0].model_copy(update={"items": items}).build()
