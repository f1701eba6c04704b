"""The board: one row for each model, decoding, world and seed, in a file that grows, and a page made of it alone.

A row keeps the utility of every request, so that models measured at different times, by different people, are compared
in pairs; ranks are told apart only where the 95 % intervals of such differences leave out 0.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torchmetrics.functional import spearman_corrcoef

from rerankzoo.atomic_writing import write_text
from rerankzoo.batch import Batch, take, trim
from rerankzoo.errors import UnreadableFileError, in_one_line
from rerankzoo.evaluation.policies import Decoding, decoder
from rerankzoo.evaluation.report import Shown, spread_text
from rerankzoo.evaluation.results import BASELINES, INFORMED, Evaluation, Key, Row, Summary, summarize
from rerankzoo.evaluation.worlds import with_shares
from rerankzoo.generation import ExhaustiveSearch, GeneratorPool
from rerankzoo.metrics import Estimate, Resampled, resample
from rerankzoo.pages import bullets, table

#: Raised when rows of before are no longer comparable.
PROTOCOL_VERSION = 1
_STEPS = 10_000  # of the optimum: utilities of single requests are kept as whole numbers of so many

#: What is shown: a metric or cost, its heading, how it is written.
_COLUMNS = {
    "utility": ("utility, %", Shown()),
    "share": ("share of the gap, %", Shown(significant=0)),
    "true_hr@1%": ("true HR@1%", Shown(significant=0)),
    "true_hr@10%": ("true HR@10%", Shown(significant=0)),
    "hr@1%": ("own HR@1%", Shown(better=None, significant=0)),
    "gap": ("gap", Shown(better=None, significant=0)),
    "ild": ("ILD", Shown(1.0, 3, None, 3)),
    "coverage": ("coverage, %", Shown(better=None, significant=0)),
    "training_cpu_seconds": ("training, CPU s", Shown(1.0, 0, "min", 1)),
    "serving_ms_1": ("CPU ms, batch 1", Shown(1.0, 2, "min", 2)),
    "serving_ms_32": ("CPU ms, batch 32", Shown(1.0, 2, "min", 2)),
    "evaluator_slates": ("valued by an evaluator, a request", Shown(1.0, 0, None, 1)),
    "parameters": ("parameters", Shown(1.0, 0, None, 1)),
}


@dataclass(frozen=True)
class BoardRow:
    """What one model with one decoding did in one world with one seed.

    Attributes:
        benchmark: The benchmark file that makes the row again.
        world: One of its worlds.
        seed: Of the world and of the training.
        model: One of its models, or a baseline.
        decoding: One of the model's decodings.
        metrics: As of `Evaluation`, fractions.
        costs: `training_cpu_seconds` of all that the row needs; `serving_ms_1` and `serving_ms_32`, CPU milliseconds of
            a batch of so many requests; `evaluator_slates`, how many slates or prefixes an evaluator values for a
            request; `parameters` of the model.
        requests: Identifies the requests.
        utilities: Of every request, in ten-thousandths of its optimum.
        commit: Of the code.
        machine: Where it ran.
        protocol: Version of what a row is.
    """

    benchmark: str
    world: str
    seed: int
    model: str
    decoding: str
    metrics: dict[str, float]
    costs: dict[str, float] = field(default_factory=dict)
    requests: str = ""
    utilities: list[int] = field(default_factory=list)
    commit: str = ""
    machine: str = ""
    protocol: int = PROTOCOL_VERSION

    @property
    def place(self) -> tuple[str, int, str, str]:
        """What there is one row of."""
        return self.world, self.seed, self.model, self.decoding


def board_rows(evaluation: Evaluation, costs: Mapping[Key, Mapping[str, float]], **origin: Any) -> list[BoardRow]:
    """The rows of an evaluation with the truth.

    Args:
        evaluation: Of one model, with its baselines.
        costs: Of the rows that have some.
        **origin: `benchmark`, `world`, `commit`, `machine`.

    Raises:
        ValueError: If the truth is not known.
    """
    if evaluation.primary != "utility":
        raise ValueError(f"a board needs the true utility, the primary metric is {evaluation.primary!r}")
    return [
        BoardRow(
            seed=row.seed,
            model=row.model,
            decoding=row.decoding,
            metrics={name: round(value, 6) for name, value in row.metrics.items() if name != "cpu_seconds"},
            costs=dict(costs.get(row.key, {})),
            requests=evaluation.requests,
            utilities=(evaluation.per_request[row.key] * _STEPS).round().int().tolist(),
            **origin,
        )
        for row in evaluation.rows
    ]


def serving_costs(model: Any, batch: Batch, decoding: Decoding, slate_size: int, evaluator: Any) -> dict[str, float]:
    """CPU milliseconds of a batch of one request and of 32, the least of five; and what an evaluator values for it.

    Args:
        model: The generator, or an evaluator that searches.
        batch: 32 requests.
        decoding: How it is asked.
        slate_size: M.
        evaluator: What chooses, if the decoding says so.
    """
    policy, costs = decoder(model, decoding, slate_size, evaluator), {}
    for count in (1, 32):
        part, seconds = trim(take(batch, slice(0, count))), []
        for _ in range(6):  # the first one warms up
            start = time.process_time()
            policy(part, 0)
            seconds.append(time.process_time() - start)
        costs[f"serving_ms_{count}"] = round(1000 * min(seconds[1:]), 3)
    proposals = len(model.members) if isinstance(model, GeneratorPool) else 1
    valued = proposals * int(decoding.parameters.get("num_return_sequences") or 1) if decoding.use_evaluator else 0
    if isinstance(model, ExhaustiveSearch):
        valued += math.perm(batch["candidate_mask"].shape[1], slate_size)
    elif hasattr(model, "score_slates"):
        size, width = batch["candidate_mask"].shape[1], int(decoding.parameters.get("num_beams", 1))
        valued += sum(min(width, math.perm(size, step)) * (size - step) for step in range(min(slate_size, size)))
    return {**costs, "evaluator_slates": valued, "parameters": sum(weight.numel() for weight in model.parameters())}


def read_board(paths: Iterable[Path]) -> list[BoardRow]:
    """Reads the rows of one or several files, such as those of the shards of a run; equal rows are one.

    Raises:
        FileNotFoundError: If a file is missing.
        UnreadableFileError: If a line is no row, is of another protocol, or contradicts another one.
    """
    rows: dict[Any, BoardRow] = {}
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            place = f"{path}, line {number}"
            try:
                row = BoardRow(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise UnreadableFileError(f"{place} is no row of a board: {in_one_line(error)}") from error
            if row.protocol != PROTOCOL_VERSION:
                raise UnreadableFileError(f"{place}: protocol {row.protocol}, expected {PROTOCOL_VERSION}")
            known = rows.setdefault(row.place, row)
            if (known.requests, known.utilities) != (row.requests, row.utilities):
                raise UnreadableFileError(f"{place}: {row.place} is there already, with other figures")
    return list(rows.values())


def append_rows(path: Path, rows: Iterable[BoardRow]) -> None:
    """Adds rows to a file, which is made if it is missing; those of a place that is there are left out."""
    known = read_board([path]) if path.is_file() else []
    places = {row.place for row in known}
    lines = [json.dumps(asdict(row)) for row in [*known, *(row for row in rows if row.place not in places)]]
    write_text(path, "".join(f"{line}\n" for line in lines))


def has_model(rows: Iterable[BoardRow], world: str, seed: int, model: str) -> bool:
    """Whether a model's rows of a world and seed are there."""
    return any((row.world, row.seed, row.model) == (world, seed, model) for row in rows)


