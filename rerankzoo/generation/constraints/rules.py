"""From constraints to the rules of a batch, and what these leave room for, for all rows being decoded at once.

B requests, N candidates, M positions, J groups; R rows being decoded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from rerankzoo.batch import PADDING, Batch, take
from rerankzoo.errors import InfeasibleConstraintError
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.generation.constraints.constraint import (
    AtLeast,
    AtMost,
    Boost,
    Constraint,
    Exclude,
    MinDistance,
    Pin,
    constraint_list,
    mask_of,
)
from rerankzoo.generation.constraints.search import FIRST_BUDGET, Plan, RequestSearch


def bind(
    constraints: Constraint | Iterable[Constraint] | None,
    batch: Batch,
    slate_size: int,
    schema: FeatureSchema | None = None,
) -> SlateRules | None:
    """Turns constraints into the rules of a batch, and makes sure that every request has a slate that keeps them.

    The batch has `candidate_mask` (B, N) and, where a constraint names a field, `candidate_categorical` (B, N, F), of
    which the schema then must be given.

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
    texts, slate = list(map(repr, constraints)), f"no slate of {int(rules.length[row])} positions"
    if verdicts[row] is None:
        message = f"{slate} was found in {FIRST_BUDGET} steps of search; relax a constraint"
        raise InfeasibleConstraintError(message, row=row, constraints=tuple(texts))
    alone = {place: constraint.rows(slice(row, row + 1)) for place, constraint in enumerate(constraints)}
    request = take(batch, slice(row, row + 1))
    for place in list(alone):  # those without which there is no slate either are no cause
        fewer = {other: constraint for other, constraint in alone.items() if other != place}
        if SlateRules(list(fewer.values()), request, slate_size, schema).verdicts[0] is False:
            alone = fewer
    message = f"{slate} keeps {' and '.join(f'constraints[{place}] {texts[place]}' for place in alone)}"
    raise InfeasibleConstraintError(message, row=row, constraints=tuple(texts[place] for place in alone))


@dataclass(frozen=True)
class Limit:
    """At most `most` items of a kind among any `window` consecutive positions."""

    labels: Tensor  # (B, N), the kind of each candidate, 0..N-1; -1 for one of no kind, which never counts
    most: int
    window: int  # at most M, which is the whole slate

    def room(self, request: Tensor, slates: Tensor, position: int) -> Tensor:
        """(R, N), True where the items of slates (R, M) leave room for a candidate at a position that is free."""
        labels = self.labels[request]
        shown = look_up(labels, slates, -1)[:, max(0, position - self.window + 1) : position + self.window]
        same = (labels.unsqueeze(-1) == shown.unsqueeze(1)) & (shown >= 0).unsqueeze(1)
        return (same.unfold(-1, self.window, 1).sum(-1) < self.most).all(-1)

    def supply(self, usable: Tensor, length: Tensor) -> Tensor:
        """(B,), how many of the usable candidates (B, N) a slate of a length (B,) shows at most, however arranged."""
        most = length // self.window * self.most + (length % self.window).clamp_max(self.most)
        kindless = (usable & (self.labels < 0)).sum(-1)
        return torch.minimum(self.sizes(usable), most.unsqueeze(-1)).sum(-1) + kindless

    def sizes(self, among: Tensor) -> Tensor:
        """(B, N), how many of some candidates (B, N) have each label."""
        counted = (among & (self.labels >= 0)).long()
        return torch.zeros_like(self.labels).scatter_add(1, self.labels.clamp_min(0), counted)


