"""Results of evaluations: rows of a table, paired differences, mean and spread over runs."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rerankzoo.evaluation.counterfactual import Estimate
from rerankzoo.evaluation.logged import Key
from rerankzoo.metrics import Spread, mean_and_spread, paired_bootstrap

UPSTREAM = ("upstream", "sort")
RANDOM = ("random", "sample")
LOGGED = ("logged", "log")
ORACLE = ("oracle", "pointwise")
LAMBDAMART = ("LambdaMART", "sort")
CEILING = ("correctly specified", "best")
BASELINES = (UPSTREAM, RANDOM, LOGGED, LAMBDAMART, ORACLE, CEILING)
#: Baselines that know more than a log tells.
INFORMED = (ORACLE, CEILING)

#: What an evaluator says of slates that it may have chosen or taught: agreement with it, not quality.
OPINIONS = ("value", "gap", "hr@1%", "hr@10%")
#: What nothing but a model says: where a difference of it is sure, so is the model, and nobody knows of what.
PREDICTED = ("value", "judge_value", "crossfit_value")
#: What gets no interval: an interval over requests would say nothing of what a model is off about its own log.
WITHOUT_INTERVAL = (*OPINIONS, "crossfit_value")
#: With fewer requests the resampling of a bootstrap knows no tails.
MIN_REQUESTS = 20

# Slates of equal value may change their order with the batching of an evaluator: a hit more or less among hundreds.
_NOISE = 0.01

SAME = " = "  # between the names of decodings that chose alike


@dataclass(frozen=True)
class _Line:
    model: str  # whose slates: a model's, or "upstream", "random", "logged", "oracle"
    decoding: str

    @property
    def key(self) -> Key:
        """Model and decoding."""
        return self.model, self.decoding


@dataclass(frozen=True)
class Row(_Line):
    """One line of the table: metrics of one run, as fractions."""

    seed: int
    metrics: dict[str, float]
    slates: str | None = None  # digest of all slates: rows with the same one chose alike

    def without(self, told: Callable[[str], bool]) -> Row:
        """A copy without some metrics."""
        return replace(self, metrics={name: value for name, value in self.metrics.items() if not told(name)})


@dataclass(frozen=True)
class Summary(_Line):
    """One line of the table over several runs: mean and sample standard deviation of each metric."""

    metrics: dict[str, Spread]
    slates: tuple[str, ...] = ()  # digests of the slates of each run, where they are known


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured of one run of one model."""

    rows: list[Row]  # baselines first, then the model under each decoding
    protocol: dict[str, Any]  # how it was measured; JSON-able
    primary: str | None  # the metric by which rows are compared; `None` where nothing is known of slates
    per_request: dict[Key, Tensor] = field(repr=False)  # the primary metric of every request (R,), by row
    requests: str  # identifies the requests: runs on the same ones are paired
    counterfactual: dict[Key, list[Estimate]] = field(default_factory=dict)  # what the log says of each row
    logged: str = ""  # what there is to say of all of `counterfactual`, or why it is empty

    @property
    def seed(self) -> int:
        """The run."""
        return self.rows[0].seed

    def row(self, model: str, decoding: str) -> Row:
        """The row of a model and decoding; KeyError if there is none."""
        for row in self.rows:
            if row.key == (model, decoding):
                return row
        raise KeyError(f"no row {(model, decoding)}; there are {[row.key for row in self.rows]}")

    def with_protocol(self, **notes: Any) -> Evaluation:
        """A copy whose protocol says more."""
        return replace(self, protocol={**self.protocol, **notes})

    def with_metrics(self, model: str, metrics: Mapping[str, float], decoding: str | None = None) -> Evaluation:
        """A copy whose rows of a model, or of one of its decodings, say more."""
        asked = [row.model == model and decoding in (None, row.decoding) for row in self.rows]
        rows = [
            replace(row, metrics={**row.metrics, **metrics}) if one else row
            for row, one in zip(self.rows, asked, strict=True)
        ]
        return replace(self, rows=rows)

    def without(self, told: Callable[[str], bool], why: Mapping[str, str]) -> Evaluation:
        """A copy without metrics that too little feedback tells, and why; without its primary one nothing compares."""
        if not why:
            return self
        kept = replace(self, rows=[row.without(told) for row in self.rows])
        kept = kept.with_protocol(not_shown={**self.protocol.get("not_shown", {}), **why})
        if self.primary is None or not told(self.primary):
            return kept
        return replace(kept, primary=None, per_request={}).with_protocol(primary_metric=None)

    def with_own_evaluator(self) -> Evaluation:
        """A copy whose baselines lack what an evaluator says: the models of its table have different evaluators."""
        rows = [row.without(is_by_evaluator) if row.key in BASELINES else row for row in self.rows]
        return replace(self, rows=rows)


