from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rerankzoo.batch import inputs
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.layers import gumbel_choices
from rerankzoo.models.congrats import CongratsConfig, CongratsForReranking
from rerankzoo.models.degre import DeGReConfig, DeGReEvaluator, DeGReGenerator
from rerankzoo.training import EvaluatorGradient
from rerankzoo.training.objectives import Companions, make_objective
from tests.training.common import TINY

Batch = dict[str, Tensor]


def make(kind: Any, config: Any, extractor: RerankingFeatureExtractor, **values: Any) -> Any:
    torch.manual_seed(0)
    return kind(config(feature_schema=extractor.schema.to_dict(), utility_threshold=0.5, **{**TINY, **values}))


@pytest.fixture
def evaluator(extractor: RerankingFeatureExtractor) -> Any:
    return make(DeGReEvaluator, DeGReConfig, extractor).eval().requires_grad_(False)


def objective(evaluator: Any, **values: Any) -> EvaluatorGradient:
    made = EvaluatorGradient("evaluator", **values)
    made.companions = Companions(evaluator=evaluator)
    return made


def test_losses_are_those_of_the_soft_slates_drawn(
    extractor: RerankingFeatureExtractor, evaluator: Any, batch: Batch
) -> None:
    model = make(CongratsForReranking, CongratsConfig, extractor).eval()
    torch.manual_seed(3)
    choices = gumbel_choices(model(**batch).path_logits, batch["candidate_mask"], 0.3, 2)
    valued = evaluator.score_choices(choices, **inputs(batch))
    torch.manual_seed(3)
    found = objective(evaluator, num_slates=2).loss(model, batch)
    assert found.metrics["value"].item() == pytest.approx(valued.utilities.mean().item(), rel=1e-5)
    assert found.loss_terms["consistency"].item() == pytest.approx(-1.0)  # all values are positive
    own = model(**batch).loss
    assert found.loss.item() == pytest.approx(-1.0 + 0.5 * own.item(), rel=1e-5)
    torch.manual_seed(3)
    feedback = objective(evaluator, num_slates=2, reward="feedback", supervised_weight=0.0).loss(model, inputs(batch))
    shown = (choices.sum(-1) > 0).unsqueeze(-1)
    expected = -(valued.probabilities.log() * shown).sum((-1, -2)).mean()
    assert feedback.loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("reward", ["utility", "feedback"])
def test_the_evaluator_learns_nothing_and_the_generator_what_it_likes(
    extractor: RerankingFeatureExtractor, evaluator: Any, batch: Batch, reward: Any
) -> None:
    model = make(CongratsForReranking, CongratsConfig, extractor, vertices_per_position=2).train()
    taught, known = objective(evaluator, reward=reward, supervised_weight=0.0), inputs(batch)
    before = evaluator.score_slates(model.generate(**known).unsqueeze(1), **known).mean()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        taught.loss(model, batch).loss.backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in evaluator.parameters())
    after = evaluator.score_slates(model.generate(**known).unsqueeze(1), **known).mean()
    assert after > before


def test_requests_without_candidates_cost_nothing(
    extractor: RerankingFeatureExtractor, evaluator: Any, batch: Batch
) -> None:
    model = make(CongratsForReranking, CongratsConfig, extractor)
    empty = {**batch, "candidate_mask": torch.zeros_like(batch["candidate_mask"])}
    for reward in ("utility", "feedback"):
        found = objective(evaluator, reward=reward, supervised_weight=0.0).loss(model, empty)
        found.loss.backward()
        assert found.loss.item() == found.metrics["value"].item() == 0.0
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_refuses_what_it_cannot_teach(extractor: RerankingFeatureExtractor, evaluator: Any, batch: Batch) -> None:
    with pytest.raises(ValueError, match="DeGReGenerator scores a position given those above it"):
        objective(evaluator).loss(make(DeGReGenerator, DeGReConfig, extractor), batch)
    regression = make(DeGReEvaluator, DeGReConfig, extractor, value_head="cumulative_regression")
    with pytest.raises(ValueError, match="'feedback' needs an evaluator that predicts feedback"):
        objective(regression, reward="feedback").loss(make(CongratsForReranking, CongratsConfig, extractor), batch)
    with pytest.raises(ValueError, match="temperature above 0"):
        EvaluatorGradient("evaluator", temperature=0.0)
    with pytest.raises(ValueError, match="reward: expected"):
        EvaluatorGradient("evaluator", reward="clicks")  # type: ignore[arg-type]
    assert make_objective(EvaluatorGradient("path", temperature=0.2).to_dict()).temperature == 0.2
