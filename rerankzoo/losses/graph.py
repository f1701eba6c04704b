"""Likelihood of slates as paths through a directed acyclic graph: the sum over all paths, by dynamic programming.

B requests, N candidates, M positions, S slates, G vertices of the graph.
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
        logits: (B, G, G), from the vertex of the row to that of the column.

    Returns:
        (B, G, G), `NO_CHANCE` on the diagonal and below it; rows but the last are distributions.

    Example:
        >>> log_transitions(torch.zeros(1, 3, 3)).exp()
        tensor([[[0.0000, 0.5000, 0.5000],
                 [0.0000, 0.0000, 1.0000],
                 [0.0000, 0.0000, 0.0000]]])
    """
    vertex = torch.arange(logits.shape[-1], device=logits.device)
    backward = vertex <= vertex.unsqueeze(-1)
    return logits.masked_fill(backward, NO_CHANCE).log_softmax(-1).masked_fill(backward, NO_CHANCE)


@in_single_precision
def graph_log_likelihood(log_emissions: Tensor, log_transitions: Tensor, slates: Tensor) -> Tensor:
    """Log-probability of slates, whatever the path: `log sum over paths v of P(path) prod_t P(l_t | v_t)`.

    A path of a slate of m items has m vertices: the first of the graph, the last, and m - 2 between them in ascending
    order. A slate of one item has the first vertex only. The sum over the C(G - 2, m - 2) paths takes m G^2 steps.

    Args:
        log_emissions: (B, G, N), log-probabilities of the candidates at each vertex.
        log_transitions: (B, G, G), see `log_transitions`.
        slates: (B, S, M), indexes into the candidates, -100 pads; M at most G.

    Returns:
        (B, S); 0 for an empty slate.

    References:
        CONGRATS (arXiv 2510.10127), generation loss; Huang et al., Directed acyclic transformer (2022).

    Example:
        >>> emissions = torch.tensor([[[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]]).clamp_min(1e-9).log()
        >>> transitions = torch.tensor([[[0.0, 0.2, 0.8], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]]).clamp_min(1e-9).log()
        >>> graph_log_likelihood(emissions, transitions, torch.tensor([[[0, 1]]])).exp()
        tensor([[0.8000]])
    """
    seen, real = gather_candidates(log_emissions.transpose(1, 2), slates), slates >= 0  # (B, S, M, G)
    vertex = torch.arange(log_emissions.shape[1], device=slates.device)
    mass = seen[:, :, 0].masked_fill(vertex > 0, NO_CHANCE)
    for position in range(1, slates.shape[-1]):
        reached = (mass.unsqueeze(-1) + log_transitions.unsqueeze(1)).logsumexp(2)
        mass = torch.where(real[:, :, position, None], seen[:, :, position] + reached, mass)
    length = real.sum(-1)
    # The transitions keep their place in the graph where no slate has two items.
    whole = torch.where(length > 1, mass[..., -1], mass[..., 0]) + 0.0 * log_transitions[:, None, 0, -1]
    return whole.masked_fill(length == 0, 0.0)