def difference(one: BoardRow, other: BoardRow) -> float:
    """The largest difference of two rows in the utility of a request, in shares of the optimum; 0: the same.

    Raises:
        ValueError: If they are of other requests.
    """
    if one.requests != other.requests:
        raise ValueError(f"rows of different requests: {one.requests} and {other.requests}")
    return max(abs(a - b) for a, b in zip(one.utilities, other.utilities, strict=True)) / _STEPS


def summaries(rows: Sequence[BoardRow], pointwise: Collection[str]) -> list[Summary]:
    """Mean and spread over the seeds of the rows of one world, with the share of the gap, the best first.

    Costs, which nobody can compare between machines, are of the one that made most of the rows.
    """
    machine, _ = Counter(row.machine for row in rows).most_common(1)[0]
    told = [Row(row.model, row.decoding, row.seed, _short(row, row.machine == machine)) for row in rows]
    return sorted(summarize(with_shares(told, pointwise)), key=lambda line: -line.metrics["utility"].mean)


def _short(row: BoardRow, with_costs: bool) -> dict[str, float]:
    """Metrics and maybe costs, without the size of the slates in their names."""
    names = {name: name.partition("@")[0] if name.startswith(("ild@", "coverage@")) else name for name in row.metrics}
    costs = row.costs if with_costs else {}
    return {**{names[name]: value for name, value in row.metrics.items()}, **costs}


