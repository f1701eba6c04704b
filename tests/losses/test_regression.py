from __future__ import annotations

import pytest
import torch

from rerankzoo.losses import cumulative_regression_loss


def test_error_of_accumulated_rewards() -> None:
    values = torch.tensor([[1.0, 2.0, 4.0], [0.5, 9.0, 9.0], [3.0, 3.0, 3.0]])
    rewards = torch.tensor([[1.0, 0.0, 2.0], [2.0, 7.0, 7.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    # 1, 1, 3 were reached: errors 0, 1, 1; then 2 was reached: error 1.5; an empty slate has none.
    expected = [(0.0 + 1.0 + 1.0) / 3, 1.5**2, 0.0]
    assert cumulative_regression_loss(values, rewards, mask).tolist() == pytest.approx(expected)


def test_padding_counts_nothing_whatever_it_holds() -> None:
    values = torch.tensor([1.0, torch.nan], requires_grad=True)
    loss = cumulative_regression_loss(values, torch.tensor([3.0, torch.nan]), torch.tensor([True, False]))
    assert loss.item() == 4.0
    loss.backward()
    assert values.grad.tolist() == [-4.0, 0.0]
