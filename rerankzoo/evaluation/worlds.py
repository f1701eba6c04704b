"""What models are worth in several simulated worlds: one table, with the share of what there is to gain.

The gap of a world lies between the best that sorting reaches (of the upstream order and the rankers that value items
one by one) and the correctly specified model fitted to the same log. A share of it says how much of what the log allows
a model takes; it may be negative, and above 1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rerankzoo.atomic_writing import write_json, write_text
from rerankzoo.evaluation.results import CEILING, INFORMED, UPSTREAM, Evaluation, Key
from rerankzoo.metrics import Spread, mean_and_spread

#: A smaller gap, in shares of the optimum, is none: a share of it would be noise.
SMALLEST_GAP = 0.01
_RULE = "|---|---|---:|---:|---:|"
_SHOWN = {"utility": "utility", "true_hr@1%": "true HR@1%", "share": "share of the gap"}


def summarise(evaluations: Sequence[Evaluation], pointwise: Collection[str]) -> dict[Key, dict[str, Spread]]:
    """Mean and spread over the seeds of one world of every row.

    Args:
        evaluations: Of one world, with the truth.
        pointwise: The models that only sort.

    Returns:
        By model and decoding: true utility, HR@1 %, and the share of the gap closed, where there is a gap.
    """
    seeds: dict[int, dict[Key, dict[str, float]]] = {}
    for evaluation in evaluations:
        rows = seeds.setdefault(evaluation.seed, {})
        rows.update({row.key: row.metrics for row in evaluation.rows})
    found: dict[Key, dict[str, list[float]]] = {}
    for rows in seeds.values():
        sorting = [metrics["utility"] for key, metrics in rows.items() if key == UPSTREAM or key in _greedy(pointwise)]
        best, ceiling = max(sorting), rows.get(CEILING, {}).get("utility")
        for key, metrics in rows.items():
            line = found.setdefault(key, {})
            for name in ("utility", "true_hr@1%"):
                line.setdefault(name, []).append(metrics[name])
            if ceiling is not None and ceiling - best >= SMALLEST_GAP and key not in INFORMED:
                line.setdefault("share", []).append((metrics["utility"] - best) / (ceiling - best))
    return {key: {name: mean_and_spread(numbers) for name, numbers in line.items()} for key, line in found.items()}


def _greedy(models: Collection[str]) -> set[Key]:
    return {(model, "greedy") for model in models}


def write_worlds(
    worlds: Mapping[str, Sequence[Evaluation]], pointwise: Collection[str], notes: Mapping[str, Any], out: Path
) -> dict[str, Path]:
    """Writes `worlds.json` and `worlds.md`.

    Args:
        worlds: The evaluations of each world.
        pointwise: The models that only sort.
        notes: What else is to be told of each world, such as which evaluator was chosen.
        out: The folder.
    """
    tables = {world: summarise(evaluations, pointwise) for world, evaluations in worlds.items()}
    rows = [
        {"world": world, "model": model, "decoding": decoding} | {name: vars(spread) for name, spread in line.items()}
        for world, table in tables.items()
        for (model, decoding), line in table.items()
    ]
    write_json(out / "worlds.json", {"rows": rows, "notes": dict(notes)})
    write_text(out / "worlds.md", "\n".join(_markdown(tables, notes)) + "\n")
    return {"worlds": out / "worlds.md", "worlds.json": out / "worlds.json"}


def _markdown(tables: Mapping[str, Mapping[Key, Mapping[str, Spread]]], notes: Mapping[str, Any]) -> list[str]:
    lines = []
    for world, table in tables.items():
        lines += [f"## {world}", "", f"| model | decoding | {' | '.join(_SHOWN.values())} |", _RULE]
        for (model, decoding), line in table.items():
            cells = [_cell(line.get(name)) for name in _SHOWN]
            lines.append(f"| {model} | {decoding} | {' | '.join(cells)} |")
        lines += ["", *[f"{key}: {value}" for key, value in notes.get(world, {}).items()], ""]
    return lines


def _cell(spread: Spread | None) -> str:
    if spread is None:
        return ""
    mean, deviation = 100 * spread.mean, spread.sd
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {100 * deviation:.1f}"
