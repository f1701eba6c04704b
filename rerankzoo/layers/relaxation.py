"""Relaxed choices: soft slates that gradients pass through. No config, no model.

B requests, S slates, M positions, N candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import widened

#: Of a candidate that positions above have taken, what is left of it.
_LEAST_LEFT = 1e-7


def gumbel_choices(
    logits: Tensor, candidate_mask: Tensor, temperature: float, num_slates: int = 1, distinct: bool = True
) -> Tensor:
    """Draws soft slates: `softmax((z_t + Gumbel noise) / temperature)` at every position t.

    Args:
        logits: (B, M, N).
        candidate_mask: (B, N), True where a candidate is real.
        temperature: The lower, the nearer a draw is to a single candidate.
        num_slates: S.
        distinct: Whether position t has only what those above have left of each candidate: the logarithm of
            `1 - sum over s < t of P_s` is added to its logits. Else one candidate may stand everywhere.

    Returns:
        (B, S, M, N), rows that sum to 1; 0 in the rows of positions for which a request has no candidate.

    References:
        Jang et al., Maddison et al., both 2017 (Gumbel-softmax). `distinct` is ours.
    """
    logits = widened(logits).masked_fill(~candidate_mask.unsqueeze(1), torch.finfo(torch.float32).min)
    size = (logits.shape[0], num_slates, *logits.shape[1:])
    uniform = torch.rand(size, device=logits.device).clamp(torch.finfo(torch.float32).tiny, 1 - 1e-7)
    noisy = (logits.unsqueeze(1) - (-uniform.log()).log()).clamp_min(torch.finfo(torch.float32).min / 2)
    filled = torch.arange(size[2], device=logits.device) < candidate_mask.sum(-1, keepdim=True)  # (B, M)
    rows, left = [], torch.ones_like(noisy[:, :, 0])
    for position in noisy.unbind(2):
        position = position + left.clamp_min(_LEAST_LEFT).log() if distinct else position
        row = F.softmax((position / temperature).clamp_min(torch.finfo(torch.float32).min), dim=-1)
        rows.append(row.masked_fill(~candidate_mask.unsqueeze(1), 0.0))
        left = left - rows[-1]
    return torch.stack(rows, dim=2).masked_fill(~filled[:, None, :, None], 0.0)
