"""What a service tells Prometheus: requests, latency, batches, what its requests are like, and how scores drift."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from rerankzoo.features.encoding import UNKNOWN_ID
from rerankzoo.features.extractor import Encoded
from rerankzoo.pipeline import Outcome, RerankingPipeline

#: Drift is that of the last so many scores, told from the smaller number on.
_RECENT, _ENOUGH = 1_000, 100
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The metrics of one process; of several, where PROMETHEUS_MULTIPROC_DIR was set before they started."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry}
        self.requests = Counter("rerankzoo_requests", "Requests, by what became of them", ["outcome"], **own)
        self.seconds = Histogram("rerankzoo_call_seconds", "From a call to its answer", buckets=_SECONDS, **own)
        self.batch = Histogram("rerankzoo_batch_requests", "Requests answered together", buckets=_SIZES, **own)
        self.values = Counter("rerankzoo_values", "Values of answered requests", ["field"], **own)
        self.missing = Counter("rerankzoo_missing_values", "Of these, missing ones", ["field"], **own)
        self.unknown = Counter("rerankzoo_unknown_ids", "Of these, ids not seen in training", ["field"], **own)
        self.reloads = Counter("rerankzoo_reloads", "New checkpoints, by outcome", ["outcome"], **own)
        about = f"Population stability index of the last {_RECENT} scores against those of the reference"
        self.drift = Gauge("rerankzoo_score_drift", about, multiprocess_mode="livemax", **own)

    def text(self) -> bytes:
        """What is scraped."""
        if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            return generate_latest(self._registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)
        return generate_latest(together)

    def count_values(self, requests: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
        """Counts the values of some columns of raw requests, and those that are missing; vectors count once."""
        for name in names:
            found = (request.get(name) for request in requests)
            columns = [column if isinstance(column, list) else [column] for column in found]
            self.values.labels(name).inc(sum(map(len, columns)))
            self.missing.labels(name).inc(sum(column.count(None) for column in columns))


class MonitoredPipeline(RerankingPipeline):
    """A pipeline whose answers are counted."""

    metrics: Metrics | None = None
    #: Borders between the tenths of the reference's scores; `None`: no reference.
    deciles: npt.NDArray[np.float64] | None = None

    def monitor(self, metrics: Metrics, reference: Any = None) -> None:
        """Counts from now on.

        Args:
            metrics: Where.
            reference: Requests of the training log, whose scores are compared with those to come.
        """
        self._recent: deque[int] = deque(maxlen=_RECENT)
        if reference is not None:
            scores = [_mean_score(items) for items in self(reference)]
            self.deciles = np.quantile(scores, np.arange(1, 10) / 10)
        self.metrics = metrics

    def _decode(self, chunk: Encoded, constraints: Any, options: Mapping[str, Any]) -> list[Outcome]:
        answers = super()._decode(chunk, constraints, options)
        if self.metrics is not None:
            self._count_unknown(chunk, self.metrics)
            if self.deciles is not None and not constraints and options.keys() == {"generation_config", "evaluator"}:
                self._recent.extend(np.searchsorted(self.deciles, [_mean_score(items) for items in answers]).tolist())
                if len(self._recent) >= _ENOUGH:
                    self.metrics.drift.set(stability_index(self._recent))
        return answers

    def _count_unknown(self, chunk: Encoded, metrics: Metrics) -> None:
        for group in ("request", "candidate", "history"):
            ids = chunk.batch.get(f"{group}_categorical")
            fields = self.extractor.schema.select(group, "categorical")
            if ids is not None and fields:
                counts = (ids == UNKNOWN_ID).flatten(0, -2).sum(0).tolist()
                for field, count in zip(fields, counts, strict=True):
                    metrics.unknown.labels(field.name).inc(count)


def stability_index(tenths: Iterable[int]) -> float:
    """The population stability index of numbers that were told by tenths (0 to 9) of a reference.

    The sum over tenths of (p - 0.1) log(p / 0.1), where p is a tenth's share, with one number more in each: an empty
    one has no logarithm.
    """
    counts = np.bincount(np.fromiter(tenths, np.int64), minlength=10) + 1
    shares = counts / counts.sum()
    return float(((shares - 0.1) * np.log(shares / 0.1)).sum())


def _mean_score(items: Any) -> float:
    return float(np.mean([item["score"] for item in items]))
