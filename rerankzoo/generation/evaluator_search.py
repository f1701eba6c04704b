"""Searches that ask an evaluator only: local search from any generator's slates, and all slates of small requests.

B requests, N candidates, M positions, S slates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import PADDING, Batch, take
from rerankzoo.generation.configuration import RerankingGenerationConfig
from rerankzoo.generation.constraints.rules import SlateRules
from rerankzoo.generation.ensembles import Ensemble
from rerankzoo.generation.scorer import Evaluator
from rerankzoo.generation.search import Decoded
from rerankzoo.slates import all_slates, neighbour_slates


class Refined(NamedTuple):
    """What a local search has found."""

    slates: Tensor  # (B, S, M)
    utilities: Tensor  # (B, S), predicted
    evaluations: Tensor  # (B, S), slates that the evaluator was asked for


def local_search(evaluator: Evaluator, batch: Batch, slates: Tensor, num_refinements: int) -> Refined:
    """Takes the best step to another item or another order as long as one is better, at most `num_refinements` times.

    Slates (B, S, M) are those to start from. Every step asks for all neighbours, M (N - M) + M (M - 1) / 2 of them.
    """
    utilities = evaluator.score_slates(slates, **batch)
    evaluations, searching = torch.ones_like(utilities, dtype=torch.int64), torch.ones_like(utilities, dtype=torch.bool)
    for _ in range(num_refinements):
        steps, valid = neighbour_slates(slates, batch["candidate_mask"])
        if not (searching & valid.any(-1)).any():
            break
        values = evaluator.score_slates(steps.flatten(1, 2), **batch).view(valid.shape)
        best, index = values.masked_fill(~valid, float("-inf")).max(-1)
        evaluations = evaluations + valid.sum(-1) * searching
        searching = searching & (best > utilities)
        step = steps.gather(2, index[..., None, None].expand(-1, -1, 1, slates.shape[-1])).squeeze(2)
        slates = torch.where(searching.unsqueeze(-1), step, slates)
        utilities = torch.where(searching, best, utilities)
    return Refined(slates, utilities, evaluations)


class EvaluatorLocalSearch(Ensemble):
    """A generator whose slates an evaluator improves by `local_search`: without parameters of its own.

    `generate` returns the improved slates; their scores are predicted utilities, and single choices have none (0).

    Args:
        members: The generator that proposes, and the evaluator.
        num_refinements: The most steps.
    """

    options = ("num_refinements",)

    def __init__(self, members: Sequence[Any], num_refinements: int = 4) -> None:
        if len(members) != 2 or num_refinements < 0:
            raise ValueError(f"expected a generator, an evaluator and steps, got {len(members)} and {num_refinements}")
        super().__init__(members)
        self.num_refinements = num_refinements

    def decode(self, batch: Batch, config: RerankingGenerationConfig, rules: SlateRules | None = None) -> Decoded:
        """See `SlateGenerationMixin.decode`; ValueError for constraints, which steps do not keep."""
        if rules is not None:
            raise ValueError("a local search keeps no constraints; decode by its generator")
        generator, evaluator = self.members[0], self.members[1]
        merged = generator.generation_config.merged(**config.parameters())  # type: ignore[union-attr, operator]
        start = generator.decode(batch, merged)  # type: ignore[operator]
        found = local_search(evaluator, batch, start.slates, self.num_refinements)  # type: ignore[arg-type]
        scores = found.utilities.masked_fill(start.scores == float("-inf"), float("-inf"))
        return Decoded(found.slates, scores, torch.zeros_like(start.step_scores))


@torch.no_grad()
def exhaustive_search(evaluator: Evaluator, batch: Batch, slate_size: int, max_slates: int = 20_000) -> Decoded:
    """The slate of highest predicted utility of each request, by asking for all; their values (B, 1) are the scores.

    ValueError where a request has more than `max_slates` slates.
    """
    sizes = batch["candidate_mask"].sum(-1)
    slates = torch.full((len(sizes), slate_size), PADDING, device=sizes.device)
    utilities = torch.zeros(slates.shape, device=sizes.device)[:, :1]
    for size in filter(None, sizes.unique().tolist()):
        rows = (sizes == size).nonzero()[:, 0]
        some, length = take(batch, rows), min(size, slate_size)
        every = torch.tensor(all_slates(size, length), device=sizes.device)
        if len(every) > max_slates:
            raise ValueError(f"{size} candidates have {len(every)} slates of {length}, above max_slates {max_slates}")
        real = some["candidate_mask"].byte().argsort(dim=-1, descending=True, stable=True)
        listed = real[:, every]  # (B', P, M')
        cached = getattr(evaluator, "exhaustive_values", None)  # of an evaluator that shares work among all slates
        values = cached(real[:, :size], length, **some) if cached else evaluator.score_slates(listed, **some)
        best, index = values.max(-1, keepdim=True)
        chosen = listed.gather(1, index.unsqueeze(-1).expand(-1, 1, length))[:, 0]
        slates[rows], utilities[rows] = F.pad(chosen, (0, slate_size - length), value=PADDING), best.float()
    return Decoded(slates.unsqueeze(1), utilities, torch.zeros(slates.shape, device=sizes.device).unsqueeze(1))


class ExhaustiveSearch(Ensemble):
    """The slates that an evaluator values most of all there are, for small requests; it needs to score no prefixes.

    Args:
        members: The evaluator.
        max_slates: ValueError in `generate` where a request has more slates.
    """

    options = ("max_slates",)

    def __init__(self, members: Sequence[Any], max_slates: int = 20_000) -> None:
        if len(members) != 1:
            raise ValueError(f"expected one evaluator, got {len(members)}")
        super().__init__(members)
        self.max_slates = max_slates

    def decode(self, batch: Batch, config: RerankingGenerationConfig, rules: SlateRules | None = None) -> Decoded:
        """See `SlateGenerationMixin.decode`; ValueError for constraints and for several slates of a request."""
        if rules is not None or config.num_return_sequences not in (None, 1):
            raise ValueError("a search of all slates returns the best one, and keeps no constraints")
        size = config.slate_size or self.config.slate_size
        return exhaustive_search(self.members[0], batch, size, self.max_slates)  # type: ignore[arg-type]
