"""What constraints allow at every step of decoding: exactly the candidates after which a whole slate can still be made.

A mask that only looks back paints itself into a corner: the last position is reached and the item that must be shown is
still missing. So a candidate counts as allowed only if the slate can be completed after it:

1. **Counting** (`SlateRules.legal`): what is chosen and pinned leaves room for the candidate, and the positions left
   are enough for what is still required. This alone is exact (`SlateRules.exact`) for exclusions and pins of single
   items, with a limit over the whole slate by one grouping, or with required groups that share no candidate; and with
   any limits and such groups where candidates abound, as they mostly do.
2. **A known completion**: otherwise every row carries a slate that completes its prefix and keeps all constraints. A
   candidate is allowed if it can take its place there by replacing or swapping with the item that stands in it.
3. **Search** (`SlateRules.complete`): what is undecided then is searched depth first, all rows and candidates together.
   Candidates that no constraint tells apart are tried once. The search is bounded; a candidate that it could not decide
   is left out, while the known completion always stays: a slate can always be completed.

B requests, N candidates, M positions, S slates; R rows being decoded; P partial slates.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from rerankzoo.batch import PADDING

#: Steps of the search, each of which places an item or takes one back: before decoding, and at each position of it.
FIRST_BUDGET = 20_000
STEP_BUDGET = 200
#: Entries of a tensor (partial slates x positions x candidates) that the search holds at a time.
_SEARCHED_TOGETHER = 4_000_000


@dataclass(frozen=True)
class Cap:
    """At most `limit` items of a kind among any `window` consecutive positions.

    Attributes:
        labels: (B, N), the kind of each candidate, 0..N-1; -1 for one of no kind, which never counts.
        limit: k, at least 1.
        window: w, at most M; M is the whole slate.
    """

    labels: Tensor
    limit: int
    window: int

    def room(self, request: Tensor, slates: Tensor, position: Tensor) -> Tensor:
        """(P, N), True where the items of slates (P, M) leave room for a candidate at a position (P,) that is free."""
        labels = self.labels[request]
        placed = look_up(labels, slates, -1)
        same = (labels.unsqueeze(-1) == placed.unsqueeze(1)) & (placed >= 0).unsqueeze(1)  # (P, N, M)
        if self.window == slates.shape[-1]:
            return same.sum(-1) < self.limit
        windows = self._windows(slates)
        around = windows[:, position].T.unsqueeze(1)  # (P, 1, number of windows)
        return ((same.float() @ windows.T) * around < self.limit).all(-1)

    def kept(self, request: Tensor, slates: Tensor) -> Tensor:
        """(P,), True where no window of slates (P, M), which may have gaps, holds too many of a kind."""
        placed = look_up(self.labels[request], slates, -1)
        same = (placed.unsqueeze(-1) == placed.unsqueeze(1)) & (placed >= 0).unsqueeze(1)  # (P, M, M)
        return (same.float() @ self._windows(slates).T <= self.limit).flatten(1).all(-1)

    def supply(self, request: Tensor, slates: Tensor, spare: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """How many of the spare candidates (P, N) slates of a length (P,) could show at most.

        Returns:
            (P,), an upper bound, exact for a limit over the whole slate; and (P,), False where already too many stand.
        """
        labels = self.labels[request]
        placed = look_up(labels, slates, -1)
        there = self.sizes(request, spare)
        taken = torch.zeros_like(labels).scatter_add(1, placed.clamp_min(0), (placed >= 0).long())
        most = length // self.window * self.limit + (length % self.window).clamp_max(self.limit)
        left = most.unsqueeze(-1) - taken
        supply = torch.minimum(there, left.clamp_min(0)).sum(-1) + (spare & (labels < 0)).sum(-1)
        return supply, (left >= 0).all(-1)

    def abundance(self, request: Tensor, spare: Tensor) -> Tensor:
        """(P, N), how many spare candidates (P, N) there are of each candidate's kind."""
        labels = self.labels[request]
        return self.sizes(request, spare).gather(1, labels.clamp_min(0)) * (labels >= 0)

    def sizes(self, request: Tensor | slice, among: Tensor) -> Tensor:
        """(P, N), how many of some candidates (P, N) have each label."""
        labels = self.labels[request]
        counted = (among & (labels >= 0)).long()
        return torch.zeros_like(labels).scatter_add(1, labels.clamp_min(0), counted)

    def _windows(self, slates: Tensor) -> Tensor:
        """(number of windows, M), 1 where a window covers a position."""
        size = slates.shape[-1]
        start = torch.arange(size - self.window + 1, device=slates.device).unsqueeze(-1)
        position = torch.arange(size, device=slates.device)
        return ((position >= start) & (position < start + self.window)).float()