@dataclass(frozen=True)
class Comparison:
    """A paired difference a - b of the primary metric, with its 95 % interval over the requests.

    One of `WITHOUT_INTERVAL`, and of too few requests, has none.
    """

    metric: str
    a: Key
    b: Key
    mean: float  # of a - b over the requests
    low: float | None
    high: float | None
    num_requests: int
    predicted: float | None = None  # the same difference by the evaluator that may have chosen or taught

    @property
    def significant(self) -> bool | None:
        """Whether the interval leaves out 0; `None` without one, and of what only a model says."""
        if self.low is None or self.high is None or self.metric in PREDICTED:
            return None
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, Any]:
        """The JSON form: what there is not, such as the interval of an opinion, is no key of it."""
        sides = {side: dict(zip(("model", "decoding"), getattr(self, side), strict=True)) for side in ("a", "b")}
        found = {**asdict(self), **sides, "significant": self.significant}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Comparison:
        """Reads the JSON form."""
        a, b = ((values[side]["model"], values[side]["decoding"]) for side in ("a", "b"))
        low, high, predicted = (values.get(name) for name in ("low", "high", "predicted"))
        return cls(values["metric"], a, b, values["mean"], low, high, values["num_requests"], predicted)


def unique_rows(evaluations: Sequence[Evaluation]) -> list[Row]:
    """The rows of several evaluations without repeated baselines; baselines first.

    Raises:
        ValueError: If two runs of a model have the same seed, or a baseline has different figures for one seed.
    """
    rows: dict[tuple[str, str, int], Row] = {}
    for row in (row for evaluation in evaluations for row in evaluation.rows):
        key = (*row.key, row.seed)
        known = rows.setdefault(key, row)
        one, other = known.metrics, row.metrics
        rows[key] = replace(known, metrics={**other, **one})
        # What an evaluator says of a baseline may be missing.
        agree = all(map(is_by_evaluator, one.keys() ^ other.keys())) and all(
            math.isclose(one[name], other[name], abs_tol=_NOISE) for name in one.keys() & other.keys()
        )
        if known is not row and not (row.key in BASELINES and agree):
            raise ValueError(
                f"row {row.key} of seed {row.seed} was measured twice: {one} and {other}; one table "
                "needs one seed per run of a model, and the same requests and the same evaluator for every row"
            )
    order = {key: index for index, key in enumerate(BASELINES)}
    return sorted(rows.values(), key=lambda row: order.get(row.key, len(order)))


def aggregate(evaluations: Sequence[Evaluation]) -> list[Summary]:
    """Mean and sample standard deviation over runs, for every model and decoding, in the order of `unique_rows`.

    A metric that some runs lack is averaged over those that have it. Errors are those of `unique_rows`, and no runs.
    """
    if not evaluations:
        raise ValueError("aggregate needs at least one evaluation")
    return summarize(unique_rows(evaluations))


