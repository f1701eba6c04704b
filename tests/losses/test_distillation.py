from __future__ import annotations

import math

import pytest
import torch

from rerankzoo.losses import hard_label_loss, soft_label_loss

#: One request, two slates of three positions (the second one padded), three candidates. Chosen ones have -inf.
LOG_PROBS = torch.tensor(
    [[[[0.5, 0.3, 0.2], [0.0, 0.4, 0.6], [0.0, 1.0, 0.0]], [[0.1, 0.8, 0.1], [0.5, 0.5, 0.0], [0.2, 0.2, 0.6]]]]
).log()
SLATES = torch.tensor([[[0, 2, 1], [1, -100, -100]]])
LABELS = torch.tensor(
    [[[[0.2, 0.2, 0.6], [0.0, 0.9, 0.1], [0.0, 1.0, 0.0]], [[0.0, 0.5, 0.5], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]]
)


def test_hard_labels() -> None:
    expected = [-math.log(0.5) - math.log(0.6) - math.log(1.0), -math.log(0.8)]
    assert hard_label_loss(LOG_PROBS, SLATES)[0].tolist() == pytest.approx(expected)


def divergence(q: list[float], p: list[float]) -> float:
    return sum(x * math.log(x / y) for x, y in zip(q, p, strict=True) if x > 0)


def test_soft_labels() -> None:
    first = divergence([0.2, 0.2, 0.6], [0.5, 0.3, 0.2]) + divergence([0.9, 0.1], [0.4, 0.6])
    second = divergence([0.5, 0.5], [0.8, 0.1])
    assert soft_label_loss(LOG_PROBS, LABELS, SLATES)[0].tolist() == pytest.approx([first, second])


def test_soft_labels_that_are_met_cost_nothing() -> None:
    found = soft_label_loss(LOG_PROBS, LOG_PROBS.exp(), SLATES)
    assert found[0].tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


def test_padding_counts_nothing_whatever_it_holds() -> None:
    log_probs, labels = LOG_PROBS.clone(), LABELS.clone()
    log_probs[0, 1, 1:], labels[0, 1, 1:] = torch.nan, torch.nan
    assert torch.equal(hard_label_loss(log_probs, SLATES), hard_label_loss(LOG_PROBS, SLATES))
    assert torch.equal(soft_label_loss(log_probs, labels, SLATES), soft_label_loss(LOG_PROBS, LABELS, SLATES))


def test_gradients_are_finite_beside_impossible_candidates() -> None:
    logits = torch.tensor([[[[0.3, -0.2, 0.1], [0.0, 1.0, -1.0], [0.0, 0.5, 0.0]]]], requires_grad=True)
    left = torch.tensor([[True, True, True], [False, True, True], [False, True, False]])
    log_probs = logits.masked_fill(~left, -1e30).log_softmax(-1).masked_fill(~left, -torch.inf)
    loss = hard_label_loss(log_probs, SLATES[:, :1]) + soft_label_loss(log_probs, LABELS[:, :1], SLATES[:, :1])
    loss.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 0, 0].abs().min() > 0
    # Cross-entropy and divergence pull from the same side: p - one_hot and p - q.
    p = log_probs[0, 0, 0].exp()
    expected = 2 * p - torch.tensor([1.0, 0.0, 0.0]) - LABELS[0, 0, 0]
    torch.testing.assert_close(logits.grad[0, 0, 0], expected.detach())
