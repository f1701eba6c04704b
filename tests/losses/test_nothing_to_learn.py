"""Every loss: exactly nothing where there is nothing to learn, and single precision whatever the model computes in."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rerankzoo import losses
from rerankzoo.losses import (
    advantages,
    attention_rank_loss,
    contrastive_loss,
    cumulative_regression_loss,
    detailed_balance,
    dpo_loss,
    exit_log_likelihood,
    feedback_log_likelihood,
    feedback_loss,
    graph_log_likelihood,
    group_balance,
    group_loss,
    group_targets,
    group_value_loss,
    hard_label_loss,
    hidden_slots,
    lambda_loss,
    likelihood_loss,
    listmle_loss,
    listnet_loss,
    log_probabilities,
    log_transitions,
    masked_slot_loss,
    mean_feedback_loss,
    neighbour_loss,
    ordered_regression_loss,
    policy_gradient_loss,
    position_log_likelihood,
    returns_to_go,
    slate_mean,
    soft_label_loss,
    softmax_ranking_loss,
    standardised,
    step_cross_entropy,
    step_hinge,
    trajectory_balance,
    unlikelihood_loss,
)

SHOWN, PADDED = torch.tensor([[[0]]]), torch.tensor([[[-100]]])  # one slate of one position
TWO, ONE, NONE = torch.tensor([[True, True]]), torch.tensor([[True, False]]), torch.tensor([[False, False]])
EARNED = torch.tensor([[1.0, 3.0]])
NEVER = torch.full((1, 1, 2, 2), -torch.inf)


def log_probs(scores: Tensor, mask: Tensor = TWO) -> Tensor:
    """(1, 1, 2) from scores (2,)."""
    floor = torch.finfo(scores.dtype).min
    return log_probabilities(scores.view(1, 1, 2).masked_fill(~mask.unsqueeze(1), floor))


def likelihood(scores: Tensor, slates: Tensor, mask: Tensor = TWO) -> Tensor:
    return likelihood_loss(position_log_likelihood(log_probs(scores, mask), slates))


#: What -> (loss of two numbers, its value). The numbers are 0 and 0; wherever they are a distribution, it is even.
NOTHING: dict[str, Callable[[Tensor], Tensor]] = {
    "likelihood of padding": lambda x: likelihood(x, PADDED),
    "likelihood of one candidate": lambda x: likelihood(x, SHOWN, ONE),
    "unlikelihood of padding": lambda x: unlikelihood_loss(log_probs(x), PADDED, TWO),
    "unlikelihood of one candidate": lambda x: unlikelihood_loss(log_probs(x, ONE), SHOWN, ONE),
    "unlikelihood of no candidate": lambda x: unlikelihood_loss(log_probs(x, NONE), PADDED, NONE),
    "contrast of one candidate": lambda x: contrastive_loss(x.view(1, 2, 1), ONE, margin=2.0),
    "contrast of no candidate": lambda x: contrastive_loss(x.view(1, 2, 1), NONE, margin=2.0),
    "contrast without a margin": lambda x: contrastive_loss(x.view(1, 2, 1), TWO, margin=0.0),
    "steps without anything relevant": lambda x: step_cross_entropy(x.view(1, 1, 2), torch.zeros(1, 2), TWO[None]),
    "steps with nothing left": lambda x: step_cross_entropy(x.view(1, 1, 2), EARNED, NONE[None]),
    "a step with one item left": lambda x: step_cross_entropy(x.view(1, 1, 2), EARNED, ONE[None]),
    "hinge without anything relevant": lambda x: step_hinge(x.view(1, 1, 2), torch.zeros(1, 2), TWO[None]),
    "hinge with nothing left": lambda x: step_hinge(x.view(1, 1, 2), EARNED, NONE[None]),
    "hinge with one item left": lambda x: step_hinge(x.view(1, 1, 2), EARNED, ONE[None]),
    "hard label of padding": lambda x: hard_label_loss(log_probs(x).unsqueeze(1), PADDED),
    "hard label of one candidate": lambda x: hard_label_loss(log_probs(x, ONE).unsqueeze(1), SHOWN),
    "soft label of padding": lambda x: soft_label_loss(log_probs(x).unsqueeze(1), torch.rand(1, 1, 1, 2), PADDED),
    "soft label of nothing": lambda x: soft_label_loss(log_probs(x).unsqueeze(1), torch.zeros(1, 1, 1, 2), SHOWN),
    "soft label that is met": lambda x: soft_label_loss(
        log_probs(x).unsqueeze(1), torch.full((1, 1, 1, 2), 0.5), SHOWN
    ),
    "soft label of one candidate": lambda x: soft_label_loss(
        log_probs(x, ONE).unsqueeze(1), torch.tensor([[[[1.0, 0.0]]]]), SHOWN
    ),
    "feedback of padding": lambda x: feedback_loss(x.view(1, 1, 2), torch.full((1, 1, 2), torch.nan), NONE[:, :1]),
    "feedback that is impossible": lambda x: feedback_loss(
        x.view(1, 1, 2), torch.ones(1, 1, 2), TWO[:, :1], torch.zeros(1, 1, 2, dtype=torch.bool)
    ),
    "likelihood of feedback of padding": lambda x: mean_feedback_loss(
        feedback_log_likelihood(x.view(1, 1, 2), torch.full((1, 1, 2), torch.nan), NONE[:, :1]), NONE[:, :1], 2
    ),
    "count of padding": lambda x: ordered_regression_loss(x.view(1, 2, 1, 1), torch.full((1, 2, 1), torch.nan), NONE),
    "exit from nothing": lambda x: exit_log_likelihood(x.view(1, 2), x.view(1, 2), NONE, TWO),
    "exit from the last position": lambda x: exit_log_likelihood(x.view(1, 2), x.view(1, 2), ONE, ONE),
    "regression of padding": lambda x: cumulative_regression_loss(x.view(1, 2), torch.full((1, 2), torch.nan), NONE),
    "regression that is met": lambda x: cumulative_regression_loss(x.view(1, 2), torch.zeros(1, 2), TWO),
    "path of padding": lambda x: graph_log_likelihood(log_probs(x), log_transitions(torch.zeros(1, 3, 3)), PADDED),
    "path of one candidate": lambda x: graph_log_likelihood(
        log_probs(x, ONE), torch.tensor([[[0.0, 0.0, -1e30], [0.0] * 3, [0.0] * 3]]), SHOWN
    ),
    "only successor": lambda x: log_transitions(x.expand(1, 2, 2))[:, 0, 1],
    "advantage over oneself": lambda x: advantages(x.view(1, 2), ONE, normalise=False),
    "deviations of equal values": lambda x: standardised(x.view(1, 2), TWO),
    "group of equal values": lambda x: group_loss(x.view(1, 2), torch.ones(1, 2), TWO),
    "group of nothing": lambda x: group_loss(x.view(1, 2), EARNED, NONE),
    "value of one slate": lambda x: group_value_loss(x.view(1, 2), torch.zeros(1, 2), ONE),
    "choices without an advantage": lambda x: policy_gradient_loss(x.view(1, 1, 2), torch.zeros(1, 1, 1)),
    "sure choices": lambda x: policy_gradient_loss(x.view(1, 1, 2), torch.ones(1, 1, 1), torch.zeros(1, 1, 2), 0.1),
    "returns of nothing": lambda x: returns_to_go(x.view(1, 2) * 0, discount=1.0),
    "preference without a pair": lambda x: dpo_loss(x, torch.ones(2), NONE[0], beta=0.1),
    "balance of one slate": lambda x: group_balance(x.view(1, 2), EARNED, ONE),
    "balance of padding": lambda x: trajectory_balance(x.view(1, 1, 2), x.view(1, 1, 2), EARNED[:, :1], PADDED),
    "balance of steps of padding": lambda x: detailed_balance(
        x.view(1, 1, 2), x.view(1, 1, 2), EARNED[:, :1], PADDED.expand(1, 1, 2)
    ),
    "softmax without relevance": lambda x: softmax_ranking_loss(x.view(1, 2), torch.zeros(1, 2), TWO),
    "softmax of one item": lambda x: softmax_ranking_loss(x.view(1, 2), torch.tensor([[1.0, torch.nan]]), ONE),
    "ListNet without relevance": lambda x: listnet_loss(x.view(1, 2), torch.zeros(1, 2), TWO),
    "ListNet of one item": lambda x: listnet_loss(x.view(1, 2), torch.ones(1, 2), ONE),
    "attention rank of nothing": lambda x: attention_rank_loss(x.view(1, 2), torch.ones(1, 2), NONE),
    "ListMLE without relevance": lambda x: listmle_loss(x.view(1, 2), torch.zeros(1, 2), TWO),
    "ListMLE of one item": lambda x: listmle_loss(x.view(1, 2), torch.ones(1, 2), ONE),
    "LambdaLoss of equals": lambda x: lambda_loss(x.view(1, 2), torch.ones(1, 2), TWO),
    "LambdaLoss of one item": lambda x: lambda_loss(x.view(1, 2), torch.tensor([[3.0, torch.nan]]), ONE),
    "slots of padding": lambda x: masked_slot_loss(
        log_probs(x).expand(1, 1, 1, 1, 2), PADDED, hidden_slots(PADDED), torch.ones(1, 1, 1)
    ),
    "slot of one candidate": lambda x: masked_slot_loss(
        log_probs(x, ONE).expand(1, 1, 1, 1, 2), SHOWN, hidden_slots(SHOWN), torch.ones(1, 1, 1)
    ),
    "edits that gain nothing": lambda x: neighbour_loss(
        log_probs(x), log_probs(x).unsqueeze(1).expand(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), 0.2
    ),
    "edits of padding": lambda x: neighbour_loss(
        torch.full((1, 1, 2), -torch.inf), log_probs(x).unsqueeze(1) + NEVER, torch.zeros(1, 1, 2, 2), 0.2
    ),
    "mean of no slates": lambda x: slate_mean(x.view(1, 2), torch.full((1, 2, 3), -100)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("what", NOTHING)
def test_nothing_to_learn_costs_nothing(what: str, dtype: torch.dtype) -> None:
    numbers = torch.zeros(2, dtype=dtype, requires_grad=True)
    loss = NOTHING[what](numbers)
    loss.sum().backward()  # still part of the graph
    assert loss.dtype == torch.float32
    assert loss.abs().max().item() == 0.0
    assert numbers.grad is not None
    assert numbers.grad.tolist() == [0.0, 0.0]


#: The same functions where there is something: what they cost by hand, and how they pull at the two numbers.
SOMETHING: dict[str, tuple[Callable[[Tensor], Tensor], float, list[float]]] = {
    "likelihood": (lambda x: likelihood(x, SHOWN), math.log(2), [-0.5, 0.5]),
    "unlikelihood": (lambda x: unlikelihood_loss(log_probs(x), SHOWN, TWO), math.log(2), [0.5, -0.5]),
    "no positive": (
        lambda x: feedback_loss(x.view(1, 1, 2), torch.zeros(1, 1, 2), TWO[:, :1]),
        math.log(2),
        [0.25] * 2,
    ),
    "likelihood of no positive": (
        lambda x: -feedback_log_likelihood(x.view(1, 1, 2), torch.zeros(1, 1, 2), TWO[:, :1]).sum(-1),
        2 * math.log(2),
        [0.5] * 2,
    ),
    "mean likelihood": (lambda x: mean_feedback_loss(x.view(1, 2), TWO, 2) + 1, 1.0, [-0.25] * 2),
    "hard label": (lambda x: hard_label_loss(log_probs(x).unsqueeze(1), SHOWN), math.log(2), [-0.5, 0.5]),
    "soft label": (
        lambda x: soft_label_loss(log_probs(x).unsqueeze(1), torch.tensor([[[[0.25, 0.75]]]]), SHOWN),
        0.25 * math.log(0.5) + 0.75 * math.log(1.5),
        [0.25, -0.25],
    ),
    "counts": (
        lambda x: ordered_regression_loss(x.view(1, 1, 2, 1), torch.tensor([[[1.0, 0.0]]]), TWO[:, :1]),
        math.log(2),
        [-0.25, 0.25],
    ),
    "exit": (lambda x: 1 + exit_log_likelihood(x.view(1, 2), x.view(1, 2), ONE, TWO).sum(-1), 1.0, [1.0, 0.0]),
    "regression": (
        lambda x: cumulative_regression_loss(x.view(1, 2), torch.tensor([[1.0, 2.0]]), TWO),
        (1 + 9) / 2,
        [-1.0, -3.0],
    ),
    "advantages": (lambda x: advantages(x.view(1, 2) + EARNED, TWO, False).square().sum(1), 2.0, [-2.0, 2.0]),
    "deviations": (lambda x: standardised(x.view(1, 2) + EARNED, TWO)[:, 1] + x[0], 1.0, [1.0, 0.0]),
    "group": (lambda x: group_loss(x.view(1, 2) - 1, torch.zeros(1, 2) + EARNED, TWO), 1.0, [-0.1192, -0.8808]),
    "targets": (lambda x: (group_targets(EARNED, TWO) * (x + 1)).sum(1), 1.0, [0.1192, 0.8808]),
    "value of a group": (lambda x: group_value_loss(x.view(1, 2), EARNED, TWO), -2.0, [0.5, -0.5]),
    "policy gradient": (lambda x: policy_gradient_loss(x.view(1, 1, 2) - 1, EARNED.unsqueeze(1)), 4.0, [-1.0, -3.0]),
    "returns": (lambda x: returns_to_go(x.view(1, 2) + EARNED, discount=0.5)[:, 0], 2.5, [1.0, 0.5]),
    "preference": (
        lambda x: dpo_loss(x[:1] - x[1:], torch.zeros(1), TWO[0, :1], beta=1.0),
        math.log(2),
        [-0.5, 0.5],
    ),
    "balance of a group": (lambda x: group_balance(x.view(1, 2), EARNED, TWO), 1.0, [1.0, -1.0]),
    "balance of a slate": (
        lambda x: trajectory_balance(x.view(1, 1, 2), torch.ones(1, 1, 2), EARNED[:, 1:], SHOWN.expand(1, 1, 2)),
        4.0,
        [-4.0, -4.0],
    ),
    "balance of steps": (
        lambda x: detailed_balance(x.view(1, 1, 2), torch.ones(1, 1, 2), EARNED[:, 1:], SHOWN.expand(1, 1, 2)),
        4.0,
        [0.0, -4.0],
    ),
    "softmax": (lambda x: softmax_ranking_loss(x, torch.tensor([3.0, 0.0]), TWO[0]), math.log(2), [-0.5, 0.5]),
    "ListNet": (
        lambda x: listnet_loss(x, torch.tensor([1.0, 0.0]), TWO[0]),
        math.log(2),
        [0.5 - math.e / (1 + math.e), math.e / (1 + math.e) - 0.5],
    ),
    "attention rank": (lambda x: attention_rank_loss(x, torch.tensor([1.0, 0.0]), TWO[0]), math.log(2), [-0.5, 0.5]),
    "ListMLE": (lambda x: listmle_loss(x, torch.tensor([3.0, 1.0]), TWO[0]), math.log(2), [-0.5, 0.5]),
    "LambdaLoss": (
        lambda x: lambda_loss(x, torch.tensor([3.0, 0.0]), TWO[0], k=1),
        math.log(2),
        [-0.5, 0.5],
    ),
    "edits": (  # what a slot has is kept or exchanged for something better: it may be edited as well as the other
        lambda x: neighbour_loss(
            torch.tensor([[[0.5, 0.5]]]).log(),
            log_probs(x).unsqueeze(2).expand(1, 1, 2, 2),
            torch.tensor([[[[0.0, 2.0], [0.0, 2.0]]]]),
            0.2,
        ),
        -1.0 + 0.2 * math.log(2),
        [0.5, -0.5],
    ),
    "mean of one slate": (lambda x: slate_mean(x.view(1, 2) + 3, torch.tensor([[[0], [-100]]])), 3.0, [1.0, 0.0]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("what", SOMETHING)
def test_something_to_learn_does_not(what: str, dtype: torch.dtype) -> None:
    numbers = torch.zeros(2, dtype=dtype, requires_grad=True)
    function, expected, pull = SOMETHING[what]
    loss = function(numbers)
    loss.sum().backward()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert numbers.grad is not None
    assert numbers.grad.tolist() == pytest.approx(pull, rel=1e-2)


def test_autocast_does_not_reach_into_a_loss() -> None:
    states = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 5, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):  # which would multiply the states in half precision
        found = contrastive_loss(states, mask, margin=1.5)
    assert torch.equal(found, contrastive_loss(states, mask, margin=1.5))


def test_half_precision_is_widened_before_anything_overflows_or_vanishes() -> None:
    far = torch.tensor([[-300.0, 300.0]], dtype=torch.float16)  # its square is infinite
    found = cumulative_regression_loss(far, torch.zeros(1, 2), TWO)
    assert found.item() == 90_000.0
    sure = log_probabilities(torch.tensor([[[8.0, 0.0]]], dtype=torch.float16))
    assert likelihood_loss(sure[..., 0]).item() == pytest.approx(math.exp(-8.0), rel=1e-2)
    zero = torch.zeros(1, 2, 3, dtype=torch.float16, requires_grad=True)  # a norm of 0, and 1e-12 is 0 in float16
    contrastive_loss(zero, TWO, margin=2.0).sum().backward()
    assert torch.isfinite(zero.grad).all()


def test_double_precision_stays() -> None:
    assert log_probabilities(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("error", [1e15, 1e30, 3e38])
def test_huge_errors_of_a_regression_are_bounded(error: float) -> None:
    values = torch.tensor([[0.0, 0.0]], requires_grad=True)
    loss = cumulative_regression_loss(values, torch.tensor([[1.0, error]]), TWO)
    loss.sum().backward()
    assert loss.item() == pytest.approx((1 + 1e30) / 2)
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()
    assert values.grad[0, 0].item() == -1.0  # what can be learned is


def test_every_loss_is_tested_here() -> None:
    source = inspect.getsource(inspect.getmodule(test_every_loss_is_tested_here))  # type: ignore[arg-type]
    cases = source[source.index("NOTHING: dict") : source.index("def test_autocast")]
    for name in losses.__all__:
        helpers = {"in_single_precision", "log_probabilities", "position_log_likelihood", "likelihood_loss"}
        helpers |= {"resorted_slates", "RANKING_LOSSES"}  # the first has no gradient
        assert name in helpers or f"{name}(" in cases, name
