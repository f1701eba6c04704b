"""Results for people and programs: a console table, Markdown, a picture and `results.json`.

JSON holds fractions; tables and pictures show percentages with one decimal, as mean ± sample standard deviation where a
row has several runs. Metrics that do not say how good slates are, among them all that an evaluator says of slates that
it may have chosen or taught, have no best row, and the oracle, which knows the truth, is no contestant.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.evaluation.results import (
    BASELINES,
    OPINIONS,
    ORACLE,
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
    from rich.console import Console
    from rich.table import Table as RichTable

RESULTS_FILE = "results.json"
MARKDOWN_FILE = "results.md"
PICTURE_FILE = "results.png"


class Shown(NamedTuple):
    """How a metric is shown: times `scale`, with `digits`; `better` is what marks the best row, if anything does."""

    scale: float = 100.0
    digits: int = 1
    better: str | None = "max"


_OPINION, _PLAIN = Shown(better=None), Shown(1.0, 3, None)
#: What matters first; "@" stands for any cut. Metrics that are not here come last.
_METRICS = {
    **dict.fromkeys(("utility", "true_hr@1%", "true_hr@10%"), Shown()),
    "regret": Shown(better="min"),
    **dict.fromkeys(("ndcg@", "map@", "recall@", "hit@", "mrr@"), Shown()),
    **dict.fromkeys(("hr@1%", "hr@10%"), _OPINION),
    **dict.fromkeys(("judge_hr@1%", "judge_hr@10%"), Shown()),
    **{"gap": _OPINION, "value": _PLAIN, "coverage@": _OPINION, "ild@": _PLAIN, "cpu_seconds": Shown(1.0, 0, None)},
    **dict.fromkeys(("spearman", "calibration", "judge_value"), _PLAIN),
}
OF_EVALUATOR = ("spearman", "calibration")  # of the evaluator: a column only where the models have different ones


class _Table:
    """The table: its columns, and by row the text of its cells and whether they are the best of their column."""

    def __init__(self, summaries: Sequence[Summary]) -> None:
        names = {name for row in summaries for name in row.metrics if not name.endswith(("_low", "_high"))}
        order = {name: number for number, name in enumerate(_METRICS)}
        shown = names - _shared(summaries).keys()
        self.columns = sorted(shown, key=lambda name: (order.get(_kind(name), len(order)), name))
        self.rows = list(summaries)
        columns = [self._column(name) for name in self.columns]
        self.cells = [[column[number] for column in columns] for number in range(len(summaries))]

    def _column(self, name: str) -> list[tuple[str, bool]]:
        shown = shown_as(name)
        means = [row.metrics[name].mean for row in self.rows if name in row.metrics and row.key != ORACLE]
        top = f"{100 * {'min': min, 'max': max}[shown.better](means):.1f}" if shown.better and means else None
        cells = []
        for row in self.rows:
            spread = row.metrics.get(name)
            best = spread is not None and row.key != ORACLE and f"{100 * spread.mean:.1f}" == top
            cells.append((_text(spread, shown), best))
        return cells

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = ["| model | decoding | " + " | ".join(map(heading, self.columns)) + " |"]
        lines.append("|---|---|" + "---:|" * len(self.columns))
        for row, cells in zip(self.rows, self.cells, strict=True):
            marked = [f"**{text}**" if best else text for text, best in cells]
            lines.append(f"| {row.model} | {row.decoding} | " + " | ".join(marked) + " |")
        return "\n".join(lines) + "\n"

    def fitting(self, width: int) -> int:
        """How many columns, the first of them, fit beside the labels into a console of this width."""
        width -= max(len(line) for label in self.labels() for line in label.splitlines())
        for number, name in enumerate(self.columns):
            width -= 2 + max(map(len, [*heading(name).split(), *(cells[number][0] for cells in self.cells)]))
            if width < 0:
                return max(1, number)
        return len(self.columns)

    def labels(self) -> list[str]:
        """What each line is called: decodings stand indented below their model's first line."""
        labels, previous = [], ""
        for row in self.rows:
            first = f"{row.model}\n" if row.model != previous else ""
            labels.append(label(row) if row.key in BASELINES else f"{first}  {row.decoding}")
            previous = row.model
        return labels

    def console(self, num_columns: int) -> RichTable:
        """The first columns for a console."""
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
        table.add_column("", no_wrap=True)
        for name in self.columns[:num_columns]:
            table.add_column(heading(name).replace(" ", "\n"), justify="right", vertical="bottom", no_wrap=True)
        for row, name, cells in zip(self.rows, self.labels(), self.cells, strict=True):
            style = "dim" if row.key in BASELINES else ""
            marked = [Text(text, style="bold green" if best else style) for text, best in cells[:num_columns]]
            table.add_row(Text(name, style=style), *marked)
        return table


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
    table, compared, protocol = _Table(aggregate(evaluations)), differences(evaluations), merged_protocol(evaluations)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        "rows": [asdict(row) for row in unique_rows(evaluations)],
        "protocol": protocol,
        "differences": [comparison.to_dict() for comparison in compared],
    }
    texts = {RESULTS_FILE: json.dumps(results, indent=2, allow_nan=False) + "\n"}
    texts[MARKDOWN_FILE] = _page(table, compared, protocol)
    for name, text in texts.items():
        write_atomically(folder / name, partial(Path.write_text, data=text, encoding="utf-8"))
    paths = {"json": folder / RESULTS_FILE, "markdown": folder / MARKDOWN_FILE}
    if evaluations[0].primary is not None:
        from rerankzoo.evaluation.plots import draw, save

        picture = draw(table.rows, evaluations[0].primary, _subtitle(protocol))
        paths["picture"] = save(picture, folder / PICTURE_FILE)
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
    table = _Table(aggregate(evaluations))
    fitting = table.fitting(console.width)
    console.print(table.console(fitting))
    hidden = ", ".join(table.columns[fitting:])
    missing = f"[dim]not shown, for want of width: {hidden}[/dim]" if hidden else None
    for line in (evaluator_line(table.rows), missing, opinion_line(table.rows)):
        if line:
            console.print(line, soft_wrap=True)
    for comparison in differences(evaluations):
        if comparison.b in BASELINES:
            console.print(comparison_text(comparison), soft_wrap=True)


