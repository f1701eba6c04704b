"""Measuring several ways to choose slates (the rows of a table) on the same requests, batch by batch.

B requests of a batch, R of all batches, N candidates, M positions, K rows of the table.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor

from rerankzoo import metrics
from rerankzoo.batch import Batch, take
from rerankzoo.evaluation.logged import LOGGED_ENTRIES
from rerankzoo.evaluation.slate_ranks import Evaluators
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.generation.diverse import diversity_fields, item_vectors
from rerankzoo.metrics import RankEstimate

_SHARES = {"hr@1%": 0.01, "hr@10%": 0.10}
_LABEL_METRICS: dict[str, Callable[..., Tensor]] = {
    "ndcg": metrics.ndcg_at_k,
    "map": metrics.average_precision_at_k,
    "recall": metrics.recall_at_k,
    "hit": metrics.hit_at_k,
    "mrr": metrics.reciprocal_rank_at_k,
}


def is_by_labels(metric: str) -> bool:
    """Whether a metric compares slates with labels of candidates."""
    return metric.split("@")[0] in _LABEL_METRICS


@dataclass(frozen=True)
class Catalogue:
    """The items among the candidates of all requests."""

    codes: np.ndarray  # a number for every candidate's item id, request after request
    offsets: np.ndarray  # (R + 1,), where each request's codes begin
    num_items: int  # how many different items there are
    digest: str  # hash of all ids in order: results with the same digest were measured on the same requests

    @classmethod
    def of(cls, data: Dataset, item_id: str) -> Catalogue:
        """Reads the item ids of a table of requests."""
        column: pa.Array = data.with_format("arrow")[:][item_id].combine_chunks()
        lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
        encoded = pc.dictionary_encode(column.flatten())
        codes = encoded.indices.to_numpy().astype(np.int64)
        digest = hashlib.sha256(repr(encoded.dictionary.to_pylist()).encode())
        digest.update(lengths.tobytes() + codes.tobytes())
        return cls(codes, np.append(0, lengths.cumsum()), len(encoded.dictionary), digest.hexdigest()[:16])

    def coverage(self, slates: Tensor) -> Tensor:
        """Distinct items shown over distinct items among the candidates (K,), of slates (R, K, M)."""
        positions = slates.transpose(0, 1).numpy()
        places = self.offsets[:-1, None] + positions  # of padding: meaningless
        counts = [len(np.unique(self.codes[row[real]])) for row, real in zip(places, positions >= 0, strict=True)]
        return torch.tensor(counts) / self.num_items


class MeasuredBatch(NamedTuple):
    """What is measured of a batch: all that the figures of a table are made of."""

    slates: Tensor  # (B, K, M), on the CPU
    columns: dict[str, Tensor]  # by measure (B', K), one row per request that has it; of the best known slates (B,)
    ranks: dict[str, tuple[Tensor, ...]]  # by prefix, the parts of `RankEstimate`, (B', K) each
    logged: Batch  # the entries that the log's own word is asked of, see `LoggedTable`


@dataclass
class Measurements:
    """Measures K slates per request, and gathers that; what there is to measure depends on what is known."""

    schema: FeatureSchema
    slate_size: int
    catalogue: Catalogue
    evaluators: Evaluators
    hr_requests: int = 0  # HR@p% by evaluator and judge looks at this many first requests
    cuts: tuple[int, ...] = ()  # of the ranking metrics by labels; default: the slate size
    num_requests: int = 0
    _columns: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    _ranks: dict[str, list[RankEstimate]] = field(default_factory=lambda: defaultdict(list))
    _slates: list[Tensor] = field(default_factory=list)

    def add(self, part: MeasuredBatch) -> None:
        """Gathers what was measured of the next batch."""
        self._slates.append(part.slates)
        for name, values in part.columns.items():
            self._columns[name].append(values)
        for prefix, rank in part.ranks.items():
            self._ranks[prefix].append(RankEstimate(*rank))
        self.num_requests += len(part.slates)

    def measure(self, batch: Batch, slates: Tensor, first: int, seed: int) -> MeasuredBatch:
        """Measures slates (B, K, M), on the CPU, of a batch; nothing is gathered.

        Args:
            batch: The requests.
            slates: Of them.
            first: The row of the batch's first request.
            seed: Of sampled ranks.
        """
        columns, ranks = self._values(batch, slates, first, seed)
        columns |= self._label_metrics(batch, slates)
        if diversity_fields(self.schema) and self.slate_size > 1:
            vectors = item_vectors(batch, self.schema).cpu()
            columns[f"ild@{self.slate_size}"] = _by_row(slates, metrics.intra_list_distance, vectors, k=self.slate_size)
        logged = {name: batch[name].cpu() for name in LOGGED_ENTRIES if name in batch}
        return MeasuredBatch(slates, columns, ranks, logged)

    def _values(
        self, batch: Batch, slates: Tensor, first: int, seed: int
    ) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, ...]]]:
        """Values of all slates, and ranks: by the truth of all requests, else of the first ones."""
        columns, ranks = {}, {}
        for prefix, evaluator in self.evaluators.by_prefix().items():
            values = columns[f"{prefix}value"] = evaluator.values(batch, slates)
            count = len(slates) if prefix == "true_" else min(len(slates), self.hr_requests - first)
            count = 0 if prefix == "crossfit_" else count  # it is asked of values only
            if count > 0:
                ranked = take(batch, slice(count))
                ranks[prefix] = tuple(evaluator.rank(ranked, values[:count], self.slate_size, seed))
        if truth := self.evaluators.truth:
            columns["true_best"] = truth.best(batch, slates, columns["true_value"], self.slate_size)
        return columns, ranks

    def _label_metrics(self, batch: Batch, slates: Tensor) -> dict[str, Tensor]:
        """Ranking metrics of the requests that have a positive and a negative label."""
        target = self.schema.label_target
        if target is None or "candidate_feedback" not in batch:
            return {}
        mask, relevance = batch["candidate_feedback_mask"].cpu(), batch["candidate_feedback"][..., target].cpu()
        usable = ((relevance > 0) & mask).any(1) & ((relevance <= 0) & mask).any(1)
        known = (relevance[usable], mask[usable])
        return {
            f"{name}@{cut}": _by_row(slates[usable], metric, *known, k=cut)
            for cut in self.cuts or (self.slate_size,)
            for name, metric in _LABEL_METRICS.items()
        }

    def per_request(self, name: str) -> Tensor:
        """A measure's values (R', K), one row per request that has one."""
        if name == "utility":
            values = self.per_request("true_value")
            best = self.per_request("true_best").repeat_interleave(values.shape[1])[:, None]
            return metrics.utility_share(best, values.flatten()).view_as(values)
        return torch.cat(self._columns[name])

    def exact(self, prefix: str) -> bool:
        """Whether all slates of the requests that were ranked were valued, by the evaluator of this prefix."""
        return all(torch.equal(rank.low, rank.high) for rank in self._ranks[prefix])

    def num_labelled(self) -> int:
        """Requests with a positive and a negative label."""
        return sum(len(part) for part in self._columns.get(self._label_metric(), []))

    def _label_metric(self) -> str:
        return f"ndcg@{max(self.cuts, default=self.slate_size)}"

    def primary(self) -> str | None:
        """The metric by which rows are compared: truth where known, else labels, else what judge or evaluator says."""
        if self.evaluators.truth is not None:
            return "utility"
        if self.num_labelled():
            return self._label_metric()
        if self.evaluators.judge is not None:
            return "crossfit_value" if self.evaluators.cross_fitted else "judge_value"
        return "value" if self.evaluators.evaluator is not None else None

    def slates(self) -> Tensor:
        """(R, K, M), those of all rows."""
        return torch.cat(self._slates)

    def digests(self) -> list[str]:
        """A hash of all slates of each of the K rows."""
        columns = self.slates().unbind(1)
        return [hashlib.sha256(column.contiguous().numpy().tobytes()).hexdigest()[:16] for column in columns]

    def rows(self) -> list[dict[str, float]]:
        """All metrics of each of the K rows of the table."""
        found: dict[str, Tensor] = {}
        if self.evaluators.truth is not None:
            found["utility"] = self.per_request("utility").mean(0)
            found["regret"] = 1 - found["utility"]
        for prefix in [prefix for prefix, ranks in self._ranks.items() if ranks]:
            found.update(self._hit_rates(prefix))
        if self.evaluators.truth is not None and self.evaluators.evaluator is not None:
            excess = (self.per_request("value") - self.per_request("true_value")).mean(0)
            found["gap"] = excess / self.per_request("true_best").mean()
        for name, parts in self._columns.items():
            if not name.startswith("true_") and any(len(part) for part in parts):
                found[name] = torch.cat(parts).mean(0)
        found[f"coverage@{self.slate_size}"] = self.catalogue.coverage(self.slates())
        return [
            dict(zip(found, row, strict=True)) for row in zip(*(one.tolist() for one in found.values()), strict=True)
        ]

    def _hit_rates(self, prefix: str) -> dict[str, Tensor]:
        shares, lows, highs = (torch.cat(parts) for parts in zip(*self._ranks[prefix], strict=True))
        ranks = [RankEstimate(*row) for row in zip(shares.T, lows.T, highs.T, strict=True)]
        found = {}
        for name, share in _SHARES.items():
            rates = [metrics.sampled_hit_rate(rank, share) for rank in ranks]
            ends = {"": "mean"}
            # What an evaluator says of slates that it may have chosen or taught gets no interval.
            if prefix and not self.exact(prefix):
                ends.update(_low="low", _high="high")
            for suffix, end in ends.items():
                numbers = [getattr(rate, end) for rate in rates]
                found[f"{prefix}{name}{suffix}"] = torch.tensor(numbers, dtype=torch.float64)
        return found


def _by_row(slates: Tensor, metric: Callable[..., Tensor], *known: Tensor, k: int) -> Tensor:
    """A metric (B, K) of slates (B, K, M)."""
    return torch.stack([metric(one, *known, k=k).double() for one in slates.unbind(1)], dim=1)
