"""What can put a value on any slate of a request: the truth of a simulated world, and evaluators.

B requests, R of them at a time, N candidates, M positions, S slates, K chosen slates per request (one per row of the
table that is being made).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from rerankzoo.data.simulator import Simulator
from rerankzoo.features.batch import PADDING_INDEX, inputs_only
from rerankzoo.generation import Batch, SlateEvaluator
from rerankzoo.metrics import RankEstimate, all_slates, count_better, estimate_rank, sample_slates

_CHUNK_VALUES = 2**18  # slates of the space valued for one group of requests: sampling keys are N times as many
_CHUNK_SLATES = 2**14  # slates in one forward pass of an evaluator
_TRUTH_BEAMS = 16


@dataclass(frozen=True)
class Ranking:
    """Where the chosen slates stand among all slates of their request.

    Attributes:
        ranks: Share of all slates that are strictly better, with an interval, each (B, K) float64; the interval has no
            width where all slates were valued.
        best: (B,) float64, the value of the best slate: of all, or the best that is known.
        exact: Whether all slates of all requests were valued.
    """

    ranks: RankEstimate
    best: Tensor
    exact: bool


class Judge(ABC):
    """Values slates, and ranks a slate among all A(n, m) = n! / (n - m)! of its request.

    Attributes:
        max_exact: Where a request has more slates than this, `num_samples` uniformly drawn ones stand for them.
        num_samples: Slates drawn then.
        tolerance: A slate is better if it exceeds the chosen one by more than this share of the larger of the two.
    """

    max_exact: int
    num_samples: int = 10_000
    tolerance: float = 1e-6

    @abstractmethod
    def values(self, batch: Batch, slates: Tensor) -> Tensor:
        """Values (B, S) float64, on the CPU, of slates (B, S, M), -100 pads."""

    def strong_slates(self, batch: Batch, slate_size: int) -> Tensor | None:
        """Slates (B, S, M) that are likely better than sampled ones, to know a better optimum; `None` if none are."""
        return None

    def rank(self, batch: Batch, chosen: Tensor, slate_size: int, seed: int) -> Ranking:
        """Ranks chosen slates among all slates of their request.

        Args:
            batch: The requests, whose numbers of candidates may differ.
            chosen: (B, K) values of the chosen slates.
            slate_size: M. A request with fewer candidates has slates of all of them.
            seed: Of the sampling, where there is any.

        Returns:
            The ranking.
        """
        generator = torch.Generator().manual_seed(seed)
        share, low, high = (torch.zeros(chosen.shape, dtype=torch.float64) for _ in range(3))
        best, exact = torch.zeros(len(chosen), dtype=torch.float64), True
        sizes = batch["candidate_mask"].sum(1).cpu()
        for size in sizes.unique().tolist():
            length = min(size, slate_size)
            listed = math.perm(size, length) <= self.max_exact
            exact &= listed
            num_slates = math.perm(size, length) if listed else self.num_samples
            for rows in (sizes == size).nonzero()[:, 0].split(max(1, _CHUNK_VALUES // num_slates)):
                part = {key: value[rows.to(value.device)] for key, value in batch.items()}
                slates = _list(part, size, length) if listed else self._sample(part, length, generator)
                values = self.values(part, slates)
                for column in range(chosen.shape[1]):
                    rank = self._ranks(values, chosen[rows, column], listed)
                    share[rows, column], low[rows, column], high[rows, column] = rank
                best[rows] = self._best(part, values, chosen[rows], length, listed)
        return Ranking(RankEstimate(share, low, high), best, exact)

    def _sample(self, batch: Batch, length: int, generator: torch.Generator) -> Tensor:
        return sample_slates(batch["candidate_mask"].cpu(), length, self.num_samples, generator)

    def _ranks(self, values: Tensor, chosen: Tensor, listed: bool) -> RankEstimate:
        """Ranks (R,) of one chosen slate per request."""
        if not listed:
            return estimate_rank(values, chosen, tolerance=self.tolerance)
        share = count_better(values, chosen, tolerance=self.tolerance).double() / values.shape[1]
        return RankEstimate(share, share, share)

    def _best(self, batch: Batch, values: Tensor, chosen: Tensor, length: int, listed: bool) -> Tensor:
        """Best known values (R,). The chosen slates count too, so that none exceeds the optimum."""
        known = [values, chosen]
        strong = None if listed else self.strong_slates(batch, length)
        if strong is not None:
            known.append(self.values(batch, strong))
        return torch.cat(known, dim=1).amax(1)


class SimulatorJudge(Judge):
    """The exact expected utility of slates in the simulated world that the requests come from.

    Args:
        simulator: The world.
        data: The requests, whose row numbers are the batches' `request_index`.
        item_id: The column of the candidates' ids.
    """

    max_exact = 200_000

    def __init__(self, simulator: Simulator, data: Dataset, item_id: str) -> None:
        table = data.with_format("arrow")[:]
        self.simulator = simulator
        self.users = table["user_id"].to_numpy()
        # Retrieval returns equally many candidates for every request.
        self.items = table[item_id].combine_chunks().flatten().to_numpy().reshape(len(self.users), -1)

    def values(self, batch: Batch, slates: Tensor) -> Tensor:
        """See `Judge.values`."""
        positions = slates[..., : self.items.shape[1]].cpu().numpy()
        return torch.from_numpy(self.simulator.expected_utility(*self._ids(batch), positions))

    def strong_slates(self, batch: Batch, slate_size: int) -> Tensor:
        """The slates (B, 1, M) of a wide beam search on the true utility."""
        slates = self.simulator.beam(*self._ids(batch), slate_size, num_beams=_TRUTH_BEAMS)
        return torch.from_numpy(slates).unsqueeze(1)

    def pointwise(self, batch: Batch, slate_size: int) -> Tensor:
        """The slates (B, M) of a ranker that knows the true stand-alone value of every candidate."""
        oracle = torch.from_numpy(
            self.simulator.pointwise_oracle(*self._ids(batch), min(slate_size, self.items.shape[1]))
        )
        return torch.nn.functional.pad(oracle, (0, slate_size - oracle.shape[1]), value=PADDING_INDEX)

    def _ids(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        index = batch["request_index"].cpu().numpy()
        return self.users[index], self.items[index]


class EvaluatorJudge(Judge):
    """The predicted utility of slates.

    Args:
        evaluator: Values whole slates; on the device of the batches.
    """

    max_exact = 20_000
    tolerance = 1e-5  # float32 noise between two batchings of one slate

    def __init__(self, evaluator: SlateEvaluator) -> None:
        self.evaluator = evaluator

    @torch.no_grad()
    def values(self, batch: Batch, slates: Tensor) -> Tensor:
        """See `Judge.values`."""
        inputs = inputs_only(batch)
        slates = slates.to(batch["candidate_mask"].device)
        parts = slates.split(max(1, _CHUNK_SLATES // len(slates)), dim=1)
        return torch.cat([self.evaluator.score_slates(part, **inputs).double().cpu() for part in parts], dim=1)


def _list(batch: Batch, size: int, length: int) -> Tensor:
    """All slates (R, P, M) of requests with `size` candidates each."""
    # Real candidates first, in order; they need not be a prefix of the padded ones.
    order = batch["candidate_mask"].cpu().long().argsort(dim=1, descending=True, stable=True)[:, :size]
    return order[:, torch.tensor(all_slates(size, length))]
