from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from rerankzoo.losses import (
    RANKING_LOSSES,
    attention_rank_loss,
    lambda_loss,
    listmle_loss,
    listnet_loss,
    softmax_ranking_loss,
    step_cross_entropy,
    step_hinge,
)

ALL = torch.ones(3, dtype=torch.bool)


def drawn(seed: int = 0, lists: int = 6, items: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, relevance of grades 0 to 3, and a mask that leaves out a few."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(lists, items, generator=generator)
    grades = torch.randint(4, (lists, items), generator=generator)
    mask = torch.rand(lists, items, generator=generator) < 0.8
    return scores, 2.0**grades - 1, mask


def test_softmax_by_hand() -> None:
    scores = torch.tensor([math.log(1.0), math.log(2.0), math.log(5.0)])  # probabilities 1/8, 2/8, 5/8
    loss = softmax_ranking_loss(scores, torch.tensor([3.0, 1.0, 0.0]), ALL)
    assert loss.item() == pytest.approx((3 * math.log(8) + math.log(4)) / 4)


def test_listnet_and_attention_rank_by_hand() -> None:
    scores = torch.tensor([math.log(1.0), math.log(2.0), math.log(5.0)])
    gains = torch.tensor([3.0, 1.0, 0.0])  # grades 2, 1, 0
    e, logs = math.e, [math.log(8), math.log(4), math.log(8 / 5)]
    netted = (e**2 * logs[0] + e * logs[1] + logs[2]) / (e**2 + e + 1)
    attended = (e**2 * logs[0] + e * logs[1]) / (e**2 + e)
    assert listnet_loss(scores, gains, ALL).item() == pytest.approx(netted)
    assert attention_rank_loss(scores, gains, ALL).item() == pytest.approx(attended)


def test_listmle_by_hand() -> None:
    scores = torch.tensor([math.log(1.0), math.log(2.0), math.log(5.0)])
    loss = listmle_loss(scores, torch.tensor([1.0, 3.0, 0.0]), ALL)  # the second of all, then the first of two
    assert loss.item() == pytest.approx(math.log(8 / 2) + math.log(6 / 1))
    tied = listmle_loss(scores, torch.tensor([1.0, 1.0, 0.0]), ALL)
    assert tied.item() == pytest.approx(math.log(8) + math.log(8 / 2))


@pytest.mark.parametrize("k", [None, 1, 2, 5])
def test_lambda_loss_is_the_sum_over_all_pairs(k: int | None) -> None:
    scores, gains, mask = drawn()
    found = lambda_loss(scores, gains, mask, k=k)
    for s, g, known, loss in zip(scores.tolist(), gains.tolist(), mask.tolist(), found.tolist(), strict=True):
        items = sorted((i for i in range(len(s)) if known[i]), key=lambda i: -s[i])
        discount = {i: 1 / math.log2(rank + 2) if rank < (k or 99) else 0.0 for rank, i in enumerate(items)}
        best = sorted((g[i] for i in items), reverse=True)[:k]
        ideal = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(best))
        expected = 0.0
        for a, b in combinations(items, 2):
            high, low = (a, b) if g[a] > g[b] else (b, a)
            weight = abs(g[a] - g[b]) * abs(discount[a] - discount[b])
            expected += weight * math.log1p(math.exp(s[low] - s[high])) / (ideal or 1.0)
        assert loss == pytest.approx(expected, rel=1e-5)


#: Of two steps: the second item is chosen first.
STEPS = torch.tensor([[math.log(1.0), math.log(2.0), math.log(5.0)], [math.log(3.0), 0.0, math.log(7.0)]])
LEFT = torch.tensor([[True, True, True], [True, False, True]])


