"""Preferences: of two slates of a request one is better."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import PADDING
from rerankzoo.losses._precision import in_single_precision


@in_single_precision
def dpo_loss(margin: Tensor, reference_margin: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Direct preference optimisation: `-log sigmoid(beta (m - m_ref))`.

    Args:
        margin: (B,), m = log pi(better slate) - log pi(worse slate).
        reference_margin: (B,), the same of the frozen policy that training started with.
        mask: (B,), True where there is a pair.
        beta: The smaller, the farther from the reference the policy may go.

    Returns:
        (B,); 0 without a pair.

    References:
        Rafailov et al., Direct preference optimization (2023), equation 7; GReF (arXiv 2510.25220), Rerank-DPO.

    Example:
        >>> dpo_loss(torch.tensor([1.0]), torch.tensor([-1.0]), torch.tensor([True]), beta=0.5)
        tensor([0.3133])
    """
    farther = (margin - reference_margin).masked_fill(~mask, 0.0)
    return -F.logsigmoid(beta * farther) * mask


def resorted_slates(slates: Tensor, utility: Tensor) -> Tensor:
    """The items of slates in the order of `1 / position + utility`: what earned something moves up.

    Args:
        slates: (B, S, M), as shown; -100 pads.
        utility: (B, S, M), what each position earned.

    Returns:
        (B, S, M); items on a par keep their order.

    References:
        GReF (arXiv 2510.25220), the score of an exposed item, both weights 1, with the utility in place of the click.

    Example:
        >>> resorted_slates(torch.tensor([[[7, 5, 6, -100]]]), torch.tensor([[[0.0, 0.0, 1.0, 0.0]]]))
        tensor([[[   6,    7,    5, -100]]])
    """
    position = torch.arange(1, slates.shape[-1] + 1, device=slates.device)
    scores = (1 / position + utility).masked_fill(slates == PADDING, float("-inf"))
    return slates.gather(-1, scores.argsort(dim=-1, descending=True, stable=True))
