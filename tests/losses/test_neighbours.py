"""The loss of edits, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rerankzoo.losses import neighbour_loss

NEVER = float("-inf")


def test_by_hand() -> None:
    """Two positions of three: at the first, candidate 1 gains 4 and 2 loses 1; at the second, all lose."""
    chances = torch.tensor([[[0.25, 0.75, 0.0]]], requires_grad=True)
    items = torch.tensor([[[[0.5, 0.25, 0.25], [0.0, 0.5, 0.5], [0.0, 0.0, 0.0]]]], requires_grad=True)
    gains = torch.tensor([[[[0.0, 4.0, -1.0], [-3.0, 0.0, -2.0], [0.0, 0.0, 0.0]]]])
    first, second = 0.25 * 4 - 0.25 * 1, 0.5 * 0 - 0.5 * 2  # 0.75 and -1
    wanted = [1 / (1 + math.exp(second - first)), 1 / (1 + math.exp(first - second))]
    expected = -(0.25 * first + 0.75 * second)
    named = -(wanted[0] * math.log(0.25) + wanted[1] * math.log(0.75))
    assert neighbour_loss(chances.log(), items.log(), gains, 0.0).item() == pytest.approx(expected)
    loss = neighbour_loss(chances.log(), items.log(), gains, 0.2)
    assert loss.item() == pytest.approx(expected + 0.2 * named)
    log, log_items = chances.detach().log().requires_grad_(), items.detach().log().requires_grad_()
    neighbour_loss(log, log_items, gains, 0.2).sum().backward()
    assert log.grad is not None
    assert log.grad[0, 0].tolist() == pytest.approx(
        [-0.25 * first - 0.2 * wanted[0], -0.75 * second - 0.2 * wanted[1], 0.0]
    )
    assert log_items.grad is not None
    assert log_items.grad[0, 0].tolist() == [
        pytest.approx([0.0, -0.25 * 0.25 * 4, 0.25 * 0.25 * 1]),
        pytest.approx([0.0, 0.0, 0.75 * 0.5 * 2]),
        [0.0, 0.0, 0.0],
    ]


def test_a_slate_that_nothing_improves_or_spoils_is_left_alone() -> None:
    where = torch.tensor([[[0.5, 0.5], [0.5, 0.5]]]).log()
    what = torch.full((1, 2, 2, 3), 1 / 3).log()
    gains = torch.zeros(1, 2, 2, 3)
    gains[0, 1, 0, 2] = -1.0
    assert neighbour_loss(where, what, gains, 0.2)[0, 0].item() == 0.0
    assert neighbour_loss(where, what, gains, 0.2)[0, 1].item() > 0


def test_the_optimum_takes_the_best_edit() -> None:
    gains = torch.tensor([[[[0.0, 1.0, 3.0], [-1.0, 0.0, 2.0]]]])
    where, what = torch.zeros(1, 1, 2, requires_grad=True), torch.zeros(1, 1, 2, 3, requires_grad=True)
    optimizer = torch.optim.Adam([where, what], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        neighbour_loss(where.log_softmax(-1), what.log_softmax(-1), gains, 0.1).sum().backward()
        optimizer.step()
    assert what.argmax(-1).tolist() == [[[2, 2]]]
    chance = where.softmax(-1)[0, 0, 0].item()
    assert chance == pytest.approx(0.95, abs=0.05)  # the second term asks for 1 / (1 + exp(2 - 3)) only
