"""Results for people and programs: a console table, Markdown, a picture and `results.json`.

JSON holds fractions; tables and pictures show percentages, with one decimal or as many as small rates need, as mean ±
sample standard deviation where a row has several runs. Decodings that chose alike are one row. Metrics that do not say
how good slates are, among them all that an evaluator says of slates that it may have chosen or taught, have no best
row, and the oracle, which knows the truth, is no contestant.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rerankzoo.atomic_writing import write_text
from rerankzoo.evaluation.results import (
    BASELINES,
    INFORMED,
    MIN_REQUESTS,
    OPINIONS,
    ORACLE,
    Comparison,
    Evaluation,
    Summary,
    aggregate,
    differences,
    merge_identical,
    merged_protocol,
    unique_rows,
)
from rerankzoo.metrics import Spread
from rerankzoo.pages import bullets, table

if TYPE_CHECKING:
    from rich.console import Console


class Shown(NamedTuple):
    """How a metric is shown: times `scale`, and `better` is what marks the best row, if anything does.

    There are `digits` after the point; more where the largest number has fewer than `significant` ones.
    """

    scale: float = 100.0
    digits: int = 1
    better: str | None = "max"
    significant: int = 2

    def text(self, *numbers: float, largest: float | None = None, sign: str = "") -> list[str]:
        """Numbers as they are shown; `largest` of those beside them decides on the digits, by default of these."""
        scaled = [self.scale * number for number in numbers]
        size = max((abs(number) for number in scaled), default=0) if largest is None else self.scale * abs(largest)
        missing = self.significant - 1 - math.floor(math.log10(size)) if size > 0 else 0
        return [f"{number:{sign}.{min(max(self.digits, missing), _MOST_DIGITS)}f}" for number in scaled]


_MOST_DIGITS = 9
_OPINION, _PLAIN = Shown(better=None), Shown(1.0, 3, None, 3)
#: What matters first; "@" stands for any cut. Metrics that are not here come last.
_METRICS = {
    **dict.fromkeys(("utility", "true_hr@1%", "true_hr@10%"), Shown()),
    "regret": Shown(better="min"),
    **dict.fromkeys(("ndcg@", "map@", "recall@", "hit@", "mrr@"), Shown()),
    **dict.fromkeys(("hr@1%", "hr@10%"), _OPINION),
    **dict.fromkeys(("judge_hr@1%", "judge_hr@10%"), Shown()),
    **{"gap": _OPINION, "value": _PLAIN, "coverage@": _OPINION, "ild@": _PLAIN, "cpu_seconds": Shown(1.0, 0, None, 1)},
    **dict.fromkeys(("spearman", "calibration", "judge_value", "crossfit_value"), _PLAIN),
}
_PREDICTED_NAMES = {
    "value": "predicted value",
    "judge_value": "value predicted by the judge",
    "crossfit_value": "value predicted by cross-fitted judges",
}
_COUNTERFACTUAL = (
    *("model", "decoding", "estimate", "utility per request"),
    *("95 % interval", "ESS", "largest weight", "clipped %"),
)
OF_EVALUATOR = ("spearman", "calibration")  # of the evaluator: a column only where the models have different ones


def write_report(evaluations: Sequence[Evaluation], out_dir: str | Path) -> dict[str, Path]:
    """Writes `results.json`, `results.md` and, where there is a primary metric, `results.png`, in one step each.

    Args:
        evaluations: Of one or several runs and models, on the same footing (else a ValueError, see `unique_rows`).
        out_dir: The folder, made if it is missing.

    Returns:
        The paths, by "json", "markdown" and "picture".
    """
    summaries, compared = merge_identical(aggregate(evaluations)), differences(evaluations)
    protocol = merged_protocol(evaluations)
    results = {
        "rows": [asdict(row) for row in unique_rows(evaluations)],
        "protocol": protocol,
        "differences": [comparison.to_dict() for comparison in compared],
        "counterfactual": [
            {"model": model, "decoding": decoding, "estimates": [one.to_dict() for one in estimates]}
            for evaluation in evaluations
            for (model, decoding), estimates in evaluation.counterfactual.items()
        ],
    }
    paths = {"json": Path(out_dir) / "results.json", "markdown": Path(out_dir) / "results.md"}
    page, told = _page(summaries, compared, protocol, evaluations), json.dumps(results, indent=2, allow_nan=False)
    write_text(paths["json"], told + "\n")
    write_text(paths["markdown"], page)
    if evaluations[0].primary is not None:
        from rerankzoo.evaluation.plots import draw, save

        picture = draw(summaries, evaluations[0].primary, _subtitle(protocol))
        paths["picture"] = save(picture, Path(out_dir) / "results.png")
    return paths


def print_table(evaluations: Sequence[Evaluation], console: Console | None = None) -> None:
    """Prints the table and the paired differences from the upstream order; the report's files hold all differences.

    Columns that do not fit into the console's width are left out, the least important first, and named below.
    """
    from rich.console import Console

    console = console or Console(highlight=False)
    summaries = merge_identical(aggregate(evaluations))
    hidden = ", ".join(_print_columns(summaries, console))
    missing = f"[dim]not shown, for want of width: {hidden}[/dim]" if hidden else None
    doubts = doubt_lines(merged_protocol(evaluations))
    for line in (evaluator_line(summaries), missing, opinion_line(summaries), *doubts):
        if line:
            console.print(line, soft_wrap=True)
    for comparison in differences(evaluations):
        if comparison.b in BASELINES:
            console.print(comparison_text(comparison), soft_wrap=True)


def markdown_table(summaries: Sequence[Summary]) -> str:
    """The table as Markdown, with the best entry of each column in bold."""
    columns, rows = _columns(summaries), []
    for row, *cells in zip(summaries, *columns.values(), strict=True):
        rows.append([row.model, row.decoding, *(f"**{text}**" if best else text for text, best in cells)])
    return table(["model", "decoding", *map(heading, columns)], rows, len(columns)) + "\n"


def evaluator_line(summaries: Sequence[Summary]) -> str | None:
    """What is said of the evaluator itself, which the table leaves out where all models have the same one."""
    said = ", ".join(f"{name} {spread_text(spread, _PLAIN)}" for name, spread in _shared(summaries).items())
    return f"evaluator: {said}" if said else None


def opinion_line(summaries: Sequence[Summary]) -> str | None:
    """What the evaluator's figures about slates are worth, where there are any."""
    names = ", ".join(heading(name) for name in OPINIONS if any(name in row.metrics for row in summaries))
    worth = "which may have chosen slates or taught their generator: agreement, not quality, no interval"
    return f"{names}: by the evaluator, {worth}" if names else None


