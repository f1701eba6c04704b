"""How CPU time and memory grow with the number of requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from qa.scale.tables import STAGES


def plot_tables(found: dict[str, Any], path: Path) -> None:
    """CPU seconds and the most anonymous memory of every stage."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (cost, memory) = pyplot.subplots(1, 2, figsize=(9.0, 3.4), layout="constrained")
    sizes = [int(size) for size in found["tables"]]
    for stage in STAGES:
        entries = [entry[stage] for entry in found["tables"].values()]
        cost.plot(sizes, [entry["cpu"] for entry in entries], marker="o", label=stage)
        memory.plot(sizes, [entry["peak"] / 2**20 for entry in entries], marker="o", label=stage)
    cost.set(xlabel="requests of the table", ylabel="CPU seconds", xscale="log", yscale="log")
    memory.set(xlabel="requests of the table", ylabel="anonymous memory, MiB at most", xscale="log")
    memory.set_ylim(bottom=0)
    for panel in (cost, memory):
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize=8)
    figure.savefig(path)
    pyplot.close(figure)
