"""The rows being decoded, as the constraints see them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rerankzoo.generation.constraints.rules import SlateRules
from rerankzoo.generation.constraints.search import Plan


@dataclass(frozen=True)
class Progress:
    """What the R rows being decoded have chosen, and what they may choose next.

    Attributes:
        rules: The constraints.
        request: (R,), the request of each row.
        slates: (R, M), what is chosen so far, and the items whose positions are known.
        position: The next one to fill.
        boost: (R,), what the boosts added so far.
        plans: For each row of a request that is searched how it can go on; `None` for others.
    """

    rules: SlateRules
    request: Tensor
    slates: Tensor
    position: int
    boost: Tensor
    plans: list[Plan | None]

    @classmethod
    def start(cls, rules: SlateRules) -> Progress:
        """One row per request with an empty prefix."""
        request = torch.arange(len(rules.length), device=rules.length.device)
        plans = [rules.searched[row].plan if row in rules.searched else None for row in range(len(request))]
        return cls(rules, request, rules.fixed, 0, torch.zeros(len(request), device=request.device), plans)

    @property
    def finished(self) -> Tensor:
        """(R,), True where a slate is whole."""
        return self.rules.length[self.request] <= self.position

    def adjust(self, scores: Tensor, alive: Tensor) -> Tensor:
        """What the choice goes by: scores (R, N) with the boosts, -inf for what is not allowed.

        Args:
            scores: (R, N), the scorer's.
            alive: (R,), False for rows that hold no slate; they are spared the search.
        """
        legal = self.rules.legal(self.request, self.slates, self.position) & alive.unsqueeze(-1)
        if self.rules.searched:
            plans, possible = self.plans, legal.nonzero().tolist()
            stuck = [(r, item) for r, item in possible if (plan := plans[r]) and not plan.after(self.position, item)]
            legal[tuple(zip(*stuck, strict=True)) or ([], [])] = False
        if self.rules.bias is not None:
            scores = scores + self.rules.bias[self.request]
        return scores.masked_fill(~legal, float("-inf"))

    def extend(self, parent: Tensor | None, index: Tensor) -> Progress:
        """Row r continues row `parent[r]` (R',), or itself, with candidate `index[r]`; -100 where it is finished."""
        plans: list[Plan | None] = [None] * len(index)
        if self.rules.searched:
            before = self.plans if parent is None else [self.plans[row] for row in parent.tolist()]
            steps = zip(before, index.tolist(), strict=True)
            plans = [plan.known_after(item) if plan and item >= 0 else plan for plan, item in steps]
        request, slates, boost = self.request, self.slates, self.boost
        if parent is not None:
            request, slates, boost = request[parent], slates[parent], boost[parent]
        chosen, item = index >= 0, index.clamp_min(0)
        here = torch.arange(slates.shape[1], device=index.device) == self.position
        slates = torch.where(here & chosen.unsqueeze(-1), item.unsqueeze(-1), slates)
        if self.rules.bias is not None:
            boost = boost + self.rules.bias[request, item] * chosen
        return Progress(self.rules, request, slates, self.position + 1, boost, plans)
