"""What models are worth in several simulated worlds: one table, with the share of what there is to gain.

The gap of a world lies between the best that sorting reaches (of the upstream order and the rankers that value items
one by one) and the correctly specified model fitted to the same log. A share of it says how much of what the log allows
a model takes; it may be negative, and above 1.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rerankzoo.atomic_writing import write_json, write_text
from rerankzoo.evaluation.report import Shown, spread_text
from rerankzoo.evaluation.results import CEILING, INFORMED, UPSTREAM, Evaluation, Row, Summary, summarize, unique_rows
from rerankzoo.metrics import Spread
from rerankzoo.pages import table

#: A smaller gap, in shares of the optimum, is none: a share of it would be noise.
SMALLEST_GAP = 0.01
_SHOWN = {"utility": "utility", "true_hr@1%": "true HR@1%", "share": "share of the gap"}


def summarise(evaluations: Sequence[Evaluation], pointwise: Collection[str]) -> list[Summary]:
    """Mean and spread over the seeds of one world of every row: utility, HR@1 % and the share of the gap closed.

    Of real logs, whose truth is not known, the primary metric.

    Args:
        evaluations: Of one world.
        pointwise: The models that only sort.
    """
    rows, shown = unique_rows(evaluations), {evaluation.primary for evaluation in evaluations}
    if "utility" in shown:
        rows, shown = with_shares(rows, pointwise), {*_SHOWN}
    return summarize(row.without(lambda name: name not in shown) for row in rows)


def with_shares(rows: Sequence[Row], pointwise: Collection[str]) -> list[Row]:
    """The rows of one world with the share of the gap that each closes, where there is a gap and a share to tell."""
    sorting, told = {UPSTREAM, *((model, "greedy") for model in pointwise)}, []
    for seed in dict.fromkeys(row.seed for row in rows):
        same = {row.key: row for row in rows if row.seed == seed}
        best = max((row.metrics["utility"] for key, row in same.items() if key in sorting), default=0.0)
        gap = same[CEILING].metrics["utility"] - best if CEILING in same else 0.0
        for key, row in same.items():
            share = (row.metrics["utility"] - best) / gap if gap >= SMALLEST_GAP and key not in INFORMED else None
            told.append(row if share is None else replace(row, metrics={**row.metrics, "share": share}))
    return told


def write_worlds(
    worlds: Mapping[str, Sequence[Evaluation]], pointwise: Collection[str], notes: Mapping[str, Any], out: Path
) -> dict[str, Path]:
    """Writes `worlds.json` and `worlds.md`; worlds that are told there already, and are not measured now, stay.

    Args:
        worlds: The evaluations of each world.
        pointwise: The models that only sort.
        notes: What else is to be told of each world, such as which evaluator was chosen.
        out: The folder.
    """
    file = out / "worlds.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"rows": [], "notes": {}}
    rows, notes = [row for row in known["rows"] if row["world"] not in worlds], {**known["notes"], **notes}
    for world, evaluations in worlds.items():
        for line in summarise(evaluations, pointwise):
            figures = {name: vars(spread) for name, spread in line.metrics.items()}
            rows.append({"world": world, "model": line.model, "decoding": line.decoding} | figures)
    parts = []
    for world in dict.fromkeys(row["world"] for row in rows):
        same = [row for row in rows if row["world"] == world]
        known = dict.fromkeys(name for row in same for name, figure in row.items() if isinstance(figure, dict))
        names = list(_SHOWN if "utility" in known else known)
        cells = [[row["model"], row["decoding"], *(_figure(row.get(name)) for name in names)] for row in same]
        told = "\n".join(f"{key}: {value}" for key, value in notes.get(world, {}).items())
        headings = (_SHOWN.get(name, name) for name in names)
        parts += [f"## {world}", table(["model", "decoding", *headings], cells, len(names)), told]
    write_json(file, {"rows": rows, "notes": notes})
    write_text(out / "worlds.md", "\n\n".join(filter(None, parts)) + "\n")
    return {"worlds": out / "worlds.md", "worlds.json": file}


def _figure(told: Mapping[str, Any] | None) -> str:
    """A cell, of what `worlds.json` tells."""
    return spread_text(Spread(**told) if told else None, Shown(significant=0))
