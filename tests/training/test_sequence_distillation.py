"""Distillation of one generator into another: against the divergence over all slates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from rerankzoo.batch import inputs, take
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.models.goalrank import GoalRankConfig, GoalRankForReranking
from rerankzoo.models.nar4rec import NAR4RecConfig, NAR4RecForReranking
from rerankzoo.slates import all_slates
from rerankzoo.training import SequenceDistillation
from rerankzoo.training.objectives import Companions

TINY: dict[str, Any] = {
    "slate_size": 4,
    "hidden_size": 16,
    "embedding_size": 4,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "utility_threshold": 1.5,
}


def make(kind: Any, config: Any, extractor: RerankingFeatureExtractor, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return kind(config(feature_schema=extractor.schema.to_dict(), **TINY)).eval()


def distillation(teacher: Any, **options: Any) -> SequenceDistillation:
    found = SequenceDistillation("somewhere", **options)
    found.companions = Companions(generator=teacher)
    return found


def test_the_mean_over_drawn_slates_is_the_divergence_over_all(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    teacher = make(GoalRankForReranking, GoalRankConfig, extractor)
    student = make(NAR4RecForReranking, NAR4RecConfig, extractor, seed=1)
    row = int((batch["candidate_mask"].sum(-1) == 4).nonzero()[0])
    request = {name: tensor[:, :4] if name.startswith("candidate") else tensor for name, tensor in batch.items()}
    request = inputs(take(request, [row]))
    every = torch.tensor(all_slates(4, 4)).unsqueeze(0)
    with torch.no_grad():
        told, learned = (model.log_likelihood(every, **request).sum(-1) for model in (teacher, student))
        torch.manual_seed(0)
        found = distillation(teacher, num_slates=4000).loss(student, request).loss
        sharper = distillation(teacher, num_slates=4000, temperature=0.01).loss(student, request).loss
        greedy = teacher.generate(**request).unsqueeze(1)
        expected = -student.log_likelihood(greedy, **request).sum()
    assert told.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    assert found.item() == pytest.approx((told.exp() * (told - learned)).sum().item(), rel=0.05)
    assert sharper.item() == pytest.approx(expected.item(), rel=0.05)  # near 0: the greedy slate's


def test_a_student_that_is_its_teacher_has_nothing_to_learn(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    teacher = make(GoalRankForReranking, GoalRankConfig, extractor)
    same, other = (make(GoalRankForReranking, GoalRankConfig, extractor, seed).train() for seed in (0, 1))
    assert distillation(teacher).loss(same, batch).loss.item() == pytest.approx(0.0, abs=1e-5)
    output = distillation(teacher, supervised_weight=0.5).loss(other, batch)
    terms = output.loss_terms
    assert terms["distillation"].item() > 0.01
    assert output.loss.item() == pytest.approx(terms["distillation"].item() + 0.5 * other(**batch).loss.item())
    output.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in other.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    blank = {**batch, "candidate_mask": torch.zeros_like(batch["candidate_mask"])}
    assert distillation(teacher).loss(other, blank).loss.item() == 0


def test_distributions_are_those_of_the_choices(extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]) -> None:
    for model in (
        make(GoalRankForReranking, GoalRankConfig, extractor),
        make(NAR4RecForReranking, NAR4RecConfig, extractor),
    ):
        slates = model.generate(**batch).unsqueeze(1)
        told = model.log_distributions(slates, **batch)
        real = slates >= 0
        torch.testing.assert_close(told.exp().sum(-1)[real], torch.ones(int(real.sum())))
        assert (told[:, :, 1].gather(-1, slates[:, :, :1]) == -torch.inf).all()  # it stands above


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="a finite temperature above 0"):
        SequenceDistillation("somewhere", temperature=0.0)
    assert not SequenceDistillation("somewhere").learns_from_labels()
    assert SequenceDistillation("somewhere").declare()["generator"].source == "somewhere"
