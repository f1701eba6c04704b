"""What values slates, evaluators and the truth of a simulated world, and where slates stand among all by that value.

B requests, N candidates, M positions, S slates, K chosen slates per request (one per row of the table), P slates of the
space of a request, or of a sample of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F

from rerankzoo.batch import PADDING, Batch, inputs, take
from rerankzoo.data.simulator import Simulator
from rerankzoo.data.simulator.ceiling import CorrectlySpecified
from rerankzoo.generation import Evaluator
from rerankzoo.metrics import RankEstimate, count_better, estimate_rank
from rerankzoo.slates import all_slates, uniform_slates

_CHUNK_VALUES = 2**18  # slates of the space valued for one group of requests: sampling keys are N times as many
_CHUNK_SLATES = 2**14  # slates in one forward pass of an evaluator
_TRUTH_BEAMS = 16


class _Group(NamedTuple):
    """Requests of a batch that have equally many candidates and positions, hence equally many slates."""

    rows: Tensor  # their places in the batch
    batch: Batch
    num_candidates: int
    length: int  # of their slates
    listed: bool  # whether all their slates are valued, not a sample
    keys: list[tuple[int, int]]  # what tells their spaces apart: row of the data and length of the slates


class SlateRanks(ABC):
    """Values slates, and ranks a slate among all A(n, m) = n! / (n - m)! of its request.

    The values of all slates of a request are kept: the slates of the next model on the same requests are ranked without
    valuing them again. The object therefore belongs to one table of requests, told apart by `request_index`.
    """

    max_exact: int  # where a request has more slates than this, uniformly drawn ones stand for them
    num_samples: int  # slates drawn then
    tolerance: float  # see `rerankzoo.metrics.count_better`

    def __init__(self) -> None:
        self._spaces: dict[tuple[int, int], Tensor] = {}

    @abstractmethod
    def values(self, batch: Batch, slates: Tensor) -> Tensor:
        """Values (B, S) float64, on the CPU, of slates (B, S, M), -100 pads."""

    def rank(self, batch: Batch, chosen: Tensor, slate_size: int, seed: int) -> RankEstimate:
        """Ranks chosen slates, of values `chosen` (B, K), among all slates of M of their request.

        A request with fewer than M candidates has slates of all of them, one with a `slate_length` slates of so many.
        `seed` is that of samples.

        Returns:
            Share of all slates that are strictly better, each (B, K) float64. The interval has no width where all
            slates of the request were valued, and only there.
        """
        generator = torch.Generator().manual_seed(seed)
        ranks = torch.zeros(3, *chosen.shape, dtype=torch.float64)
        for group in self._groups(batch, slate_size):
            values = self._space(group, generator)
            for column, one in enumerate(chosen[group.rows].unbind(1)):
                if group.listed:
                    estimate = count_better(values, one, tolerance=self.tolerance).double() / values.shape[1]
                else:
                    estimate = torch.stack(estimate_rank(values, one, tolerance=self.tolerance))
                ranks[:, group.rows, column] = estimate
        return RankEstimate(*ranks)

    def _groups(self, batch: Batch, slate_size: int) -> Iterator[_Group]:
        sizes = batch["candidate_mask"].sum(1).cpu()
        lengths = torch.minimum(sizes, batch.get("slate_length", sizes).cpu()).clamp_max(slate_size)
        for size, length in torch.stack([sizes, lengths], dim=1).unique(dim=0).tolist():
            alike = (sizes == size) & (lengths == length)
            listed = math.perm(size, length) <= self.max_exact
            num_slates = math.perm(size, length) if listed else self.num_samples
            for rows in alike.nonzero()[:, 0].split(max(1, _CHUNK_VALUES // num_slates)):
                part = take(batch, rows.to(batch["candidate_mask"].device))
                keys = [(index, length) for index in part["request_index"].tolist()]
                yield _Group(rows, part, size, length, listed, keys)

    def _space(self, group: _Group, generator: torch.Generator) -> Tensor:
        """Values (B, P) of all slates of a group's requests, or of a sample, found once."""
        if not self._spaces.keys() >= set(group.keys):
            mask = group.batch["candidate_mask"].cpu()
            if group.listed:
                # Real candidates first, in order; they need not be a prefix of the padded ones.
                order = mask.long().argsort(dim=1, descending=True, stable=True)[:, : group.num_candidates]
                slates = order[:, torch.tensor(all_slates(group.num_candidates, group.length))]
            else:
                slates = uniform_slates(mask, group.length, self.num_samples, generator)
            for key, row in zip(group.keys, self._explore(group, slates), strict=True):
                self._spaces[key] = row.clone()
        return torch.stack([self._spaces[key] for key in group.keys])

    def _explore(self, group: _Group, slates: Tensor) -> Tensor:
        """Values (B, P) of the slates (B, P, M) that are the space of a group's requests."""
        return self.values(group.batch, slates)


