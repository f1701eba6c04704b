"""How the time of eager decoding grows with candidates, positions, beams and requests."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import matplotlib
import torch

from qa.benchmarks.harness import milliseconds
from qa.benchmarks.setting import full_batch, make_model
from rerankzoo.models.degre import DeGReGenerator
from rerankzoo.serving.bench import Call, in_turns

#: Axis -> what varies along it; everything else is n = 50, m = 6, greedy, one request.
AXES: dict[str, tuple[int, ...]] = {
    "candidates n": (12, 25, 50, 100, 200),
    "positions m": (1, 2, 4, 6, 8, 10),
    "beams": (1, 2, 4, 8, 16),
    "requests": (1, 4, 16, 64, 256),
}


def measure_growth(seconds: float) -> dict[str, dict[str, list[float]]]:
    """Milliseconds per axis, of the whole and of all before the first position; `seconds` of wall time per axis."""
    model = make_model(DeGReGenerator)
    found = {}
    for axis, values in AXES.items():
        calls: dict[str, Call] = {}
        for value in values:
            size, number = value if axis == "requests" else 1, value if axis == "candidates n" else 50
            length, beams = value if axis == "positions m" else 6, value if axis == "beams" else 1
            batch = full_batch(size, number)
            options = {"num_beams": beams} if beams > 1 else {}
            calls[f"whole {value}"] = partial(model.generate, **batch, slate_size=length, **options)
            calls[f"encoder {value}"] = partial(model.encode, batch)
        with torch.no_grad():
            times = milliseconds(in_turns(calls, seconds))
        found[axis] = {part: [times[f"{part} {value}"] for value in values] for part in ("whole", "encoder")}
    return found


def plot_growth(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """One panel per axis, both axes logarithmic."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(found), figsize=(3.1 * len(found), 2.8), layout="constrained")
    for panel, (axis, times) in zip(panels, found.items(), strict=True):
        panel.plot(AXES[axis], times["whole"], marker="o", label="whole")
        panel.plot(AXES[axis], times["encoder"], marker=".", linestyle="--", label="features and encoder")
        panel.set(xlabel=axis, xscale="log", yscale="log", xticks=AXES[axis], xticklabels=AXES[axis])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("CPU milliseconds")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)
    pyplot.close(figure)
