"""From constraints to the rules of a batch, and what to say where they cannot be kept."""

from __future__ import annotations

from collections.abc import Iterable

from rerankzoo.batch import Batch, take
from rerankzoo.errors import InfeasibleConstraintError
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.generation.constraints.constraint import Constraint, constraint_list
from rerankzoo.generation.constraints.rules import SlateRules
from rerankzoo.generation.constraints.search import FIRST_BUDGET


def bind(
    constraints: Constraint | Iterable[Constraint] | None,
    batch: Batch,
    slate_size: int,
    schema: FeatureSchema | None = None,
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
    constraints = constraint_list(constraints)
    if not constraints:
        return None
    for constraint in constraints:
        constraint.check_fit(*batch["candidate_mask"].shape)
    rules = SlateRules(constraints, batch, slate_size, schema)
    verdicts = rules.verdicts
    if all(verdicts):
        return rules
    row = verdicts.index(False if False in verdicts else None)  # proven cases first: they have a cause to name
    slate = f"no slate of {int(rules.length[row])} positions"
    if verdicts[row] is None:
        message = f"{slate} was found in {FIRST_BUDGET} steps of search; relax a constraint"
        raise InfeasibleConstraintError(message, row=row, constraints=tuple(map(repr, constraints)))
    rows = slice(row, row + 1)
    alone = [constraint.rows(rows) for constraint in constraints]
    places = _conflict(alone, take(batch, rows), slate_size, schema)
    message = f"{slate} keeps {' and '.join(f'constraints[{place}] {constraints[place]!r}' for place in places)}"
    raise InfeasibleConstraintError(message, row=row, constraints=tuple(repr(constraints[place]) for place in places))


def _conflict(
    constraints: list[Constraint], request: Batch, slate_size: int, schema: FeatureSchema | None
) -> list[int]:
    """The places of some constraints that exclude one another in a request, none of which can be left out."""
    kept = list(range(len(constraints)))
    for place in range(len(constraints)):
        fewer = [other for other in kept if other != place]
        if SlateRules([constraints[other] for other in fewer], request, slate_size, schema).verdicts[0] is False:
            kept = fewer
    return kept