def doubt_lines(protocol: Mapping[str, Any]) -> list[str]:
    """What is not shown, and why, as the protocol says under `not_shown`."""
    told = protocol.get("not_shown") or {}
    return [f"{what}: not shown, {why}" for one in ([told] if isinstance(told, dict) else told)
            for what, why in one.items()]  # fmt: skip


def comparison_text(comparison: Comparison) -> str:
    """A difference in one line; what only a model says is called predicted."""
    shown, numbers = shown_as(comparison.metric), (comparison.mean, comparison.low, comparison.high)
    mean, *ends = shown.text(*(value for value in numbers if value is not None), sign="+")
    a, b = (key[0] if key in BASELINES else " ".join(key) for key in (comparison.a, comparison.b))
    unit = " points" if shown.scale == 100 else ""
    if comparison.metric in OPINIONS:
        doubt = "by the evaluator, hence without an interval"
    elif comparison.metric == "crossfit_value":
        doubt = "at most, for they learned from the halves of the models' log, hence without an interval"
    elif not ends:
        doubt = f"no interval from fewer than {MIN_REQUESTS} requests"
    else:
        judged = " over the requests, as far as the judge is right" if comparison.metric == "judge_value" else ""
        doubt = f"95 % interval {' to '.join(ends)}{judged}"
    beside = ""
    if comparison.predicted is not None:
        beside = f"; predicted by the evaluator: {_PLAIN.text(comparison.predicted, sign='+')[0]} of value"
    named = heading(comparison.metric)
    return f"{a} - {b}: {mean}{unit} of {named}, {doubt} ({comparison.num_requests} requests){beside}"


def counterfactual_text(evaluation: Evaluation) -> str:
    """What the log says of the slates of one run, as Markdown: estimates of the expected utility per request."""
    if not evaluation.counterfactual:
        return f"Nothing can be told from this log: {evaluation.logged}."
    rows = []
    for key, estimates in evaluation.counterfactual.items():
        for one in estimates:
            told = [one.refusal, ""]
            if one.value is not None and one.low is not None and one.high is not None:
                value, low, high = _PLAIN.text(one.value, one.low, one.high)
                told = [value, f"{low} to {high}"]
            name = f"{one.name}, estimated propensities" if one.estimated else one.name
            weights = (one.effective_sample_size, one.largest_weight, 100 * one.share_clipped)
            rows.append([*key, name, *told, *(f"{weight:.1f}" for weight in weights)])
    return table(_COUNTERFACTUAL, rows, 5) + f"\n\nWhat to log: {evaluation.logged}."


def shown_as(metric: str) -> Shown:
    """How a metric is shown."""
    return _METRICS.get(_kind(metric), Shown())


def heading(metric: str) -> str:
    """What a metric's column is called."""
    if metric in _PREDICTED_NAMES:
        return _PREDICTED_NAMES[metric]
    return re.sub("^(true_)?hr", lambda match: match.group().replace("_", " ").replace("hr", "HR"), metric)


