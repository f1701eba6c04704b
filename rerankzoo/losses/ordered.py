"""Ordered regression of what prefixes of a slate have counted up to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.losses._precision import in_single_precision
from rerankzoo.losses.feedback import check_probabilities


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
