from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from rerankzoo.losses import contrastive_loss

EVERY = torch.ones(1, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("margin", "expected"), [(0.5, 2 * 0.5 / 6), (1.0, 2 * 1.0 / 6), (2.0, (2 * 2 + 4 * 1) / 6), (0.0, 0.0)]
)
def test_hand_computed(margin: float, expected: float) -> None:
    states = torch.tensor([[[2.0, 0.0], [0.5, 0.0], [0.0, 3.0]]])  # two of one direction, one across
    assert contrastive_loss(states, EVERY, margin).tolist() == pytest.approx([expected])


def test_brute_force_with_padding() -> None:
    states = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor(
        [[True] * 5, [True, False, True, True, False], [False, True, False, False, True], [True] + [False] * 4]
    )
    states[~mask] = 1e6
    found = contrastive_loss(states, mask, margin=0.7)
    for row in range(4):
        real = states[row, mask[row]]
        pairs = [(a, b) for i, a in enumerate(real) for k, b in enumerate(real) if i != k]
        hinges = [max(0.0, 0.7 - 1 + F.cosine_similarity(a, b, dim=0).item()) for a, b in pairs]
        assert found[row].item() == pytest.approx(sum(hinges) / max(1, len(pairs)), abs=1e-6)
    assert found[3] == 0.0


def test_gradients_are_right_and_padding_gets_none() -> None:
    states = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    assert torch.autograd.gradcheck(lambda x: contrastive_loss(x, mask, margin=1.5), states)
    contrastive_loss(states, mask, margin=1.5).sum().backward()
    assert (states.grad[1, 1] == 0).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_gradients_are_finite_for_equal_and_opposite_states(scale: float) -> None:
    states = (scale * torch.tensor([[[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]])).requires_grad_()
    contrastive_loss(states, EVERY, margin=1.0).sum().backward()
    assert torch.isfinite(states.grad).all()


def test_a_single_candidate_costs_nothing() -> None:
    states = torch.ones(1, 3, 2, requires_grad=True)
    loss = contrastive_loss(states, torch.tensor([[False, True, False]]), margin=0.5)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert (states.grad == 0).all()
