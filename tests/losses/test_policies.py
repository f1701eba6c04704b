"""Losses of policies over slates: by hand, and against all slates of four candidates and two positions."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from rerankzoo.losses import (
    advantages,
    detailed_balance,
    dpo_loss,
    group_balance,
    group_loss,
    group_targets,
    group_value_loss,
    policy_gradient_loss,
    resorted_slates,
    returns_to_go,
    standardised,
    trajectory_balance,
)

EVERY = torch.tensor(list(permutations(range(4), 2)))  # (12, 2)
BOTH = torch.tensor([[True, True]])


class Policy(nn.Module):
    """Any policy over slates of two of four candidates, with a flow of each prefix."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        noise = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(4, generator=noise))
        self.second = nn.Parameter(torch.randn(4, 4, generator=noise))
        self.flow = nn.Parameter(torch.zeros(5))  # of the empty slate, and of each first item

    def log_probs(self) -> Tensor:
        """(1, 12, 2), of every slate."""
        left = self.second.masked_fill(torch.eye(4, dtype=torch.bool), -1e9).log_softmax(-1)
        first, second = EVERY.unbind(-1)
        return torch.stack([self.first.log_softmax(-1)[first], left[first, second]], dim=-1).unsqueeze(0)

    def log_flows(self) -> Tensor:
        """(1, 12, 2), above each position of every slate."""
        return torch.stack([self.flow[0].expand(12), self.flow[1 + EVERY[:, 0]]], dim=-1).unsqueeze(0)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, [self.first, self.second]))


def gains(seed: int = 1) -> Tensor:
    """(1, 12, 2): what each position of every slate adds, given those above it."""
    noise = torch.Generator().manual_seed(seed)
    first, second = torch.rand(4, generator=noise), torch.rand(4, 4, generator=noise)
    return torch.stack([first[EVERY[:, 0]], second[EVERY[:, 0], EVERY[:, 1]]], dim=-1).unsqueeze(0)


# --- groups ---------------------------------------------------------------------------------------------------------


def test_standardised_values_by_hand() -> None:
    values = torch.tensor([[1.0, 2.0, 6.0, 100.0], [5.0, 5.0, 5.0, 5.0], [1e-9, 3e-9, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True], [True, True, False, False]])
    deviation = math.sqrt((4 + 1 + 9) / 3)
    found = standardised(values, mask)
    assert found[0].tolist() == pytest.approx([-2 / deviation, -1 / deviation, 3 / deviation, 0.0])
    assert found[1].tolist() == [0.0] * 4  # no spread
    assert found[2].tolist() == pytest.approx([-1.0, 1.0, 0.0, 0.0])  # whatever the unit
    by_position = standardised(values.unsqueeze(-1).expand(-1, -1, 2), mask.unsqueeze(-1).expand(-1, -1, 2))
    torch.testing.assert_close(by_position[..., 1], found)


@pytest.mark.parametrize("value", [0.1, 1234.567, 1e-12, -3e9])
def test_rounding_is_no_spread(value: float) -> None:
    values = torch.full((1, 7), value)
    values[0, 3] = torch.nextafter(values[0, 3], torch.tensor(torch.inf))
    mask = torch.ones(1, 7, dtype=torch.bool)
    assert standardised(values, mask).abs().max() == 0
    assert group_targets(values, mask).tolist() == [pytest.approx([1 / 7] * 7)]
    assert group_loss(torch.randn(1, 7), values, mask).item() == 0