def ranks(rows: Sequence[BoardRow]) -> dict[Key, int]:
    """The rank of every model and decoding of one world: 1 + how many are better, with an interval that leaves out 0.

    Compared on the requests of the seeds that both have. What knows more than a log tells has no rank.
    """
    told = _Comparisons(rows)
    keys = [key for key in told.utilities if key not in INFORMED]
    better = {key: [told.gain(other, key) for other in keys if other != key] for key in keys}
    return {key: 1 + sum(gain is not None and gain.low > 0 for gain in better[key]) for key in keys}


def gains(rows: Sequence[BoardRow], pointwise: Collection[str]) -> dict[Key, Estimate]:
    """What every row of one world has above the first of a pointwise ranker, as shares of the optimum.

    Compared on the requests of the seeds that both have, with 95 % intervals over requests.
    """
    told = _Comparisons(rows)
    reference = next((key for key in told.utilities if key[0] in pointwise), None)
    if reference is None:
        return {}
    found = {key: told.gain(key, reference) for key in told.utilities if key != reference}
    return {key: gain for key, gain in found.items() if gain is not None}


class _Comparisons:
    """Pairs of the rows of one world, compared on the requests of the seeds that both have."""

    def __init__(self, rows: Sequence[BoardRow]) -> None:
        self.utilities: dict[Key, dict[int, torch.Tensor]] = {}
        for row in rows:
            utilities = torch.tensor(row.utilities, dtype=torch.float64) / _STEPS
            self.utilities.setdefault((row.model, row.decoding), {})[row.seed] = utilities
        self._known: dict[tuple[Key, tuple[int, ...]], Resampled] = {}

    def gain(self, one: Key, other: Key) -> Estimate | None:
        """The mean difference; `None`: they share no seed."""
        seeds = tuple(sorted(self.utilities[one].keys() & self.utilities[other].keys()))
        return self._drawn(one, seeds).minus(self._drawn(other, seeds)) if seeds else None

    def _drawn(self, key: Key, seeds: tuple[int, ...]) -> Resampled:
        if (key, seeds) not in self._known:
            every = torch.cat([self.utilities[key][seed] for seed in seeds])
            self._known[key, seeds] = resample(every, num_resamples=2_000)
        return self._known[key, seeds]


def overview(rows: Sequence[BoardRow], keys: Sequence[Key] = ()) -> str:
    """One table of the true utility in every world, the best of each in bold.

    Args:
        rows: Of any number of worlds, seeds and models.
        keys: Which models and decodings, in this order; none: all, those with the highest mean over the worlds first.

    Raises:
        ValueError: If there is no such model and decoding.
    """
    shown = _COLUMNS["utility"][1]
    worlds = list(dict.fromkeys(row.world for row in rows))
    told = {
        world: {line.key: line for line in summaries([r for r in rows if r.world == world], ())} for world in worlds
    }
    known = list(dict.fromkeys(key for lines in told.values() for key in lines))
    if unknown := [key for key in keys if key not in known]:
        raise ValueError(f"no rows of {', '.join(unknown[0])}; there are {'; '.join(map(', '.join, known))}")
    cells = [
        [
            *key,
            *(
                _cell(told[world][key], "utility", shown, [*told[world].values()]) if key in told[world] else ""
                for world in worlds
            ),
        ]
        for key in keys or sorted(known, key=lambda key: _standing(told, key))
    ]
    return table(["model", "decoding", *worlds], cells, len(worlds))


def _standing(told: Mapping[str, Mapping[Key, Summary]], key: Key) -> tuple[int, float]:
    """What sorts a row: those of more worlds come first, and of these the higher means."""
    means = [lines[key].metrics["utility"].mean for lines in told.values() if key in lines]
    return -len(means), -sum(means)