class EvaluatorRanks(SlateRanks):
    """Values slates by the utility that an evaluator, on the device of the batches, predicts."""

    max_exact = 20_000
    num_samples = 10_000
    tolerance = 1e-5  # float32 noise between two batchings of one slate

    def __init__(self, evaluator: Evaluator) -> None:
        super().__init__()
        self.evaluator = evaluator

    @torch.no_grad()
    def values(self, batch: Batch, slates: Tensor) -> Tensor:
        """See `SlateRanks.values`."""
        known = inputs(batch)
        parts = slates.to(batch["candidate_mask"].device).split(max(1, _CHUNK_SLATES // len(slates)), dim=1)
        return torch.cat([self.evaluator.score_slates(part, **known).cpu().double() for part in parts], dim=1)


class SimulatorTruth(SlateRanks):
    """Values slates by their exact expected utility in the simulated world that the requests come from.

    The row numbers of `data` are the batches' `request_index`; `item_id` is its column of the candidates' ids.
    """

    max_exact = 200_000
    num_samples = 100_000
    tolerance = 1e-6

    def __init__(
        self, simulator: Simulator, data: Dataset, item_id: str, ceiling: CorrectlySpecified | None = None
    ) -> None:
        super().__init__()
        table = data.with_format("arrow")[:]
        self.simulator = simulator
        self.ceiling = ceiling
        self._table = None if ceiling is None else table
        self._attainable: dict[tuple[int, int], Tensor] = {}
        self.users = table["user_id"].to_numpy()
        # Retrieval returns equally many candidates for every request.
        self.items = table[item_id].combine_chunks().flatten().to_numpy().reshape(len(self.users), -1)
        self._best: dict[tuple[int, int], Tensor] = {}

    def values(self, batch: Batch, slates: Tensor) -> Tensor:
        """See `SlateRanks.values`."""
        positions = slates[..., : self.items.shape[1]].cpu().numpy()
        return torch.from_numpy(self.simulator.expected_utility(*self._ids(batch), positions))

    def best(self, batch: Batch, slates: Tensor, chosen: Tensor, slate_size: int) -> Tensor:
        """The value (B,) of each request's best slate, after `rank`; `slates` (B, K, M) are the chosen ones.

        Where not all slates were valued, it is the best that is known: of local searches from the best drawn one, from
        a beam search and from the best of the chosen ones.
        """
        best = torch.zeros(len(chosen), dtype=torch.float64)
        for group in self._groups(batch, slate_size):
            rows, known = group.rows, torch.stack([self._best[key] for key in group.keys])
            if not group.listed:
                improved = self._improved(group, slates.cpu()[rows, chosen[rows].argmax(1), : group.length])
                known = torch.maximum(known, improved)  # and not kept: no model depends on those before it
            best[rows] = known
        return best

    def pointwise(self, batch: Batch, slate_size: int) -> Tensor:
        """The slates (B, M) of a ranker that knows the true stand-alone value of every candidate."""
        length = min(slate_size, self.items.shape[1])
        oracle = torch.from_numpy(self.simulator.pointwise_oracle(*self._ids(batch), length))
        return F.pad(oracle, (0, slate_size - length), value=PADDING)

    def attainable(self, batch: Batch, slate_size: int) -> Tensor:
        """The slates (B, M) that the correctly specified model of the log finds best.

        Raises:
            ValueError: If there is none.
        """
        if self.ceiling is None or self._table is None:
            raise ValueError("no correctly specified model was given")
        length = min(slate_size, self.items.shape[1])
        keys = [(row, length) for row in batch["request_index"].tolist()]
        if not self._attainable.keys() >= set(keys):
            found = torch.from_numpy(self.ceiling.best_slates(self._table.take([row for row, _ in keys]), length))
            self._attainable.update(zip(keys, found, strict=True))
        return F.pad(torch.stack([self._attainable[key] for key in keys]), (0, slate_size - length), value=PADDING)

    def _explore(self, group: _Group, slates: Tensor) -> Tensor:
        values = self.values(group.batch, slates)
        best = values.amax(1)
        if not group.listed:
            drawn = slates[torch.arange(len(slates)), values.argmax(1)]
            searched = self.simulator.beam(*self._ids(group.batch), group.length, num_beams=_TRUTH_BEAMS)
            best = torch.maximum(self._improved(group, drawn), self._improved(group, torch.from_numpy(searched)))
        self._best.update({key: one.clone() for key, one in zip(group.keys, best, strict=True)})
        return values

    def _improved(self, group: _Group, slates: Tensor) -> Tensor:
        """Values (B,) of the local optima that are reached from slates (B, M)."""
        optima = self.simulator.local_search(*self._ids(group.batch), slates.numpy())
        return self.values(group.batch, torch.from_numpy(optima)[:, None])[:, 0]

    def _ids(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        index = batch["request_index"].cpu().numpy()
        return self.users[index], self.items[index]


@dataclass(frozen=True)
class Evaluators:
    """All that values the slates of one table of requests; for several models on it, made once."""

    truth: SimulatorTruth | None = None  # where the data is simulated
    evaluator: EvaluatorRanks | None = None  # it may also choose and teach
    judge: EvaluatorRanks | None = None  # an independent evaluator, which does neither
    cross_fitted: bool = False  # whether the judge learned from the halves of the log that the models learned from
    seed: int = 0  # of sampled ranks

    @classmethod
    def of(
        cls,
        data: Dataset,
        item_id: str,
        metadata: Mapping[str, Any] | None = None,
        evaluator: Evaluator | None = None,
        judge: Evaluator | None = None,
        ceiling: CorrectlySpecified | None = None,
        cross_fitted: bool = False,
        seed: int = 0,
    ) -> Evaluators:
        """Those of a table of requests with a column of item ids; a simulator's metadata reveals the truth.

        A `ceiling` is one more baseline beside it.
        """
        simulated = metadata is not None and metadata.get("source") == "simulator"
        truth = SimulatorTruth(Simulator.from_metadata(metadata or {}), data, item_id, ceiling) if simulated else None
        valuing, judging = (None if one is None else EvaluatorRanks(one) for one in (evaluator, judge))
        return cls(truth, valuing, judging, cross_fitted, seed)

    def by_prefix(self) -> dict[str, SlateRanks]:
        """Those that there are, by the prefix of their metrics."""
        known = {"true_": self.truth, "": self.evaluator, "crossfit_" if self.cross_fitted else "judge_": self.judge}
        return {prefix: ranks for prefix, ranks in known.items() if ranks is not None}