def test_group_loss_by_hand() -> None:
    log_likelihood = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -2.0, -7.0]], requires_grad=True)
    values = torch.tensor([[0.0, 2.0, 9.0], [4.0, 4.0, 4.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    low, high = math.exp(-1) / (math.exp(-1) + math.e), math.e / (math.exp(-1) + math.e)
    loss = group_loss(log_likelihood, values, mask)
    assert loss.tolist() == pytest.approx([low * 1 + high * 2, 0.0])
    loss.sum().backward()
    assert log_likelihood.grad is not None
    assert log_likelihood.grad[0].tolist() == pytest.approx([-low, -high, 0.0])
    assert log_likelihood.grad[1].tolist() == [0.0] * 3


def test_a_group_of_all_slates_is_learned_to_the_letter() -> None:
    """The optimum is the policy that the values ask for."""
    policy, values, mask = Policy(), gains().sum(-1), torch.ones(1, 12, dtype=torch.bool)
    optimizer = torch.optim.LBFGS(policy.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def close() -> Tensor:
        optimizer.zero_grad()
        loss = group_loss(policy.log_probs().sum(-1), values, mask).sum()
        loss.backward()
        return loss

    optimizer.step(close)
    torch.testing.assert_close(policy.log_probs().sum(-1).exp(), group_targets(values, mask), rtol=0, atol=1e-3)


# --- policy gradients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["slate", "position", "baseline"])
def test_the_expected_gradient_is_that_of_the_expected_value(kind: str) -> None:
    policy, earned = Policy(), gains()
    values = earned.sum(-1)
    given = {
        "slate": values.unsqueeze(-1),
        "position": returns_to_go(earned, discount=1.0),
        "baseline": values.unsqueeze(-1) - 7.0,
    }[kind]
    chances = policy.log_probs().sum(-1).exp()
    losses = policy_gradient_loss(policy.log_probs(), given)
    found = policy.gradients((chances.detach() * losses).sum())
    exact = policy.gradients(-(policy.log_probs().sum(-1).exp() * values).sum())
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_bonus_of_rare_choices_is_the_entropys_gradient() -> None:
    policy = Policy()
    log_probs = policy.log_probs()
    losses = policy_gradient_loss(log_probs, -log_probs.sum(-1, keepdim=True).detach())
    found = policy.gradients((log_probs.sum(-1).exp().detach() * losses).sum())
    whole = policy.log_probs().sum(-1)
    for one, other in zip(found, policy.gradients((whole.exp() * whole).sum()), strict=True):  # of -H
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_without_having_moved_clipping_changes_no_gradient() -> None:
    policy, earned = Policy(), gains()
    given = advantages(earned.sum(-1, keepdim=True), torch.ones(1, 12, 1, dtype=torch.bool), normalise=True)
    plain = policy.gradients(policy_gradient_loss(policy.log_probs(), given).sum())
    clipped = policy.gradients(
        policy_gradient_loss(policy.log_probs(), given, policy.log_probs().detach(), clip=0.1).sum()
    )
    for one, other in zip(plain, clipped, strict=True):
        torch.testing.assert_close(one, other)


def test_clipped_loss_by_hand() -> None:
    now = torch.tensor([[[0.6, 0.5, 0.2, 1.0]]]).log().requires_grad_()
    old = torch.tensor([[[0.4, 0.5, 0.4, 1.0]]]).log()  # ratios 1.5, 1, 0.5; the last one could not be otherwise
    for sign, expected, pull in ((1.0, -(1.2 + 1 + 0.5), [0, -1, -0.5, 0]), (-1.0, 1.5 + 1 + 0.8, [1.5, 1, 0, 0])):
        loss = policy_gradient_loss(now, torch.full((1, 1, 1), sign), old, clip=0.2)
        assert loss.item() == pytest.approx(expected, abs=1e-6)
        (gradient,) = torch.autograd.grad(loss.sum(), now)
        assert gradient[0, 0].tolist() == pytest.approx(pull, abs=1e-6)


def test_returns_and_advantages_by_hand() -> None:
    assert returns_to_go(torch.tensor([[1.0, 2.0, 4.0]]), discount=1.0).tolist() == [[7.0, 6.0, 4.0]]
    assert returns_to_go(torch.tensor([[1.0, 2.0, 4.0]]), discount=0.0).tolist() == [[1.0, 2.0, 4.0]]
    returns = torch.tensor([[[3.0, 1.0], [5.0, 9.0]]])
    shown = torch.tensor([[[True, True], [True, False]]])
    assert advantages(returns, shown, normalise=False).tolist() == [[[-1.0, 0.0], [1.0, 0.0]]]
    assert advantages(returns, shown, normalise=True).tolist() == [[[-1.0, 0.0], [1.0, 0.0]]]


def test_given_slates_pull_as_the_expected_value_of_the_group() -> None:
    log_likelihood = torch.tensor([[0.3, 0.1, 0.5]]).log().requires_grad_()
    mask = torch.tensor([[True, True, False]])
    loss = group_value_loss(log_likelihood, torch.tensor([[1.0, -2.0, 100.0]]), mask)
    assert loss.item() == pytest.approx(-(0.75 * 1 - 0.25 * 2))
    loss.sum().backward()
    assert log_likelihood.grad is not None
    mean = 0.75 * 1 - 0.25 * 2
    assert log_likelihood.grad[0].tolist() == pytest.approx([-0.75 * (1 - mean), -0.25 * (-2 - mean), 0.0])


# --- preferences ----------------------------------------------------------------------------------------------------


def test_dpo_by_hand() -> None:
    margin = torch.tensor([2.0, -1.0, 5.0], requires_grad=True)
    loss = dpo_loss(margin, torch.tensor([1.0, -1.0, 0.0]), torch.tensor([True, True, False]), beta=0.5)
    assert loss.tolist() == pytest.approx([math.log(1 + math.exp(-0.5)), math.log(2), 0.0])
    loss.sum().backward()
    assert margin.grad is not None
    assert margin.grad.tolist() == pytest.approx([-0.5 / (1 + math.exp(0.5)), -0.25, 0.0])


def test_shown_items_are_resorted_by_hand() -> None:
    slates = torch.tensor([[[4, 2, 0, 3], [1, 3, -100, -100]]])
    utility = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.0, 0.5, 9.0, 9.0]]])
    # Scores 1, 1/2, 4/3, 5/4 and 1, 1: the second slate stays as it is.
    assert resorted_slates(slates, utility).tolist() == [[[0, 3, 4, 2], [1, 3, -100, -100]]]


