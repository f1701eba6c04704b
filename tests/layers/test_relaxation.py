from __future__ import annotations

import pytest
import torch

from rerankzoo.layers import gumbel_choices

MASK = torch.tensor([[True] * 4, [True, True, False, False]])


@pytest.mark.parametrize("distinct", [True, False])
def test_rows_are_distributions_over_real_candidates(distinct: bool) -> None:
    choices = gumbel_choices(torch.randn(2, 3, 4), MASK, 0.5, num_slates=5, distinct=distinct)
    assert choices.shape == (2, 5, 3, 4)
    torch.testing.assert_close(choices.sum(-1), torch.tensor([[1.0, 1, 1], [1, 1, 0]])[:, None].expand(-1, 5, -1))
    assert (choices[1, ..., 2:] == 0).all()


def test_low_temperature_draws_from_the_softmax() -> None:
    logits = torch.tensor([0.1, 0.2, 0.7]).log().expand(1, 1, 3)
    torch.manual_seed(0)
    drawn = gumbel_choices(logits, torch.ones(1, 3, dtype=torch.bool), 0.01, num_slates=4000)
    torch.testing.assert_close(drawn.mean((0, 1, 2)), torch.tensor([0.1, 0.2, 0.7]), atol=0.03, rtol=0)


def test_distinct_choices_leave_what_stands_above() -> None:
    logits = 20 * torch.eye(4)[0].expand(1, 3, 4)  # every position wants the first candidate
    mask = torch.ones(1, 4, dtype=torch.bool)
    torch.manual_seed(0)
    assert gumbel_choices(logits, mask, 0.3, distinct=False)[..., 0].min() > 0.99
    distinct = gumbel_choices(logits / 2, mask, 0.3, num_slates=20)
    assert distinct[:, :, 0, 0].min() > 0.99
    assert distinct.sum(2).amax(-1).mean() < 1.2


def test_gradients_are_finite() -> None:
    logits = (30 * torch.randn(2, 3, 4)).requires_grad_()
    choices = gumbel_choices(logits, MASK, 0.1)
    (choices * torch.randn_like(choices)).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0].abs().max() > 0
    empty = gumbel_choices(logits, torch.zeros_like(MASK), 0.3)
    assert (empty == 0).all()
