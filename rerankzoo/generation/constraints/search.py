"""Searching: whether a slate can be completed where counting does not tell; one request at a time, in plain Python.

Candidates that no constraint tells apart are one type, and slates are lists of types here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rerankzoo.generation.constraints.rules import SlateRules

#: Steps of a search, each of which places an item or takes one back: before decoding, and for one type at one position.
FIRST_BUDGET = 20_000
STEP_BUDGET = 200
GAP = -1


class RequestSearch:
    """What constraints ask of one request, for which counting found nothing impossible, and the search for slates."""

    def __init__(self, rules: SlateRules, row: int) -> None:
        places = rules.domain[row, : int(rules.length[row])].tolist()
        labels = [limit.labels[row].tolist() for limit in rules.limits]
        numbers: dict[tuple[int, ...], int] = {}
        marks = zip(*places, *labels, *rules.groups[row].tolist(), strict=True)
        self.types = [numbers.setdefault(mark, len(numbers)) for mark in marks]
        self.supply = Counter(self.types)
        # Of each mark its values for all types; the last one is that of a gap.
        columns = [(*column, GAP) for column in zip(*numbers, strict=True)]
        self.places, kinds = columns[: len(places)], columns[len(places) : len(places) + len(labels)]
        self.limits = [(kind, limit.most, limit.window) for kind, limit in zip(kinds, rules.limits, strict=True)]
        groups = [tuple(mark == 1 for mark in column) for column in columns[len(places) + len(labels) :]]
        self.groups = list(zip(groups, rules.counts.tolist(), strict=True))
        self.stock = [Counter(kind[number] for number in self.types if kind[number] >= 0) for kind in kinds]
        self.fixed = [GAP if item < 0 else self.types[item] for item in rules.fixed[row].tolist()[: len(places)]]

    def first_plan(self) -> Plan | bool | None:
        """A plan; `False` if there is no slate, `None` if the search gave up."""
        found = self.complete(self.fixed, self.fixed, FIRST_BUDGET)
        return Plan(self, found) if isinstance(found, list) else found

    def complete(self, slate: list[int], likely: list[int], budget: int) -> list[int] | bool | None:
        """Fills a slate's gaps, those with the fewest options first, depth first, trying first what is likely there.

        What stands in the slate must suit one another. `False` if it has no completion, `None` if the search gave up.
        """
        slate = list(slate)
        gaps = [position for position, number in enumerate(slate) if number == GAP]
        gaps.sort(key=lambda position: sum(self.places[position]))
        if not gaps:
            return slate
        branches = [self._options(slate, gaps[0], likely)]
        for _ in range(budget):
            if next(branches[-1], GAP) == GAP:  # nothing is left to be tried here
                branches.pop()
                if not branches:
                    return False
            elif len(branches) == len(gaps):
                return slate
            else:
                branches.append(self._options(slate, gaps[len(branches)], likely))
        return None

    def _options(self, slate: list[int], gap: int, likely: list[int]) -> Iterator[int]:
        """Puts one type after the other into a gap; what suits the rest remains there until the next is asked for.

        After the likely one come those that a group still misses, then those whose kinds have most left.
        """
        slate[gap] = first = likely[gap]
        if first != GAP and self.suits(slate, gap):
            yield first
        slate[gap] = GAP
        found = self.fitting(slate, gap)
        promise = dict.fromkeys(found, 0)
        for (kind, _, _), stock in zip(self.limits, self.stock, strict=True):
            shown = [kind[number] for number in slate]
            for number in found:
                promise[number] += stock[kind[number]] - shown.count(kind[number])
        for group, count in self.groups:
            if [group[number] for number in slate].count(True) < count:
                for number in found:
                    promise[number] += group[number] * len(self.types)
        for number in sorted(found, key=promise.__getitem__, reverse=True):
            if number != first:
                slate[gap] = number
                yield number
        slate[gap] = GAP

    def fitting(self, slate: list[int], gap: int) -> list[int]:
        """The types that suit a slate at a gap (see `suits`), all told together."""
        allowed = self.places[gap]
        found = [number for number, supply in self.supply.items() if allowed[number] and slate.count(number) < supply]
        for kind, most, window in self.limits:
            places = defaultdict[int, list[int]](list)
            for place, number in enumerate(slate):
                places[kind[number]].append(place)
            places.pop(GAP)
            crowded = [(value, sorted([*at, gap])) for value, at in places.items() if len(at) >= most]
            full = [value for value, at in crowded if _too_close(at, most, window)]
            found = [number for number in found if kind[number] not in full]
        for group, count in self.groups:
            if [group[number] for number in slate].count(True) + slate.count(GAP) <= count:
                found = [number for number in found if group[number]]
        return found

    def suits(self, slate: list[int], position: int) -> bool:
        """Whether what stands at a position keeps every constraint together with the rest of a slate with gaps."""
        number = slate[position]
        if not self.places[position][number] or slate.count(number) > self.supply[number]:
            return False
        for kind, most, window in self.limits:
            kinds = [kind[other] for other in slate]
            if kind[number] < 0 or kinds.count(kind[number]) <= most:
                continue  # as mostly
            if _too_close([place for place, other in enumerate(kinds) if other == kind[number]], most, window):
                return False
        free = slate.count(GAP)
        return all([group[other] for other in slate].count(True) + free >= count for group, count in self.groups)


def _too_close(places: list[int], most: int, window: int) -> bool:
    """Whether more than so many of some places, in order, lie within a window."""
    return any(last - first < window for first, last in zip(places, places[most:], strict=False))


class Plan:
    """A slate (of types) that keeps everything, and how it can go on otherwise after its chosen first positions."""

    def __init__(self, search: RequestSearch, slate: list[int], position: int = 0) -> None:
        self.search, self.slate, self.position = search, slate, position

    def after(self, item: int) -> Plan | None:
        """The plan once a candidate is chosen; this one once the slate is whole."""
        return self._next[self.search.types[item]] if self.position < len(self.slate) else self

    @cached_property
    def allowed(self) -> Tensor:
        """(N,), True for the candidates, chosen ones aside, after which a slate was found."""
        return torch.tensor([self.after(item) is not None for item in range(len(self.search.types))])

    @cached_property
    def _next(self) -> list[Plan | None]:
        return [self._with(number) for number in range(len(self.search.supply))]

    def _with(self, number: int) -> Plan | None:
        """Tried first is this slate with a type in its new place, in exchange for what stands there."""
        search, here, slate = self.search, self.position, list(self.slate)
        there = slate.index(number, here) if number in slate[here:] else here
        slate[there], slate[here] = slate[here], number
        if search.suits(slate, here) and search.suits(slate, there):
            return Plan(search, slate, here + 1)
        prefix = [*slate[: here + 1], *search.fixed[here + 1 :]]
        found = search.complete(prefix, slate, STEP_BUDGET) if search.suits(prefix, here) else None
        return Plan(search, found, here + 1) if isinstance(found, list) else None
