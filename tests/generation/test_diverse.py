"""MMR and DPP against what their papers say, written plainly."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rerankzoo.batch import take
from rerankzoo.errors import SchemaError
from rerankzoo.features import FeatureSchema, TargetSpec
from rerankzoo.generation import (
    AtMost,
    DiverseGenerationConfig,
    Scorer,
    StaticScorer,
    bind,
    diverse_search,
    greedy_search,
    item_vectors,
)
from rerankzoo.generation.diverse import VARIETIES
from tests.conftest import TINY_SCHEMA

B, N, M = 40, 9, 5


@pytest.fixture(scope="module")
def drawn() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Requests of two to nine candidates, scores (B, N) and vectors (B, N, 7)."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(2, N + 1, (B,), generator=generator)
    mask = torch.stack([torch.randperm(N, generator=generator) < size for size in sizes])
    scores = 3 * torch.randn(B, N, generator=generator)
    return {"candidate_mask": mask}, scores, torch.randn(B, N, 7, generator=generator)


def search(drawn: Any, variety: str, diversity: float, size: int = M, rules: Any = None) -> Any:
    batch, scores, vectors = drawn
    scorer = StaticScorer(lambda _: (scores, vectors))
    with torch.inference_mode():
        return diverse_search(scorer, batch, size, variety, diversity, vectors, rules)


def scaled(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.min()) / (scores.max() - scores.min())


def plain_mmr(relevance: np.ndarray, cosines: np.ndarray, size: int, diversity: float) -> list[tuple[int, float]]:
    """Items in the order of choice, with what each choice was worth."""
    chosen: list[tuple[int, float]] = []
    while len(chosen) < min(size, len(relevance)):
        worth = {}
        for item in set(range(len(relevance))) - {item for item, _ in chosen}:
            closest = max((cosines[item, other] for other, _ in chosen), default=0.0)
            worth[item] = (1 - diversity) * relevance[item] - diversity * closest
        chosen.append(max(worth.items(), key=lambda pair: pair[1]))
    return chosen


def log_probability(relevance: np.ndarray, cosines: np.ndarray, items: tuple[int, ...], diversity: float) -> float:
    """log det of the L-ensemble restricted to items, times the diversity."""
    quality = np.exp((1 - diversity) * relevance / (2 * diversity))
    kernel = quality[:, None] * cosines * quality
    return float(diversity * np.linalg.slogdet(kernel[np.ix_(items, items)])[1])


def plain_dpp(relevance: np.ndarray, cosines: np.ndarray, size: int, diversity: float) -> list[tuple[int, float]]:
    """The greedy MAP by determinants, all of them anew at every step."""
    chosen: tuple[int, ...] = ()
    gains, before = [], 0.0
    while len(chosen) < min(size, len(relevance)):
        left = [item for item in range(len(relevance)) if item not in chosen]
        values = {item: log_probability(relevance, cosines, (*chosen, item), diversity) for item in left}
        best = max(values, key=lambda item: values[item])
        chosen = (*chosen, best)
        gains.append((best, values[best] - before))
        before = values[best]
    return gains


def request(drawn: Any, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The candidates of a request, their relevance and cosines."""
    batch, scores, vectors = drawn
    real = batch["candidate_mask"][row].nonzero()[:, 0]
    items = vectors[row, real].double().numpy()
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    return real.numpy(), scaled(scores[row, real].double().numpy()), items @ items.T


@pytest.mark.parametrize("diversity", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("variety", "plain"), [("mmr", plain_mmr), ("dpp", plain_dpp)])
def test_parity_with_plain_references(drawn: Any, variety: str, plain: Any, diversity: float) -> None:
    found = search(drawn, variety, diversity).slates[:, 0].tolist()
    for row, slate in enumerate(found):
        real, relevance, cosines = request(drawn, row)
        chosen = plain(relevance, cosines, M, diversity)
        size = len(chosen)
        assert slate == [*real[[item for item, _ in chosen]].tolist(), *[-100] * (M - size)]


