from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rerankzoo import EvaluatorLocalSearch, ExhaustiveSearch
from rerankzoo.batch import gather_candidates
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.generation import Exclude, exhaustive_search, local_search
from rerankzoo.models.nar4rec import NAR4RecConfig, NAR4RecEvaluator
from rerankzoo.models.pointwise import PointwiseConfig, PointwiseForReranking
from tests.models.common import assert_valid_slates

Batch = dict[str, Tensor]
SIZES: dict[str, Any] = {"hidden_size": 16, "embedding_size": 4, "num_attention_heads": 2, "intermediate_size": 16}


class Neighbourly:
    """An evaluator made by hand: items count by their position, and more if they are unlike the one above."""

    def score_slates(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
        items = gather_candidates(batch["candidate_numeric"][..., :2], slates)
        worth = items[..., 0] / torch.arange(1.0, slates.shape[-1] + 1)
        return worth.sum(-1) + (items[..., 1].diff(dim=-1).abs() * (slates[..., 1:] >= 0)).sum(-1)


def best_of_all(batch: Batch, row: int) -> float:
    real = batch["candidate_mask"][row].nonzero()[:, 0].tolist()
    every = list(permutations(real, min(4, len(real))))
    slates = torch.tensor([[*slate, *[-100] * (4 - len(slate))] for slate in every]).unsqueeze(0)
    one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
    return float(Neighbourly().score_slates(slates, **one).max())


def test_exhaustive_search_finds_the_best(batch: Batch) -> None:
    found = exhaustive_search(Neighbourly(), batch, slate_size=4)
    assert_valid_slates(found.slates, batch["candidate_mask"])
    assert found.scores[:, 0].tolist() == pytest.approx([best_of_all(batch, row) for row in range(8)], rel=1e-5)
    torch.testing.assert_close(Neighbourly().score_slates(found.slates, **batch), found.scores)
    empty = exhaustive_search(Neighbourly(), {**batch, "candidate_mask": batch["candidate_mask"] & False}, 4)
    assert (empty.slates == -100).all()
    with pytest.raises(ValueError, match=r"7 candidates have 840 slates of 4, above max_slates 800"):
        exhaustive_search(Neighbourly(), batch, 4, max_slates=800)


def test_local_search_climbs_to_where_no_step_helps(batch: Batch) -> None:
    evaluator, start = Neighbourly(), batch["slates"]
    before = Neighbourly().score_slates(start, **batch)
    found = local_search(evaluator, batch, start, num_refinements=20)
    assert_valid_slates(found.slates, batch["candidate_mask"])
    torch.testing.assert_close(Neighbourly().score_slates(found.slates, **batch), found.utilities)
    assert (found.utilities >= before).all()
    assert (found.utilities > before).any()
    sizes = batch["candidate_mask"].sum(-1)
    shown = sizes.clamp_max(4)
    neighbours = shown * (sizes - shown) + shown * (shown - 1) // 2
    rounds = (found.evaluations[:, 0] - 1) / neighbours
    assert torch.equal(rounds, rounds.round())  # of each, all neighbours were asked for, some times
    assert (rounds >= 1).all()
    again = local_search(evaluator, batch, found.slates, num_refinements=1)
    assert torch.equal(again.slates, found.slates)
    assert torch.equal(local_search(evaluator, batch, start, num_refinements=0).slates, start)


@pytest.fixture
def search(extractor: RerankingFeatureExtractor) -> EvaluatorLocalSearch:
    torch.manual_seed(0)
    schema = extractor.schema.to_dict()
    generator = PointwiseForReranking(PointwiseConfig(feature_schema=schema, hidden_size=16, embedding_size=4))
    evaluator = NAR4RecEvaluator(NAR4RecConfig(feature_schema=schema, **SIZES))
    return EvaluatorLocalSearch([generator, evaluator], num_refinements=2).eval()


def test_a_search_generates_and_travels_as_one_folder(
    search: EvaluatorLocalSearch, batch: Batch, tmp_path: Path
) -> None:
    generator, evaluator = search.members
    found = search.generate(**batch, return_dict_in_generate=True)
    expected = local_search(evaluator, batch, generator.generate(**batch).unsqueeze(1), 2)
    assert torch.equal(found.slates, expected.slates[:, 0])
    torch.testing.assert_close(found.scores, expected.utilities[:, 0])
    assert not torch.equal(found.slates, generator.generate(**batch))
    several = search.generate(**batch, num_beams=3, num_return_sequences=3, slate_size=3)
    assert_valid_slates(several[:4], batch["candidate_mask"][:4])
    search.save_pretrained(tmp_path)
    loaded = EvaluatorLocalSearch.from_pretrained(tmp_path)
    assert loaded.num_refinements == 2
    assert torch.equal(loaded.generate(**batch), found.slates)


def test_refuses_constraints_and_other_members(search: EvaluatorLocalSearch, batch: Batch) -> None:
    with pytest.raises(ValueError, match="keeps no constraints"):
        search.generate(**batch, constraints=Exclude(torch.zeros_like(batch["candidate_mask"])))
    with pytest.raises(ValueError, match="expected a generator, an evaluator and steps, got 1 and 4"):
        EvaluatorLocalSearch([search.members[0]])


def test_a_search_of_all_slates_travels_as_one_folder(
    search: EvaluatorLocalSearch, batch: Batch, tmp_path: Path
) -> None:
    evaluator = search.members[1]
    every = ExhaustiveSearch([evaluator], max_slates=10_000).eval()
    found = every.generate(**batch, return_dict_in_generate=True)
    expected = exhaustive_search(evaluator, batch, evaluator.config.slate_size)
    assert torch.equal(found.slates, expected.slates[:, 0])
    assert torch.equal(found.scores, expected.scores[:, 0])
    assert every.generate(**batch, slate_size=2).shape[1] == 2
    every.save_pretrained(tmp_path)
    assert torch.equal(ExhaustiveSearch.from_pretrained(tmp_path).generate(**batch), found.slates)


def test_a_search_of_all_slates_refuses_what_it_cannot(search: EvaluatorLocalSearch, batch: Batch) -> None:
    every = ExhaustiveSearch([search.members[1]])
    with pytest.raises(ValueError, match="returns the best one, and keeps no constraints"):
        every.generate(**batch, constraints=Exclude(torch.zeros_like(batch["candidate_mask"])))
    with pytest.raises(ValueError, match="returns the best one"):
        every.generate(**batch, num_beams=2, num_return_sequences=2)
    with pytest.raises(ValueError, match="above max_slates 2"):
        ExhaustiveSearch([search.members[1]], max_slates=2).generate(**batch)
    with pytest.raises(ValueError, match="expected one evaluator, got 2"):
        ExhaustiveSearch(search.members)
