"""Searching: whether a slate can be completed where counting does not tell; one request at a time, in plain Python.

Candidates that no constraint tells apart are one type, and slates are lists of types here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rerankzoo.generation.constraints.rules import SlateRules

#: Steps of a search, each of which places an item or takes one back: before decoding, and for one type at one position.
FIRST_BUDGET = 20_000
STEP_BUDGET = 200
GAP = -1


class Plan:
    """A slate of types that keeps everything.

    Args:
        request: What everything is.
        slate: The slate.
    """

    def __init__(self, request: RequestRules, slate: list[int]) -> None:
        self.request, self.slate = request, slate
        self._after: dict[int, Plan | None] = {}

    def after(self, position: int, item: int) -> Plan | None:
        """A plan that starts as this one does up to a position, where a candidate stands; `None` if none was found.

        Tried first is this one with the candidate in its new place, in exchange for what stands there.
        """
        request, number = self.request, self.request.types[item]
        if number not in self._after:
            slate, changed = list(self.slate), [position]
            if number in slate[position + 1 :]:
                changed.append(slate.index(number, position + 1))
            slate[changed[-1]], slate[position] = slate[position], number
            if all(request.suits(slate, place) for place in changed):
                self._after[number] = Plan(request, slate)
            else:
                found, _ = request.complete([*slate[: position + 1], *request.fixed[position + 1 :]], STEP_BUDGET)
                self._after[number] = None if found is None else Plan(request, found)
        return self._after[number]

    def known_after(self, item: int) -> Plan | None:
        """What `after` found for a candidate; `None` where it was not asked."""
        return self._after.get(self.request.types[item])


class RequestRules:
    """What constraints ask of one request, for which counting found nothing impossible.

    Args:
        rules: The batch's.
        row: The request.

    Attributes:
        types: The type of each candidate.
        plan: A first slate; `None` where there is none or, as `gave_up` says, none was found in time.
    """

    def __init__(self, rules: SlateRules, row: int) -> None:
        places = rules.domain[row, : int(rules.length[row])].tolist()
        labels = [limit.labels[row].tolist() for limit in rules.limits]
        numbers: dict[tuple[int, ...], int] = {}
        marks = zip(*places, *labels, *rules.groups[row].tolist(), strict=True)
        self.types = [numbers.setdefault(mark, len(numbers)) for mark in marks]
        self.supply = Counter(self.types)
        # Of each mark its values for all types; the last one is that of a gap.
        columns = [(*column, -1) for column in zip(*numbers, strict=True)]
        self.places, kinds = columns[: len(places)], columns[len(places) : len(places) + len(labels)]
        self.limits = [(kind, limit.most, limit.window) for kind, limit in zip(kinds, rules.limits, strict=True)]
        groups = [tuple(map((1).__eq__, column)) for column in columns[len(places) + len(labels) :]]
        self.groups = list(zip(groups, rules.counts.tolist(), strict=True))
        self.stock = [Counter(kind[number] for number in self.types if kind[number] >= 0) for kind in kinds]
        self.fixed = [GAP if item < 0 else self.types[item] for item in rules.fixed[row].tolist()[: len(places)]]
        slate, self.gave_up = self.complete(self.fixed, FIRST_BUDGET)
        self.plan = None if slate is None else Plan(self, slate)

    def complete(self, slate: list[int], budget: int) -> tuple[list[int] | None, bool]:
        """Fills the gaps of a slate, those with the fewest options first; depth first.

        Args:
            slate: What stands there suits one another.
            budget: Steps before giving up.

        Returns:
            The slate, whole, or `None`; and whether the search gave up.
        """
        slate = list(slate)
        gaps = [position for position, number in enumerate(slate) if number == GAP]
        gaps.sort(key=lambda position: sum(self.places[position]))
        if not gaps:
            return slate, False
        branches = [self.options(slate, gaps[0])]
        for _ in range(budget):
            if next(branches[-1], GAP) == GAP:  # nothing is left to be tried here
                branches.pop()
                if not branches:
                    return None, False
            elif len(branches) == len(gaps):
                return slate, False
            else:
                branches.append(self.options(slate, gaps[len(branches)]))
        return None, True

    def options(self, slate: list[int], gap: int) -> Iterator[int]:
        """Puts one type after the other into a gap, and what suits the rest remains there until the next is asked for.

        What a group still misses comes first, then those whose kinds have most left.
        """
        promise = [0] * len(self.supply)
        for (kind, _, _), stock in zip(self.limits, self.stock, strict=True):
            left = stock.copy()
            for number in slate:
                left[kind[number]] -= 1
            promise = [sum_ + left[value] for sum_, value in zip(promise, kind, strict=False)]
        for group, count in self.groups:
            if sum(group[number] for number in slate) < count:
                promise = [sum_ + member * len(self.types) for sum_, member in zip(promise, group, strict=False)]
        for number in sorted(self.supply, key=promise.__getitem__, reverse=True):
            slate[gap] = number
            if self.suits(slate, gap):
                yield number
        slate[gap] = GAP

    def suits(self, slate: list[int], position: int) -> bool:
        """Whether what stands at a position keeps every constraint together with the rest of a slate with gaps."""
        number = slate[position]
        if not self.places[position][number] or slate.count(number) > self.supply[number]:
            return False
        for kind, most, window in self.limits:
            if kind[number] >= 0:
                places = [place for place, other in enumerate(slate) if kind[other] == kind[number]]
                if any(last - first < window for first, last in zip(places, places[most:], strict=False)):
                    return False
        return all(sum(group[other] for other in slate) + slate.count(GAP) >= count for group, count in self.groups)
