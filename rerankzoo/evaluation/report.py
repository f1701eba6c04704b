"""Results for people and programs: a console table, Markdown, a picture and `results.json`.

JSON holds fractions; tables and picture show percentages with one decimal, as mean ± sample standard deviation where a
row has several runs. Metrics that do not say how good slates are (`value`, `gap`, `coverage`, `ild`) have no best row,
and the oracle, which knows the truth, is no contestant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.evaluation.results import (
    BASELINES,
    ORACLE,
    UPSTREAM,
    Comparison,
    Evaluation,
    Summary,
    aggregate,
    differences,
    merged_protocol,
    unique_rows,
)
from rerankzoo.metrics import Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table as RichTable

RESULTS_FILE = "results.json"
MARKDOWN_FILE = "results.md"
PICTURE_FILE = "results.png"
CURVE_FILE = "curve.png"

# What matters first; "@" stands for any cut.
_ORDER = (
    "utility",
    "true_hr@1%",
    "true_hr@10%",
    "regret",
    "ndcg@",
    "map@",
    "recall@",
    "hit@",
    "mrr@",
    "hr@1%",
    "hr@10%",
    "judge_hr@1%",
    "judge_hr@10%",
    "gap",
    "value",
    "coverage@",
    "ild@",
    "cpu_seconds",
    "spearman",
    "calibration",
)
_LOWER_IS_BETTER = ("regret",)
_DESCRIPTIVE = ("gap", "value", "judge_value", "coverage@", "ild@", "cpu_seconds", "spearman", "calibration")
_NO_SHARE = ("value", "judge_value", "ild@", "spearman", "calibration")  # shown as they are, not as percentages
_WHOLE = ("cpu_seconds",)  # shown without digits
OF_EVALUATOR = ("spearman", "calibration")  # of the evaluator: a column only where the models have different ones
_TITLES = {
    "utility": "True expected utility, % of the best possible slate",
    "value": "Utility predicted by the evaluator",
}
_COLOURS = {
    "baseline": "#c3c9d1",
    "model": "#a3c9ec",
    "evaluator": "#5a9fdc",
    "line": "#c2522d",
    "text": "#24292f",
    "faint": "#57606a",
}


@dataclass(frozen=True)
class _Table:
    """Cells of the table, and which of them are the best of their column."""

    columns: list[str]
    rows: list[Summary]
    cells: list[list[str]]
    best: list[list[bool]]


def write_report(evaluations: Sequence[Evaluation], out_dir: str | Path) -> dict[str, Path]:
    """Writes `results.json`, `results.md` and, where there is a primary metric, `results.png`.

    Args:
        evaluations: Of one or several runs and models, on the same footing (see `unique_rows`).
        out_dir: The folder, made if it is missing. Files in it are replaced in one step each.

    Returns:
        The paths, by "json", "markdown" and "picture".

    Raises:
        ValueError: If the evaluations do not belong in one table.
    """
    table, compared = _table(aggregate(evaluations)), differences(evaluations)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "rows": [asdict(row) for row in unique_rows(evaluations)],
        "protocol": merged_protocol(evaluations),
        "differences": [comparison.to_dict() for comparison in compared],
    }
    text = json.dumps(results, indent=2, allow_nan=False) + "\n"
    paths = {"json": folder / RESULTS_FILE, "markdown": folder / MARKDOWN_FILE}
    write_atomically(paths["json"], lambda path: path.write_text(text, encoding="utf-8"))
    page = _page(table, compared, results["protocol"])
    write_atomically(paths["markdown"], lambda path: path.write_text(page, encoding="utf-8"))
    primary = evaluations[0].primary
    if primary is not None:
        paths["picture"] = folder / PICTURE_FILE
        figure = draw(table.rows, primary, _subtitle(results["protocol"]))
        write_atomically(paths["picture"], lambda path: figure.savefig(path, format="png", dpi=160))
    return paths


def print_table(evaluations: Sequence[Evaluation], console: Console | None = None) -> None:
    """Prints the table and the paired differences from the upstream order; the report's files hold all differences.

    Columns that do not fit into the console's width are left out, the least important first, and named below.

    Args:
        evaluations: See `write_report`.
        console: Where to; default: standard output.
    """
    from rich.console import Console

    console = console or Console(highlight=False)
    table = _table(aggregate(evaluations))
    labels = _console_labels(table.rows)
    fitting = _fitting_columns(table, console.width - max(map(len, labels)))
    console.print(_console_table(table, labels, fitting))
    if line := evaluator_line(table.rows):
        console.print(line, soft_wrap=True)
    if hidden := table.columns[fitting:]:
        console.print(f"[dim]not shown, for want of width: {', '.join(hidden)}[/dim]", soft_wrap=True)
    for comparison in differences(evaluations):
        if comparison.b in BASELINES:
            console.print(comparison_text(comparison), soft_wrap=True)


def markdown_table(summaries: Sequence[Summary]) -> str:
    """The table as Markdown, with the best entry of each column in bold."""
    return _markdown(_table(summaries))


def evaluator_line(summaries: Sequence[Summary]) -> str | None:
    """What is said of the evaluator itself, which the table leaves out where all models have the same one."""
    shared = _shared(summaries)
    said = ", ".join(f"{name} {_number(spread, digits=3)}" for name, spread in shared.items())
    return f"evaluator: {said}" if said else None


@dataclass(frozen=True)
class Point:
    """A model's place in a curve.

    Attributes:
        model: The model; of its decodings the first is drawn.
        series: Of which line.
        at: Where on the axis; several models at one place of a line are not meant.
    """

    model: str
    series: str
    at: float


def write_curve(
    evaluations: Sequence[Evaluation],
    out_dir: str | Path,
    points: Sequence[Point],
    axis: str,
    metrics: Sequence[str],
    *,
    log: bool = False,
) -> Path:
    """Draws metrics of several models against a quantity that tells the models apart, into `curve.png`.

    Args:
        evaluations: Of the models.
        out_dir: The folder, made if it is missing.
        points: Which models, and where.
        axis: What the axis is.
        metrics: One panel each.
        log: Whether the axis is logarithmic.

    Returns:
        The picture.

    Raises:
        ValueError: If there are no points, or a model or metric is not there.
    """
    figure = draw_curve(aggregate(evaluations), points, axis, metrics, log=log)
    path = Path(out_dir) / CURVE_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=160))
    return path


def draw_curve(
    summaries: Sequence[Summary], points: Sequence[Point], axis: str, metrics: Sequence[str], *, log: bool = False
) -> Figure:
    """Draws what `write_curve` writes; arguments and errors are its own."""
    from matplotlib.figure import Figure

    first: dict[str, Summary] = {}
    for row in summaries:
        first.setdefault(row.model, row)
    missing = [(point.model, name) for point in points for name in metrics
               if point.model not in first or name not in first[point.model].metrics]  # fmt: skip
    if missing or not points or not metrics:
        raise ValueError(f"a curve needs models, and each of its metrics of each of them; missing: {missing}")
    figure = Figure(figsize=(3.6 * len(metrics) + 0.6, 3.4), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        for series in dict.fromkeys(point.series for point in points):
            own = sorted((point for point in points if point.series == series), key=lambda point: point.at)
            spreads = [_scaled(first[point.model].metrics[metric], _scale(metric)) for point in own]
            means, deviations = [one.mean for one in spreads], [one.sd or 0.0 for one in spreads]
            places = [point.at for point in own]
            panel.errorbar(places, means, yerr=deviations, label=series, marker="o", markersize=4, capsize=2.5)
        _style_panel(panel, axis, metric, sorted({point.at for point in points}), log)
    if any(point.series for point in points):
        panels[0].legend(frameon=False, fontsize=8)
    return figure


def _style_panel(panel: Axes, axis: str, metric: str, places: Sequence[float], log: bool) -> None:
    if log:
        panel.set_xscale("log")
        panel.minorticks_off()
    panel.set_xticks(places, [f"{place:,.0f}" if place >= 1 else f"{place:g}" for place in places], fontsize=8)
    panel.set_xlabel(axis, fontsize=9, color=_COLOURS["faint"])
    panel.set_title(_heading(metric) + ("" if _scale(metric) == 1.0 else ", %"), fontsize=10, loc="left")
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8, colors=_COLOURS["faint"])
    panel.grid(axis="y", alpha=0.25)


def _scale(metric: str) -> float:
    return 1.0 if _matches(metric, (*_NO_SHARE, *_WHOLE)) else 100.0


def draw(summaries: Sequence[Summary], metric: str, subtitle: str = "") -> Figure:
    """Draws one metric as horizontal bars, with lines at the upstream order and the oracle.

    Args:
        summaries: Lines of the table.
        metric: A metric that at least one line has.
        subtitle: What it was measured on.

    Returns:
        The figure; it belongs to no window and needs no display.
    """
    from matplotlib.figure import Figure

    rows = [row for row in summaries if metric in row.metrics]
    spreads = {row.key: _scaled(row.metrics[metric], _scale(metric)) for row in rows}
    figure = Figure(figsize=(8.4, 1.2 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    _draw_bars(axes, rows, list(spreads.values()))
    for key, style, name in ((UPSTREAM, "--", "upstream order"), (ORACLE, ":", "pointwise oracle")):
        if key in spreads:
            axes.axvline(spreads[key].mean, color=_COLOURS["line"], linestyle=style, zorder=0, label=name)
    if axes.get_legend_handles_labels()[0]:
        place = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.99), "borderaxespad": 0.0}
        axes.legend(**place, ncols=2, frameon=False, fontsize=8, labelcolor=_COLOURS["faint"])
    axes.set_title(_title(metric), loc="left", fontsize=12, fontweight="bold", pad=22)
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=9, color=_COLOURS["faint"], va="bottom")
    return figure


def _draw_bars(axes: Axes, rows: Sequence[Summary], spreads: Sequence[Spread]) -> None:
    """One bar per row, with its figure inside where there is room."""
    deviations = [spread.sd or 0.0 for spread in spreads]
    axes.barh(range(len(rows)), [spread.mean for spread in spreads], color=list(map(_colour, rows)), height=0.72)
    if any(deviations):
        means, middles = [spread.mean for spread in spreads], range(len(rows))
        axes.errorbar(means, middles, xerr=deviations, fmt="none", ecolor=_COLOURS["text"], elinewidth=1, capsize=2.5)
    reach = max(abs(spread.mean) + deviation for spread, deviation in zip(spreads, deviations, strict=True)) or 1.0
    for middle, (spread, deviation) in enumerate(zip(spreads, deviations, strict=True)):
        inside = spread.mean - deviation > 0.2 * reach
        end = spread.mean - deviation - 0.01 * reach if inside else max(0.0, spread.mean + deviation) + 0.01 * reach
        side = "right" if inside else "left"
        axes.text(end, middle, _number(spread), va="center_baseline", ha=side, fontsize=9, color=_COLOURS["text"])
    axes.set_yticks(range(len(rows)), [_label(row) for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.02)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8, colors=_COLOURS["faint"])


def _table(summaries: Sequence[Summary]) -> _Table:
    names = {name for row in summaries for name in row.metrics if not name.endswith(("_low", "_high"))}
    columns = sorted(names - _shared(summaries).keys(), key=lambda name: (_rank(name), name))
    cells = [[_cell(row.metrics.get(name), name) for name in columns] for row in summaries]
    best = [[False] * len(columns) for _ in summaries]
    for index, name in enumerate(columns):
        values = [row.metrics[name].mean if name in row.metrics and row.key != ORACLE else None for row in summaries]
        for number in _best_rows(values, name):
            best[number][index] = True
    return _Table(columns, list(summaries), cells, best)


def _shared(summaries: Sequence[Summary]) -> dict[str, Spread]:
    """What is said of the evaluator, where all models have the same one."""
    found = {name: [row.metrics[name] for row in summaries if name in row.metrics] for name in OF_EVALUATOR}
    return {name: values[0] for name, values in found.items() if values and all(one == values[0] for one in values)}


def _best_rows(values: Sequence[float | None], name: str) -> list[int]:
    """The rows whose shown figure is the best one."""
    known = [value for value in values if value is not None]
    if not known or _matches(name, _DESCRIPTIVE):
        return []
    top = min(known) if name in _LOWER_IS_BETTER else max(known)
    return [row for row, value in enumerate(values) if value is not None and f"{100 * value:.1f}" == f"{100 * top:.1f}"]


def _console_labels(rows: Sequence[Summary]) -> list[str]:
    """What each line is called: decodings stand indented below their model's first line."""
    labels, previous = [], ""
    for row in rows:
        if row.key in BASELINES:
            labels.append(_label(row))
        else:
            labels.append(f"{row.model}\n  {row.decoding}" if row.model != previous else f"  {row.decoding}")
        previous = row.model
    return labels


