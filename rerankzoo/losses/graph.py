"""Likelihood of slates as paths through a directed acyclic graph: the sum over all paths, by dynamic programming.

B requests, N candidates, M positions, S slates, V vertices that draw items; a silent one stands before them, and one
behind.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rerankzoo.batch import gather_candidates
from rerankzoo.losses._precision import in_single_precision

#: The logarithm of no chance at all. Not -inf, whose sums over nothing have no gradient; sums of it stay finite.
NO_CHANCE = -1e30


@in_single_precision
def log_transitions(logits: Tensor) -> Tensor:
    """Log-probabilities of going from one vertex to a later one.

    Masked before the softmax and after it: the last vertex has no successor, and a softmax over nothing is even.

    Args:
        logits: (B, V, V), from the vertex of the row to that of the column; `NO_CHANCE` forbids a transition.

    Returns:
        (B, V, V), `NO_CHANCE` on the diagonal and below it; rows but the last are distributions.

    Example:
        >>> log_transitions(torch.zeros(1, 3, 3)).exp()
        tensor([[[0.0000, 0.5000, 0.5000],
                 [0.0000, 0.0000, 1.0000],
                 [0.0000, 0.0000, 0.0000]]])
    """
    vertex = torch.arange(logits.shape[-1], device=logits.device)
    backward = vertex <= vertex.unsqueeze(-1)
    chances = logits.masked_fill(backward, NO_CHANCE).log_softmax(-1)
    return chances.clamp_min(NO_CHANCE).masked_fill(backward, NO_CHANCE)


@in_single_precision
def graph_log_likelihood(log_emissions: Tensor, log_transitions: Tensor, slates: Tensor) -> Tensor:
    """Log-probability of slates, whatever the path: `log sum over paths v of P(path) prod_t P(l_t | v_t)`.

    The path of a slate of m items goes from the silent first vertex through m others, in ascending order, to the silent
    last one. The sum over the C(V, m) paths takes m V^2 steps.

    Args:
        log_emissions: (B, V, N), log-probabilities of the candidates at each vertex.
        log_transitions: (B, V + 2, V + 2), see `log_transitions`.
        slates: (B, S, M), indexes into the candidates, -100 pads; M at most V.

    Returns:
        (B, S); 0 for an empty slate.

    References:
        CONGRATS (arXiv 2510.10127), generation loss; Huang et al., Directed acyclic transformer (2022).

    Example:
        >>> emissions = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]]).clamp_min(1e-9).log()
        >>> transitions = torch.tensor([[[0.0, 0.8, 0.2, 0.0], [0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.0, 1.0], [0.0] * 4]])
        >>> slates = torch.tensor([[[0, 1], [0, -100]]])
        >>> graph_log_likelihood(emissions, transitions.clamp_min(1e-9).log(), slates).exp()
        tensor([[0.2000, 0.5000]])
    """
    drawn, real = gather_candidates(log_emissions.transpose(1, 2), slates), slates >= 0  # (B, S, M, V)
    between = log_transitions[:, None, 1:-1, 1:-1]
    mass = drawn[:, :, 0] + log_transitions[:, None, 0, 1:-1]
    for position in range(1, slates.shape[-1]):
        further = drawn[:, :, position] + (mass.unsqueeze(-1) + between).logsumexp(2)
        mass = torch.where(real[:, :, position, None], further, mass)
    whole = (mass + log_transitions[:, None, 1:-1, -1]).logsumexp(-1)
    # Those between keep their place in the graph where no slate has two items.
    return (whole + 0.0 * between[..., 0, -1]).masked_fill(~real.any(-1), 0.0)
