from __future__ import annotations

import math

import pytest
import torch

from rerankzoo.losses import exit_log_likelihood, ordered_regression_loss


def test_counts_of_prefixes_by_hand() -> None:
    """Three positions, feedback 1, 0, 0.5: counts 1, 1, 1.5; one, two and three questions are asked."""
    logits = torch.randn(3, 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    found = ordered_regression_loss(logits, torch.tensor([[1.0], [0.0], [0.5]]), torch.ones(3, dtype=torch.bool))
    answers = [[1.0], [1.0, 0.0], [1.0, 0.5, 0.0]]
    total = 0.0
    for place, asked in enumerate(answers):
        for number, answer in enumerate(asked):
            p = 1 / (1 + math.exp(-logits[place, 0, number].item()))
            total -= answer * math.log(p) + (1 - answer) * math.log(1 - p)
    assert found.item() == pytest.approx(total / 6)


def test_every_target_counts_by_itself_and_padding_not_at_all() -> None:
    logits = torch.zeros(2, 2, 2, requires_grad=True)
    feedback = torch.tensor([[1.0, 0.0], [torch.nan, torch.nan]])
    loss = ordered_regression_loss(logits, feedback, torch.tensor([True, False]))
    assert loss.item() == pytest.approx(math.log(2))
    loss.backward()
    assert logits.grad.flatten().tolist() == [-0.25, 0, 0.25, 0, 0, 0, 0, 0]
    assert ordered_regression_loss(logits, feedback, torch.tensor([False, False])) == 0


def test_refuses_feedback_that_is_no_probability() -> None:
    with pytest.raises(ValueError, match=r"'feedback'.*\[0\.0, 3\.0\]"):
        ordered_regression_loss(torch.zeros(2, 1, 2), torch.tensor([[3.0], [0.0]]), torch.tensor([True, True]))


def test_where_she_left_by_hand() -> None:
    stay = torch.tensor([0.9, 0.8, 0.7, 0.6]).expand(5, -1)
    seen = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 0]]) > 0
    mask = torch.tensor([[True] * 4] * 4 + [[True, True, True, False]])
    found = exit_log_likelihood(stay.log(), (1 - stay).log(), seen, mask).exp()
    # After the last position shown, nothing is decided; a flag that is missing above another was there.
    expected = [[0.9, 0.2, 1, 1], [0.9, 0.8, 0.7, 1], [0.9, 0.8, 0.3, 1], [1, 1, 1, 1], [0.9, 0.8, 1, 1]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32))


def test_all_ways_to_leave_have_probability_one() -> None:
    stay = torch.tensor([0.9, 0.8, 0.7, 0.6])
    seen = torch.ones(4, 4).tril() > 0
    mask = torch.ones(4, 4, dtype=torch.bool)
    chances = exit_log_likelihood(stay.log().expand(4, -1), (1 - stay).log().expand(4, -1), seen, mask).sum(-1).exp()
    assert chances.sum().item() == pytest.approx(1.0)
