"""How CPU time and memory grow with the number of requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib


def plot_tables(found: dict[str, Any], path: Path) -> None:
    """CPU seconds of every stage, and the most anonymous memory by the table's size."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (cost, memory) = pyplot.subplots(1, 2, figsize=(9.0, 3.4), layout="constrained")
    sizes = [int(size) for size in found["tables"]]
    for stage in ("open", "fit extractor"):
        cost.plot(sizes, [entry[stage]["cpu"] for entry in found["tables"].values()], marker="o", label=stage)
    for stage, runs in found["costs"].items():
        cost.plot([entry["requests"] for entry in runs], [entry["cpu"] for entry in runs], marker="s", label=stage)
    for stage in ("open", "fit extractor", "train", "mine"):
        peaks = [entry[stage]["peak"] / 2**20 for entry in found["tables"].values()]
        memory.plot(sizes, peaks, marker="o", label=stage)
    cost.set(xlabel="requests", ylabel="CPU seconds", xscale="log", yscale="log")
    memory.set(xlabel="requests of the table", ylabel="anonymous memory, MiB at most", xscale="log")
    memory.set_ylim(bottom=0)
    for panel in (cost, memory):
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize=8)
    figure.savefig(path)
    pyplot.close(figure)
