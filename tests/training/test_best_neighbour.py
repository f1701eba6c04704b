"""The best neighbour of a path as the teacher: against plain loops, and where no single edit helps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.models.nlgr import NLGRConfig, NLGRForReranking
from rerankzoo.training import BestNeighbour
from rerankzoo.training.objectives import Companions
from tests.models.test_nlgr import TINY
from tests.training.test_neighbour_reward import EVERY, MASK, Editor, put_in
from tests.training.test_objectives import Table


class Surprised(Editor):
    """Edits where what stands there is least probable, as a model without a position network does."""

    def edit_choices(self, slates: Tensor, /, **batch: Tensor) -> tuple[Tensor, Tensor]:
        what = super().edit_choices(slates)[1]
        return (-what.gather(-1, slates.unsqueeze(-1)).squeeze(-1)).log_softmax(-1), what


def objective(evaluator: Any, **options: Any) -> BestNeighbour:
    found = BestNeighbour("somewhere", **options)
    found.companions = Companions(evaluator=evaluator)
    return found


def test_every_slate_on_the_way_learns_the_best_neighbour_of_any() -> None:
    class Values:
        """What is best is two edits from the start, [0, 1]."""

        def score_slates(self, slates: Tensor, /, candidate_mask: Tensor) -> Tensor:
            same = (slates.unsqueeze(-2) == EVERY).all(-1).float()
            return same @ torch.tensor([2.0, 4.0, 1.0, 6.0, 5.0, 3.0])

    model, teacher = Surprised().train(), objective(Values(), num_edits=2)
    worth, bests = lambda slate: Values().score_slates(torch.tensor([[slate]]), MASK).item(), set()
    for seed in range(40):
        torch.manual_seed(seed)
        slates = teacher.draw(model, {"candidate_mask": MASK})[0].tolist()
        assert slates[0] == [0, 1]
        torch.manual_seed(seed)
        found = teacher.loss(model, {"candidate_mask": MASK})
        near = [put_in(slate, place, item) for slate in slates for place in range(2) for item in range(3)]
        best = max(near, key=worth)
        total = 0.0
        for slate in slates:
            what = model.edit_choices(torch.tensor([[slate]]))[1][0, 0]
            total -= (what[0, best[0]] + what[1, best[1]]).item()
        assert found.loss.item() == pytest.approx(total / 3, rel=1e-5)
        assert found.metrics["value"].item() == pytest.approx(worth(slates[-1]))
        bests.add(tuple(best))
    assert model.training
    assert len(bests) > 1


def test_edits_lead_through_worse_slates_to_better_ones() -> None:
    class Valley:
        """[0, 1] is worth 1, [1, 2], two edits away, 3, and all others nothing: no single edit helps."""

        def score_slates(self, slates: Tensor, /, candidate_mask: Tensor) -> Tensor:
            top = (slates == torch.tensor([1, 2])).all(-1)
            return 3.0 * top + (slates == torch.tensor([0, 1])).all(-1)

    torch.manual_seed(0)
    model, teacher = Surprised(), objective(Valley(), num_edits=2)
    assert not any(put_in([0, 1], place, item) == [1, 2] for place in range(2) for item in range(3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        teacher.loss(model, {"candidate_mask": MASK}).loss.backward()
        optimizer.step()
    path = model.eval().edit_path(model.start_slates(None, 2), 2, False)
    assert path.slates[0, -1].tolist() == [1, 2]


def test_teaches_short_and_blank_requests_nothing_wrong(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor]
) -> None:
    class Prices:
        def score_slates(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
            assert (
                batch["candidate_mask"].gather(1, slates.clamp_min(0).flatten(1)).view(slates.shape)[slates >= 0].all()
            )
            assert ((slates >= 0).long().diff(dim=-1) <= 0).all()  # no holes
            return slates.clamp_min(0).float().sum(-1)

    config = NLGRConfig(feature_schema=extractor.schema.to_dict(), **TINY, position_network=False)
    model = NLGRForReranking(config).train()
    teacher = objective(Prices())
    teacher.loss(model, batch).loss.backward()
    edits = [*model.slot_layers.parameters(), *model.item_choice.parameters()]
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in edits)
    assert all(parameter.grad.abs().max() > 0 for parameter in model.item_choice.parameters())
    model.zero_grad()
    loss = teacher.loss(model, {**batch, "candidate_mask": torch.zeros_like(batch["candidate_mask"])}).loss
    loss.backward()
    assert loss.item() == 0
    assert all((parameter.grad == 0).all() for parameter in edits)


def test_slates_of_one_worth_teach_nothing() -> None:
    class Flat:
        def score_slates(self, slates: Tensor, /, candidate_mask: Tensor) -> Tensor:
            return torch.full(slates.shape[:2], 0.5)

    loss = objective(Flat()).loss(Surprised(), {"candidate_mask": MASK}).loss
    loss.backward()  # still part of the graph
    assert loss.item() == 0


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="num_edits and num_paths of 1 or more, got 0 and 1"):
        BestNeighbour("somewhere", num_edits=0)
    with pytest.raises(ValueError, match="edits no slates"):
        objective(Table()).draw(nn.Linear(1, 1), {"candidate_mask": MASK})
    assert objective(Table(), num_edits=2).to_dict()["init_args"]["num_edits"] == 2