def board_page(rows: Sequence[BoardRow], pointwise: Collection[str]) -> str:
    """The page of a board: what was run, a table for each world, and whether the order holds from world to world.

    Args:
        rows: Of any number of worlds, seeds and models.
        pointwise: The models that only sort: where the gap of a world begins.
    """
    worlds = list(dict.fromkeys(row.world for row in rows))
    parts = [_told(rows)]
    if len(worlds) > 1:
        parts.append(f"## All worlds\n\nTrue utility in % of the best slate.\n\n{overview(rows)}")
    tables = {}
    for world in worlds:
        there = [row for row in rows if row.world == world]
        lines, rank = summaries(there, pointwise), ranks(there)
        seeds = sorted({row.seed for row in there})
        requests = len(there[0].utilities)
        parts.append(f"## {world}\n\nSeeds {', '.join(map(str, seeds))}, {requests} test requests each.")
        parts.append(_table(lines, rank, gains(there, pointwise)))
        tables[world] = {line.key: line.metrics["utility"].mean for line in lines if line.key not in BASELINES}
    if agreement := _agreement(tables):
        parts.append(f"## Does the order hold from world to world?\n\n{agreement}")
    return "\n\n".join(parts) + "\n"


def _told(rows: Sequence[BoardRow]) -> str:
    runs = {(row.world, row.model) for row in rows if (row.model, row.decoding) not in BASELINES}
    worlds, models = sorted({world for world, _ in runs}), sorted({model for _, model in runs})
    missing = [f"{model} in {world}" for world in worlds for model in models if (world, model) not in runs]
    lines = [
        f"{len(rows)} rows of {len(models)} models in {len(worlds)} worlds, protocol {PROTOCOL_VERSION}",
        f"by `{'`, `'.join(sorted({row.benchmark for row in rows}))}`",
        f"on {'; '.join(sorted({row.machine for row in rows} - {''})) or 'an unknown machine'}",
        f"code: {', '.join(sorted({row.commit for row in rows} - {''})) or 'not told'}",
    ]
    if missing:
        lines.append(f"not run: {', '.join(missing)}")
    return bullets(lines)


def _table(lines: Sequence[Summary], rank: Mapping[Key, int], gain: Mapping[Key, Estimate]) -> str:
    shown = {name: entry for name, entry in _COLUMNS.items() if any(name in line.metrics for line in lines)}
    cells = []
    for line in lines:
        figures = [_cell(line, name, how, lines) for name, (_, how) in shown.items()]
        above = _interval(gain[line.key]) if line.key in gain else ""
        cells.append([str(rank.get(line.key, "")), line.model, line.decoding, figures[0], above, *figures[1:]])
    first, *others = (text for text, _ in shown.values())
    heads = ["rank", "model", "decoding", first, "above pointwise, points (95 %)", *others]
    return table(heads, cells, len(shown) + 1)


def _interval(gain: Estimate) -> str:
    mean, low, high = Shown().text(gain.mean, gain.low, gain.high, sign="+")
    return f"{mean} ({low} to {high})"


def _cell(line: Summary, name: str, how: Shown, lines: Sequence[Summary]) -> str:
    text = spread_text(line.metrics.get(name), how)
    rivals = [other.metrics[name].mean for other in lines if other.key not in BASELINES and name in other.metrics]
    if how.better is None or not text or line.key in BASELINES or len(rivals) < 2:
        return text
    best = (max if how.better == "max" else min)(rivals)
    return f"**{text}**" if line.metrics[name].mean == best else text


def _agreement(tables: Mapping[str, Mapping[Key, float]]) -> str:
    """Spearman's correlation of the models' utilities between each two worlds that share three models or more."""
    cells = []
    names = list(tables)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            shared = [key for key in tables[one] if key in tables[other]]
            if len(shared) >= 3:
                first, second = (torch.tensor([tables[world][key] for key in shared]) for world in (one, other))
                cells.append([one, other, str(len(shared)), f"{float(spearman_corrcoef(first, second)):.2f}"])
    return table(["world", "world", "rows", "Spearman"], cells, 2) if cells else ""
