"""Constraints against brute force over all slates, for every strategy, the evaluator's choice and mining."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from itertools import pairwise, permutations
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig

from rerankzoo.errors import InfeasibleConstraintError, SchemaError
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.generation import (
    AtLeast,
    AtMost,
    Boost,
    Constraint,
    Decoded,
    Exclude,
    MinDistance,
    Pin,
    RerankingGenerationConfig,
    SlateGenerationMixin,
    beam_search,
    bind,
    greedy_search,
)
from rerankzoo.generation.constraints import search
from rerankzoo.generation.constraints.constraint import constraint_list
from rerankzoo.mining import mine_batch
from rerankzoo.models.nar4rec import NAR4RecConfig, NAR4RecEvaluator, NAR4RecForReranking
from tests.generation.common import TableScorer, decode

few = settings(max_examples=100, deadline=None, derandomize=True)

STRATEGIES: list[dict[str, Any]] = [
    {},
    {"num_beams": 3, "num_return_sequences": 2},
    {"penalty_alpha": 0.5},
    {"penalty_alpha": 1.0, "top_k": 2},
    {"do_sample": True, "temperature": 5.0, "top_k": 3, "num_return_sequences": 4},
]

Slate = tuple[int, ...]
#: Several requests, their constraints, the number of positions, and for each request all slates that may be shown.
Case = tuple[TableScorer, list[Constraint], int, list[set[Slate]]]


# --- the slow and obvious -------------------------------------------------------------------------------------------


def members(items: Tensor, row: int) -> set[int]:
    """The items that a mask or indexes name for a request."""
    if items.dtype == torch.bool:
        return set(items[row].nonzero().flatten().tolist())
    return {item for item in items[row].tolist() if item >= 0}


def crowded(slate: Slate, kinds: list[int], window: int, limit: int) -> bool:
    """Whether some window of a slate holds more than `limit` of a kind."""
    for start in range(len(slate)):
        shown = [kinds[item] for item in slate[start : start + window]]
        if any(shown.count(kind) > limit for kind in shown if kind >= 0):
            return True
    return False


def keeps(slate: Slate, constraint: Constraint, row: int) -> bool:
    match constraint:
        case Exclude():
            return not set(slate) & members(constraint.items, row)
        case Pin():
            named = members(constraint.items, row)
            return not named or (constraint.position < len(slate) and slate[constraint.position] in named)
        case AtMost():
            window = constraint.window or len(slate)
            return not crowded(slate, constraint.categories[row].tolist(), window, constraint.limit)
        case MinDistance():
            kinds = [constraint.categories[row, item].item() for item in slate]
            return all(
                abs(i - j) >= constraint.distance
                for i in range(len(slate))
                for j in range(i)
                if kinds[i] == kinds[j] >= 0
            )
        case AtLeast():
            return len(set(slate) & members(constraint.items, row)) >= constraint.count
    return True


def allowed_slates(mask: Tensor, constraints: list[Constraint], row: int, slate_size: int) -> set[Slate]:
    """Every slate of a request that may be shown."""
    usable = set(mask[row].nonzero().flatten().tolist())
    for constraint in constraints:
        if isinstance(constraint, Exclude):
            usable -= members(constraint.items, row)
    slates = permutations(sorted(usable), min(slate_size, len(usable)))
    return {slate for slate in slates if all(keeps(slate, constraint, row) for constraint in constraints)}


def boost_of(constraints: list[Constraint], row: int, slate: Slate) -> float:
    total = 0.0
    for constraint in constraints:
        if isinstance(constraint, Boost):
            bias, items = constraint.bias, constraint.items
            total += sum(
                bias[row, item].item() if isinstance(bias, Tensor) else bias * (item in members(items, row))
                for item in slate
            )
    return total


def slates_of(found: Decoded, row: int) -> list[Slate]:
    """The slates of one request without padding."""
    return [tuple(item for item in slate if item >= 0) for slate in found.slates[row].tolist()]


# --- random cases ---------------------------------------------------------------------------------------------------


KINDS = ("exclude", "pin", "pin", "slot", "most", "window", "distance", "distance", "least", "least", "boost")


def random_constraint(random: Random, num_requests: int, num_candidates: int, slate_size: int) -> Constraint:
    def table(values: list[Any], width: int = num_candidates) -> Tensor:
        return torch.tensor([random.choices(values, k=width) for _ in range(num_requests)])

    kinds = table(random.choice([[0, 1, -1], [0, 1, 2], [0, 1, 2, 3, -1]]))
    match random.choice(KINDS):
        case "exclude":
            return Exclude(table([True, False, False, False, False]))
        case "pin":
            return Pin(table([-100, *range(num_candidates)], 1), random.randrange(slate_size))
        case "slot":
            return Pin(table([True, False]), random.randrange(slate_size))
        case "most":
            return AtMost(random.randint(1, 2), kinds)
        case "window":
            return AtMost(random.randint(1, 2), kinds, window=random.randint(1, 5))
        case "distance":
            return MinDistance(random.randint(2, 4), kinds)
        case "least":
            return AtLeast(random.randint(1, 2), table([True, False, False]))
    return Boost(2 * torch.randn(num_requests, num_candidates, dtype=torch.float64))


@st.composite
def cases(draw: st.DrawFn, kinds: tuple[str, ...] = ("log_prob", "value")) -> Case:
    """One to three requests with up to six candidates and four positions, and up to four constraints.

    From one seed: drawn one by one, most tables would be constant and hardly any case would need a search.
    """
    random = Random(draw(st.integers(0, 2**31)))
    torch.manual_seed(random.randrange(2**31))
    num_requests, num_candidates = random.randint(1, 3), random.choice([1, 2, 3, 4, 5, 5, 6, 6, 6])
    slate_size, number = random.choice([1, 2, 3, 3, 4, 4]), random.choice([1, 2, 2, 3, 4])
    mask = torch.rand(num_requests, num_candidates) < 0.9
    constraints = [random_constraint(random, num_requests, num_candidates, slate_size) for _ in range(number)]

    def numbers(*shape: int) -> Tensor:
        return torch.randn(num_requests, *shape, dtype=torch.float64)

    base, pair = numbers(slate_size, num_candidates), 2 * numbers(num_candidates, num_candidates)
    kind: Any = random.choice(kinds)
    scorer = TableScorer(base, pair, mask, kind, numbers(num_candidates, 3))
    allowed = [allowed_slates(mask, constraints, row, slate_size) for row in range(num_requests)]
    return scorer, constraints, slate_size, allowed


def feasible_rows(case: Case) -> Case | None:
    """The requests of a case that have a slate."""
    scorer, constraints, slate_size, allowed = case
    rows: Any = [row for row, slates in enumerate(allowed) if slates]
    if not rows:
        return None
    mask = scorer.batch["candidate_mask"][rows]
    part = TableScorer(scorer.base[rows], scorer.pair[rows], mask, scorer.kind, scorer.states[rows])  # type: ignore[index]
    return part, [constraint.rows(rows) for constraint in constraints], slate_size, [allowed[row] for row in rows]


def one_row(scorer: TableScorer, row: int) -> TableScorer:
    """A request alone."""
    place = slice(row, row + 1)
    mask = scorer.batch["candidate_mask"][place]
    return TableScorer(scorer.base[place], scorer.pair[place], mask, scorer.kind, scorer.states[place])  # type: ignore[index]


# --- properties -----------------------------------------------------------------------------------------------------


@few
@given(cases())
def test_infeasible_exactly_where_brute_force_finds_no_slate(case: Case) -> None:
    scorer, constraints, slate_size, allowed = case
    mask = scorer.batch["candidate_mask"]
    if all(allowed):
        assert bind(constraints, scorer.batch, slate_size) is not None
        return
    with pytest.raises(InfeasibleConstraintError) as caught:
        bind(constraints, scorer.batch, slate_size)
    row = caught.value.row
    assert row == min(number for number, slates in enumerate(allowed) if not slates)
    named = [place for place in range(len(constraints)) if f"constraints[{place}] " in str(caught.value)]
    assert len(named) == len(caught.value.constraints) >= 1
    # They exclude one another, and none of them is innocent.
    assert not allowed_slates(mask, [constraints[place] for place in named], row, slate_size)
    for place in named:
        others = [constraints[other] for other in named if other != place]
        assert allowed_slates(mask, others, row, slate_size)


@few
@given(cases())
def test_beam_of_full_width_finds_all_allowed_slates_best_first(case: Case) -> None:
    part = feasible_rows(case)
    if part is None:
        return
    scorer, constraints, slate_size, allowed = part
    rules = bind(constraints, scorer.batch, slate_size)
    found = beam_search(scorer, scorer.batch, slate_size, 360, 360, rules=rules)
    for row, slates in enumerate(allowed):
        shown = slates_of(found, row)
        assert set(shown[: len(slates)]) == slates
        assert (found.scores[row, len(slates) :] == -torch.inf).all()
        worth = [scorer.slate_score(row, slate) + boost_of(constraints, row, slate) for slate in slates]
        ranked = [
            score + boost_of(constraints, row, slate)
            for slate, score in zip(shown, found.scores[row].tolist(), strict=True)
        ]
        assert ranked[: len(slates)] == pytest.approx(sorted(worth, reverse=True), abs=1e-5)
        for slate, score in zip(shown[: len(slates)], found.scores[row].tolist(), strict=False):
            assert score == pytest.approx(scorer.slate_score(row, slate), abs=1e-5)  # without the boosts


@few
@given(cases(), st.sampled_from(STRATEGIES), st.integers(0, 2**31))
def test_no_strategy_breaks_a_constraint(case: Case, parameters: dict[str, Any], seed: int) -> None:
    part = feasible_rows(case)
    if part is None:
        return
    scorer, constraints, slate_size, allowed = part
    torch.manual_seed(seed)
    config = RerankingGenerationConfig(**parameters)
    found = decode(scorer, scorer.batch, config, slate_size, bind(constraints, scorer.batch, slate_size))
    for row, slates in enumerate(allowed):
        for slate, score in zip(slates_of(found, row), found.scores[row].tolist(), strict=True):
            if score == -torch.inf:  # fewer slates than asked for were found
                assert config.strategy == "beam"
                assert slate == ()
                continue
            assert slate in slates
            assert score == pytest.approx(scorer.slate_score(row, slate), abs=1e-5)
        assert found.scores[row, 0] > -torch.inf


@few
@given(cases(), st.sampled_from(STRATEGIES[:4]))
def test_a_request_gets_alone_what_it_gets_in_a_batch(case: Case, parameters: dict[str, Any]) -> None:
    part = feasible_rows(case)
    if part is None:
        return
    scorer, constraints, slate_size, allowed = part
    config = RerankingGenerationConfig(**parameters)
    whole = decode(scorer, scorer.batch, config, slate_size, bind(constraints, scorer.batch, slate_size))
    for row in range(len(allowed)):
        single, own = one_row(scorer, row), [constraint.rows(slice(row, row + 1)) for constraint in constraints]
        alone = decode(single, single.batch, config, slate_size, bind(own, single.batch, slate_size))
        assert torch.equal(alone.slates[0], whole.slates[row])


@few
@given(cases())
def test_greedy_takes_the_best_candidate_after_which_a_slate_exists(case: Case) -> None:
    part = feasible_rows(case)
    if part is None:
        return
    scorer, constraints, slate_size, allowed = part
    found = greedy_search(scorer, scorer.batch, slate_size, bind(constraints, scorer.batch, slate_size))
    for row, slates in enumerate(allowed):
        expected: Slate = ()
        while expected not in slates:
            after = {slate[len(expected)] for slate in slates if slate[: len(expected)] == expected}

            def worth(item: int, row: int = row, prefix: Slate = expected) -> float:
                return scorer.slate_score(row, (*prefix, item)) + boost_of(constraints, row, (item,))

            expected = (*expected, max(after, key=worth))
        assert slates_of(found, row) == [expected]


@few
@given(cases(), st.sampled_from(STRATEGIES))
def test_a_search_that_gives_up_at_once_still_finds_a_slate(case: Case, parameters: dict[str, Any]) -> None:
    part = feasible_rows(case)
    if part is None:
        return
    scorer, constraints, slate_size, allowed = part
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "STEP_BUDGET", 0)
        config = RerankingGenerationConfig(**parameters)
        found = decode(scorer, scorer.batch, config, slate_size, bind(constraints, scorer.batch, slate_size))
    for row, slates in enumerate(allowed):
        assert found.scores[row, 0] > -torch.inf
        assert {slate for slate in slates_of(found, row) if slate} <= slates


@few
@given(cases(kinds=("value",)), st.sampled_from(["look_ahead", "prefix_value"]))
def test_mining_learns_from_allowed_candidates_only(case: Case, kind: Any) -> None:
    part = feasible_rows(case)
    if part is None:
        return
    scorer, constraints, slate_size, allowed = part
    options: Any = {"num_beams": 360, "keep": 5, "soft_label": kind, "label_temperature": 0.5}
    found = mine_batch(scorer, scorer.batch, slate_size, constraints=constraints, **options)
    assert found.soft_labels is not None
    for row, slates in enumerate(allowed):
        worth = {slate: scorer.slate_score(row, slate) + boost_of(constraints, row, slate) for slate in slates}
        best = sorted(worth.values(), reverse=True)[:5]
        shown = slates_of(found, row)[: len(best)]  # type: ignore[arg-type]
        assert [worth[slate] for slate in shown] == pytest.approx(best, abs=1e-4)
        assert found.weights[row].sum().item() == pytest.approx(1.0)
        assert found.weights[row].tolist() == sorted(found.weights[row].tolist(), reverse=True)
        for number, slate in enumerate(shown):
            assert found.values[row, number].item() == pytest.approx(scorer.slate_score(row, slate), abs=1e-4)
            for position in range(len(slate)):
                labels = found.soft_labels[row, number, position]
                after = {
                    item: [worth[other] for other in slates if other[: position + 1] == (*slate[:position], item)]
                    for item in {other[position] for other in slates if other[:position] == slate[:position]}
                }
                assert labels.sum().item() == pytest.approx(1.0, abs=1e-5)
                assert set(labels.nonzero().flatten().tolist()) <= set(after)
                if kind == "look_ahead":
                    order = sorted(after, key=lambda item: max(after[item]))
                    assert all(labels[a] <= labels[b] + 1e-6 for a, b in pairwise(order))


# --- by hand --------------------------------------------------------------------------------------------------------


def ranking(*scores: float, slate_size: int = 4, kind: Any = "log_prob") -> TableScorer:
    """One request whose candidates have these scores everywhere."""
    base = torch.tensor(scores, dtype=torch.float64).expand(1, slate_size, -1)
    size = len(scores)
    return TableScorer(base, torch.zeros(1, size, size), torch.ones(1, size, dtype=torch.bool), kind)


def greedy(scorer: TableScorer, *constraints: Constraint) -> list[int]:
    size = scorer.base.shape[1]
    return greedy_search(scorer, scorer.batch, size, bind(constraints, scorer.batch, size)).slates[0, 0].tolist()


def test_each_constraint_by_hand() -> None:
    scorer = ranking(6.0, 5.0, 4.0, 3.0, 2.0, 1.0)
    kinds = torch.tensor([[7, 7, 7, 9, 9, -1]])
    assert greedy(scorer) == [0, 1, 2, 3]
    assert greedy(scorer, Exclude(torch.tensor([[0, 2]]))) == [1, 3, 4, 5]
    assert greedy(scorer, Pin(torch.tensor([[5]]), 1)) == [0, 5, 1, 2]
    assert greedy(scorer, AtMost(2, kinds)) == [0, 1, 3, 4]
    assert greedy(scorer, AtMost(1, kinds, window=2)) == [0, 3, 1, 4]
    assert greedy(scorer, AtMost(2, kinds, window=3)) == [0, 1, 3, 2]
    assert greedy(scorer, MinDistance(3, kinds)) == [0, 3, 5, 1]
    assert greedy(scorer, AtLeast(2, torch.tensor([[4, 5]]))) == [0, 1, 4, 5]
    assert greedy(scorer, Boost(2.5, torch.tensor([[3]]))) == [0, 3, 1, 2]
    assert greedy(scorer, Boost(torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 9.0]]))) == [5, 0, 1, 2]
    together = [Pin(torch.tensor([[4]]), 0), MinDistance(2, kinds), AtLeast(1, torch.tensor([[5]])), AtMost(2, kinds)]
    assert greedy(scorer, *together) == [4, 0, 3, 5]


def test_greedy_looks_ahead() -> None:
    # 0 and 1 are one kind, 2 the other. The best first item, 2, leaves 0 and 1 side by side.
    kinds = torch.tensor([[1, 1, 2]])
    assert greedy(ranking(2.0, 1.0, 3.0, slate_size=3), MinDistance(2, kinds)) == [0, 2, 1]
    # A pinned item further down counts already: 0 would stand next to it.
    pinned = [Pin(torch.tensor([[1]]), 1), MinDistance(2, torch.tensor([[1, 1, 2, 3]]))]
    assert greedy(ranking(4.0, 3.0, 2.0, 1.0, slate_size=3), *pinned) == [2, 1, 3]
    # One item serves two groups: the only way to have both in one position.
    groups = [AtLeast(1, torch.tensor([[0, 2]])), AtLeast(1, torch.tensor([[1, 2]]))]
    assert greedy(ranking(3.0, 2.0, 1.0, slate_size=1), *groups) == [2]


def test_counting_alone_would_be_wrong() -> None:
    # Two groups that share candidate 1. After 3, one position is left for both, but 1 is of 3's kind.
    kinds = torch.tensor([[-1, 7, -1, 7, -1]])
    groups = [AtLeast(1, torch.tensor([[0, 1]])), AtLeast(1, torch.tensor([[1, 2]]))]
    assert greedy(ranking(3.0, 1.0, 2.0, 5.0, 4.0, slate_size=2), AtMost(1, kinds), *groups) == [4, 1]


def test_pins_must_suit_one_another() -> None:
    scorer, pins = ranking(3.0, 2.0, 1.0, slate_size=2), [Pin(torch.tensor([[0]]), 0), Pin(torch.tensor([[1]]), 1)]
    assert greedy(scorer, *pins) == [0, 1]
    for third in (MinDistance(2, torch.tensor([[5, 5, 6]])), AtMost(1, torch.tensor([[5, 5, 6]]))):
        with pytest.raises(InfeasibleConstraintError) as caught:
            greedy(scorer, *pins, third)
        assert len(caught.value.constraints) == 3
    with pytest.raises(InfeasibleConstraintError, match=r"Pin.* and constraints\[2\] Pin"):
        greedy(scorer, *pins, Pin(torch.tensor([[0]]), 1))


def test_a_pin_with_several_items_is_a_slot_for_one_of_them() -> None:
    slot = Pin(torch.tensor([[2, 3]]), 0)
    assert greedy(ranking(4.0, 3.0, 1.0, 2.0, slate_size=3), slot) == [3, 0, 1]
    other = Pin(torch.tensor([[3]]), 2)
    assert greedy(ranking(4.0, 3.0, 1.0, 2.0, slate_size=3), slot, other) == [2, 0, 3]


@pytest.mark.slow
def test_a_large_request_with_all_constraints_at_once() -> None:
    # Beyond brute force: 40 candidates, 8 positions, three groupings that cross; checked slate by slate.
    noise = torch.Generator().manual_seed(0)
    num_requests, size, length = 2, 40, 8
    base = torch.randn(num_requests, length, size, generator=noise)
    pair = torch.randn(num_requests, size, size, generator=noise)
    mask = torch.ones(num_requests, size, dtype=torch.bool)
    scorer = TableScorer(base, pair, mask, "log_prob", torch.randn(num_requests, size, 4, generator=noise))

    def kinds(number: int) -> Tensor:
        return torch.randint(number, (num_requests, size), generator=noise)

    constraints: list[Constraint] = [
        Exclude(torch.rand(num_requests, size, generator=noise) < 0.3),
        Pin(torch.full((num_requests, 1), -100), 3),
        AtMost(2, kinds(6)),
        AtMost(3, kinds(3), window=5),
        MinDistance(3, kinds(5)),
        AtLeast(2, torch.rand(num_requests, size, generator=noise) < 0.2),
        AtLeast(2, torch.rand(num_requests, size, generator=noise) < 0.2),
    ]
    rules = bind(constraints, scorer.batch, length)
    for parameters in STRATEGIES[:2]:
        found = decode(scorer, scorer.batch, RerankingGenerationConfig(**parameters), length, rules)
        for row in range(num_requests):
            for slate in slates_of(found, row):
                assert len(set(slate)) == length
                assert all(keeps(slate, constraint, row) for constraint in constraints)


def test_slates_get_shorter_with_exclusions_only() -> None:
    scorer = ranking(3.0, 2.0, 1.0)
    assert greedy(scorer, Exclude(torch.tensor([[0]]))) == [1, 2, -100, -100]
    assert greedy(scorer, Exclude(torch.tensor([[0, 1, 2]]))) == [-100] * 4
    with pytest.raises(
        InfeasibleConstraintError, match=r"row 0: no slate of 3 positions keeps constraints\[0\] AtMost"
    ):
        greedy(scorer, AtMost(1, torch.tensor([[1, 1, 2]])))
    with pytest.raises(
        InfeasibleConstraintError, match=r"constraints\[0\] Exclude.* and constraints\[1\] Pin"
    ) as caught:
        greedy(scorer, Exclude(torch.tensor([[0]])), Pin(torch.tensor([[1]]), 2), Boost(1.0, torch.tensor([[1]])))
    assert caught.value.row == 0
    assert len(caught.value.constraints) == 2


def test_a_search_that_gives_up_before_decoding_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, kinds = ranking(3.0, 2.0, 1.0, slate_size=3), torch.tensor([[1, 1, 2]])
    monkeypatch.setattr(search, "FIRST_BUDGET", 1)
    with pytest.raises(InfeasibleConstraintError, match=r"was found in .* steps of search"):
        greedy(scorer, MinDistance(2, kinds))


def test_boosts_add_up_along_a_beam_of_values() -> None:
    # Gains 3, 2, 1; the boost of the last item makes 0 then 2 worth 3 + 1 + 1.5, more than 0 then 1 (5).
    scorer = ranking(3.0, 2.0, 1.0, slate_size=2, kind="value")
    rules = bind([Boost(1.5, torch.tensor([[2]]))], scorer.batch, 2)
    found = beam_search(scorer, scorer.batch, 2, 6, 6, rules=rules)
    assert found.slates[0, :2].sort().values.tolist() == [[0, 2], [0, 2]]
    assert found.scores[0].tolist() == [4.0, 4.0, 5.0, 5.0, 3.0, 3.0]  # the values themselves


def test_boosts_add_up_along_a_beam_of_log_probabilities() -> None:
    # Two beams keep 0 and 1, which exclude one another. 0 and 3 have boosts of 8, 1 and 3 of 7 and a little more score.
    base = torch.tensor([[[0.0, 0.1, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    scorer = TableScorer(base, torch.zeros(1, 4, 4), torch.ones(1, 4, dtype=torch.bool))
    constraints = [Boost(torch.tensor([[5.0, 4.0, 0.0, 3.0]])), AtMost(1, torch.tensor([[6, 6, -1, -1]]))]
    found = beam_search(scorer, scorer.batch, 2, 2, 1, rules=bind(constraints, scorer.batch, 2))
    assert found.slates[0, 0].tolist() == [0, 3]


def test_a_scorer_sees_excluded_candidates() -> None:
    # Its log-probabilities are over all candidates left, so that scores with and without constraints compare.
    scorer = ranking(1.0, 1.0, slate_size=1)
    rules = bind([Exclude(torch.tensor([[0]]))], scorer.batch, 1)
    assert greedy_search(scorer, scorer.batch, 1, rules).scores.item() == pytest.approx(-math.log(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pin(torch.tensor([[0]]), -1), "position of Pin must be an integer of at least 0, got -1"),
        (lambda: Pin(torch.tensor([[0]]), 4), "position 4 is not one of the 4"),
        (lambda: AtMost(0, torch.tensor([[0, 0, 0]])), "limit of AtMost must be an integer of at least 1, got 0"),
        (lambda: AtMost(1, torch.tensor([[0, 0, 0]]), window=0), "window of AtMost"),
        (lambda: AtMost(1, torch.tensor([[0, 0]])), r"categories has shape \(1, 2\), the batch \(1, 3\)"),
        (
            lambda: AtMost(1, torch.tensor([[0.0, 0.0, 0.0]])),
            "categories of AtMost must be integers .*, got torch",
        ),
        (lambda: AtMost(1, "brand"), "a field's name needs a schema"),
        (lambda: MinDistance(0, torch.tensor([[0, 0, 0]])), "distance of MinDistance"),
        (lambda: AtLeast(True, torch.tensor([[0]])), "count of AtLeast"),
        (lambda: AtLeast(1, torch.tensor([[True, False]])), r"items has shape \(1, 2\)"),
        (lambda: Exclude(torch.tensor([[0, 3]])), r"index 3 of row 0 is outside 0\.\.2"),
        (lambda: Exclude(torch.tensor([0])), r"items has shape \(1,\), the batch \(1, any\)"),
        (lambda: Exclude([17]), "only RerankingPipeline knows item ids"),
        (lambda: Exclude(np.array([[0]])), "only RerankingPipeline knows item ids"),
        (lambda: Exclude({"a": 1}), "items of Exclude must be item ids, .*, got {'a': 1}"),
        (lambda: Exclude(None), "items of Exclude must be .*, got None"),
        (lambda: Exclude(pd.DataFrame({"item": [1]})), "items of Exclude must be"),
        (lambda: Exclude(torch.tensor([[0.0]])), "items of Exclude must be"),
        (lambda: Exclude([torch.tensor([0])]), "items of Exclude must be"),
        (lambda: Pin(torch.tensor([[0]]), 1.0), "position of Pin must be an integer of at least 0, got 1.0"),
        (lambda: Pin(torch.tensor([[0]]), None), "position of Pin must be an integer"),
        (lambda: AtMost(np.float64(1), torch.tensor([[0, 0, 0]])), "limit of AtMost must be an integer"),
        (lambda: AtMost(1, {"brand"}), r"categories of AtMost must be integers \(B, N\)"),
        (lambda: AtMost(1, ["brand"]), r"categories of AtMost must be integers \(B, N\)"),
        (lambda: AtMost(1, None), "categories of AtMost must be"),
        (lambda: Boost("high", torch.tensor([[0]])), "bias of Boost must be numbers"),
        (lambda: Exclude, "constraints must be objects such as"),
        (lambda: Boost(math.inf, torch.tensor([[0]])), "must be finite"),
        (lambda: Boost(1.0), "a number and items"),
        (lambda: Boost(torch.zeros(1, 3), torch.tensor([[0]])), "a number and items"),
        (lambda: "AtMost", "constraints must be objects such as"),
    ],
)
def test_bad_constraints_are_refused(make: Callable[[], Any], message: str) -> None:
    scorer = ranking(3.0, 2.0, 1.0)
    with pytest.raises(ValueError, match=message):
        bind([make()], scorer.batch, 4)


SEVERAL: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "keys": lambda items: dict.fromkeys(items).keys(),
    "generator": lambda items: (item for item in items),
    "map": lambda items: map(str, items),
    "iterator": iter,
    "numpy": np.array,
    "numpy objects": lambda items: np.array(items, dtype=object),
    "series": pd.Series,
    "index": pd.Index,
    "arrow": pa.array,
    "chunked arrow": lambda items: pa.chunked_array([items]),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_item_ids_in_any_collection(name: str) -> None:
    ids = ["a", "b"]
    assert sorted(Exclude(SEVERAL[name](ids)).items) == ids
    rows = SEVERAL[name](ids), SEVERAL[name](ids[:1])
    assert [sorted(row) for row in Pin(iter(rows), 0).items] == [ids, ids[:1]]
    one = Exclude(torch.tensor([[0]]))
    assert constraint_list(one) == [one]
    assert constraint_list(constraint for constraint in [one]) == [one]
    assert constraint_list(None) == []


@pytest.mark.parametrize("item", [17, "abc", np.int64(17), np.str_("abc")])
def test_one_item_id_is_a_list_of_one(item: Any) -> None:
    assert Exclude(item).items == [item]
    assert type(Exclude(item).items[0]) in (int, str)
    assert Exclude([item]).items == AtLeast(1, {item}).items == [item]


def test_numbers_and_tables_of_numpy() -> None:
    scorer, kinds = ranking(6.0, 5.0, 4.0, 3.0, 2.0, 1.0), np.array([[7, 7, 7, 9, 9, -1]])
    assert type(AtMost(np.int64(2), "brand").limit) is int
    assert greedy(scorer, AtMost(np.int32(2), kinds, window=np.uint8(4))) == [0, 1, 3, 4]
    assert greedy(scorer, MinDistance(np.int64(3), kinds.tolist())) == [0, 3, 5, 1]
    assert greedy(scorer, Pin(np.arange(6)[None] == 5, np.int16(1))) == [0, 5, 1, 2]
    assert greedy(scorer, Boost(np.float32(2.5), torch.tensor([[3]]))) == [0, 3, 1, 2]
    assert greedy(scorer, Boost(np.array([[0, 0, 0, 0, 0, 9]]))) == [5, 0, 1, 2]
    assert greedy(scorer, Boost(torch.tensor(2.5), torch.tensor([[3]]))) == [0, 3, 1, 2]


def test_constraints_can_be_pickled_and_copied() -> None:
    scorer = ranking(6.0, 5.0, 4.0, 3.0, 2.0, 1.0)
    constraints = [Exclude(torch.tensor([[0]])), Pin(torch.tensor([[5]]), 1), AtLeast(1, torch.tensor([[4]]))]
    expected = greedy(scorer, *constraints)
    assert greedy(scorer, *pickle.loads(pickle.dumps(constraints))) == expected  # noqa: S301
    assert greedy(scorer, *copy.deepcopy(constraints)) == expected
    rules = pickle.loads(pickle.dumps(bind(constraints, scorer.batch, 4)))  # noqa: S301
    assert greedy_search(scorer, scorer.batch, 4, rules).slates[0, 0].tolist() == expected


# --- with a model ---------------------------------------------------------------------------------------------------


@pytest.fixture
def model(schema: FeatureSchema, extractor: Any) -> SlateGenerationMixin:
    torch.manual_seed(0)
    return NAR4RecForReranking(tiny(extractor)).eval()


def tiny(extractor: Any) -> NAR4RecConfig:
    return NAR4RecConfig(
        feature_schema=extractor.schema.to_dict(), hidden_size=16, embedding_size=4, num_attention_heads=2
    )


@pytest.mark.parametrize("parameters", STRATEGIES)
def test_generate_reads_categories_from_a_field(
    model: SlateGenerationMixin, batch: dict[str, Tensor], parameters: dict[str, Any]
) -> None:
    column, size = model.schema.position("brand"), batch["candidate_mask"].shape[1]
    batch["candidate_categorical"][..., column] = torch.arange(size) % 3 + 1
    slates: Any = model.generate(**batch, constraints=[MinDistance(3, "brand")], **parameters)
    free: Any = model.generate(**batch, **parameters)
    assert slates.shape == free.shape
    brands = (slates % 3).masked_fill(slates < 0, -1)
    for distance in (1, 2):
        near = (brands[..., distance:] == brands[..., :-distance]) & (slates[..., distance:] >= 0)
        assert not near.any()


def test_missing_values_of_a_field_are_no_category(model: SlateGenerationMixin, batch: dict[str, Tensor]) -> None:
    column = model.schema.position("brand")
    constraint = AtMost(1, "brand")
    batch["candidate_categorical"][..., column] = 0
    assert bind([constraint], batch, 4, model.schema) is not None
    batch["candidate_categorical"][..., column] = 1  # unknown: might all be the same
    with pytest.raises(InfeasibleConstraintError, match=r"AtMost\(limit=1, categories='brand'\)"):
        model.generate(**batch, constraints=[constraint])
    for name, message in (("price", "not a candidate categorical one"), ("colour", "no field 'colour'")):
        with pytest.raises((ValueError, SchemaError), match=message):
            model.generate(**batch, constraints=[AtMost(1, name)])


def test_evaluator_chooses_among_slates_that_keep_the_constraints(
    model: SlateGenerationMixin, extractor: Any, batch: dict[str, Tensor]
) -> None:
    evaluator = NAR4RecEvaluator(tiny(extractor)).eval()
    size = batch["candidate_mask"].sum(-1)
    first = Pin(size.unsqueeze(-1) - 1, 0)
    options: Any = {"num_beams": 6, "num_return_sequences": 6, "constraints": [first]}
    slates: Any = model.generate(**batch, **options)
    chosen: Any = model.generate(**batch, **options, evaluator=evaluator)
    assert torch.equal(chosen[:, 0], size - 1)
    utilities = evaluator.score_slates(slates, **batch).masked_fill((slates < 0).all(-1), -torch.inf)
    best = slates[torch.arange(len(slates)), utilities.argmax(-1)]
    assert torch.equal(chosen, best)


def test_no_constraints_change_nothing(model: SlateGenerationMixin, batch: dict[str, Tensor]) -> None:
    harmless = [Exclude(torch.zeros_like(batch["candidate_mask"])), AtMost(99, "brand"), MinDistance(1, "brand")]
    for parameters in STRATEGIES[:4]:
        free: Any = model.generate(**batch, **parameters, return_dict_in_generate=True)
        bound: Any = model.generate(**batch, **parameters, return_dict_in_generate=True, constraints=harmless)
        assert torch.equal(free.slates, bound.slates)
        assert torch.equal(free.scores, bound.scores)
        assert torch.equal(free.step_scores, bound.step_scores)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda batch: ((batch,), {}), r"pass the batch by its keys: generate\(\*\*batch\)"),
        (lambda batch: ((), {}), "generate.. got no candidate_mask; pass the batch by its keys"),
        (
            lambda batch: ((GenerationConfig(num_beams=2),), batch),
            "or a dictionary, got GenerationConfig",
        ),
        (
            lambda batch: (("beam",), batch),
            "generation_config must be a Reranking.*, got str",
        ),
        (lambda batch: (({"num_beam": 2},), batch), r"unknown decoding parameters \['num_beam'\]"),
        (lambda batch: ((None, "folder"), batch), r"evaluator must have score_slates\(\), got 'folder'"),
        (
            lambda batch: ((), {**batch, "candidate_mask": batch["candidate_mask"].numpy()}),
            "expected tensors, got arr",
        ),
        (lambda batch: ((), {**batch, "constraints": {"exclude": 1}}), "constraints must be a list of them"),
    ],
)
def test_generate_refuses_in_a_line_what_it_cannot_take(
    model: SlateGenerationMixin, batch: dict[str, Tensor], arguments: Callable[..., Any], message: str
) -> None:
    positional, keywords = arguments(batch)
    with pytest.raises(ValueError, match=message) as caught:
        model.generate(*positional, **keywords)
    assert "\n" not in str(caught.value)


def test_generate_takes_numbers_of_numpy_and_dictionaries(
    model: SlateGenerationMixin, batch: dict[str, Tensor]
) -> None:
    options: dict[str, Any] = {"num_beams": np.int32(3), "slate_size": np.int64(3), "num_return_sequences": np.uint8(2)}
    expected: Any = model.generate(**batch, num_beams=3, slate_size=3, num_return_sequences=2)
    for slates in (
        model.generate(**batch, **options),
        model.generate(options, **batch),
        model.generate(RerankingGenerationConfig(**options), **batch),
    ):
        assert torch.equal(expected, slates)  # type: ignore[arg-type]
    excluded = Exclude(torch.zeros(len(expected), 1, dtype=torch.long))
    assert torch.equal(
        model.generate(**batch, constraints=excluded),
        model.generate(**batch, constraints=iter([excluded])),  # type: ignore[arg-type]
    )


def test_boosts_of_whole_slates_are_counted_once() -> None:
    """A slate that is whole goes on with nothing: not with an item whose boost would hide how slates differ."""
    base = torch.tensor([[[0.0, 0.3, 0.2, 0.1]] * 3])
    scorer = TableScorer(base, torch.zeros(1, 4, 4), torch.ones(1, 4, dtype=torch.bool), "value")
    batch = {**scorer.batch, "slate_length": torch.tensor([1])}
    rules = bind([Boost(torch.tensor([[-1e9, 0.0, 0.0, 0.0]]))], batch, 3)
    found = beam_search(scorer, batch, 3, 3, 3, rules=rules)
    assert found.slates[0].tolist() == [[1, -100, -100], [2, -100, -100], [3, -100, -100]]