def label(row: Summary) -> str:
    """What a row is called."""
    return row.model if row.key in BASELINES and row.key != ORACLE else f"{row.model}, {row.decoding}"


def _columns(summaries: Sequence[Summary]) -> dict[str, list[tuple[str, bool]]]:
    """The table by column: of each row the text, and whether it is the best."""
    names = {name for row in summaries for name in row.metrics if not name.endswith(("_low", "_high"))}
    order = {name: number for number, name in enumerate(_METRICS)}
    shown = names - _shared(summaries).keys()
    ordered = sorted(shown, key=lambda name: (order.get(_kind(name), len(order)), name))
    return {name: _column(summaries, name) for name in ordered}


def _column(summaries: Sequence[Summary], name: str) -> list[tuple[str, bool]]:
    shown = shown_as(name)
    means = {row.key: row.metrics[name].mean for row in summaries if name in row.metrics}
    largest = max(map(abs, means.values()))
    rounded = {key: shown.text(mean, largest=largest)[0] for key, mean in means.items() if key not in INFORMED}
    top = {"min": min, "max": max}[shown.better](rounded.values(), key=float) if shown.better and rounded else None
    texts = (spread_text(row.metrics.get(name), shown, largest) for row in summaries)
    return [(text, top is not None and rounded.get(row.key) == top) for row, text in zip(summaries, texts, strict=True)]


def _print_columns(summaries: Sequence[Summary], console: Console) -> list[str]:
    """Prints the first columns, as many as fit into the console; returns the names of the others."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns, labels = _columns(summaries), []
    for number, row in enumerate(summaries):  # decodings stand indented below their model's first line
        first = "" if number and row.model == summaries[number - 1].model else f"{row.model}\n"
        labels.append(label(row) if row.key in BASELINES else f"{first}  {row.decoding}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    left = console.width - max(len(line) for text in labels for line in text.splitlines())
    fitting: list[str] = []
    for name, cells in columns.items():
        left -= 2 + max(map(len, [*heading(name).split(), *(text for text, _ in cells)]))
        if left < 0 and fitting:
            break
        fitting.append(name)
        table.add_column(heading(name).replace(" ", "\n"), justify="right", vertical="bottom", no_wrap=True)
    for number, row in enumerate(summaries):
        style = "dim" if row.key in BASELINES else ""
        shown = [columns[name][number] for name in fitting]
        marked = [Text(text, style="bold green" if best else style) for text, best in shown]
        table.add_row(Text(labels[number], style=style), *marked)
    console.print(table)
    return [name for name in columns if name not in fitting]


def _kind(metric: str) -> str:
    """A metric's name in `_METRICS`."""
    return metric if metric in _METRICS else re.sub("@.*", "@", metric)


def spread_text(spread: Spread | None, shown: Shown, largest: float | None = None) -> str:
    """A mean, with the deviation where there is one; nothing of what is not known."""
    numbers = () if spread is None else (spread.mean, spread.sd)
    return " ± ".join(shown.text(*(value for value in numbers if value is not None), largest=largest))


def _shared(summaries: Sequence[Summary]) -> dict[str, Spread]:
    """What is said of the evaluator, where all models have the same one."""
    said = {name: [row.metrics[name] for row in summaries if name in row.metrics] for name in OF_EVALUATOR}
    return {name: spreads[0] for name, spreads in said.items() if spreads and spreads.count(spreads[0]) == len(spreads)}


def _page(
    summaries: Sequence[Summary],
    compared: Sequence[Comparison],
    protocol: dict[str, Any],
    evaluations: Sequence[Evaluation],
) -> str:
    parts = ["# Evaluation\n", f"{_subtitle(protocol)}. Figures in %, except value, ild and CPU seconds.\n"]
    parts.append(markdown_table(summaries))
    said = (evaluator_line(summaries), opinion_line(summaries), *doubt_lines(protocol))
    parts += [f"{line}\n" for line in said if line]
    if compared:
        parts += ["## Paired differences\n", bullets(map(comparison_text, compared)) + "\n"]
    if asked := [one for one in evaluations if one.logged]:
        parts += ["## Counterfactual estimates\n", *(f"{counterfactual_text(one)}\n" for one in asked)]
    parts += ["## Protocol\n", "```json\n" + json.dumps(protocol, indent=2) + "\n```\n"]
    return "\n".join(parts)


def _subtitle(protocol: dict[str, Any]) -> str:
    data, labels = protocol["data"], protocol.get("labels")
    source = data.get("source", "") if isinstance(data, dict) else "several data sets"
    labelled = f" ({labels['num_requests']} with labels of both kinds)" if isinstance(labels, dict) else ""
    return f"{source}, {protocol['num_requests']} requests{labelled}, slates of {protocol['slate_size']}"