# --- flows ----------------------------------------------------------------------------------------------------------


def test_balances_by_hand() -> None:
    log_probs, slates = torch.tensor([[[-1.0, -2.0], [-0.5, 0.0]]]), torch.tensor([[[0, 1], [1, -100]]])
    log_flows, log_rewards = torch.tensor([[[3.0, 1.5], [3.0, 9.0]]]), torch.tensor([[0.5, 2.0]])
    assert trajectory_balance(log_probs, log_flows, log_rewards, slates).tolist() == [[0.25, 0.25]]
    # 3 - 1 - 1.5 and 1.5 - 2 - 0.5; 3 - 0.5 - 2
    assert detailed_balance(log_probs, log_flows, log_rewards, slates).tolist() == [[0.25 + 1.0, 0.25]]
    # Excesses 3.5 and 2.5 about their mean of 3.
    assert group_balance(log_probs.sum(-1), log_rewards, BOTH).tolist() == [0.25]
    assert group_balance(log_probs.sum(-1), log_rewards, torch.tensor([[True, False]])).tolist() == [0.0]


@pytest.mark.parametrize("kind", ["group", "trajectory", "detailed"])
def test_the_optimum_of_a_flow_is_proportional_to_the_reward(kind: str) -> None:
    policy, rewards = Policy(), 0.1 + gains().sum(-1)
    mask = torch.ones(1, 12, dtype=torch.bool)
    optimizer = torch.optim.LBFGS(
        policy.parameters(), max_iter=1_000, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def close() -> Tensor:
        optimizer.zero_grad()
        log_probs = policy.log_probs()
        if kind == "group":
            loss = group_balance(log_probs.sum(-1), rewards.log(), mask).sum()
        else:
            balance = trajectory_balance if kind == "trajectory" else detailed_balance
            loss = balance(log_probs, policy.log_flows(), rewards.log(), EVERY.unsqueeze(0)).sum()
        loss.backward()
        return loss

    optimizer.step(close)
    chances = policy.log_probs().sum(-1).exp()
    torch.testing.assert_close(chances, rewards / rewards.sum(), rtol=0, atol=1e-3)
    if kind != "group":
        assert policy.flow[0].exp().item() == pytest.approx(rewards.sum().item(), rel=1e-2)
