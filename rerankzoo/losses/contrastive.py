"""Contrastive loss on candidate representations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.losses._precision import in_single_precision


@in_single_precision
def contrastive_loss(states: Tensor, mask: Tensor, margin: float) -> Tensor:
    """Pushes the representations of a request's candidates apart, up to a margin.

    The mean over pairs i != k of `max(0, margin - cos(h_i, h_i) + cos(h_i, h_k))`. It keeps the similarity penalty of
    contrastive decoding meaningful: without it the representations of a small candidate set collapse into a cone.

    Args:
        states: (B, N, D), one vector per candidate.
        mask: (B, N), True where a candidate is real.
        margin: rho; a pair contributes while its cosine exceeds `1 - margin`.

    Returns:
        (B,); 0 for a request with fewer than two candidates.

    References:
        Su et al., A contrastive framework for neural text generation (SimCTG, 2022), equation 2; NAR4Rec (arXiv
        2402.06871), contrastive loss.

    Example:
        >>> states = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
        >>> contrastive_loss(states, torch.ones(1, 3, dtype=torch.bool), margin=0.5)
        tensor([0.1667])
    """
    unit = F.normalize(states, dim=-1)
    cosine = unit @ unit.transpose(-1, -2)  # (B, N, N)
    others = ~torch.eye(states.shape[1], dtype=torch.bool, device=states.device)
    pairs = mask.unsqueeze(-1) & mask.unsqueeze(-2) & others
    hinge = (margin - 1.0 + cosine).clamp_min(0.0).masked_fill(~pairs, 0.0)
    return hinge.sum((-1, -2)) / pairs.sum((-1, -2)).clamp_min(1)