class SlateRules:
    """What the constraints of a batch ask. Slates have as many positions as there are usable candidates, at most M.

    Where the batch tells each request's `slate_length`, at most so many.

    Attributes:
        usable: (B, N), real candidates that are not excluded.
        length: (B,), the positions that are filled.
        domain: (B, M, N), which candidates may stand where.
        fixed: (B, M), the items whose positions are known before decoding; -100 elsewhere.
        groups: (B, J, N), the usable members of groups of which `counts` (J,) are required.
        bias: (B, N), added to the score of a candidate when it is chosen; `None` for none.
    """

    def __init__(
        self, constraints: Sequence[Constraint], batch: Batch, slate_size: int, schema: FeatureSchema | None
    ) -> None:
        real = self.usable = batch["candidate_mask"]
        for constraint in constraints:
            if isinstance(constraint, Exclude):
                self.usable = self.usable & ~constraint.mask(real)
        self.length = self.usable.sum(-1).clamp_max(slate_size)
        if "slate_length" in batch:
            self.length = torch.minimum(self.length, batch["slate_length"])
        filled = torch.arange(slate_size, device=real.device) < self.length.unsqueeze(-1)  # (B, M)
        self.domain = self.usable.unsqueeze(1) & filled.unsqueeze(-1)
        self._pinned = torch.zeros_like(filled)
        self.limits: list[Limit] = []
        self.bias: Tensor | None = None
        groups, counts = [self.domain[:, :0]], []
        for constraint in constraints:
            match constraint:
                case Pin(position=position):
                    if position >= slate_size:
                        raise ValueError(f"{constraint}: position {position} is not one of the {slate_size} of a slate")
                    mask = constraint.mask(real)
                    concerned = mask.any(-1)
                    self.domain[:, position] &= mask | ~concerned.unsqueeze(-1)
                    self._pinned[:, position] |= concerned
                case AtMost(limit=most, window=window):
                    window = min(window or slate_size, slate_size)
                    self.limits.append(Limit(constraint.labels(batch, schema), most, window))
                case MinDistance(distance=window):
                    self.limits.append(Limit(constraint.labels(batch, schema), 1, min(window, slate_size)))
                case AtLeast(count=count):
                    groups.append((constraint.mask(real) & self.usable).unsqueeze(1))
                    counts.append(count)
                case Boost(bias=bias):
                    bias = bias.to(real.device) if isinstance(bias, Tensor) else bias * constraint.mask(real)
                    self.bias = bias if self.bias is None else self.bias + bias
        self._pinned_positions = self._pinned.any(0).nonzero().flatten().tolist()
        one = self._pinned & (self.domain.sum(-1) == 1)
        self.fixed = self.domain.byte().argmax(-1).masked_fill(~one, PADDING)
        self.groups = torch.cat(groups, 1)
        self.counts = torch.tensor(counts, device=real.device, dtype=torch.int64)
        self._overlap = self.groups.sum(1).amax(-1)  # (B,), the number of groups that one candidate is in at most

    @property
    def plans(self) -> list[Plan | None]:
        """For each request that is searched a slate, `None` for others; none at all where no request is."""
        return [cast(Plan | None, self._searched.get(row)) for row in range(len(self.usable))] if self._searched else []

    @property
    def verdicts(self) -> list[bool | None]:
        """For each request whether it has a slate; `None` where the search gave up."""
        verdicts = {row: isinstance(found, Plan) or found for row, found in self._searched.items()}
        return [verdicts.get(row, possible) for row, possible in enumerate(self._possible.tolist())]

    def adjust(self, scores: Tensor, request: Tensor, prefix: Tensor, plans: Sequence[Plan | None]) -> Tensor:
        """What rows of requests (R,) with prefixes (R, t) choose by: boosted scores (R, N), -inf where not allowed."""
        position = prefix.shape[1]
        legal = self.legal(request, torch.cat([prefix, self.fixed[request, position:]], dim=-1), position)
        if searched := [row for row, plan in enumerate(plans) if plan]:
            legal[searched] &= torch.stack([plan.allowed for plan in plans if plan]).to(legal.device)
        if self.bias is not None:
            scores = scores + self.bias[request]
        return scores.masked_fill(~legal, float("-inf"))

    def legal(self, request: Tensor, slates: Tensor, position: int) -> Tensor:
        """(R, N), what counting allows at a position of slates with gaps (R, M), whatever stands there."""
        slates = torch.where(torch.arange(slates.shape[1], device=slates.device) == position, PADDING, slates)
        shown = mask_of(slates, self.usable.shape[1])
        legal = self.domain[request, position] & ~shown
        for limit in self.limits:
            legal = legal & limit.room(request, slates, position)
        if len(self.counts) == 0:
            return legal
        free = (self.length[request] - (slates >= 0).sum(-1) - 1).unsqueeze(-1)  # positions left after this one
        groups = self.groups[request]
        lack = (self.counts - (groups & shown.unsqueeze(1)).sum(-1)).unsqueeze(-1) - groups.long()  # (R, J, N)
        enough = lack.clamp_min(0).sum(1) <= self._overlap[request].unsqueeze(-1) * free
        return legal & enough & (lack <= free.unsqueeze(1)).all(1)

    def boosts(self, slates: Tensor) -> Tensor:
        """(B, S), what the boosts add to slates (B, S, M)."""
        if self.bias is None:
            return torch.zeros(slates.shape[:2], device=slates.device)
        return look_up(self.bias, slates.flatten(1), 0.0).view(slates.shape).sum(-1)

    @cached_property
    def _searched(self) -> dict[int, Plan | bool | None]:
        """What was found for the requests for which counting is not exact."""
        return {
            row: RequestSearch(self, row).first_plan()
            for row in (self._possible & ~self._exact).nonzero().flatten().tolist()
        }

    @cached_property
    def _possible(self) -> Tensor:
        """(B,), False where counting shows that there is no slate."""
        request = torch.arange(len(self.usable), device=self.usable.device)
        possible = (self.groups.sum(-1) >= self.counts).all(-1)
        for limit in self.limits:
            possible = possible & (limit.supply(self.usable, self.length) >= self.length)
        for position in {0, *self._pinned_positions}:
            needed = self._pinned[:, position] | (self.length > position)
            possible = possible & (self.legal(request, self.fixed, position).any(-1) | ~needed)
        return possible

    @property
    def _exact(self) -> Tensor:
        """(B,), True where counting alone tells after which candidates a slate can be completed.

        Fill the positions one after the other, a required item wherever one is missing. Whatever was chosen before, at
        most M - 1 candidates are taken, and those of the few kinds that can be full around a position are blocked. If
        there are more candidates than that for every position, and more in every group (or in what all groups share)
        than are needed, less one, and blocked, nobody gets stuck.
        """
        slots, taken = self._pinned & (self.fixed < 0), self.length - 1  # of slots one of several candidates must stand
        exact = self._abound(self.usable, taken, True)
        for position in self._pinned_positions:
            exact = exact & (self._abound(self.domain[:, position], taken, True) | ~slots[:, position])
        if len(self.counts) > 0:
            apart = self._overlap <= 1
            for group, count in zip(self.groups.unbind(1), self.counts, strict=True):
                apart = apart & self._abound(group, count - 1, False)
            return exact & ~slots.any(-1) & (apart | self._abound(self.groups.all(1), self.counts.max() - 1, False))
        if len(self.limits) == 1 and self.limits[0].window == self.fixed.shape[1]:
            exact = exact | ~slots.any(-1)  # one limit over the whole slate is all there is
        return exact

    def _abound(self, options: Tensor, taken: Tensor, counted: bool) -> Tensor:
        """(B,), True where some of the options (B, N) are left when so many (B,) are taken and full kinds are blocked.

        `counted` says that the items that make a kind full are among those taken.
        """
        left = options.sum(-1) - taken
        sides = 1 + (self.fixed >= 0).any(-1).long()  # pinned items stand on either side of a position
        for limit in self.limits:
            around = torch.minimum((limit.window - 1) * sides, (self.length - 1).clamp_min(0))
            sizes = limit.sizes(options).sort(dim=-1, descending=True).values
            full = torch.arange(sizes.shape[-1], device=sizes.device) < (around // limit.most).unsqueeze(-1)
            left = left - ((sizes - limit.most * counted).clamp_min(0) * full).sum(-1)
        return left > 0


def look_up(values: Tensor, items: Tensor, padding: float) -> Tensor:
    """(P, K), the values (P, N) of items (P, K); `padding` for -100."""
    return values.gather(1, items.clamp_min(0)).masked_fill(items < 0, padding)
