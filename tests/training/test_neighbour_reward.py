"""The objective of edits: against plain loops, and against the exact gradient of where the edits lead."""

from __future__ import annotations

import math
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.generation import Decoded
from rerankzoo.losses import neighbour_loss
from rerankzoo.models.nlgr import NLGRConfig, NLGRForReranking
from rerankzoo.slates import edited_slates, put
from rerankzoo.training import NeighbourReward
from rerankzoo.training.objectives import Companions
from tests.models.test_nlgr import TINY
from tests.training.test_objectives import Table

EVERY = torch.tensor(list(permutations(range(3), 2)))  # (6, 2)
MASK = torch.ones(1, 3, dtype=torch.bool)


class Editor(nn.Module):
    """Any policy of edits over the slates of two of three candidates."""

    config = SimpleNamespace(slate_size=2)

    def __init__(self) -> None:
        super().__init__()
        noise = torch.Generator().manual_seed(0)
        self.where = nn.Parameter(torch.randn(6, 2, generator=noise))
        self.what = nn.Parameter(torch.randn(6, 2, 3, generator=noise))

    def start_slates(self, batch: Any, slate_size: int) -> Tensor:
        return torch.tensor([[[0, 1]]])

    def edit_choices(self, slates: Tensor, /, **batch: Tensor) -> tuple[Tensor, Tensor]:
        number = (slates.unsqueeze(-2) == EVERY).all(-1).long().argmax(-1)
        return self.where.log_softmax(-1)[number], self.what.log_softmax(-1)[number]

    def edit_path(self, slates: Tensor, num_edits: int, draw: bool, /, **batch: Tensor) -> Decoded:
        assert not self.training
        path = [slates]
        for _ in range(num_edits):
            where, what = self.edit_choices(path[-1])
            chances = (where.unsqueeze(-1) + what).exp()[0].flatten(1)
            edit = torch.multinomial(chances, 1) if draw else chances.argmax(-1, keepdim=True)
            path.append(put(path[-1][0], edit // 3, edit % 3).unsqueeze(0))
        found = torch.stack(path, dim=2).flatten(1, 2)
        return Decoded(found, torch.zeros(found.shape[:2]), torch.zeros(found.shape))

    def expected_value(self, num_edits: int) -> Tensor:
        """Of the slate after so many edits, exactly."""
        where, what = self.edit_choices(EVERY.unsqueeze(0))
        chances = (where.unsqueeze(-1) + what).exp()[0]  # (6, 2, 3)
        same = (edited_slates(EVERY.unsqueeze(0), 3)[0].unsqueeze(-2) == EVERY).all(-1).float()  # (6, 2, 3, 6)
        moves = torch.einsum("spk,spkt->st", chances, same)
        return (torch.linalg.matrix_power(moves, num_edits)[0] * Table().score_slates(EVERY.unsqueeze(0), MASK)).sum()


def objective(**options: Any) -> NeighbourReward:
    found = NeighbourReward("somewhere", **options)
    found.companions = Companions(evaluator=Table())
    return found


@pytest.mark.parametrize("num_edits", [1, 3])
def test_with_discount_1_the_gradient_is_that_of_where_the_edits_lead(num_edits: int) -> None:
    model = Editor().train()
    torch.manual_seed(0)
    teacher = objective(num_edits=num_edits, num_paths=40_000, position_weight=0.0, discount=1.0)
    output = teacher.loss(model, {"candidate_mask": MASK})
    output.loss.backward()
    assert model.training
    exact = Editor()
    value = exact.expected_value(num_edits)
    (-value).backward()
    assert output.metrics["value"].item() == pytest.approx(value.item(), rel=0.01)
    found, wanted = (torch.cat([each.where.grad.flatten(), each.what.grad.flatten()]) for each in (model, exact))
    assert torch.cosine_similarity(found, wanted, dim=0).item() > 0.999  # the scale is that of the gains


def test_without_it_every_slate_on_the_way_looks_at_its_neighbours_only() -> None:
    model = Editor()
    torch.manual_seed(3)
    teacher = objective(num_edits=2, num_paths=2, position_weight=0.3)
    slates = teacher.draw(model, {"candidate_mask": MASK})
    torch.manual_seed(3)
    found = teacher.loss(model, {"candidate_mask": MASK})
    value, squares, parts = lambda slate: Table().score_slates(torch.tensor([[slate]]), MASK).item(), [], []
    for slate in (slates[0, number].tolist() for number in (0, 1, 3, 4)):  # not the ends
        gains = [[value(put_in(slate, place, item)) - value(slate) for item in range(3)] for place in range(2)]
        squares += [gain**2 for row in gains for gain in row]
        parts.append((slate, gains))
    spread = math.sqrt(sum(squares) / len(squares))
    total = 0.0
    for slate, gains in parts:
        where, what = model.edit_choices(torch.tensor([[slate]]))
        total += neighbour_loss(where, what, torch.tensor([[gains]]) / spread, 0.3).item()
    assert found.loss.item() == pytest.approx(total / 4, rel=1e-5)
    ends = [value(slates[0, number].tolist()) for number in (2, 5)]
    assert found.metrics["value"].item() == pytest.approx(sum(ends) / 2)


def put_in(slate: list[int], place: int, item: int) -> list[int]:
    """Another slate."""
    return put(torch.tensor(slate), torch.tensor([place]), torch.tensor([item])).tolist()


@pytest.mark.parametrize("discount", [0.0, 1.0])
def test_teaches_short_and_blank_requests_nothing_wrong(
    extractor: RerankingFeatureExtractor, batch: dict[str, Tensor], discount: float
) -> None:
    class Prices:
        def score_slates(self, slates: Tensor, /, **batch: Tensor) -> Tensor:
            assert (
                batch["candidate_mask"].gather(1, slates.clamp_min(0).flatten(1)).view(slates.shape)[slates >= 0].all()
            )
            assert ((slates >= 0).long().diff(dim=-1) <= 0).all()  # no holes
            return slates.clamp_min(0).float().sum(-1)

    model = NLGRForReranking(NLGRConfig(feature_schema=extractor.schema.to_dict(), **TINY)).train()
    teacher = NeighbourReward("somewhere", discount=discount)
    teacher.companions = Companions(evaluator=Prices())
    teacher.loss(model, batch).loss.backward()
    edits = [*model.slot_layers.parameters(), *model.item_choice.parameters(), *model.position_choice.parameters()]
    assert all(parameter.grad is not None and torch.isfinite(parameter.grad).all() for parameter in edits)
    assert all(parameter.grad.abs().max() > 0 for parameter in model.item_choice.parameters())
    model.zero_grad()
    loss = teacher.loss(model, {**batch, "candidate_mask": torch.zeros_like(batch["candidate_mask"])}).loss
    loss.backward()
    assert loss.item() == 0
    assert all((parameter.grad == 0).all() for parameter in edits)


def test_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="discount in"):
        NeighbourReward("somewhere", discount=1.5)
    with pytest.raises(ValueError, match="edits no slates"):
        objective().draw(nn.Linear(1, 1), {"candidate_mask": MASK})
    assert objective(num_edits=2).to_dict()["init_args"]["num_edits"] == 2