@pytest.mark.parametrize("variety", ["mmr", "dpp"])
def test_gains_are_those_of_the_definition(drawn: Any, variety: str) -> None:
    """Of given slates, to 1e-5: the closest cosine, and the ratio of determinants."""
    vectors = torch.nn.functional.normalize(drawn[2], dim=-1)
    held, order = VARIETIES[variety](vectors), torch.stack([torch.randperm(N) for _ in range(B)])
    cosines = (vectors.double() @ vectors.double().transpose(1, 2)).numpy()
    for step in range(M):
        gains = held.gains()
        for row in range(B):
            above = order[row, :step].tolist()
            for item in set(range(N)) - set(above):
                if variety == "mmr":
                    expected = -max((cosines[row, item, other] for other in above), default=0.0)
                else:
                    pair = [cosines[row][np.ix_(items, items)] for items in (above, [*above, item])]
                    expected = np.log(np.linalg.det(pair[1]) / (np.linalg.det(pair[0]) if above else 1.0))
                    if expected < math.log(1e-3):  # where single precision has few digits left
                        continue
                assert float(gains[row, item]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
        held.choose(order[:, step])


def test_greedy_dpp_beside_the_true_map() -> None:
    """Six candidates, four positions: how much of the best set's log-probability the greedy one has."""
    generator = torch.Generator().manual_seed(1)
    batch = {"candidate_mask": torch.ones(50, 6, dtype=torch.bool)}
    drawn = batch, torch.randn(50, 6, generator=generator), torch.randn(50, 6, 5, generator=generator)
    found, ratios = search(drawn, "dpp", 0.5, size=4).slates[:, 0].tolist(), []
    for row, slate in enumerate(found):
        _, relevance, cosines = request(drawn, row)
        values = {items: log_probability(relevance, cosines, items, 0.5) for items in permutations(range(6), 4)}
        assert slate == [item for item, _ in plain_dpp(relevance, cosines, 4, 0.5)]
        ratios.append(math.exp((values[tuple(slate)] - max(values.values())) / 0.5))  # of probabilities
    assert max(ratios) <= 1 + 1e-6
    assert float(np.mean(ratios)) > 0.9


@pytest.mark.parametrize("variety", ["mmr", "dpp"])
def test_without_diversity_it_sorts(drawn: Any, variety: str) -> None:
    batch, scores, vectors = drawn
    expected = greedy_search(StaticScorer(lambda _: (scores, vectors)), batch, M)
    found = search(drawn, variety, 0.0)
    assert torch.equal(found.slates, expected.slates)
    torch.testing.assert_close(found.scores, expected.scores)
    whole = search(drawn, variety, 1.0).slates  # relevance counts nothing
    moved = diverse_search(StaticScorer(lambda _: (scores + 1e-3, vectors)), batch, M, variety, 1.0, vectors).slates
    assert torch.equal(whole, moved)
    assert not torch.equal(whole, expected.slates)


@pytest.mark.parametrize("variety", ["mmr", "dpp"])
def test_copies_come_last_and_unknown_items_are_like_no_other(variety: str) -> None:
    vectors = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
    scores = torch.tensor([[3.0, 2.9, 1.0, 0.0]])
    drawn = {"candidate_mask": torch.ones(1, 4, dtype=torch.bool)}, scores, vectors
    assert search(drawn, variety, 0.6, size=4).slates.tolist() == [[[0, 2, 3, 1]]]


class Falling(Scorer):
    """Values: item i adds i + 1, the last one nothing once another one is shown."""

    kind = "value"

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}

    def step(self, state: Any) -> Any:
        gains = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand_as(state.available).clone()
        if state.prefix.shape[1]:
            gains[:, 0] = 9.0
        return gains.masked_fill(~state.available, -torch.inf), {}


def test_relevance_is_any_scorer_s_at_its_prefix() -> None:
    batch = {"candidate_mask": torch.ones(1, 4, dtype=torch.bool)}
    found = diverse_search(Falling(), batch, 3, "mmr", 0.2, torch.eye(4).unsqueeze(0))
    assert found.slates.tolist() == [[[3, 0, 2]]]
    assert found.step_scores.tolist() == [[[4.0, 9.0, 3.0]]]


def test_constraints_are_kept(drawn: Any) -> None:
    batch, scores, vectors = drawn
    rows = (batch["candidate_mask"].sum(1) > 6).nonzero()[:, 0]  # of these at least four of five kinds are there
    batch, kinds = take(batch, rows), (torch.arange(N) // 2).expand(len(rows), -1)
    schema = FeatureSchema(name="bare", item_id="id", fields=(), targets=(TargetSpec(name="click"),))
    rules = bind([AtMost(1, kinds)], batch, 4, schema)
    some = batch, scores[rows], vectors[rows]
    free, kept = search(some, "dpp", 0.5, 4), search(some, "dpp", 0.5, 4, rules)
    assert not torch.equal(free.slates, kept.slates)
    for slate in (kept.slates[:, 0] // 2).tolist():
        assert len(set(slate)) == 4


def test_what_an_item_is(batch: dict[str, Tensor]) -> None:
    column = TINY_SCHEMA.position("picture")
    expected = batch["candidate_numeric"][..., column : column + 3]
    assert torch.equal(item_vectors(batch, TINY_SCHEMA), expected)
    bare = FeatureSchema(name="bare", item_id="id", fields=(), targets=(TargetSpec(name="click"),))
    with pytest.raises(SchemaError, match="'bare' has no dense or numeric candidate fields"):
        item_vectors(batch, bare)


@pytest.mark.parametrize("name", ["mmr_diversity", "dpp_diversity"])
def test_parameters(name: str) -> None:
    assert DiverseGenerationConfig(**{name: 0.3}).strategy == name.split("_")[0]
    for wrong in (-0.1, 1.5, True, "0.3"):
        with pytest.raises(ValueError, match=f"{name} must lie in"):
            DiverseGenerationConfig(**{name: wrong})
    with pytest.raises(ValueError, match="one decoding strategy"):
        DiverseGenerationConfig(**{name: 0.3}, num_beams=4)