def _fitting_columns(table: _Table, width: int) -> int:
    """How many columns, the first of them, fit beside the labels."""
    for index, name in enumerate(table.columns):
        parts = [*_heading(name).split(), *(cells[index] for cells in table.cells)]
        width -= 2 + max(map(len, parts))
        if width < 0:
            return max(1, index)
    return len(table.columns)


def _console_table(table: _Table, labels: Sequence[str], num_columns: int) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    shown.add_column("", no_wrap=True)
    for name in table.columns[:num_columns]:
        shown.add_column(_heading(name).replace(" ", "\n"), justify="right", vertical="bottom", no_wrap=True)
    for row, label, cells, best in zip(table.rows, labels, table.cells, table.best, strict=True):
        style = "dim" if row.key in BASELINES else ""
        marked = [Text(cell, style="bold green" if top else style) for cell, top in zip(cells, best, strict=True)]
        shown.add_row(Text(label, style=style), *marked[:num_columns])
    return shown


def _markdown(table: _Table) -> str:
    lines = ["| model | decoding | " + " | ".join(_heading(name) for name in table.columns) + " |"]
    lines.append("|---|---|" + "---:|" * len(table.columns))
    for row, cells, best in zip(table.rows, table.cells, table.best, strict=True):
        marked = [f"**{cell}**" if top else cell for cell, top in zip(cells, best, strict=True)]
        lines.append(f"| {row.model} | {row.decoding} | " + " | ".join(marked) + " |")
    return "\n".join(lines) + "\n"


