"""Results of evaluations: rows of a table, paired differences, mean and spread over runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rerankzoo.metrics import Estimate, Spread, mean_and_spread, paired_bootstrap

UPSTREAM = ("upstream", "sort")
RANDOM = ("random", "sample")
LOGGED = ("logged", "log")
ORACLE = ("oracle", "pointwise")
BASELINES = (UPSTREAM, RANDOM, LOGGED, ORACLE)

# Slates of equal value may change their order with the batching of an evaluator: a hit more or less among hundreds.
_NOISE = 0.01

Key = tuple[str, str]
"""Model and decoding: what a row is about."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        model: Whose slates: a model's name, or "upstream", "random", "logged", "oracle".
        decoding: How they were decoded.
        seed: The run.
        metrics: Fractions, not percentages.
    """

    model: str
    decoding: str
    seed: int
    metrics: dict[str, float]

    @property
    def key(self) -> Key:
        """Model and decoding."""
        return self.model, self.decoding


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found for one run of one model.

    Attributes:
        rows: Baselines first, then the model under each decoding.
        protocol: How it was measured; JSON-able.
        primary: The metric by which rows are compared; `None` where nothing is known of slates.
        per_request: The primary metric of every request (R,), by row.
        requests: Identifies the requests: runs on the same ones are paired.
    """

    rows: list[Row]
    protocol: dict[str, Any]
    primary: str | None
    per_request: dict[Key, Tensor] = field(repr=False)
    requests: str

    @property
    def seed(self) -> int:
        """The run."""
        return self.rows[0].seed

    def row(self, model: str, decoding: str) -> Row:
        """The row of a model and decoding.

        Raises:
            KeyError: If there is none.
        """
        for row in self.rows:
            if row.key == (model, decoding):
                return row
        raise KeyError(f"no row {(model, decoding)}; there are {[row.key for row in self.rows]}")

    def with_protocol(self, **notes: Any) -> Evaluation:
        """A copy whose protocol says more."""
        return replace(self, protocol={**self.protocol, **notes})

    def with_metrics(self, model: str, metrics: Callable[[str], Mapping[str, float]]) -> Evaluation:
        """A copy whose rows of a model say more; `metrics` tells what, by the name of the decoding."""
        rows = [
            replace(row, metrics={**row.metrics, **metrics(row.decoding)}) if row.model == model else row
            for row in self.rows
        ]
        return replace(self, rows=rows)

    def with_own_evaluator(self) -> Evaluation:
        """A copy whose baselines lack the evaluator's opinion: the models of its table have different evaluators."""
        rows = [
            replace(row, metrics={name: value for name, value in row.metrics.items() if not _is_opinion(name)})
            if row.key in BASELINES
            else row
            for row in self.rows
        ]
        return replace(self, rows=rows)


@dataclass(frozen=True)
class Comparison:
    """A paired difference a - b of the primary metric, with its 95 % interval.

    Attributes:
        metric: The primary metric.
        a: Model and decoding.
        b: Model and decoding.
        difference: Mean of a - b and its interval.
    """

    metric: str
    a: Key
    b: Key
    difference: Estimate

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; `significant` where the interval leaves out 0."""
        found = self.difference
        return {
            "metric": self.metric,
            "a": dict(zip(("model", "decoding"), self.a, strict=True)),
            "b": dict(zip(("model", "decoding"), self.b, strict=True)),
            "mean": found.mean,
            "low": found.low,
            "high": found.high,
            "num_requests": found.num_requests,
            "significant": found.low > 0 or found.high < 0,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Comparison:
        """Reads the JSON form."""
        a, b = ((values[side]["model"], values[side]["decoding"]) for side in ("a", "b"))
        found = Estimate(values["mean"], values["low"], values["high"], values["num_requests"])
        return cls(values["metric"], a, b, found)


@dataclass(frozen=True)
class Summary:
    """One line of the table over several runs.

    Attributes:
        model: See `Row`.
        decoding: See `Row`.
        metrics: Mean and sample standard deviation over the runs.
    """

    model: str
    decoding: str
    metrics: dict[str, Spread]

    @property
    def key(self) -> Key:
        """Model and decoding."""
        return self.model, self.decoding


def unique_rows(evaluations: Sequence[Evaluation]) -> list[Row]:
    """The rows of several evaluations without repeated baselines; baselines first.

    Raises:
        ValueError: If two runs of a model have the same seed, or a baseline has different figures for one seed: then it
            was measured with another evaluator or on other requests, and the rows do not belong in one table.
    """
    rows: dict[tuple[str, str, int], Row] = {}
    for row in (row for evaluation in evaluations for row in evaluation.rows):
        key = (*row.key, row.seed)
        known = rows.setdefault(key, row)
        rows[key] = replace(known, metrics={**row.metrics, **known.metrics})
        if known is not row and not (row.key in BASELINES and _agree(known.metrics, row.metrics)):
            raise ValueError(
                f"row {row.key} of seed {row.seed} was measured twice: {known.metrics} and {row.metrics}; one table "
                "needs one seed per run of a model, and the same requests and the same evaluator for every row"
            )
    order = {key: index for index, key in enumerate(BASELINES)}
    return sorted(rows.values(), key=lambda row: order.get(row.key, len(order)))


def aggregate(evaluations: Sequence[Evaluation]) -> list[Summary]:
    """Mean and sample standard deviation over runs, for every model and decoding.

    Args:
        evaluations: One per run; runs of one model have different seeds. Of several models too.

    Returns:
        Lines in the order of `unique_rows`. A metric that some runs lack is averaged over those that have it.

    Raises:
        ValueError: If there is no evaluation, and as `unique_rows`.
    """
    if not evaluations:
        raise ValueError("aggregate needs at least one evaluation")
    return summarize(unique_rows(evaluations))


def summarize(rows: Iterable[Row]) -> list[Summary]:
    """Mean and sample standard deviation of the rows of each model and decoding, in the order of their first rows."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.key, []).append(row)
    return [Summary(*key, metrics=_spreads(same)) for key, same in groups.items()]


