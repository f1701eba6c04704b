"""Losses of evaluators: predicted against observed feedback, and against what prefixes of a slate have earned."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.losses._precision import in_single_precision

#: Errors of a regression beyond it count as much; their squares would overflow.
_LARGEST_ERROR = 1e15


@in_single_precision
def feedback_log_likelihood(logits: Tensor, feedback: Tensor, mask: Tensor, possible: Tensor | None = None) -> Tensor:
    """Log-probability of the feedback of each position, of all its targets together.

    Args:
        logits: (..., M, T), one logit per position and feedback target.
        feedback: (..., M, T), observed feedback in [0, 1].
        mask: (..., M), True where a position was shown.
        possible: (..., M, T), True where a target could happen at all; elsewhere it adds 0. For logits of a target
            given another one, such as an order given a click: this is then the likelihood of both together.

    Returns:
        (..., M), in nats, summed over targets; 0 where nothing was shown.

    Raises:
        ValueError: If shown feedback lies outside [0, 1], where cross-entropy has no meaning. (On an accelerator the
            result is NaN instead.)

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
        >>> feedback_log_likelihood(logits, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([True, False])).sum()
        tensor(-1.3863)
    """
    shown = feedback.masked_fill(~mask.unsqueeze(-1), 0.0)
    if shown.device.type == "cpu":
        check_probabilities(shown)
    loss = F.binary_cross_entropy_with_logits(logits, shown, reduction="none")
    loss = loss if possible is None else loss.masked_fill(~possible, 0.0)
    # Elsewhere a look would wait for the device: there the loss itself tells, and training stops at it.
    loss = loss.masked_fill(~((shown >= 0) & (shown <= 1)), torch.nan).sum(-1)
    return -loss.masked_fill(~mask, 0.0)


@in_single_precision
def feedback_loss(logits: Tensor, feedback: Tensor, mask: Tensor, possible: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of each slate, averaged over its positions and targets.

    Args and errors are those of `feedback_log_likelihood`.

    Returns:
        (...), in nats per position and target; 0 for an empty slate.

    References:
        NAR4Rec (arXiv 2402.06871), evaluator.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.0], [2.0]])
        >>> feedback_loss(logits, torch.tensor([[1.0], [0.0]]), torch.tensor([True, False]))
        tensor(0.6931)
    """
    return mean_feedback_loss(feedback_log_likelihood(logits, feedback, mask, possible), mask, logits.shape[-1])


@in_single_precision
def mean_feedback_loss(log_likelihood: Tensor, mask: Tensor, num_targets: int) -> Tensor:
    """`feedback_loss` (...) from log-probabilities (..., M) of the feedback of shown positions, mask (..., M)."""
    return -log_likelihood.sum(-1) / num_targets / mask.sum(-1).clamp_min(1)


@in_single_precision
def exit_log_likelihood(log_stay: Tensor, log_leave: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of the last position that was seen, by the positions where the user might have left.

    She goes on after every position above the last one seen, and leaves there; what she does behind the last one shown
    nobody knows.

    Args:
        log_stay: (..., M), log-probability of going on after each position.
        log_leave: (..., M), of leaving there.
        seen: (..., M), True where a position is known to have been seen; those above it then were, too.
        mask: (..., M), True where a position was shown.

    Returns:
        (..., M), in nats; 0 where nothing was to be decided, everywhere on a page of which nothing was seen.

    References:
        CAVE (arXiv 2508.02242), exit probabilities.

    Example:
        >>> stay = torch.tensor([0.9, 0.5, 0.5])
        >>> shown = torch.tensor([True, True, True])
        >>> exit_log_likelihood(stay.log(), (1 - stay).log(), torch.tensor([True, True, False]), shown).exp()
        tensor([0.9000, 0.5000, 1.0000])
    """
    reached = (seen & mask).flip(-1).cumsum(-1).flip(-1) > 0
    goes_on = F.pad(reached[..., 1:], (0, 1))
    decided = reached & F.pad(mask[..., 1:], (0, 1))
    return torch.where(goes_on, log_stay, log_leave).masked_fill(~decided, 0.0)


@in_single_precision
def cumulative_regression_loss(values: Tensor, rewards: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error of prefix values: `mean over t of (V(l_1..l_t) - sum_{k<=t} r_k)^2`.

    An error beyond 1e15 counts as 1e15, without a gradient.

    Args:
        values: (..., M), the value of the prefix that ends at each position.
        rewards: (..., M), what each position earned.
        mask: (..., M), True where a position was shown.

    Returns:
        (...); 0 for an empty slate.

    References:
        DeGRe (arXiv 2605.25749), cumulative regression head of the evaluator.

    Example:
        >>> import torch
        >>> values, rewards = torch.tensor([1.0, 1.0, 9.0]), torch.tensor([1.0, 2.0, 5.0])
        >>> cumulative_regression_loss(values, rewards, torch.tensor([True, True, False]))
        tensor(2.)
    """
    reached = rewards.masked_fill(~mask, 0.0).cumsum(-1)
    error = (values - reached).masked_fill(~mask, 0.0).clamp(-_LARGEST_ERROR, _LARGEST_ERROR)
    return error.square().sum(-1) / mask.sum(-1).clamp_min(1)


@in_single_precision
def ordered_regression_loss(logits: Tensor, feedback: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the questions whether a prefix has at least i clicks, averaged over all that can be asked.

    Of the prefix that ends at position t the counts 1..t are asked for, of every target. Feedback between 0 and 1
    counts in part: the answers to a count c are `min(max(c - i + 1, 0), 1)`, and sum to c.

    Args:
        logits: (..., M, T, I), of `P(count of the prefix that ends here >= i)`, i = 1..I.
        feedback: (..., M, T) in [0, 1], observed.
        mask: (..., M), True where a position was shown.

    Returns:
        (...), in nats per question; 0 for an empty slate.

    Raises:
        ValueError: If shown feedback lies outside [0, 1]. (On an accelerator the result is NaN instead.)

    References:
        SORT-Gen (arXiv 2505.07197), ordered regression.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[0.0, 9.0]], [[9.0, -9.0]]])  # two positions, one target
        >>> ordered_regression_loss(logits, torch.tensor([[1.0], [0.0]]), torch.tensor([True, True]))
        tensor(0.2311)
    """
    shown = feedback.masked_fill(~mask.unsqueeze(-1), 0.0)
    if shown.device.type == "cpu":
        check_probabilities(shown)
    shown = shown.masked_fill(~((shown >= 0) & (shown <= 1)), torch.nan)  # elsewhere a look would wait for the device
    below = torch.arange(logits.shape[-1], device=logits.device)  # i - 1
    answers = (shown.cumsum(-2).unsqueeze(-1) - below).clamp(0, 1)
    position = torch.arange(logits.shape[-3], device=logits.device)[:, None, None]
    asked = (mask[..., None, None] & (below <= position)).expand_as(logits)
    loss = F.binary_cross_entropy_with_logits(logits, answers, reduction="none").masked_fill(~asked, 0.0)
    return loss.sum((-1, -2, -3)) / asked.sum((-1, -2, -3)).clamp_min(1)


def check_probabilities(feedback: Tensor) -> None:
    """Refuses feedback that a cross-entropy cannot learn.

    Raises:
        ValueError: If any of it lies outside [0, 1].
    """
    if not bool(((feedback >= 0) & (feedback <= 1)).all()):
        low, high = feedback.min().item(), feedback.max().item()
        raise ValueError(f"field 'feedback': expected values in [0, 1], got a range of [{low}, {high}]")
