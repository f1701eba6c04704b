from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.layers import BEHAVIOURS, Behaviour
from rerankzoo.layers.behaviour import CascadeBehaviour, ChoiceBehaviour, MemoryBehaviour, SatisfactionBehaviour

LOGITS = torch.tensor([0.4, -0.7, 1.2])
EXTRA = torch.tensor([[-1.0], [0.5], [-2.0]])
MOVED = torch.tensor([[0.0, 9.0, 9.0], [-2.0, 9.0, 9.0], [1.5, -0.8, 9.0]])  # what a click above does: below the 9s
SHOWN = torch.ones(3, dtype=torch.bool)


def made(name: str) -> Behaviour:
    behaviour = BEHAVIOURS[name](3)
    with torch.no_grad():
        for number, parameter in enumerate(behaviour.parameters()):
            parameter.copy_(torch.linspace(-1.0, 2.0, parameter.numel()).view(parameter.shape) + number)
    return behaviour


def extra(behaviour: Behaviour) -> Tensor:
    return MOVED if behaviour.remembers else EXTRA[:, : behaviour.extra_size]


def log_likelihood(behaviour: Behaviour, clicks: Tensor, mask: Tensor = SHOWN) -> Tensor:
    logits = LOGITS + (MOVED.tril(-1) * clicks.unsqueeze(-2)).sum(-1) * behaviour.remembers
    examined = -F.binary_cross_entropy_with_logits(logits, clicks, reduction="none") * mask
    happened = clicks > 0
    more = extra(behaviour).expand(*clicks.shape, -1)
    return behaviour.log_likelihood(LOGITS.expand_as(clicks), more, mask, examined, happened, happened)


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_marginals_are_those_of_the_likelihood(name: str) -> None:
    behaviour = made(name)
    patterns = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)))
    chances = log_likelihood(behaviour, patterns).exp()
    assert chances.sum().item() == pytest.approx(1.0)
    clicked = behaviour.examination(LOGITS, extra(behaviour), SHOWN) * LOGITS.sigmoid()
    torch.testing.assert_close(clicked, (chances.unsqueeze(-1) * patterns).sum(0))


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_padding_changes_nothing(name: str) -> None:
    behaviour, mask = made(name), torch.tensor([True, True, False])
    looked_at = behaviour.examination(LOGITS, extra(behaviour), mask)[:2]
    short = behaviour.examination(LOGITS[:2], extra(behaviour)[:2], SHOWN[:2])
    torch.testing.assert_close(looked_at, short)
    clicks, pair = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([1.0, 0.0])
    logits = LOGITS[:2] + torch.tensor([0.0, -2.0]) * behaviour.remembers
    examined = -F.binary_cross_entropy_with_logits(logits, pair, reduction="none")
    shorter = (LOGITS[:2], extra(behaviour)[:2], SHOWN[:2], examined, pair > 0, pair > 0)
    torch.testing.assert_close(log_likelihood(behaviour, clicks, mask), behaviour.log_likelihood(*shorter))


def test_a_cascade_by_hand() -> None:
    behaviour = CascadeBehaviour(2)
    with torch.no_grad():
        behaviour.go_on.copy_(torch.tensor([[0.6, 0.5], [0.9, 0.5]]).logit())
    a, b = 0.3, 0.8
    logits, nothing = torch.tensor([a, b]).logit(), torch.empty(2, 0)
    looked_at = behaviour.examination(logits, nothing, SHOWN[:2])
    assert looked_at.tolist() == pytest.approx([1.0, 0.7 * 0.6 + 0.3 * 0.9])
    examined = torch.tensor([1 - a, 1 - b]).log()
    none = torch.zeros(2, dtype=torch.bool)
    found = behaviour.log_likelihood(logits, nothing, SHOWN[:2], examined, none, none).exp()
    assert found.item() == pytest.approx(0.7 * (0.4 + 0.6 * 0.2))  # stopped unseen, or looked and did not click


def test_satisfaction_ends_a_cascade_by_hand() -> None:
    behaviour = SatisfactionBehaviour(2)
    with torch.no_grad():
        behaviour.go_on.copy_(torch.tensor([[0.6, 0.5], [0.9, 0.5]]).logit())
    satisfied = torch.tensor([[0.25], [0.5]]).logit()
    looked_at = behaviour.examination(torch.tensor([0.3, 0.8]).logit(), satisfied, SHOWN[:2])
    assert looked_at[1].item() == pytest.approx(0.7 * 0.6 + 0.3 * 0.9 * 0.75)


def test_a_click_is_remembered_by_hand() -> None:
    behaviour = MemoryBehaviour(2)
    with torch.no_grad():
        behaviour.go_on.copy_(torch.tensor([[0.6, 0.5], [0.9, 0.5]]).logit())
    a, b, c = 0.3, 0.8, 0.1  # the second item: nothing clicked above, and something
    moved = torch.tensor([[0.0], [math.log(c / (1 - c)) - math.log(b / (1 - b))]])
    logits = torch.tensor([a, b]).logit()
    clicked = behaviour.examination(logits, moved, SHOWN[:2]) * logits.sigmoid()
    assert clicked.tolist() == pytest.approx([a, 0.7 * 0.6 * b + 0.3 * 0.9 * c])


def test_old_clicks_count_by_their_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    behaviour, logits, moved = MemoryBehaviour(9), torch.randn(50, 9) - 1, torch.randn(50, 9, 9) / 2
    torch.nn.init.constant_(behaviour.go_on, 3.0)
    mask, clicked = torch.ones(50, 9, dtype=torch.bool), {}
    with torch.no_grad():
        for kept in (9, 6, 0):
            monkeypatch.setattr(MemoryBehaviour, "EXACT", kept)
            clicked[kept] = behaviour.examination(logits, moved, mask) * logits.sigmoid()
    errors = {kept: (clicked[kept] - clicked[9]).abs() for kept in (6, 0)}
    assert (errors[6][:, :7] < 1e-6).all()  # no more than seven positions
    assert 0 < errors[6].max() < 0.02 < errors[0].max() < 0.2


def test_a_choice_by_hand() -> None:
    behaviour = ChoiceBehaviour(2)
    with torch.no_grad():
        behaviour.others.fill_(-40.0)  # nobody behaves otherwise
    logits, nothing = torch.tensor([math.log(2.0), math.log(3.0)]), torch.empty(2, 0)
    clicked = behaviour.examination(logits, nothing, SHOWN[:2]) * logits.sigmoid()
    assert clicked.tolist() == pytest.approx([2 / 6, 3 / 6])
    examined = -F.binary_cross_entropy_with_logits(logits, torch.tensor([0.0, 1.0]), reduction="none")
    second = torch.tensor([False, True])
    found = behaviour.log_likelihood(logits, nothing, SHOWN[:2], examined, second, second)
    assert found.exp().item() == pytest.approx(3 / 6)
    both = torch.ones(2, dtype=torch.bool)
    assert behaviour.log_likelihood(logits, nothing, SHOWN[:2], examined, both, both).item() < -30
