from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rerankzoo.losses import likelihood_loss, position_log_likelihood, slate_mean, unlikelihood_loss

P = torch.tensor([[[0.5, 0.2, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]], [[0.7, 0.3, 0.0, 0.0], [0.4, 0.6, 0.0, 0.0]]])
MASK = torch.tensor([[True] * 4, [True, True, False, False]])
SLATES = torch.tensor([[[0, 3], [2, 1]], [[1, -100], [-100, -100]]])
LOG_P = P.log().clamp_min(torch.finfo(P.dtype).min)  # padding as the pointer leaves it


def test_position_log_likelihood() -> None:
    found = position_log_likelihood(LOG_P, SLATES)
    expected = [[[math.log(0.5), math.log(0.4)], [math.log(0.2), math.log(0.2)]], [[math.log(0.3), 0.0], [0.0, 0.0]]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_likelihood() -> None:
    found = likelihood_loss(position_log_likelihood(LOG_P, SLATES))
    torch.testing.assert_close(found, -torch.tensor([[math.log(0.2), math.log(0.04)], [math.log(0.3), 0.0]]))


def test_unlikelihood() -> None:
    found = unlikelihood_loss(LOG_P, SLATES, MASK)
    torch.testing.assert_close(found, -torch.tensor([[math.log(0.5 * 0.6), math.log(0.8 * 0.8)], [math.log(0.7), 0.0]]))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 3), st.integers(2, 6))
def test_losses_are_their_formulas(seed: int, num_slates: int, length: int, size: int) -> None:
    noise = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, length, size + 2, generator=noise, dtype=torch.float64)
    mask = torch.arange(size + 2).expand(2, -1) < size
    log_probs = logits.masked_fill(~mask.unsqueeze(1), torch.finfo(logits.dtype).min).log_softmax(-1)
    slates = torch.randint(0, size, (2, num_slates, length), generator=noise)
    slates[torch.rand(slates.shape, generator=noise) < 0.3] = -100
    liked = likelihood_loss(position_log_likelihood(log_probs, slates))
    disliked = unlikelihood_loss(log_probs, slates, mask)
    for row in range(2):
        for number, slate in enumerate(slates[row].tolist()):
            p = [log_probs[row, j, item].exp().item() for j, item in enumerate(slate) if item >= 0]
            assert liked[row, number].item() == pytest.approx(-sum(map(math.log, p)), rel=1e-9)
            assert disliked[row, number].item() == pytest.approx(-sum(math.log(1 - x) for x in p), rel=1e-9)


@pytest.mark.parametrize("margin", [0.0, 5.0, 15.0, 30.0, 80.0, 1e4, -30.0, -1e4])
def test_unlikelihood_is_exact_where_a_probability_is_zero_or_one(margin: float) -> None:
    logits = torch.tensor([[[margin, 0.0, 0.0]]], requires_grad=True)
    loss = unlikelihood_loss(logits.log_softmax(-1), torch.tensor([[[0]]]), torch.ones(1, 3, dtype=torch.bool))
    loss.sum().backward()
    exact = math.log1p(math.exp(margin) / 2) if margin < 700 else margin - math.log(2)
    assert loss.item() == pytest.approx(exact, rel=1e-5, abs=1e-6)
    p = 1 / (1 + 2 * math.exp(-margin)) if margin > -700 else 0.0
    assert logits.grad[0, 0].tolist() == pytest.approx([p, -p / 2, -p / 2], abs=1e-3)


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_single_candidate_teaches_nothing(value: float) -> None:
    mask = torch.tensor([[True, False]])
    logits = torch.tensor([[[value, 7.0]]], requires_grad=True)
    log_probs = logits.masked_fill(~mask.unsqueeze(1), torch.finfo(logits.dtype).min).log_softmax(-1)
    slates = torch.tensor([[[0]]])
    loss = unlikelihood_loss(log_probs, slates, mask) + likelihood_loss(position_log_likelihood(log_probs, slates))
    loss.sum().backward()
    assert loss.item() == 0.0
    assert logits.grad.tolist() == [[[0.0, 0.0]]]


def test_gradients() -> None:
    logits = torch.randn(2, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)

    def losses(values: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = values.masked_fill(~MASK.unsqueeze(1), torch.finfo(values.dtype).min).log_softmax(-1)
        return likelihood_loss(position_log_likelihood(log_probs, SLATES)), unlikelihood_loss(log_probs, SLATES, MASK)

    assert torch.autograd.gradcheck(losses, logits)


def test_slate_mean_counts_each_requests_own_slates() -> None:
    values = torch.tensor([[1.0, 3.0], [2.0, torch.nan], [torch.nan, torch.nan]], requires_grad=True)
    slates = torch.tensor([[[0, 1], [1, -100]], [[2, 0], [-100, -100]], [[-100, -100], [-100, -100]]])
    found = slate_mean(values, slates)
    assert found.tolist() == [2.0, 2.0, 0.0]
    found.sum().backward()
    assert values.grad.tolist() == [[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]]
