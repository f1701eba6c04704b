"""What holds for every strategy, scorer, number of candidates and positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.generation import (
    BeamStep,
    Decoded,
    MatrixScorer,
    RerankingGenerationConfig,
    ScorerState,
    StaticScorer,
    beam_search,
    contrastive_search,
    greedy_search,
    sample_slates,
)
from rerankzoo.generation.scorer import remaining_log_probs
from tests.generation.common import TableScorer, decode, play

few = settings(max_examples=100, deadline=None, derandomize=True)

STRATEGIES: list[dict[str, Any]] = [
    {},
    {"num_beams": 2},
    {"num_beams": 7, "num_return_sequences": 3},
    {"penalty_alpha": 0.5},
    {"penalty_alpha": 1.0, "top_k": 2},
    {"do_sample": True, "temperature": 0.3},
    {"do_sample": True, "temperature": 5.0, "top_k": 3, "num_return_sequences": 4},
]


@st.composite
def scorers(draw: st.DrawFn, kinds: tuple[str, ...] = ("log_prob", "value")) -> tuple[TableScorer, int]:
    """A scorer over one to three requests with one to six candidates anywhere among N, and a number of positions."""
    num_requests, num_candidates = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    slate_size = draw(st.integers(1, 4))
    flags = st.lists(st.booleans(), min_size=num_candidates, max_size=num_candidates).filter(any)
    mask = torch.tensor([draw(flags) for _ in range(num_requests)])
    noise = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def table(*shape: int) -> Tensor:
        return torch.randn(num_requests, *shape, generator=noise, dtype=torch.float64)

    base, pair = table(slate_size, num_candidates), 2 * table(num_candidates, num_candidates)
    states = table(num_candidates, 3)
    return TableScorer(base, pair, mask, draw(st.sampled_from(kinds)), states), slate_size  # type: ignore[arg-type]


def slates_of(found: Decoded, row: int) -> list[tuple[int, ...]]:
    """The slates of one request without padding."""
    return [tuple(item for item in slate if item >= 0) for slate in found.slates[row].tolist()]


@few
@given(scorers(), st.sampled_from(STRATEGIES), st.integers(0, 2**31))
def test_slates_are_full_of_distinct_real_candidates_and_scored_by_the_scorer(
    made: tuple[TableScorer, int], parameters: dict[str, Any], seed: int
) -> None:
    scorer, slate_size = made
    torch.manual_seed(seed)
    config = RerankingGenerationConfig(**parameters)
    found = decode(scorer, scorer.batch, config, slate_size)
    mask = scorer.batch["candidate_mask"]
    assert found.slates.shape == found.step_scores.shape == (len(mask), config.num_return_sequences or 1, slate_size)
    for row, size in enumerate(mask.sum(-1).tolist()):
        filled = min(size, slate_size)
        for slate, score in zip(found.slates[row].tolist(), found.scores[row].tolist(), strict=True):
            if score == -torch.inf:  # fewer slates exist
                assert config.strategy == "beam"
                assert slate == [-100] * slate_size
                continue
            assert slate[filled:] == [-100] * (slate_size - filled)
            assert len(set(slate[:filled])) == filled
            assert all(mask[row, item] for item in slate[:filled])
            assert score == pytest.approx(scorer.slate_score(row, tuple(slate[:filled])), abs=1e-5)
    real = found.scores > -torch.inf
    _, steps = play(scorer, scorer.batch, found.slates)
    torch.testing.assert_close(found.step_scores[real].double(), steps[real].double())


@few
@given(scorers(), st.integers(1, 8))
def test_beams_are_distinct_and_sorted(made: tuple[TableScorer, int], width: int) -> None:
    scorer, slate_size = made
    found = beam_search(scorer, scorer.batch, slate_size, num_beams=width, num_return_sequences=width)
    for row in range(len(found.slates)):
        exists = found.scores[row] > -torch.inf
        count = int(exists.sum())
        assert 1 <= count <= width
        assert exists[:count].all()
        scores = found.scores[row, :count].tolist()
        assert scores == sorted(scores, reverse=True)
        assert len(set(slates_of(found, row)[:count])) == count


@few
@given(scorers())
def test_beam_of_full_width_finds_all_slates_best_first(made: tuple[TableScorer, int]) -> None:
    scorer, slate_size = made
    found = beam_search(scorer, scorer.batch, slate_size, num_beams=360, num_return_sequences=360)
    for row in range(len(found.slates)):
        every = scorer.every_slate(row, slate_size)
        assert set(slates_of(found, row)[: len(every)]) == set(every)
        assert (found.scores[row, len(every) :] == -torch.inf).all()
        best = sorted(every.values(), reverse=True)
        assert found.scores[row, : len(every)].tolist() == pytest.approx(best, abs=1e-5)
        assert every[slates_of(found, row)[0]] == pytest.approx(best[0], abs=1e-5)


@few
@given(scorers(), st.integers(1, 6))
def test_no_beam_beats_the_full_width_and_one_beam_is_greedy(made: tuple[TableScorer, int], width: int) -> None:
    scorer, slate_size = made
    full = beam_search(scorer, scorer.batch, slate_size, num_beams=360, num_return_sequences=1).scores
    assert (beam_search(scorer, scorer.batch, slate_size, width, 1).scores <= full + 1e-6).all()
    single, greedy = (
        beam_search(scorer, scorer.batch, slate_size, 1, 1),
        greedy_search(scorer, scorer.batch, slate_size),
    )
    assert torch.equal(single.slates, greedy.slates)
    torch.testing.assert_close(single.scores, greedy.scores)


@few
@given(scorers(), st.integers(1, 8))
def test_history_replays_the_beams(made: tuple[TableScorer, int], width: int) -> None:
    scorer, slate_size = made
    history: list[BeamStep] = []
    found = beam_search(scorer, scorer.batch, slate_size, width, width, history)
    assert len(history) == slate_size
    num_requests = len(found.slates)
    for row in range(num_requests):
        prefixes: list[tuple[int, ...]] = [()]
        for step in history:
            before, beams = len(step.totals) // num_requests, len(step.parent) // num_requests
            kept = []
            for beam in range(row * beams, (row + 1) * beams):
                parent, index = int(step.parent[beam]), int(step.index[beam])
                assert parent // before == row  # nobody continues another request's prefix
                total, prefix = step.totals[parent, index].item(), prefixes[parent % before]
                if total > -torch.inf:
                    extended = (*prefix, index) if scorer.left(row, prefix) else prefix
                    assert total == pytest.approx(scorer.slate_score(row, extended), abs=1e-5)
                    prefix = extended
                kept.append(prefix)
            prefixes = kept
        exists = (found.scores[row] > -torch.inf).tolist()
        assert [p for p, real in zip(prefixes, exists, strict=False) if real] == [
            slate for slate, real in zip(slates_of(found, row), exists, strict=True) if real
        ]


def test_beams_matter_for_these_scorers() -> None:
    # Otherwise the tests above would pass for a search that never reorders the cache of its rows.
    noise = torch.Generator().manual_seed(0)
    base, pair = torch.randn(50, 3, 6, generator=noise), 2 * torch.randn(50, 6, 6, generator=noise)
    scorer = TableScorer(base, pair, torch.ones(50, 6, dtype=torch.bool))
    greedy = greedy_search(scorer, scorer.batch, 3).scores
    beam = beam_search(scorer, scorer.batch, 3, num_beams=4, num_return_sequences=1).scores
    assert (beam > greedy + 1e-3).sum() >= 5


@few
@given(scorers())
def test_special_cases_are_greedy(made: tuple[TableScorer, int]) -> None:
    scorer, slate_size = made
    greedy = greedy_search(scorer, scorer.batch, slate_size)
    for found in (
        contrastive_search(scorer, scorer.batch, slate_size, penalty_alpha=0.0, top_k=None),
        contrastive_search(scorer, scorer.batch, slate_size, penalty_alpha=0.7, top_k=1),
        sample_slates(scorer, scorer.batch, slate_size, num_return_sequences=1, temperature=1.0, top_k=1),
        sample_slates(scorer, scorer.batch, slate_size, num_return_sequences=1, temperature=1e-6, top_k=None),
    ):
        assert torch.equal(found.slates, greedy.slates)
        torch.testing.assert_close(found.scores, greedy.scores)


def naive_contrastive(scorer: TableScorer, row: int, slate_size: int, alpha: float, top_k: int | None) -> list[int]:
    """Equation 5 of SimCTG, read aloud."""
    slate: list[int] = []
    for _ in range(slate_size):
        probability = scorer.probabilities(row, tuple(slate))
        best = sorted(probability, key=lambda item: -probability[item])[:top_k]
        if not best:
            return slate + [-100] * (slate_size - len(slate))

        def balance(item: int, probability: dict[int, float] = probability) -> float:
            if not slate:
                return probability[item]
            states = scorer.states[row]
            closest = max(F.cosine_similarity(states[item], states[chosen], dim=0).item() for chosen in slate)
            return (1 - alpha) * probability[item] - alpha * closest

        slate.append(max(best, key=balance))
    return slate


@few
@given(scorers(), st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1), st.none() | st.integers(1, 5))
def test_contrastive_search_is_its_equation(made: tuple[TableScorer, int], alpha: float, top_k: int | None) -> None:
    scorer, slate_size = made
    found = contrastive_search(scorer, scorer.batch, slate_size, alpha, top_k)
    for row, slate in enumerate(found.slates[:, 0].tolist()):
        assert slate == naive_contrastive(scorer, row, slate_size, alpha, top_k)


class Unhurried(MatrixScorer):
    """One that does not tell that all positions are known at once."""

    def matrix(self, state: ScorerState, slate_size: int) -> None:
        return None

    def step(self, state: ScorerState) -> tuple[Tensor, dict[str, Tensor]]:
        logits = state.of_requests(state.memory["logits"][:, state.prefix.shape[1]])
        return remaining_log_probs(logits, state.available), {}


@few
@given(scorers(kinds=("log_prob",)), st.sampled_from([0.0, 0.3, 1.0]), st.booleans())
def test_contrastive_selection_from_a_matrix_is_the_general_loop(
    made: tuple[TableScorer, int], alpha: float, static: bool
) -> None:
    table, slate_size = made
    logits = table.base[:, :1].expand_as(table.base) if static else table.base
    quick = (
        StaticScorer(lambda _: (logits[:, 0], table.states))
        if static
        else MatrixScorer(lambda _: (logits, table.states))
    )
    found, expected = (
        contrastive_search(scorer, table.batch, slate_size, alpha, None)
        for scorer in (quick, Unhurried(lambda _: (logits, table.states)))
    )
    assert torch.equal(found.slates, expected.slates)
    torch.testing.assert_close(found.scores.float(), expected.scores.float())
    torch.testing.assert_close(found.step_scores.float(), expected.step_scores.float())


def test_contrastive_search_needs_representations() -> None:
    scorer = TableScorer(torch.zeros(1, 2, 3), torch.zeros(1, 3, 3), torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="candidate representations"):
        contrastive_search(scorer, scorer.batch, 2, penalty_alpha=0.5, top_k=None)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (2.0, None), (1.0, 2)])
def test_sampled_slates_have_the_right_frequencies(temperature: float, top_k: int | None) -> None:
    noise, draws, slate_size = torch.Generator().manual_seed(3), 20_000, 2
    base, pair = torch.randn(1, slate_size, 4, generator=noise), torch.randn(1, 4, 4, generator=noise)
    scorer = TableScorer(base, pair, torch.ones(1, 4, dtype=torch.bool))
    torch.manual_seed(0)
    found = sample_slates(scorer, scorer.batch, slate_size, draws, temperature, top_k)
    drawn = slates_of(found, 0)
    chi_square, kinds = 0.0, 0
    for slate in scorer.every_slate(0, slate_size):
        expected = draws * 1.0
        for position, item in enumerate(slate):
            tempered = {i: p ** (1 / temperature) for i, p in scorer.probabilities(0, slate[:position]).items()}
            kept = sorted(tempered.values(), reverse=True)[:top_k]
            expected *= tempered[item] / sum(kept) if tempered[item] >= kept[-1] else 0.0
        if expected == 0:
            assert slate not in drawn
            continue
        kinds += 1
        chi_square += (drawn.count(slate) - expected) ** 2 / expected
    assert kinds == (12 if top_k is None else 4)
    assert chi_square < (31.3 if top_k is None else 16.3)  # the 0.1 % points of 11 and 3 degrees of freedom


def test_sampling_draws_anew_for_every_request_and_sequence() -> None:
    scorer = TableScorer(torch.zeros(4, 3, 30), torch.zeros(4, 30, 30), torch.ones(4, 30, dtype=torch.bool))
    torch.manual_seed(0)
    slates = sample_slates(scorer, scorer.batch, 3, num_return_sequences=5, temperature=1.0, top_k=None).slates
    assert len({tuple(slate) for slate in slates.flatten(0, 1).tolist()}) == 20


def test_beam_pads_where_fewer_slates_exist() -> None:
    mask = torch.tensor([[True, True, True], [False, True, False]])
    scorer = TableScorer(torch.zeros(2, 2, 3), torch.zeros(2, 3, 3), mask)
    found = beam_search(scorer, scorer.batch, slate_size=2, num_beams=8, num_return_sequences=8)
    assert (found.scores > -torch.inf).sum(-1).tolist() == [6, 1]
    assert found.slates[1].tolist() == [[1, -100]] + [[-100, -100]] * 7
    assert found.scores[1, 0] == 0
    assert (found.step_scores[1] == 0).all()


@pytest.mark.parametrize("strategy", ["greedy", "beam"])
def test_a_request_without_candidates_gets_an_empty_slate(strategy: str) -> None:
    mask = torch.tensor([[True, True], [False, False]])
    scorer = TableScorer(torch.zeros(2, 2, 2), torch.zeros(2, 2, 2), mask)
    config = RerankingGenerationConfig(num_beams=3 if strategy == "beam" else 1)
    assert decode(scorer, scorer.batch, config, 2).slates[1].tolist() == [[-100, -100]]
