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

from rerankzoo.evaluation.judges import EvaluatorJudge, Judge, Ranking, SimulatorJudge
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.features.tables import Ragged
from rerankzoo.generation import Batch
from rerankzoo.metrics import (
    RankEstimate,
    average_precision_at_k,
    hit_at_k,
    intra_list_distance,
    item_coverage,
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
    """The items among the candidates of all requests.

    Attributes:
        codes: (R, N) int64, a number for every candidate's item id.
        num_items: How many different items there are.
        digest: Hash of all ids in order: results with the same digest were measured on the same requests.
    """

    codes: Tensor
    num_items: int
    digest: str

    @classmethod
    def of(cls, data: Dataset, item_id: str) -> Catalogue:
        """Reads the item ids of a table of requests."""
        column: pa.Array = data.with_format("arrow")[:][item_id].combine_chunks()
        lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
        encoded = pc.dictionary_encode(column.flatten())
        codes = encoded.indices.to_numpy().astype(np.int64)
        digest = hashlib.sha256(repr(encoded.dictionary.to_pylist()).encode())
        digest.update(lengths.tobytes() + codes.tobytes())
        layout = Ragged(np.concatenate([[0], np.cumsum(lengths)]))
        return cls(torch.from_numpy(layout.pad(codes)), len(encoded.dictionary), digest.hexdigest()[:16])


@dataclass
class Measurements:
    """Collects measures of K slates per request; what there is to measure depends on what is known.

    Attributes:
        schema: The fitted schema.
        slate_size: M.
        catalogue: The items among the candidates.
        truth: Values slates truly, where that is known.
        evaluator: Values slates by prediction, where there is an evaluator.
        judge: An independent evaluator, trained on another log and used by nobody to choose or to teach.
        evaluator_requests: HR@p% by evaluator and judge looks at this many first requests.
    """

    schema: FeatureSchema
    slate_size: int
    catalogue: Catalogue
    truth: SimulatorJudge | None = None
    evaluator: EvaluatorJudge | None = None
    judge: EvaluatorJudge | None = None
    evaluator_requests: int = 0
    num_requests: int = 0
    _columns: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    _rankings: dict[str, list[Ranking]] = field(default_factory=lambda: defaultdict(list))
    _slates: list[Tensor] = field(default_factory=list)

    def add(self, batch: Batch, slates: Tensor, seed: int) -> None:
        """Measures slates (B, K, M) of a batch; `seed` is that of sampled ranks."""
        self._slates.append(slates.cpu())
        if self.truth is not None:
            self._judge("true_", self.truth, batch, slates, len(slates), seed)
        for prefix, evaluator in (("", self.evaluator), ("judge_", self.judge)):
            if evaluator is not None:
                self._judge(prefix, evaluator, batch, slates, self.evaluator_requests - self.num_requests, seed)
        self._label(batch, slates)
        self._diversity(batch, slates)
        self.num_requests += len(slates)

    def _judge(self, prefix: str, judge: Judge, batch: Batch, slates: Tensor, num_ranked: int, seed: int) -> None:
        """Values of all slates, and ranks of those of the first `num_ranked` requests."""
        values = judge.values(batch, slates)
        self._columns[f"{prefix}value"].append(values)
        if num_ranked > 0:
            first = {key: value[:num_ranked] for key, value in batch.items()}
            ranking = judge.rank(first, slates[:num_ranked], values[:num_ranked], self.slate_size, seed)
            self._rankings[prefix].append(ranking)

    def _label(self, batch: Batch, slates: Tensor) -> None:
        """Ranking metrics of the requests that have a positive and a negative label."""
        target = self.schema.label_target
        if target is None or "candidate_feedback" not in batch:
            return
        mask = batch["candidate_feedback_mask"].cpu()
        relevance = batch["candidate_feedback"][..., target].cpu()
        positive = relevance > 0
        usable = (positive & mask).any(1) & (~positive & mask).any(1)
        inputs = relevance[usable], mask[usable]
        for name, metric in _LABEL_METRICS.items():
            values = [metric(one[usable], *inputs, k=self.slate_size).double() for one in slates.cpu().unbind(1)]
            self._columns[f"{name}@{self.slate_size}"].append(torch.stack(values, dim=1))

    def _diversity(self, batch: Batch, slates: Tensor) -> None:
        columns = [position for name in diversity_fields(self.schema) for position in _places(self.schema, name)]
        if columns and self.slate_size > 1:
            vectors = batch["candidate_numeric"][..., columns].cpu()
            values = [intra_list_distance(one, vectors, k=self.slate_size).double() for one in slates.cpu().unbind(1)]
            self._columns[f"ild@{self.slate_size}"].append(torch.stack(values, dim=1))

    def per_request(self, name: str) -> Tensor:
        """A measure's values (R', K), one row per request that has one."""
        if name == "utility":
            best = self._best()[:, None]
            return torch.stack([utility_share(best, one) for one in self.per_request("true_value").unbind(1)], dim=1)
        return torch.cat(self._columns[name])

    def exact(self, prefix: str) -> bool:
        """Whether the judge of this prefix ("true_", "" or "judge_") valued all slates of the requests it ranked."""
        return all(ranking.exact for ranking in self._rankings[prefix])

    def num_labelled(self) -> int:
        """Requests with a positive and a negative label."""
        return sum(len(part) for part in self._columns.get(f"ndcg@{self.slate_size}", []))

    def primary(self) -> str | None:
        """The metric by which rows are compared: truth where known, else labels, else the evaluator's opinion."""
        if self.truth is not None:
            return "utility"
        if self.num_labelled():
            return f"ndcg@{self.slate_size}"
        return "value" if self.evaluator is not None else None

    def metrics(self) -> list[dict[str, float]]:
        """All metrics of each of the K rows."""
        rows: list[dict[str, float]] = [{} for _ in range(self._slates[0].shape[1])]
        if self.truth is not None:
            for row, utility in zip(rows, self.per_request("utility").mean(0).tolist(), strict=True):
                row.update({"utility": utility, "regret": 1 - utility})
        for prefix in ("true_", "", "judge_"):
            self._add_hit_rates(rows, prefix)
        if self.truth is not None and self.evaluator is not None:
            gap = (self.per_request("value") - self.per_request("true_value")).mean(0) / self._best().mean()
            _add(rows, "gap", gap)
        means = {name: torch.cat(parts) for name, parts in self._columns.items() if name != "true_value"}
        for name, values in means.items():
            if len(values):
                _add(rows, name, values.mean(0))
        _add(rows, f"coverage@{self.slate_size}", self._coverage())
        return rows

    def _best(self) -> Tensor:
        return torch.cat([ranking.best for ranking in self._rankings["true_"]])

    def _add_hit_rates(self, rows: list[dict[str, float]], prefix: str) -> None:
        rankings = self._rankings.get(prefix)
        if not rankings:
            return
        whole = RankEstimate(
            *(torch.cat(parts) for parts in zip(*(ranking.ranks for ranking in rankings), strict=True))
        )
        for index, row in enumerate(rows):
            rank = RankEstimate(*(part[:, index] for part in whole))
            for name, share in SHARES.items():
                rate = sampled_hit_rate(rank, share)
                row[f"{prefix}{name}"] = rate.mean
                if not self.exact(prefix):
                    row.update({f"{prefix}{name}_low": rate.low, f"{prefix}{name}_high": rate.high})

    def _coverage(self) -> Tensor:
        """(K,), distinct items shown over distinct items among the candidates."""
        codes, num_items = self.catalogue.codes, self.catalogue.num_items
        shown = torch.cat(self._slates).unbind(1)
        return torch.stack([item_coverage(one, codes, num_items, k=self.slate_size) for one in shown])


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
