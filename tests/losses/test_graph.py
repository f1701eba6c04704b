from __future__ import annotations

from itertools import combinations, pairwise

import torch
from torch import Tensor

from rerankzoo.losses import graph_log_likelihood, log_transitions


def tables(seed: int = 0, requests: int = 2, vertices: int = 6, candidates: int = 5) -> tuple[Tensor, Tensor]:
    """Random log-probabilities of candidates at vertices (B, V, N) and of transitions (B, V + 2, V + 2)."""
    torch.manual_seed(seed)
    emissions = (2 * torch.randn(requests, vertices, candidates)).log_softmax(-1)
    return emissions, log_transitions(2 * torch.randn(requests, vertices + 2, vertices + 2))


def brute_force(emissions: Tensor, transitions: Tensor, slate: list[int]) -> Tensor:
    """The probability of one slate of one request: the sum over all paths, spelled out."""
    last, total = len(emissions) + 1, torch.zeros(())
    for between in combinations(range(1, last), len(slate)):
        chance = sum(float(emissions[v - 1, item]) for v, item in zip(between, slate, strict=True))
        chance += sum(float(transitions[u, v]) for u, v in pairwise((0, *between, last)))
        total = total + torch.tensor(chance).exp()
    return total


def test_is_the_sum_over_all_paths() -> None:
    emissions, transitions = tables()
    slates = torch.tensor([[[0, 1, 2], [4, 2, 0], [3, 1, -100], [2, -100, -100], [-100] * 3]]).expand(2, -1, -1)
    found = graph_log_likelihood(emissions, transitions, slates)
    for request in range(2):
        for number, slate in enumerate(slates[request].tolist()):
            items = [item for item in slate if item >= 0]
            expected = brute_force(emissions[request], transitions[request], items) if items else torch.ones(())
            torch.testing.assert_close(found[request, number].exp(), expected, rtol=1e-5, atol=1e-7)


def test_is_a_distribution_over_slates_once_paths_of_that_length_are() -> None:
    emissions, transitions = tables(vertices=3)
    every = torch.cartesian_prod(*[torch.arange(5)] * 3).expand(2, -1, -1)  # items may repeat here
    paths = transitions.diagonal(1, 1, 2).sum(-1).exp()  # the only path through three vertices
    torch.testing.assert_close(graph_log_likelihood(emissions, transitions, every).exp().sum(-1), paths)


def test_transitions_go_forward_only() -> None:
    chances = log_transitions(torch.randn(4, 6, 6)).exp()
    assert (chances.tril() == 0).all()
    torch.testing.assert_close(chances[:, :-1].sum(-1), torch.ones(4, 5))
    assert (chances[:, -1] == 0).all()


def test_gradients_are_finite_and_reach_every_possible_transition() -> None:
    emissions, logits = torch.randn(1, 4, 5, requires_grad=True), torch.randn(1, 6, 6, requires_grad=True)
    slates = torch.tensor([[[0, 1, 2], [3, -100, -100], [-100] * 3]])
    graph_log_likelihood(emissions.log_softmax(-1), log_transitions(logits), slates).sum().backward()
    assert torch.isfinite(emissions.grad).all()
    assert torch.isfinite(logits.grad).all()
    forward = torch.ones(6, 6).triu(1).bool()
    forward[4] = False  # from the last but one there is one way only: nothing to learn
    assert (logits.grad[0][forward] != 0).all()
    assert (logits.grad[0].tril() == 0).all()