def summarize(rows: Iterable[Row]) -> list[Summary]:
    """Mean and sample standard deviation of the rows of each model and decoding, in the order of their first rows."""
    values: dict[Key, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    slates: dict[Key, list[str]] = defaultdict(list)
    for row in rows:
        slates[row.key] += [row.slates] if row.slates else []
        for name, value in row.metrics.items():
            values[row.key][name].append(value)
    return [
        Summary(*key, {name: mean_and_spread(runs) for name, runs in metrics.items()}, tuple(slates[key]))
        for key, metrics in values.items()
    ]


def compare(evaluations: Evaluation | Sequence[Evaluation], a: Key, b: Key) -> Comparison:
    """The difference of two rows in the primary metric, with a paired bootstrap interval (95 %, over requests).

    Runs on the same requests are averaged before the requests are resampled, for they are not independent; runs on
    other requests (of another simulated world) add theirs. The spread over training runs is not in the interval.

    Raises:
        ValueError: If there is no primary metric, if it differs between evaluations, or if a or b is not there.
    """
    runs = [evaluations] if isinstance(evaluations, Evaluation) else list(evaluations)
    metrics = {run.primary for run in runs}
    if len(metrics) != 1 or None in metrics:
        raise ValueError(f"evaluations must share one primary metric, got {sorted(map(str, metrics))}")
    metric = str(metrics.pop())
    same = [[run for run in runs if run.requests == one] for one in dict.fromkeys(run.requests for run in runs)]
    first, second = (torch.cat([_mean_of_runs(group, key) for group in same]) for key in (a, b))
    predicted = None if metric == "value" else _predicted(runs, a, b)
    if metric in WITHOUT_INTERVAL or len(first) < MIN_REQUESTS:
        return Comparison(metric, a, b, (first - second).mean().item(), None, None, len(first), predicted)
    found = paired_bootstrap(first, second)
    return Comparison(metric, a, b, found.mean, found.low, found.high, found.num_requests, predicted)


def differences(evaluations: Sequence[Evaluation]) -> list[Comparison]:
    """The comparisons that a table of results invites.

    Every decoding of every model with the upstream order (with random slates where there is none) and with the model's
    first decoding; and the model's best decoding with each of its others.
    """
    if any(run.primary is None for run in evaluations):
        return []
    reference = UPSTREAM if all(UPSTREAM in run.per_request for run in evaluations) else RANDOM
    rows = [summary for summary in merge_identical(aggregate(evaluations)) if summary.key not in BASELINES]
    rows = [replace(row, decoding=row.decoding.split(SAME)[0]) for row in rows]
    metric = str(evaluations[0].primary)
    pairs = dict.fromkeys((row.key, reference) for row in rows)
    for model in dict.fromkeys(row.model for row in rows):
        first, *others = same = [row for row in rows if row.model == model]
        best = max(same, key=lambda row: row.metrics[metric].mean)
        pairs.update(dict.fromkeys((row.key, first.key) for row in others))
        pairs.update(dict.fromkeys((best.key, row.key) for row in others if row is not best))
    return [compare(evaluations, a, b) for a, b in pairs]


def merge_identical(summaries: Sequence[Summary]) -> list[Summary]:
    """The same lines, but one for the decodings of a model that chose the same slates in every run."""
    merged: dict[Any, Summary] = {}
    for row in summaries:
        same = (row.model, row.slates or row.decoding)
        names = [merged[same].decoding, row.decoding] if same in merged else [row.decoding]
        merged[same] = replace(merged.get(same, row), decoding=SAME.join(names))
    return list(merged.values())


def merged_protocol(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The protocol of several runs: what they share once, and what differs as a list with one entry per run."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for run in evaluations for key in run.protocol):
        values = [run.protocol.get(key) for run in evaluations]
        merged[key] = values[0] if all(value == values[0] for value in values) else values
    return merged


def _predicted(runs: Iterable[Evaluation], a: Key, b: Key) -> float | None:
    """The difference of two rows by the evaluator, where it valued both."""
    rows = [(row.key, row.metrics["value"]) for run in runs for row in run.rows if "value" in row.metrics]
    first, second = ([value for key, value in rows if key == wanted] for wanted in (a, b))
    return statistics.fmean(first) - statistics.fmean(second) if first and second else None


def is_by_evaluator(name: str) -> bool:
    """Whether a metric is what an evaluator says, the judge included."""
    return name in OPINIONS or name.startswith(("judge_", "crossfit_"))


def _mean_of_runs(runs: Iterable[Evaluation], key: Key) -> Tensor:
    """(R,), the mean over the runs that have this row, one per seed."""
    by_seed = {run.seed: run.per_request[key] for run in runs if key in run.per_request}
    if not by_seed:
        raise ValueError(f"no evaluation on these requests has the row {key}")
    return torch.stack(list(by_seed.values())).mean(0)
