"""Counting: what the items chosen and pinned so far leave room for, for all rows being decoded at once.

B requests, N candidates, M positions, J groups; R rows being decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rerankzoo.batch import PADDING, Batch
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.generation.constraints.constraint import (
    AtLeast,
    AtMost,
    Boost,
    Constraint,
    Exclude,
    MinDistance,
    Pin,
    mask_of,
)
from rerankzoo.generation.constraints.search import RequestRules


@dataclass(frozen=True)
class Limit:
    """At most `most` items of a kind among any `window` consecutive positions.

    Attributes:
        labels: (B, N), the kind of each candidate, 0..N-1; -1 for one of no kind, which never counts.
        most: k, at least 1.
        window: w, at most M; M is the whole slate.
    """

    labels: Tensor
    most: int
    window: int

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

    Args:
        constraints: They fit the batch.
        batch: `candidate_mask` (B, N), and `candidate_categorical` (B, N, F) where constraints name fields.
        slate_size: M.
        schema: Of the batch, where constraints name fields.

    Attributes:
        usable: (B, N), real candidates that are not excluded.
        length: (B,), the positions that are filled.
        domain: (B, M, N), which candidates may stand where.
        fixed: (B, M), the items whose positions are known before decoding; -100 elsewhere.
        limits: Upper limits.
        groups: (B, J, N), the usable members of groups of which so many are required:
        counts: (J,).
        bias: (B, N), added to the score of a candidate when it is chosen; `None` for none.
    """

    def __init__(
        self, constraints: Sequence[Constraint], batch: Batch, slate_size: int, schema: FeatureSchema | None
    ) -> None:
        real = self.usable = batch["candidate_mask"]
        self.limits: list[Limit] = []
        self.bias: Tensor | None = None
        pins, groups, counts = [], [], []
        for constraint in constraints:
            match constraint:
                case Exclude():
                    self.usable = self.usable & ~constraint.mask(real)
                case Pin(position=position) if position < slate_size:
                    pins.append((constraint.mask(real), position))
                case Pin(position=position):
                    raise ValueError(f"{constraint}: position {position} is not one of the {slate_size} of the slate")
                case AtMost(limit=most) | MinDistance(limit=most):
                    window = min(constraint.window or slate_size, slate_size)
                    self.limits.append(Limit(constraint.labels(batch, schema), most, window))
                case AtLeast(count=count):
                    groups.append(constraint.mask(real).unsqueeze(1))
                    counts.append(count)
                case Boost(bias=bias):
                    bias = bias.to(real.device) if isinstance(bias, Tensor) else bias * constraint.mask(real)
                    self.bias = bias if self.bias is None else self.bias + bias
        self.length = self.usable.sum(-1).clamp_max(slate_size)
        inside = torch.arange(slate_size, device=real.device) < self.length.unsqueeze(-1)  # (B, M)
        domain, pinned = self.usable.unsqueeze(1).repeat(1, slate_size, 1), torch.zeros_like(inside)
        for mask, position in pins:
            concerned = mask.any(-1)
            domain[:, position] &= mask | ~concerned.unsqueeze(-1)
            pinned[:, position] |= concerned
        self.domain = domain & inside.unsqueeze(-1)
        options = self.domain.sum(-1)
        self.fixed = self.domain.byte().argmax(-1).masked_fill(~pinned | (options != 1), PADDING)
        self._pins_fit = (~pinned | (options > 0)).all(-1)  # (B,)
        self._slots = pinned & (options > 1)  # (B, M), where one of several candidates must stand
        self._pinned_positions = sorted({position for _, position in pins})
        self.groups = torch.cat([domain[:, :0], *groups], 1) & self.usable.unsqueeze(1)
        self.counts = torch.tensor(counts, device=real.device, dtype=torch.int64)
        self._overlap = self.groups.sum(1).amax(-1)  # (B,), the number of groups that one candidate is in at most

    def legal(self, request: Tensor, slates: Tensor, position: int) -> Tensor:
        """What counting allows; never too little.

        Args:
            request: (R,), the requests of the rows.
            slates: (R, M), what stands where, with gaps (-100).
            position: The place to fill; what stands there is disregarded.

        Returns:
            (R, N).
        """
        slates = torch.where(torch.arange(slates.shape[1], device=slates.device) == position, PADDING, slates)
        legal = self.domain[:, position][request] & ~mask_of(slates, self.usable.shape[1])
        for limit in self.limits:
            legal = legal & limit.room(request, slates, position)
        if len(self.counts) == 0:
            return legal
        free = (self.length[request] - (slates >= 0).sum(-1) - 1).unsqueeze(-1)  # positions left after this one
        lack = self._lack(request, slates).unsqueeze(-1) - self.groups[request].long()  # (R, J, N)
        enough = lack.clamp_min(0).sum(1) <= self._overlap[request].unsqueeze(-1) * free
        return legal & enough & (lack <= free.unsqueeze(1)).all(1)

    def _lack(self, request: Tensor, slates: Tensor) -> Tensor:
        """(R, J), how many of each group slates (R, M) still miss; negative where there are more than enough."""
        shown = mask_of(slates, self.usable.shape[1]).unsqueeze(1)
        return self.counts - (self.groups[request] & shown).sum(-1)

    def boosts(self, slates: Tensor) -> Tensor:
        """(B, S), what the boosts add to slates (B, S, M)."""
        if self.bias is None:
            return torch.zeros(slates.shape[:2], device=slates.device)
        return look_up(self.bias, slates.flatten(1), 0.0).view(slates.shape).sum(-1)

    @cached_property
    def verdicts(self) -> list[bool | None]:
        """For each request whether it has a slate; `None` where the search gave up."""
        verdicts: list[bool | None] = list(self._possible.tolist())
        for row, request in self.searched.items():
            verdicts[row] = request.plan is not None or (None if request.gave_up else False)
        return verdicts

    @cached_property
    def searched(self) -> dict[int, RequestRules]:
        """The requests for which counting is not exact, by row."""
        return {row: RequestRules(self, row) for row in (self._possible & ~self._exact).nonzero().flatten().tolist()}

    @cached_property
    def _possible(self) -> Tensor:
        """(B,), False where counting shows that there is no slate."""
        request = torch.arange(len(self.usable), device=self.usable.device)
        possible = self._pins_fit
        for limit in self.limits:
            possible = possible & (limit.supply(self.usable, self.length) >= self.length)
        for position in self._pinned_positions:  # pinned items must suit one another
            legal = self.legal(request, self.fixed, position)
            possible = possible & look_up(legal, self.fixed[:, position : position + 1], True).squeeze(-1)
        if len(self.counts) > 0:
            free = self.length - (self.fixed >= 0).sum(-1)
            lack = self._lack(request, self.fixed).clamp_min(0)
            possible = possible & (lack.sum(-1) <= self._overlap * free) & (lack <= free.unsqueeze(-1)).all(-1)
            possible = possible & (self.groups.sum(-1) >= self.counts).all(-1)
        return possible

    @property
    def _exact(self) -> Tensor:
        """(B,), True where counting alone tells after which candidates a slate can be completed.

        Fill the positions one after the other, a required item wherever one is missing. Whatever was chosen before, at
        most M - 1 candidates are taken, and those of the few kinds that can be full around a position are blocked. If
        there are more candidates than that for every position, and more in every group than are needed, less one, and
        blocked, nobody gets stuck.
        """
        slots, taken = self._slots.any(-1), self.length - 1
        exact = self._abound(self.usable, taken, True)
        for position in self._pinned_positions:
            exact = exact & (self._abound(self.domain[:, position], taken, True) | ~self._slots[:, position])
        for number, group in enumerate(self.groups.unbind(1)):
            exact = exact & self._abound(group, self.counts[number] - 1, False) & (self._overlap <= 1) & ~slots
        if len(self.limits) == 1 and self.limits[0].window == self.fixed.shape[1] and len(self.counts) == 0:
            exact = exact | ~slots  # one limit over the whole slate is all there is
        return exact

    def _abound(self, options: Tensor, taken: Tensor, counted: bool) -> Tensor:
        """(B,), True where some of the options (B, N) are left when so many (B,) are taken and limits block others.

        A kind is full because so many of it are taken; `counted` says that these are among `taken`.
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
