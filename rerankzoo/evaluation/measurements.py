"""Measuring several ways to choose slates (the rows of a table) on the same requests, batch by batch.

B requests of a batch, R of all batches, N candidates, M positions, K rows of the table.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor

from rerankzoo.batch import Batch, take
from rerankzoo.evaluation.slate_ranks import Evaluators
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.metrics import (
    RankEstimate,
    average_precision_at_k,
    hit_at_k,
    intra_list_distance,
    ndcg_at_k,
    recall_at_k,
    reciprocal_rank_at_k,
    sampled_hit_rate,
    utility_share,
)

SHARES = {"hr@1%": 0.01, "hr@10%": 0.10}
_LABEL_METRICS: dict[str, Callable[..., Tensor]] = {
    "ndcg": ndcg_at_k,
    "map": average_precision_at_k,
    "recall": recall_at_k,
    "hit": hit_at_k,
    "mrr": reciprocal_rank_at_k,
}


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
        places = self.offsets[:-1, None] + slates.transpose(0, 1).numpy()  # of padding: meaningless
        shown = slates.transpose(0, 1).numpy() >= 0
        counts = [len(np.unique(self.codes[row[real]])) for row, real in zip(places, shown, strict=True)]
        return torch.tensor(counts) / self.num_items


@dataclass
class Measurements:
    """Collects measures of K slates per request; what there is to measure depends on what is known."""

    schema: FeatureSchema
    slate_size: int
    catalogue: Catalogue
    evaluators: Evaluators
    hr_requests: int = 0  # HR@p% by evaluator and judge looks at this many first requests
    num_requests: int = 0
    _columns: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    _ranks: dict[str, list[tuple[RankEstimate, bool]]] = field(default_factory=lambda: defaultdict(list))
    _slates: list[Tensor] = field(default_factory=list)

    def add(self, batch: Batch, slates: Tensor, seed: int) -> None:
        """Measures slates (B, K, M), on the CPU, of a batch; `seed` is that of sampled ranks."""
        self._slates.append(slates)
        self._add_values(batch, slates, seed)
        self._add_label_metrics(batch, slates)
        columns = [place for name in diversity_fields(self.schema) for place in _places(self.schema, name)]
        if columns and self.slate_size > 1:
            vectors = batch["candidate_numeric"][..., columns].cpu()
            self._add_column("ild", slates, lambda one, k: intra_list_distance(one, vectors, k=k))
        self.num_requests += len(slates)

    def _add_values(self, batch: Batch, slates: Tensor, seed: int) -> None:
        """Values of all slates, and ranks: by the truth of all requests, else of the first ones."""
        for prefix, evaluator in self.evaluators.by_prefix().items():
            values = evaluator.values(batch, slates)
            self._columns[f"{prefix}value"].append(values)
            count = len(slates) if prefix == "true_" else min(len(slates), self.hr_requests - self.num_requests)
            if count > 0:
                first = take(batch, slice(count))
                self._ranks[prefix].append(evaluator.rank(first, values[:count], self.slate_size, seed))
        if truth := self.evaluators.truth:
            best = truth.best(batch, slates, self._columns["true_value"][-1], self.slate_size)
            self._columns["true_best"].append(best)

    def _add_label_metrics(self, batch: Batch, slates: Tensor) -> None:
        """Ranking metrics of the requests that have a positive and a negative label."""
        target = self.schema.label_target
        if target is None or "candidate_feedback" not in batch:
            return
        mask, relevance = batch["candidate_feedback_mask"].cpu(), batch["candidate_feedback"][..., target].cpu()
        usable = ((relevance > 0) & mask).any(1) & ((relevance <= 0) & mask).any(1)
        labels = relevance[usable], mask[usable]
        for name, metric in _LABEL_METRICS.items():
            self._add_column(name, slates[usable], lambda one, k, metric=metric: metric(one, *labels, k=k))

    def _add_column(self, name: str, slates: Tensor, metric: Callable[..., Tensor]) -> None:
        values = [metric(one, k=self.slate_size).double() for one in slates.unbind(1)]
        self._columns[f"{name}@{self.slate_size}"].append(torch.stack(values, dim=1))

    def per_request(self, name: str) -> Tensor:
        """A measure's values (R', K), one row per request that has one."""
        if name == "utility":
            best = torch.cat(self._columns["true_best"])[:, None]
            return torch.stack([utility_share(best, one) for one in self.per_request("true_value").unbind(1)], dim=1)
        return torch.cat(self._columns[name])

    def exact(self, prefix: str) -> bool:
        """Whether all slates of the requests that were ranked were valued, by the evaluator of this prefix."""
        return all(exact for _, exact in self._ranks[prefix])

    def num_labelled(self) -> int:
        """Requests with a positive and a negative label."""
        return sum(len(part) for part in self._columns.get(f"ndcg@{self.slate_size}", []))

    def primary(self) -> str | None:
        """The metric by which rows are compared: truth where known, else labels, else what judge or evaluator says."""
        if self.evaluators.truth is not None:
            return "utility"
        if self.num_labelled():
            return f"ndcg@{self.slate_size}"
        if self.evaluators.judge is not None:
            return "judge_value"
        return "value" if self.evaluators.evaluator is not None else None

    def metrics(self) -> list[dict[str, float]]:
        """All metrics of each of the K rows."""
        rows: list[dict[str, float]] = [{} for _ in range(self._slates[0].shape[1])]
        if self.evaluators.truth is not None:
            for row, utility in zip(rows, self.per_request("utility").mean(0).tolist(), strict=True):
                row.update({"utility": utility, "regret": 1 - utility})
        for prefix in [prefix for prefix, found in self._ranks.items() if found]:
            self._add_hit_rates(rows, prefix)
        if self.evaluators.truth is not None and self.evaluators.evaluator is not None:
            excess = (self.per_request("value") - self.per_request("true_value")).mean(0)
            _add(rows, "gap", excess / self.per_request("true_best").mean())
        for name, parts in self._columns.items():
            if not name.startswith("true_") and any(len(part) for part in parts):
                _add(rows, name, torch.cat(parts).mean(0))
        _add(rows, f"coverage@{self.slate_size}", self.catalogue.coverage(torch.cat(self._slates)))
        return rows

    def _add_hit_rates(self, rows: list[dict[str, float]], prefix: str) -> None:
        estimates = [estimate for estimate, _ in self._ranks[prefix]]
        for index, row in enumerate(rows):
            rank = RankEstimate(*(torch.cat(parts)[:, index] for parts in zip(*estimates, strict=True)))
            for name, share in SHARES.items():
                rate = sampled_hit_rate(rank, share)
                row[f"{prefix}{name}"] = rate.mean
                # What an evaluator says of slates that it may have chosen or taught gets no interval.
                if prefix and not self.exact(prefix):
                    row.update({f"{prefix}{name}_low": rate.low, f"{prefix}{name}_high": rate.high})


def diversity_fields(schema: FeatureSchema) -> list[str]:
    """The candidate fields whose vectors measure diversity: the dense ones; without any, the numeric ones.

    The upstream score says how good an item is, not what it is, and is left out.
    """
    dense = [spec.name for spec in schema.select("candidate", "dense")]
    numeric = [spec.name for spec in schema.select("candidate", "numeric") if spec.name != schema.upstream_score]
    return dense or numeric


def _places(schema: FeatureSchema, name: str) -> range:
    """The columns of a field in `candidate_numeric`."""
    first = schema.position(name)
    return range(first, first + schema.field(name).size)


def _add(rows: list[dict[str, float]], name: str, values: Tensor) -> None:
    for row, value in zip(rows, values.tolist(), strict=True):
        row[name] = value
