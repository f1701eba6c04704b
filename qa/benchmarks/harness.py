"""Ratios and how they are told: a table, `results.json`, and what stands beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from rerankzoo.atomic_writing import write_json
from rerankzoo.serving.bench import Times

Direction = Literal["at_least", "at_most"]


@dataclass(frozen=True)
class Ratio:
    """One ratio of the table.

    Attributes:
        row: What is compared; the words of the issue.
        direction: Whether it must be at least or at most so much.
        measured: The ratio of medians; `None` where it could not be measured.
        must: The bar.
        aim: The ambitious one.
        note: What else was measured: the share of the decoder, the parts of the time.
    """

    row: str
    direction: Direction
    measured: float | None
    must: float
    aim: float
    note: str = field(default="", compare=False)

    @property
    def met(self) -> str:
        """Which of the bars the ratio meets."""
        if self.measured is None:
            return "not measured"
        sign = 1 if self.direction == "at_least" else -1
        if sign * self.measured >= sign * self.aim:
            return "aim"
        return "must" if sign * self.measured >= sign * self.must else "short"


def milliseconds(times: dict[str, Times]) -> dict[str, float]:
    """Medians of CPU time."""
    return {name: float(np.median(values.cpu) * 1e3) for name, values in times.items()}


def print_ratios(ratios: Iterable[Ratio]) -> None:
    """The table."""
    table = Table(title="CPU time on one thread, ratios of medians in one run", title_justify="left")
    for name in ("ratio", "", "must", "aim", "measured", "meets"):
        table.add_column(name, justify="left" if name in ("ratio", "", "meets") else "right")
    for ratio in ratios:
        sign = "≥" if ratio.direction == "at_least" else "≤"
        measured = "-" if ratio.measured is None else f"{ratio.measured:.3g}"
        table.add_row(ratio.row, sign, f"{ratio.must:g}", f"{ratio.aim:g}", measured, ratio.met)
        if ratio.note:
            table.add_row(f"  [dim]{ratio.note}[/dim]")
    Console(width=140).print(table)


def write_results(path: Path, ratios: Iterable[Ratio]) -> None:
    """Writes the ratios as JSON."""
    keys = ("row", "direction", "measured", "must", "aim")
    entries: list[dict[str, Any]] = [{key: asdict(ratio)[key] for key in keys} for ratio in ratios]
    write_json(path, {"ratios": entries})