def markdown_table(summaries: Sequence[Summary]) -> str:
    """The table as Markdown, with the best entry of each column in bold."""
    return _Table(summaries).markdown()


def evaluator_line(summaries: Sequence[Summary]) -> str | None:
    """What is said of the evaluator itself, which the table leaves out where all models have the same one."""
    said = ", ".join(f"{name} {_text(spread, _PLAIN)}" for name, spread in _shared(summaries).items())
    return f"evaluator: {said}" if said else None


def opinion_line(summaries: Sequence[Summary]) -> str | None:
    """What the evaluator's figures about slates are worth, where there are any."""
    names = ", ".join(heading(name) for name in OPINIONS if any(name in row.metrics for row in summaries))
    worth = (
        "by the evaluator, which may have chosen slates or taught their generator: agreement, not quality, no interval"
    )
    return f"{names}: {worth}" if names else None


def comparison_text(comparison: Comparison) -> str:
    """A difference in one line."""
    shown, numbers = shown_as(comparison.metric), (comparison.mean, comparison.low, comparison.high)
    mean, *ends = (f"{shown.scale * value:+.{shown.digits}f}" for value in numbers if value is not None)
    a, b = (key[0] if key in BASELINES else " ".join(key) for key in (comparison.a, comparison.b))
    unit = " points" if shown.scale == 100 else ""
    doubt = f"95 % interval {' to '.join(ends)}" if ends else "by the evaluator, hence without an interval"
    return f"{a} - {b}: {mean}{unit} of {comparison.metric}, {doubt} ({comparison.num_requests} requests)"


def shown_as(metric: str) -> Shown:
    """How a metric is shown."""
    return _METRICS.get(_kind(metric), Shown())


def heading(metric: str) -> str:
    """What a metric's column is called."""
    return re.sub("^(true_)?hr", lambda match: match.group().replace("_", " ").replace("hr", "HR"), metric)


def label(row: Summary) -> str:
    """What a row is called."""
    return row.model if row.key in BASELINES and row.key != ORACLE else f"{row.model}, {row.decoding}"


def _kind(metric: str) -> str:
    """A metric's name in `_METRICS`."""
    return metric if metric in _METRICS else re.sub("@.*", "@", metric)


def _text(spread: Spread | None, shown: Shown) -> str:
    if spread is None:
        return ""
    mean, *deviation = (
        f"{shown.scale * value:.{shown.digits}f}" for value in (spread.mean, spread.sd) if value is not None
    )
    return " ± ".join([mean, *deviation])


def _shared(summaries: Sequence[Summary]) -> dict[str, Spread]:
    """What is said of the evaluator, where all models have the same one."""
    said = {name: [row.metrics[name] for row in summaries if name in row.metrics] for name in OF_EVALUATOR}
    return {name: spreads[0] for name, spreads in said.items() if spreads and spreads.count(spreads[0]) == len(spreads)}


def _page(table: _Table, compared: Sequence[Comparison], protocol: dict[str, Any]) -> str:
    parts = ["# Evaluation\n", f"{_subtitle(protocol)}. Figures in %, except value, ild and CPU seconds.\n"]
    parts.append(table.markdown())
    parts += [f"{line}\n" for line in (evaluator_line(table.rows), opinion_line(table.rows)) if line]
    if compared:
        parts += ["## Paired differences\n", "\n".join(f"- {comparison_text(one)}" for one in compared) + "\n"]
    parts += ["## Protocol\n", "```json\n" + json.dumps(protocol, indent=2) + "\n```\n"]
    return "\n".join(parts)


def _subtitle(protocol: dict[str, Any]) -> str:
    data, labels = protocol["data"], protocol.get("labels")
    source = data.get("source", "") if isinstance(data, dict) else "several data sets"
    labelled = f" ({labels['num_requests']} with labels of both kinds)" if isinstance(labels, dict) else ""
    return f"{source}, {protocol['num_requests']} requests{labelled}, slates of {protocol['slate_size']}"
