"""What can put a value on any slate of a request: the truth of a simulated world, and evaluators.

B requests, R of them at a time, N candidates, M positions, S slates, K chosen slates per request (one per row of the
table that is being made).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from rerankzoo.batch import PADDING, inputs
from rerankzoo.data.simulator import Simulator
from rerankzoo.generation import Batch, Evaluator
from rerankzoo.metrics import RankEstimate, all_slates, count_better, estimate_rank, uniform_slates

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


@dataclass(frozen=True)
class _Space:
    """What is known of all slates of R requests, which have equally many.

    Attributes:
        values: (R, P) float64, of all slates, or of a sample.
        best: (R,) float64, the value of the best slate that is known.
    """

    values: Tensor
    best: Tensor

    def row(self, number: int) -> _Space:
        """One request's share, as a copy, which keeps no batch alive."""
        return _Space(self.values[number].clone(), self.best[number].clone())

    @classmethod
    def stack(cls, rows: list[_Space]) -> _Space:
        """Puts requests together."""
        return cls(torch.stack([row.values for row in rows]), torch.stack([row.best for row in rows]))


class Judge(ABC):
    """Values slates, and ranks a slate among all A(n, m) = n! / (n - m)! of its request.

    What it found of all slates of a request is kept: the slates of the next model on the same requests are ranked
    without valuing all slates again. A judge therefore belongs to one table of requests.

    Attributes:
        max_exact: Where a request has more slates than this, `num_samples` uniformly drawn ones stand for them.
        num_samples: Slates drawn then.
        tolerance: A slate is better if it exceeds the chosen one by more than this share of the larger of the two.
    """

    max_exact: int
    num_samples: int = 10_000
    tolerance: float = 1e-6

    def __init__(self) -> None:
        self._spaces: dict[tuple[int, int], _Space] = {}  # by row of the table and length of the slates

    @abstractmethod
    def values(self, batch: Batch, slates: Tensor) -> Tensor:
        """Values (B, S) float64, on the CPU, of slates (B, S, M), -100 pads."""

    def improve(self, batch: Batch, slates: Tensor) -> Tensor:
        """Slates (B, M) as good as these or better, where looking for them is cheap; else the same."""
        return slates

    def strong_slates(self, batch: Batch, slate_size: int) -> Tensor | None:
        """Slates (B, S, M) that are likely better than sampled ones, to know a better optimum; `None` if none are."""
        return None

    def rank(self, batch: Batch, slates: Tensor, chosen: Tensor, slate_size: int, seed: int) -> Ranking:
        """Ranks chosen slates among all slates of their request.

        Args:
            batch: The requests, whose numbers of candidates may differ; `request_index` tells them apart.
            slates: (B, K, M), the chosen slates.
            chosen: (B, K), their values.
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
                space = self._space(part, size, length, listed, generator)
                for column in range(chosen.shape[1]):
                    rank = self._ranks(space.values, chosen[rows, column], listed)
                    share[rows, column], low[rows, column], high[rows, column] = rank
                own = slates.cpu()[rows, chosen[rows].argmax(1), :length]
                best[rows] = self._best(part, space, own, listed)
        return Ranking(RankEstimate(share, low, high), best, exact)

    def _space(self, batch: Batch, size: int, length: int, listed: bool, generator: torch.Generator) -> _Space:
        """All slates of requests with `size` candidates each, or a sample of them, valued once."""
        keys = [(index, length) for index in batch["request_index"].tolist()]
        if not all(key in self._spaces for key in keys):
            found = self._explore(batch, size, length, listed, generator)
            self._spaces.update({key: found.row(number) for number, key in enumerate(keys)})
        return _Space.stack([self._spaces[key] for key in keys])

    def _explore(self, batch: Batch, size: int, length: int, listed: bool, generator: torch.Generator) -> _Space:
        slates = _list(batch, size, length) if listed else self._sample(batch, length, generator)
        values = self.values(batch, slates)
        if listed:
            return _Space(values, values.amax(1))
        best = slates[torch.arange(len(slates)), values.argmax(1)]
        return _Space(values, self._best_below(batch, best[:, None], self.strong_slates(batch, length)))

    def _best_below(self, batch: Batch, *groups: Tensor | None) -> Tensor:
        """The best values (R,) found from groups of slates (R, S, M) on: the best of each is improved."""
        found = []
        for slates in (group for group in groups if group is not None):
            best = slates[torch.arange(len(slates)), self.values(batch, slates).argmax(1)]
            found.append(self.values(batch, self.improve(batch, best)[:, None]))
        return torch.cat(found, dim=1).amax(1)

    def _sample(self, batch: Batch, length: int, generator: torch.Generator) -> Tensor:
        return uniform_slates(batch["candidate_mask"].cpu(), length, self.num_samples, generator)

    def _ranks(self, values: Tensor, chosen: Tensor, listed: bool) -> RankEstimate:
        """Ranks (R,) of one chosen slate per request."""
        if not listed:
            return estimate_rank(values, chosen, tolerance=self.tolerance)
        share = count_better(values, chosen, tolerance=self.tolerance).double() / values.shape[1]
        return RankEstimate(share, share, share)

    def _best(self, batch: Batch, space: _Space, chosen: Tensor, listed: bool) -> Tensor:
        """Best known values (R,). Where not all slates were valued, the chosen ones (R, M) may lead to a better one."""
        if listed:
            return space.best
        best = torch.maximum(space.best, self._best_below(batch, chosen[:, None]))
        for index, value in zip(batch["request_index"].tolist(), best, strict=True):
            self._spaces[index, chosen.shape[1]].best.copy_(value)
        return best


class SimulatorJudge(Judge):
    """The exact expected utility of slates in the simulated world that the requests come from.

    Args:
        simulator: The world.
        data: The requests, whose row numbers are the batches' `request_index`.
        item_id: The column of the candidates' ids.
    """

    max_exact = 200_000
    num_samples = 100_000

    def __init__(self, simulator: Simulator, data: Dataset, item_id: str) -> None:
        super().__init__()
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

    def improve(self, batch: Batch, slates: Tensor) -> Tensor:
        """See `Judge.improve`: local search on the true utility."""
        return torch.from_numpy(self.simulator.local_search(*self._ids(batch), slates.cpu().numpy()))

    def pointwise(self, batch: Batch, slate_size: int) -> Tensor:
        """The slates (B, M) of a ranker that knows the true stand-alone value of every candidate."""
        oracle = torch.from_numpy(
            self.simulator.pointwise_oracle(*self._ids(batch), min(slate_size, self.items.shape[1]))
        )
        return torch.nn.functional.pad(oracle, (0, slate_size - oracle.shape[1]), value=PADDING)

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

    def __init__(self, evaluator: Evaluator) -> None:
        super().__init__()
        self.evaluator = evaluator

    @torch.no_grad()
    def values(self, batch: Batch, slates: Tensor) -> Tensor:
        """See `Judge.values`."""
        known = inputs(batch)
        slates = slates.to(batch["candidate_mask"].device)
        parts = slates.split(max(1, _CHUNK_SLATES // len(slates)), dim=1)
        return torch.cat([self.evaluator.score_slates(part, **known).double().cpu() for part in parts], dim=1)


def _list(batch: Batch, size: int, length: int) -> Tensor:
    """All slates (R, P, M) of requests with `size` candidates each."""
    # Real candidates first, in order; they need not be a prefix of the padded ones.
    order = batch["candidate_mask"].cpu().long().argsort(dim=1, descending=True, stable=True)[:, :size]
    return order[:, torch.tensor(all_slates(size, length))]


@dataclass(frozen=True)
class Judges:
    """All that can value slates of one table of requests; for several models on it, made once.

    Attributes:
        truth: Of the simulated world, where the data is simulated.
        evaluator: Values every row's slates; it may also choose and teach.
        judge: An independent evaluator: values every row's slates, chooses and teaches nothing.
    """

    truth: SimulatorJudge | None = None
    evaluator: EvaluatorJudge | None = None
    judge: EvaluatorJudge | None = None

    @classmethod
    def of(
        cls,
        data: Dataset,
        item_id: str,
        metadata: Mapping[str, Any] | None = None,
        evaluator: Evaluator | None = None,
        judge: Evaluator | None = None,
    ) -> Judges:
        """Makes the judges of a table.

        Args:
            data: The requests.
            item_id: The column of the candidates' ids.
            metadata: Of the data folder; a simulator's reveals the truth.
            evaluator: See above.
            judge: See above.
        """
        simulated = metadata is not None and metadata.get("source") == "simulator"
        return cls(
            truth=SimulatorJudge(Simulator.from_metadata(metadata or {}), data, item_id) if simulated else None,
            evaluator=EvaluatorJudge(evaluator) if evaluator is not None else None,
            judge=EvaluatorJudge(judge) if judge is not None else None,
        )