def _page(table: _Table, compared: Sequence[Comparison], protocol: dict[str, Any]) -> str:
    head = f"{_subtitle(protocol)}. Figures in %, except value, ild and CPU seconds.\n"
    parts = ["# Evaluation\n", head, _markdown(table)]
    if line := evaluator_line(table.rows):
        parts.append(f"{line}\n")
    if compared:
        parts += [
            "## Paired differences\n",
            "\n".join(f"- {comparison_text(comparison)}" for comparison in compared) + "\n",
        ]
    parts += ["## Protocol\n", "```json\n" + json.dumps(protocol, indent=2) + "\n```\n"]
    return "\n".join(parts)


def comparison_text(comparison: Comparison) -> str:
    """A difference in one line."""
    found, scale = comparison.difference, 1.0 if _matches(comparison.metric, _NO_SHARE) else 100.0
    digits, unit = (3, "") if scale == 1.0 else (1, " points")
    mean, low, high = (f"{scale * value:+.{digits}f}" for value in (found.mean, found.low, found.high))
    a, b = (" ".join(key) if key not in BASELINES else key[0] for key in (comparison.a, comparison.b))
    return (
        f"{a} - {b}: {mean}{unit} of {comparison.metric}, 95 % interval {low} to {high} ({found.num_requests} requests)"
    )