@dataclass(frozen=True)
class Need:
    """At least `count` items of a group.

    Attributes:
        group: (B, N), True for its members.
        count: j, at least 1.
    """

    group: Tensor
    count: int

    def lack(self, request: Tensor, slates: Tensor) -> Tensor:
        """(P,), how many are still missing of slates (P, M); negative where there are more than enough."""
        return self.count - look_up(self.group[request], slates, False).sum(-1)


@dataclass(frozen=True)
class Pinned:
    """The item at a position is one of some candidates.

    Attributes:
        marked: (B, N), True for these candidates; a request without any is not concerned.
        position: 0..M-1.
    """

    marked: Tensor
    position: int


class SlateRules:
    """What the constraints of a batch ask, as tensors.

    A request's slates have as many positions as it has usable candidates, at most M.

    Args:
        usable: (B, N), True where a candidate is real and not excluded.
        slate_size: M.
        pins: What must stand where.
        caps: Upper limits.
        needs: Lower limits.
        bias: (B, N), added to the score of a candidate when it is chosen; `None` for none.
    """

    def __init__(
        self,
        usable: Tensor,
        slate_size: int,
        pins: list[Pinned],
        caps: list[Cap],
        needs: list[Need],
        bias: Tensor | None,
    ) -> None:
        self.usable, self.slate_size, self.caps, self.needs, self.bias = usable, slate_size, caps, needs, bias
        self.length = usable.sum(-1).clamp_max(slate_size)  # (B,)
        self.inside = torch.arange(slate_size, device=usable.device) < self.length.unsqueeze(-1)  # (B, M)
        domain = usable.unsqueeze(1).repeat(1, slate_size, 1)
        pinned = torch.zeros_like(self.inside)
        for pin in pins:
            domain[:, pin.position] &= pin.marked | ~pin.marked.any(-1, keepdim=True)
            pinned[:, pin.position] |= pin.marked.any(-1)
        self.domain = domain & self.inside.unsqueeze(-1)  # (B, M, N): what may stand where
        self.options = self.domain.sum(-1)  # (B, M)
        single = pinned & (self.options == 1)
        #: (B, M), the items whose places are known before decoding; -100 elsewhere.
        self.fixed = self.domain.byte().argmax(-1).masked_fill(~single, PADDING)
        groups = [need.group & usable for need in needs] or [torch.zeros_like(usable)]
        #: (B,), the number of required groups that one candidate belongs to at most.
        self.overlap = torch.stack(groups).sum(0).amax(-1)
        self._pins_fit = (~pinned | (self.options > 0)).all(-1)
        self._pins_are_single = (single | ~pinned).all(-1)

    @cached_property
    def exact(self) -> Tensor:
        """(B,), True where counting alone tells what can be completed, from the first position on."""
        return torch.stack([self._ample, self.overlap <= 1, *self._ample_groups]).all(0)

    @cached_property
    def searches(self) -> bool:
        """Whether counting is not enough for some request."""
        return not bool(self.exact.all())

    def certain(self, request: Tensor, slates: Tensor) -> Tensor:
        """(P, N), True where counting alone tells what can be completed once slates (P, M) got a candidate."""
        certain = self._ample[request].unsqueeze(-1)
        still_open = torch.zeros_like(certain, dtype=torch.int64)
        for need, ample in zip(self.needs, self._ample_groups, strict=True):
            missed = need.lack(request, slates).unsqueeze(-1) > need.group[request].long()
            certain, still_open = certain & (ample[request].unsqueeze(-1) | ~missed), still_open + missed
        certain = certain & ((still_open <= 1) | (self.overlap[request] <= 1).unsqueeze(-1))
        last = (slates >= 0).sum(-1) + 1 >= self.length[request]  # a whole slate is counted completely
        return certain | last.unsqueeze(-1)

    # Fill the places one after the other, a required item wherever one is missing. Whatever was chosen before, at most
    # M - 1 candidates are taken, and those of the few kinds that can be full around a place are blocked. If there are
    # more candidates than that, and more in every open group than its need less one and the blocked, nobody gets stuck.

    @cached_property
    def _ample(self) -> Tensor:
        """(B,), True where some candidate is always left; or where one limit over the whole slate is all there is."""
        only_total = not self.needs and len(self.caps) == 1 and self.caps[0].window == self.slate_size
        ample = self.usable.sum(-1) - (self.length - 1) > self._blocked(self.usable, among_taken=True)
        return self._pins_are_single & (ample | only_total)

    @cached_property
    def _ample_groups(self) -> list[Tensor]:
        """(B,) for each required group, True where one of it is always left while one is missing."""
        groups = [(need.group & self.usable, need.count) for need in self.needs]
        return [group.sum(-1) - (count - 1) > self._blocked(group) for group, count in groups]

    def _blocked(self, among: Tensor, among_taken: bool = False) -> Tensor:
        """(B,), how many of some candidates (B, N) limits can forbid at once, at most.

        A kind is full because so many of it are taken. `among_taken` says that these are counted already.
        """
        blocked = torch.zeros_like(self.length)
        # Pinned items stand on either side of a place.
        sides = 1 + (self.fixed >= 0).any(-1).long()
        for cap in self.caps:
            around = torch.minimum((cap.window - 1) * sides, (self.length - 1).clamp_min(0))
            sizes = cap.sizes(slice(None), among).sort(dim=-1, descending=True).values
            full = torch.arange(sizes.shape[-1], device=sizes.device) < (around // cap.limit).unsqueeze(-1)
            sizes = (sizes - cap.limit).clamp_min(0) if among_taken else sizes
            blocked = blocked + (sizes * full).sum(-1)
        return blocked

    @cached_property
    def types(self) -> Tensor:
        """(B, N), the first candidate that no constraint tells from this one."""
        same = torch.ones_like(self.usable).unsqueeze(-1) & self.usable.unsqueeze(1)
        marks = [self.domain[:, position] for position in range(self.slate_size)]
        marks += [cap.labels for cap in self.caps] + [need.group for need in self.needs]
        for mark in marks:
            same = same & (mark.unsqueeze(-1) == mark.unsqueeze(1))
        return same.byte().argmax(-1)

    # --- counting ---------------------------------------------------------------------------------------------------

    def legal(self, request: Tensor, slates: Tensor, position: Tensor) -> Tensor:
        """What counting allows; never too little.

        Args:
            request: (P,).
            slates: (P, M), what stands where, with gaps (-100).
            position: (P,), the place to fill; what stands there is disregarded.

        Returns:
            (P, N).
        """
        slates = slates.scatter(1, position.unsqueeze(-1), PADDING)
        legal = self.domain[request, position] & ~self._placed(slates)
        for cap in self.caps:
            legal = legal & cap.room(request, slates, position)
        if not self.needs:
            return legal
        free = (self.length[request] - (slates >= 0).sum(-1) - 1).unsqueeze(-1)  # places left after this one
        missing = torch.zeros_like(free)
        for need in self.needs:
            lack = (need.lack(request, slates).unsqueeze(-1) - need.group[request].long()).clamp_min(0)  # (P, N)
            legal, missing = legal & (lack <= free), missing + lack
        return legal & (missing <= self.overlap[request].unsqueeze(-1) * free)

    def possible(self, request: Tensor, slates: Tensor) -> Tensor:
        """(P,), False where counting shows that slates (P, M) with gaps cannot be completed."""
        spare = self.usable[request] & ~self._placed(slates)
        free = self.length[request] - (slates >= 0).sum(-1)
        possible, missing = torch.ones_like(free, dtype=torch.bool), torch.zeros_like(free)
        for need in self.needs:
            lack = need.lack(request, slates).clamp_min(0)
            possible = possible & (lack <= free) & (lack <= (need.group[request] & spare).sum(-1))
            missing = missing + lack
        for cap in self.caps:
            supply, kept = cap.supply(request, slates, spare, self.length[request])
            possible = possible & kept & (supply >= free)
        return possible & (missing <= self.overlap[request] * free)

    def keeps(self, request: Tensor, slates: Tensor) -> Tensor:
        """(P,), True where slates (P, M) of distinct candidates are whole and keep every constraint."""
        there = slates >= 0
        suits = self.domain[request].gather(2, slates.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        kept = (there == self.inside[request]).all(-1) & (suits | ~there).all(-1)
        for cap in self.caps:
            kept = kept & cap.kept(request, slates)
        for need in self.needs:
            kept = kept & (need.lack(request, slates) <= 0)
        return kept

    def boosts(self, slates: Tensor) -> Tensor:
        """(B, S), what the boosts add to slates (B, S, M)."""
        if self.bias is None:
            return torch.zeros(slates.shape[:2], device=slates.device)
        return look_up(self.bias, slates.flatten(1), 0.0).view(slates.shape).sum(-1)

    def _placed(self, slates: Tensor) -> Tensor:
        """(P, N), True where a candidate stands in slates (P, M)."""
        size = self.usable.shape[1]
        placed = torch.zeros(len(slates), size + 1, dtype=torch.bool, device=slates.device)
        return placed.scatter(1, slates.masked_fill(slates < 0, size), True)[:, :size]

    # --- search -----------------------------------------------------------------------------------------------------

    @cached_property
    def first(self) -> tuple[Tensor, Tensor, Tensor]:
        """One slate of each request: (B,), True where there is one; (B,), False where the search gave up; and (B, M).

        Where counting is `exact`, nobody needs the slate: it holds the items whose places are known.
        """
        request = torch.arange(len(self.usable), device=self.usable.device)
        twice = (self.fixed.unsqueeze(-1) == self.fixed.unsqueeze(1)) & (self.fixed >= 0).unsqueeze(1)
        possible = self._pins_fit & (twice.sum(-1) <= 1).all(-1) & self.possible(request, self.fixed)
        for cap in self.caps:
            possible = possible & cap.kept(request, self.fixed)
        slates, decided = self.fixed.clone(), torch.ones_like(possible)
        if not self.searches:
            return possible, decided, slates
        rows = (possible & ~self.exact).nonzero().flatten()
        found, decided[rows], slates[rows] = self.complete(rows, self.fixed[rows], FIRST_BUDGET)
        return possible.index_put((rows,), found), decided, slates

    def complete(self, request: Tensor, slates: Tensor, budget: int) -> tuple[Tensor, Tensor, Tensor]:
        """Fills the gaps of slates so that every constraint is kept: depth first, all slates in step.

        Args:
            request: (P,).
            slates: (P, M), with gaps; what stands there keeps the limits.
            budget: Steps before giving up.

        Returns:
            (P,), True where a completion was found; (P,), False where the search gave up; and the slates (P, M).
        """
        size = max(1, _SEARCHED_TOGETHER // max(1, self.domain[0].numel())) if len(request) else 1
        parts = zip(request.split(size), slates.split(size), strict=True)
        found = [_Search(self, *part).run(budget) for part in parts]
        return cast(tuple[Tensor, Tensor, Tensor], tuple(torch.cat(column) for column in zip(*found, strict=True)))


class _Search:
    """Depth-first searches for completions, one per partial slate, that take their steps together.

    Places with the fewest options are filled first; candidates that a requirement still misses are tried first, then
    those whose kind has most left.
    """

    def __init__(self, rules: SlateRules, request: Tensor, slates: Tensor) -> None:
        self.rules, self.request, self.slates = rules, request, slates.clone()
        gaps = rules.inside[request] & (slates < 0)
        options = rules.options[request].masked_fill(~gaps, rules.usable.shape[1] + 1)
        self.order = options.argsort(dim=-1, stable=True)  # (P, M): gaps first
        self.goal, self.depth = gaps.sum(-1), torch.zeros_like(request)
        self.tried = torch.zeros_like(rules.domain[request])  # (P, M, N), by depth

    def run(self, budget: int) -> tuple[Tensor, Tensor, Tensor]:
        """See `SlateRules.complete`."""
        running = torch.arange(len(self.request), device=self.request.device)
        for _ in range(budget + 1):
            depth = self.depth[running]
            running = running[(depth >= 0) & (depth < self.goal[running])]
            if len(running) == 0:
                break
            self._step(running)
        found = self.depth == self.goal
        return found, found | (self.depth < 0), self.slates

    def _step(self, rows: Tensor) -> None:
        """Places the next item in each of these slates, or takes back the last one."""
        request, slates, depth = self.request[rows], self.slates[rows], self.depth[rows]
        place = self.order[rows, depth]
        legal = self.rules.legal(request, slates, place) & ~self.tried[rows, depth]
        legal = legal & self.rules.possible(request, slates).unsqueeze(-1)
        item, ahead = self._promise(request, slates).masked_fill(~legal, -1).argmax(-1), legal.any(-1)
        forward, back = rows[ahead], rows[~ahead]
        types = self.rules.types[request[ahead]]
        self.tried[forward, depth[ahead]] |= types == types.gather(1, item[ahead].unsqueeze(-1))
        self.slates[forward, place[ahead]] = item[ahead]
        self.tried[back, depth[~ahead]] = False
        self.depth[forward] += 1
        self.depth[back] -= 1
        back = back[self.depth[back] >= 0]
        self.slates[back, self.order[back, self.depth[back]]] = PADDING

    def _promise(self, request: Tensor, slates: Tensor) -> Tensor:
        """(P, N), which candidates to try first; not negative."""
        spare = self.rules.usable[request] & ~self.rules._placed(slates)
        promise = torch.zeros(spare.shape, dtype=torch.int64, device=spare.device)
        for cap in self.rules.caps:
            promise = promise + cap.abundance(request, spare)
        above = spare.shape[1] * len(self.rules.caps) + 1
        for need in self.rules.needs:
            missed = (need.lack(request, slates) > 0).unsqueeze(-1)
            promise = promise + above * (need.group[request] & missed)
        return promise


class Progress:
    """The rows being decoded, as the constraints see them.

    Args:
        rules: The constraints.
        request: (R,), the request of each row.
        slates: (R, M), what is chosen so far, and the items whose places are known.
        witness: (R, M), a slate with the same prefix that keeps everything; of use where counting is not `exact`.
        position: The next place to fill.
        boost: (R,), what the boosts added so far.
    """

    def __init__(
        self, rules: SlateRules, request: Tensor, slates: Tensor, witness: Tensor, position: int, boost: Tensor
    ) -> None:
        self.rules, self.request, self.slates, self.witness = rules, request, slates, witness
        self.position, self.boost = position, boost
        self._completions: tuple[Tensor, Tensor, Tensor] | None = None

    @classmethod
    def start(cls, rules: SlateRules) -> Progress:
        """One row per request with an empty prefix."""
        boost = torch.zeros(rules.length.shape, device=rules.length.device)
        return cls(rules, torch.arange(len(boost), device=boost.device), rules.fixed, rules.first[2], 0, boost)

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
        if self.rules.bias is not None:
            scores = scores + self.rules.bias[self.request]
        return scores.masked_fill(~self._allowed(alive), float("-inf"))

    def extend(self, parent: Tensor | None, index: Tensor) -> Progress:
        """Row r continues row `parent[r]` (R',), or itself, with candidate `index[r]`; -100 where it is finished."""
        if parent is None:
            parent = torch.arange(len(index), device=index.device)
        chosen, item, rules = index >= 0, index.clamp_min(0), self.rules
        slates, boost, witness = self.slates[parent], self.boost[parent], self.witness[parent]
        slates[:, self.position] = torch.where(chosen, index, slates[:, self.position])
        if rules.bias is not None:
            boost = boost + rules.bias[self.request[parent], item] * chosen
        if self._completions is not None:
            first, number, completed = self._completions
            alike = first[parent, item]
            witness = exchange(completed[number[parent, alike]], alike, item)
        return Progress(rules, self.request[parent], slates, witness, self.position + 1, boost)

    def _allowed(self, alive: Tensor) -> Tensor:
        """(R, N), True where a candidate can be chosen and the slate still be completed."""
        position = torch.full_like(self.request, self.position)
        legal = self.rules.legal(self.request, self.slates, position) & alive.unsqueeze(-1)
        if not self.rules.searches:
            return legal
        others = self.slates.scatter(1, position.unsqueeze(-1), PADDING)
        # Certain once, certain ever after: whoever chooses such a candidate needs no witness any more.
        certain = self.rules.certain(self.request, others)
        return legal & certain | self._completable(legal & ~certain)

    def _completable(self, legal: Tensor) -> Tensor:
        """Those of the legal candidates (R, N) after which a completion is known or found; keeps the completions."""
        column = torch.arange(legal.shape[1], device=legal.device).expand_as(legal)
        types = self.rules.types[self.request]
        # Of the legal candidates that no constraint tells apart, only the first is looked at.
        first = torch.zeros_like(types).scatter_reduce(
            1, types, column.masked_fill(~legal, legal.shape[1]), "amin", include_self=False
        )
        first = first.gather(1, types)
        row, item = (legal & (first == column)).nonzero(as_tuple=True)
        found, completed = self._complete(row, item)
        # A row whose choice is unknown here is finished, not alive or certain; its witness does not matter any more.
        number = len(row) + torch.arange(len(legal), device=legal.device).unsqueeze(-1).repeat(1, legal.shape[1])
        number[row, item] = torch.arange(len(row), device=legal.device)
        reached = torch.zeros_like(legal).index_put((row, item), found)
        first = first.clamp_max(legal.shape[1] - 1)
        self._completions = first, number, torch.cat([completed, self.witness])
        return legal & reached.gather(1, first)

    def _complete(self, row: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """Whether rows (P,) can be completed after candidates (P,), and how (P, M)."""
        request, witness = self.request[row], self.witness[row]
        completed = exchange(witness, witness[:, self.position], item)
        found = self.rules.keeps(request, completed)
        open_ = (~found).nonzero().flatten()
        if len(open_) > 0:
            begun = self.slates[row[open_]]
            begun[:, self.position] = item[open_]
            found[open_], _, completed[open_] = self.rules.complete(request[open_], begun, STEP_BUDGET)
        return found, completed


def look_up(values: Tensor, slates: Tensor, padding: float) -> Tensor:
    """(P, M), the values (P, N) of the items of slates (P, M); `padding` in their gaps."""
    return values.gather(1, slates.clamp_min(0)).masked_fill(slates < 0, padding)


def exchange(slates: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Slates (P, M) with item `one[p]` in place of `other[p]` and the other way round."""
    one, other = one.unsqueeze(-1), other.unsqueeze(-1)
    return torch.where(slates == one, other, torch.where(slates == other, one, slates))