def compare(evaluations: Evaluation | Sequence[Evaluation], a: Key, b: Key) -> Comparison:
    """Paired bootstrap interval (95 %, over requests) of the difference of two rows in the primary metric.

    Runs on the same requests are averaged request by request before the requests are resampled, for they are not
    independent; runs on other requests (of another simulated world) add theirs. The spread over training runs is not in
    the interval: `aggregate` tells it.

    Args:
        evaluations: One evaluation, or several: of several runs, or of the models that a and b are about.
        a: Model and decoding.
        b: Model and decoding.

    Returns:
        The difference a - b.

    Raises:
        ValueError: If there is no primary metric, if it differs between evaluations, or if a or b is not there.
    """
    runs = [evaluations] if isinstance(evaluations, Evaluation) else list(evaluations)
    metrics = {run.primary for run in runs}
    if len(metrics) != 1 or None in metrics:
        raise ValueError(f"evaluations must share one primary metric, got {sorted(map(str, metrics))}")
    values: tuple[list[Tensor], list[Tensor]] = ([], [])
    for requests in dict.fromkeys(run.requests for run in runs):
        same = [run for run in runs if run.requests == requests]
        for key, parts in zip((a, b), values, strict=True):
            parts.append(_mean_of_runs(same, key))
    metric = str(metrics.pop())
    return Comparison(metric, a, b, paired_bootstrap(torch.cat(values[0]), torch.cat(values[1])))


def differences(evaluations: Sequence[Evaluation]) -> list[Comparison]:
    """The comparisons that a table of results invites.

    Every decoding of every model with the upstream order (with random slates where there is none) and with the model's
    first decoding; and the model's best decoding with each of its others.
    """
    if any(run.primary is None for run in evaluations):
        return []
    reference = UPSTREAM if all(UPSTREAM in run.per_request for run in evaluations) else RANDOM
    rows = [summary for summary in aggregate(evaluations) if summary.key not in BASELINES]
    metric = str(evaluations[0].primary)
    pairs = dict.fromkeys((row.key, reference) for row in rows)
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        best = max(own, key=lambda row: row.metrics[metric].mean)
        pairs.update(dict.fromkeys((row.key, own[0].key) for row in own[1:]))
        pairs.update(dict.fromkeys((best.key, row.key) for row in own if row.key not in (best.key, own[0].key)))
    return [compare(evaluations, a, b) for a, b in pairs]


def merged_protocol(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The protocol of several runs: what they share once, and what differs as a list with one entry per run."""
    keys = dict.fromkeys(key for run in evaluations for key in run.protocol)
    merged: dict[str, Any] = {}
    for key in keys:
        values = [run.protocol.get(key) for run in evaluations]
        merged[key] = values[0] if all(value == values[0] for value in values) else values
    return merged


def _agree(one: dict[str, float], other: dict[str, float]) -> bool:
    """Whether two measurements say the same, but for an evaluator's opinion, which one of them may lack."""
    return all(
        math.isclose(one[name], other[name], abs_tol=_NOISE) if name in one and name in other else _is_opinion(name)
        for name in one.keys() | other.keys()
    )


def _is_opinion(name: str) -> bool:
    """Whether a metric is what an evaluator thinks."""
    return name.startswith(("hr@", "judge_")) or name in ("value", "gap")


def _mean_of_runs(runs: Iterable[Evaluation], key: Key) -> Tensor:
    """(R,), the mean over the runs that have this row, one per seed."""
    found = {run.seed: run.per_request[key] for run in runs if key in run.per_request}
    if not found:
        raise ValueError(f"no evaluation on these requests has the row {key}")
    return torch.stack(list(found.values())).mean(0)


def _spreads(rows: Sequence[Row]) -> dict[str, Spread]:
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    return {name: mean_and_spread([row.metrics[name] for row in rows if name in row.metrics]) for name in names}