def _subtitle(protocol: dict[str, Any]) -> str:
    data = protocol["data"]
    source = data.get("source", "") if isinstance(data, dict) else "several data sets"
    labels = protocol.get("labels")
    labelled = f" ({labels['num_requests']} with labels of both kinds)" if isinstance(labels, dict) else ""
    return f"{source}, {protocol['num_requests']} requests{labelled}, slates of {protocol['slate_size']}"


def _label(row: Summary) -> str:
    return row.model if row.key in BASELINES and row.key != ORACLE else f"{row.model}, {row.decoding}"


def _colour(row: Summary) -> str:
    if row.key in BASELINES:
        return _COLOURS["baseline"]
    return _COLOURS["evaluator" if "evaluator" in row.decoding else "model"]


def _title(metric: str) -> str:
    return _TITLES.get(metric, f"{metric.upper()}, %")


def _heading(name: str) -> str:
    return re.sub("^(true_)?hr", lambda match: match.group().replace("_", " ").replace("hr", "HR"), name)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(name == pattern or (pattern.endswith("@") and name.startswith(pattern)) for pattern in patterns)


def _rank(name: str) -> int:
    return next((index for index, pattern in enumerate(_ORDER) if _matches(name, [pattern])), len(_ORDER))


def _cell(spread: Spread | None, name: str) -> str:
    if spread is None:
        return ""
    if _matches(name, _WHOLE):
        return _number(spread, digits=0)
    return _number(spread, digits=3) if _matches(name, _NO_SHARE) else _number(_scaled(spread, 100.0))


def _scaled(spread: Spread, scale: float) -> Spread:
    return Spread(scale * spread.mean, None if spread.sd is None else scale * spread.sd, spread.num_runs)


def _number(spread: Spread, digits: int = 1) -> str:
    mean = f"{spread.mean:.{digits}f}"
    return mean if spread.sd is None else f"{mean} ± {spread.sd:.{digits}f}"
