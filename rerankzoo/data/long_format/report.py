"""What a log holds and what its checks have found, as Markdown and as a page with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rerankzoo.data.long_format.checks import Finding
from rerankzoo.data.long_format.loading import Plan, quoted
from rerankzoo.pages import bullets, html_page, table

if TYPE_CHECKING:
    import duckdb
    from matplotlib.figure import Figure

REPORT_FILES = ("report.md", "report.html")


def write_report(
    folder: Path, connection: duckdb.DuckDBPyConnection, plan: Plan, findings: Sequence[Finding], protocol: str
) -> None:
    """Writes `report.md` and `report.html` about the rows that were just read."""
    title = f"The log {plan.spec.schema.name}"
    told = [finding for finding in findings if finding.count]
    parts = [f"# {title}", f"{protocol}.", *_contents(connection, plan), "## What was found"]
    parts.append(table(("check", "count", "meaning"), [(one.name, f"{one.count:,}", one.text) for one in told]))
    for finding in told:
        if finding.examples:
            parts += [f"Examples of {finding.name}:", bullets(finding.examples)]
    silent = dict.fromkeys(one.name for one in findings if not one.count)
    parts += ["## Looked for and not found", ", ".join(silent) + "."]
    text = "\n\n".join(parts) + "\n"
    (folder / REPORT_FILES[0]).write_text(text, encoding="utf-8")
    (folder / REPORT_FILES[1]).write_text(html_page(title, text, [_draw(connection, plan)]), encoding="utf-8")


def _contents(connection: duckdb.DuckDBPyConnection, plan: Plan) -> list[str]:
    """Counts by split, and by surface."""
    parts = ["## What it holds", _sizes(connection, "__split", "split")]
    if plan.spec.surface is not None and plan.request_fields[plan.spec.surface] == "impressions":
        parts.append(_sizes(connection, quoted(plan.spec.surface), "surface"))
    return parts


def _sizes(connection: duckdb.DuckDBPyConnection, key: str, name: str) -> str:
    query = f"""
        SELECT {key}, count(*), sum(__rows), sum(__shown), min(__shown), max(__shown), sum((__rewarded > 0)::INTEGER),
            min(__time), max(__time)
        FROM requests GROUP BY ALL ORDER BY min(__time)"""
    heading = (name, "requests", "rows", "shown", "least", "most", "with feedback", "from", "to")
    rows = connection.execute(query).fetchall()
    return table(heading, [[f"{value:,}" if isinstance(value, int) else value for value in row] for row in rows], 8)


def _draw(connection: duckdb.DuckDBPyConnection, plan: Plan) -> Figure:
    """Requests by day, feedback by position, and how many items are shown."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    days, positions, sizes = figure.subplots(1, 3)
    query = "SELECT date_trunc('day', __time) AS day, count(*) FROM requests GROUP BY day ORDER BY day"
    found = connection.execute(query).fetchall()
    days.plot([day for day, _ in found], [count for _, count in found], marker="o", markersize=3)
    days.set_title("requests by day", fontsize=9, loc="left")
    days.set_ylim(bottom=0)
    days.tick_params(axis="x", rotation=45)
    names = [target.name for target in plan.spec.schema.targets]
    rates = ", ".join(f"avg(({quoted(name)} > 0)::INTEGER)" for name in names)
    query = f"SELECT __position, {rates} FROM impressions WHERE __position IS NOT NULL GROUP BY ALL ORDER BY 1 LIMIT 50"
    found = connection.execute(query).fetchall()
    for column, name in enumerate(names, 1):
        positions.plot([row[0] for row in found], [row[column] for row in found], marker="o", markersize=3, label=name)
    positions.set_title("rate of feedback by position", fontsize=9, loc="left")
    positions.set_ylim(bottom=0)
    positions.legend(frameon=False, fontsize=7)
    found = connection.execute("SELECT __shown, count(*) FROM requests GROUP BY ALL ORDER BY 1 LIMIT 100").fetchall()
    sizes.bar([size for size, _ in found], [count for _, count in found])
    sizes.set_title("requests by the number of items shown", fontsize=9, loc="left")
    for panel in (positions, sizes):
        panel.xaxis.get_major_locator().set_params(integer=True)
    for panel in (days, positions, sizes):
        panel.tick_params(labelsize=7)
    return figure
