from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

import rerankzoo.losses.feedback
from rerankzoo.losses import feedback_loss


def test_hand_computed() -> None:
    p = torch.tensor([[0.9, 0.5], [0.2, 0.5]])  # two positions, two targets
    feedback = torch.tensor([[1.0, 0.0], [0.0, 0.25]])
    found = feedback_loss(p.logit(), feedback, torch.tensor([True, True]))
    entropies = [-math.log(0.9), math.log(2), -math.log(0.8), math.log(2)]
    assert found.item() == pytest.approx(sum(entropies) / 4)


def test_each_slate_is_averaged_over_the_positions_it_showed() -> None:
    logits = torch.zeros(1, 3, 2, 1)
    logits[0, 0, 0] = 2.0
    feedback = torch.full((1, 3, 2, 1), torch.nan)
    feedback[0, 0] = 1.0
    feedback[0, 1, 0] = 0.0
    mask = torch.tensor([[[True, True], [True, False], [False, False]]])
    first = (math.log1p(math.exp(-2.0)) + math.log(2)) / 2
    assert feedback_loss(logits, feedback, mask)[0].tolist() == pytest.approx([first, math.log(2), 0.0])


@pytest.mark.parametrize(("wrong", "shown"), [(1.5, "1.5"), (-0.5, "-0.5"), (math.nan, "nan"), (math.inf, "inf")])
def test_refuses_feedback_that_is_no_probability(wrong: float, shown: str) -> None:
    with pytest.raises(ValueError, match=f"'feedback'.*{shown}"):
        feedback_loss(torch.zeros(2, 1), torch.tensor([[1.0], [wrong]]), torch.tensor([True, True]))


@pytest.mark.parametrize("wrong", [1.5, -0.5, math.nan])
def test_where_nobody_looks_the_loss_tells(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator."""
    monkeypatch.setattr(rerankzoo.losses.feedback, "check_probabilities", lambda feedback: None)
    feedback, possible = torch.tensor([[1.0], [wrong]]), torch.zeros(2, 1, dtype=torch.bool)
    assert feedback_loss(torch.zeros(2, 1), feedback, torch.tensor([True, True]), possible).isnan()
    assert feedback_loss(torch.zeros(2, 1), feedback, torch.tensor([True, False])).item() == pytest.approx(math.log(2))


def test_gradients() -> None:
    logits = torch.randn(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    feedback = torch.rand(2, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert torch.autograd.gradcheck(lambda x: feedback_loss(x, feedback, mask), logits)
    feedback_loss(logits, feedback, mask).sum().backward()
    assert (logits.grad[~mask] == 0).all()


def test_gradients_are_finite_at_extremes() -> None:
    logits = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    loss = feedback_loss(logits, torch.tensor([[0.0], [1.0]]), torch.tensor([True, True]))
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert logits.grad.tolist() == [[0.5], [-0.5]]


def test_impossible_targets_cost_nothing() -> None:
    logits, feedback = torch.tensor([[0.5, 2.0], [-1.0, 3.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    possible = torch.tensor([[True, True], [True, False]])
    entropy = F.binary_cross_entropy_with_logits(logits, feedback, reduction="none")
    expected = (entropy[0].sum() + entropy[1, 0]) / 2 / 2
    found = feedback_loss(logits, feedback, torch.tensor([True, True]), possible)
    torch.testing.assert_close(found, expected)