def test_step_cross_entropy_by_hand() -> None:
    found = step_cross_entropy(STEPS, torch.tensor([3.0, 1.0, 0.0]), LEFT).item()
    first = 0.75 * math.log(0.75 / (1 / 8)) + 0.25 * math.log(0.25 / (2 / 8))  # targets over probabilities
    second = math.log(1 / (3 / 10))
    assert found == pytest.approx(first + second / math.log2(3))
    met = step_cross_entropy(torch.tensor([[math.log(3.0), 0.0, -99.0]]), torch.tensor([3.0, 1.0, 0.0]), ALL)
    assert met.item() == pytest.approx(0.0, abs=1e-6)


def test_step_hinge_by_hand() -> None:
    scores = torch.tensor([[0.5, 0.2, 0.0], [0.4, 9.0, -1.0]])
    assert step_hinge(scores, torch.tensor([1.0, 1.0, 0.0]), LEFT).item() == pytest.approx(1 - 0.2)  # both above 0
    graded = step_hinge(scores, torch.tensor([1.0, 3.0, 0.0]), LEFT).item()
    assert graded == pytest.approx(1 - 0.2 + 0.5)  # the second step is met: 0.4 stands 1.4 above
    late = step_hinge(scores, torch.tensor([0.0, 1.0, 2.0]), LEFT).item()
    assert late == pytest.approx((1 - 0.0 + 0.5) + (1 + 1 + 0.4) / math.log2(3))


@pytest.mark.parametrize("loss", [step_cross_entropy, step_hinge])
def test_lists_by_their_steps(loss: Any) -> None:
    """Padding and what is not left may hold anything; gradients are those of the loss; lists may share steps."""
    scores, gains, mask = drawn()
    steps = torch.stack([scores, scores.flip(-1)], dim=1)  # (6, 2, 7)
    left = mask.unsqueeze(1) & (torch.arange(7) != torch.tensor([[-1], [2]]))
    expected = loss(steps, gains, left)
    hidden = loss(steps.masked_fill(~left, 1e30), gains.masked_fill(~mask, torch.nan), left)
    torch.testing.assert_close(hidden, expected)
    both = loss(steps[:1].unsqueeze(1), gains[None, :2], left[None, :2] & left[0])
    for row in range(2):
        torch.testing.assert_close(both[0, row], loss(steps[0], gains[row], left[row] & left[0]))
    steps = steps.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, gains.double(), left), steps)
    with pytest.raises(ValueError, match="0 or more"):
        loss(steps, -gains, left)


@pytest.mark.parametrize("name", RANKING_LOSSES)
def test_order_and_padding_of_the_input_do_not_matter(name: str) -> None:
    loss = RANKING_LOSSES[name]
    scores, gains, mask = drawn()
    expected = loss(scores, gains, mask)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss(scores[:, order], gains[:, order], mask[:, order]), expected)
    hidden = scores.masked_fill(~mask, 1e30), gains.masked_fill(~mask, torch.nan), mask
    torch.testing.assert_close(loss(*hidden), expected)
    row, known = 0, mask[0]
    torch.testing.assert_close(loss(scores[row, known], gains[row, known], mask[row, known]), expected[row])


@pytest.mark.parametrize("name", RANKING_LOSSES)
def test_the_ideal_order_costs_less_and_gradients_are_those_of_the_loss(name: str) -> None:
    loss = RANKING_LOSSES[name]
    gains, mask = torch.tensor([[7.0, 3.0, 1.0, 0.0]]), torch.ones(1, 4, dtype=torch.bool)
    ideal = torch.tensor([[3.0, 2.0, 1.0, 0.0]], dtype=torch.double)
    assert loss(ideal, gains, mask) < loss(-ideal, gains, mask)
    point = torch.tensor([[0.3, -0.2, 0.5, 0.1]], dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(x, gains.double(), mask), point)


@pytest.mark.parametrize("name", RANKING_LOSSES)
@pytest.mark.parametrize("wrong", [-1.0, torch.inf, torch.nan])
def test_relevance_that_is_none_is_refused(name: str, wrong: float) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        RANKING_LOSSES[name](torch.zeros(3), torch.tensor([1.0, wrong, 0.0]), ALL)
