"""Pictures of results: bars of one metric, and curves over a quantity that tells models apart.

Figures belong to no window and need no display. matplotlib is loaded when something is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.evaluation.report import Shown, heading, label, shown_as
from rerankzoo.evaluation.results import BASELINES, ORACLE, UPSTREAM, Evaluation, Summary, aggregate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {
    "utility": "True expected utility, % of the best possible slate",
    "value": "Utility predicted by the evaluator",
}
_COLOURS = {"baseline": "#c3c9d1", "model": "#a3c9ec", "evaluator": "#5a9fdc"}
_TOLD_APART = 1.0  # points of utility between names along the front
_LINE, _TEXT, _FAINT = "#c2522d", "#24292f", "#57606a"


@dataclass(frozen=True)
class Point:
    """A model's place in a curve; of its decodings the first is drawn."""

    model: str
    series: str  # of which line
    at: float  # where on the axis; several models at one place of a line are not meant


def save(figure: Figure, path: Path, dpi: int = 160) -> Path:
    """Writes a picture in one step, into a folder that is made if it is missing."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=dpi))
    return path


def write_curve(
    evaluations: Sequence[Evaluation],
    out_dir: str | Path,
    points: Sequence[Point],
    axis: str,
    metrics: Sequence[str],
    *,
    log: bool = False,
) -> Path:
    """Draws metrics of several models into `curve.png` of a folder; see `draw_curve`."""
    return save(draw_curve(aggregate(evaluations), points, axis, metrics, log=log), Path(out_dir) / "curve.png")


def draw_pareto(worlds: Mapping[str, Sequence[Summary]], cost: str) -> Figure:
    """Draws true utility against a cost of serving, a panel for each world; what nothing beats in both is joined.

    Args:
        worlds: The rows of each world.
        cost: A metric of theirs, in milliseconds.
    """
    figure, panels = _panels(len(worlds), width=5.6, height=4.0)
    for axes, (world, lines) in zip(panels, worlds.items(), strict=True):
        known = [line for line in lines if cost in line.metrics]
        points = sorted((line.metrics[cost].mean, 100 * line.metrics["utility"].mean, line.key) for line in known)
        colours = [_COLOURS["evaluator" if "evaluator" in key[1] else "model"] for _, _, key in points]
        axes.scatter([point[0] for point in points], [point[1] for point in points], c=colours, s=26)
        front = [point for n, point in enumerate(points) if all(point[1] > other[1] for other in points[:n])]
        axes.step([point[0] for point in front], [point[1] for point in front], where="post", color=_LINE, linewidth=1)
        for (place, utility, key), following in zip(front, [*front[1:], None], strict=True):
            if following and following[1] - utility < _TOLD_APART:
                continue
            text = ", ".join(key)
            axes.annotate(text, (place, utility), xytext=(5, -9), textcoords="offset points", fontsize=7, color=_TEXT)
        axes.set(xscale="log", xlabel="CPU ms of one request", ylabel="true utility, %")
        axes.set_title(world, loc="left", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_worlds(worlds: Mapping[str, Sequence[Summary]], metric: str = "utility") -> Figure:
    """Draws a metric as horizontal bars, a panel for each world, each in the order of its own rows."""
    figure, panels = _panels(len(worlds), width=7.2, height=1.0 + 0.3 * max(map(len, worlds.values())))
    for axes, (world, lines) in zip(panels, worlds.items(), strict=True):
        rows = [line for line in lines if metric in line.metrics]
        _draw_bars(axes, rows, *_bars(rows, metric), shown_as(metric))
        axes.set_title(world, loc="left", fontsize=11)
    figure.suptitle(_TITLES.get(metric, metric), fontsize=12)
    return figure


def _panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Panels of a size in inches, two to a row."""
    from matplotlib.figure import Figure

    rows, columns = -(-count // 2), min(count, 2)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for unused in panels[count:]:
        unused.remove()
    return figure, panels[:count]


def draw_search(values: Mapping[int, float], importances: Mapping[str, float], metric: str, mode: str) -> Figure:
    """Draws a search for settings: the metric of each trial by its number and the best so far; what it depended on.

    Args:
        values: The metric by the trial's number.
        importances: By key, shares of 1; none: too few trials to tell.
        metric: Its name.
        mode: "min" or "max".
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    history, bars = figure.subplots(1, 2)
    numbers = sorted(values)
    best = list(accumulate((values[number] for number in numbers), min if mode == "min" else max))
    history.plot(numbers, [values[number] for number in numbers], "o", color=_COLOURS["model"], markersize=4)
    history.step(numbers, best, where="post", color=_LINE)
    history.set(xlabel="trial", ylabel=metric, title="Trials, and the best so far")
    names = sorted(importances, key=lambda name: importances[name])
    bars.barh(
        [name.rpartition(".")[2] for name in names], [importances[name] for name in names], color=_COLOURS["model"]
    )
    bars.set_title("What it depends on" if names else "Too few trials to tell what it depends on")
    for axes in (history, bars):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_curve(
    summaries: Sequence[Summary], points: Sequence[Point], axis: str, metrics: Sequence[str], *, log: bool = False
) -> Figure:
    """Draws metrics, a panel each, of several models against a quantity that tells them apart, named `axis`.

    Raises:
        ValueError: If there are no points, or a model or metric is not there.
    """
    from matplotlib.figure import Figure

    first = {row.model: row for row in reversed(summaries)}
    missing = [(point.model, name) for point in points for name in metrics
               if point.model not in first or name not in first[point.model].metrics]  # fmt: skip
    if missing or not points or not metrics:
        raise ValueError(f"a curve needs models, and each of its metrics of each of them; missing: {missing}")
    figure = Figure(figsize=(3.6 * len(metrics) + 0.6, 3.4), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        for series in dict.fromkeys(point.series for point in points):
            line = sorted((point for point in points if point.series == series), key=lambda point: point.at)
            means, deviations = _bars([first[point.model] for point in line], metric)
            places = [point.at for point in line]
            panel.errorbar(places, means, yerr=deviations, label=series, marker="o", markersize=4, capsize=2.5)
        if log:
            panel.set_xscale("log")
            panel.minorticks_off()
        ticks = sorted({point.at for point in points})
        panel.set_xticks(ticks, [f"{tick:,.0f}" if tick >= 1 else f"{tick:g}" for tick in ticks], fontsize=8)
        panel.set_xlabel(axis, fontsize=9, color=_FAINT)
        panel.set_title(heading(metric) + ("" if shown_as(metric).scale == 1 else ", %"), fontsize=10, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8, colors=_FAINT)
        panel.grid(axis="y", alpha=0.25)
    if any(point.series for point in points):
        panels[0].legend(frameon=False, fontsize=8)
    return figure


def draw(summaries: Sequence[Summary], metric: str, subtitle: str = "") -> Figure:
    """Draws a metric that at least one line has as horizontal bars, with lines at the upstream order and the oracle."""
    from matplotlib.figure import Figure

    rows = [row for row in summaries if metric in row.metrics]
    means, deviations = _bars(rows, metric)
    figure = Figure(figsize=(8.4, 1.2 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    _draw_bars(axes, rows, means, deviations, shown_as(metric))
    marks = {UPSTREAM: ("--", "upstream order"), ORACLE: (":", "pointwise oracle")}
    for row, mean in zip(rows, means, strict=True):
        if row.key in marks:
            style, name = marks[row.key]
            axes.axvline(mean, color=_LINE, linestyle=style, zorder=0, label=name)
    if axes.get_legend_handles_labels()[0]:
        place = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.99), "borderaxespad": 0.0}
        axes.legend(**place, ncols=2, frameon=False, fontsize=8, labelcolor=_FAINT)
    title = _TITLES.get(metric, f"{metric.upper()}, %")
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", pad=22)
    axes.text(0, 1.02, subtitle, transform=axes.transAxes, fontsize=9, color=_FAINT, va="bottom")
    return figure


def _bars(rows: Sequence[Summary], metric: str) -> tuple[list[float], list[float]]:
    """Means and standard deviations of a metric, as they are shown."""
    scale, spreads = shown_as(metric).scale, [row.metrics[metric] for row in rows]
    return [scale * spread.mean for spread in spreads], [scale * (spread.sd or 0.0) for spread in spreads]


def _draw_bars(
    axes: Axes, rows: Sequence[Summary], means: Sequence[float], deviations: Sequence[float], shown: Shown
) -> None:
    """One bar per row, with its figure inside where there is room."""
    kinds = [
        "baseline" if row.key in BASELINES else "evaluator" if "evaluator" in row.decoding else "model" for row in rows
    ]
    axes.barh(range(len(rows)), means, color=[_COLOURS[kind] for kind in kinds], height=0.72)
    if any(deviations):
        axes.errorbar(means, range(len(rows)), xerr=deviations, fmt="none", ecolor=_TEXT, elinewidth=1, capsize=2.5)
    reach = max(abs(mean) + deviation for mean, deviation in zip(means, deviations, strict=True)) or 1.0
    written = Shown(1.0, 1, None, shown.significant)  # the numbers are scaled already
    for middle, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
        inside = mean - deviation > 0.2 * reach
        end = mean - deviation - 0.01 * reach if inside else max(0.0, mean + deviation) + 0.01 * reach
        text = " ± ".join(written.text(mean, *([deviation] if deviation else []), largest=max(map(abs, means))))
        axes.text(end, middle, text, va="center_baseline", ha="right" if inside else "left", fontsize=9, color=_TEXT)
    axes.set_yticks(range(len(rows)), [label(row) for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.margins(x=0.02)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8, colors=_FAINT)
