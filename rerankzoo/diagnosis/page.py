"""One page of a diagnosis: as Markdown (also for the terminal), as HTML with pictures, and as JSON for programs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from rerankzoo.atomic_writing import write_text
from rerankzoo.diagnosis.crossfit import Prediction
from rerankzoo.diagnosis.diagnosis import Diagnosis
from rerankzoo.diagnosis.log import base_rates
from rerankzoo.diagnosis.support import unknown_share
from rerankzoo.pages import bullets, html_page, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NO_WARNING = (
    "Calibration on the log, rank correlation over random slates, and HR@p% by one's own evaluator do not warn: all "
    "are good where an evaluator is blind to what decides. Nor does a judge of the same form: it shares the blindness."
)


def write_page(found: Diagnosis, title: str, out_dir: Path) -> dict[str, Path]:
    """Writes `diagnosis.md`, `diagnosis.html` and `diagnosis.json` into a folder; returns their paths."""
    page = markdown(found, title)
    pictures = [_draw(found)] if found.losses else []
    texts = {"md": page, "html": html_page(title, page, pictures), "json": as_json(found)}
    paths = {kind: out_dir / f"diagnosis.{kind}" for kind in texts}
    for kind, text in texts.items():
        write_text(paths[kind], text)
    return paths


def markdown(found: Diagnosis, title: str) -> str:
    """The page as Markdown."""
    parts = [f"# {title}", f"**Verdict: {found.verdict.text}.**", bullets(found.verdict.reasons), *_counts(found)]
    if found.losses:
        parts += [*_reading(found), *_winning(found), *_shown(found)]
    return "\n\n".join([*parts, "## What does not warn", bullets([_NO_WARNING])]) + "\n"


def as_json(found: Diagnosis) -> str:
    """What was found, without the log itself, as JSON."""
    left_out = ("log", "form", "ranker", "chosen", "figures")
    told = {name: value for name, value in vars(found).items() if name not in left_out}
    figures = {name: value for name, value in vars(found.figures).items() if value is None or math.isfinite(value)}
    forms = {"form": found.form and found.form.name, "ranker": found.ranker and found.ranker.name}
    named = {**told, **forms, "figures": figures, "counts": found.log.counts}
    return json.dumps(named, indent=2, default=vars) + "\n"


def _counts(found: Diagnosis) -> list[str]:
    log = found.log
    rows = [(name, f"{one['requests']:,}", f"{one['positives']:,}") for name, one in log.counts.items()]
    rates = base_rates(log.halves[0])
    lines = [
        f"{target.name} by position: " + ", ".join(f"{100 * rate:.3g} %" for rate in rates[:, column].tolist())
        for column, target in enumerate(log.schema.targets)
    ]
    lines.append(f"ids of the test requests that the train split does not have: {unknown_share(log):.1%}")
    if log.used < log.counts["train"]["requests"]:
        lines.append(f"{log.used:,} train requests, drawn at random, were read")
    return ["## What the log holds", table(("split", "requests", "positives"), rows), bullets(lines)]


def _reading(found: Diagnosis) -> list[str]:
    rows = []
    for loss in found.losses:
        better = loss.better
        ends = ("", "") if better is None else (f"{better.mean:+.4f}", f"{better.low:+.4f} to {better.high:+.4f}")
        rows.append((loss.name, f"{loss.nats:.4f}", *ends))
    lines = []
    if found.later is not None:
        lines.append(
            f"reading later items, too, adds {found.later.mean:+.4f} nats per request (95 % interval "
            f"{found.later.low:+.4f} to {found.later.high:+.4f})"
        )
    for point in found.curve:
        gain = "extrapolated" if point.gain is None else f"predicted gain {point.gain.mean:+.3g}"
        lines.append(f"{point.requests:,} requests teach {point.better:+.4f} nats per request over pointwise, {gain}")
    heading = ("reading", "loss, nats per request", "better than pointwise", "95 % interval")
    return ["## Is there anything listwise to win?", table(heading, rows), bullets(lines)]


def _winning(found: Diagnosis) -> list[str]:
    gain, pointwise, form, ranker = found.gain, found.pointwise, found.form, found.ranker
    if gain is None or pointwise is None or form is None or ranker is None or found.other_form is None:
        return []
    name, other = found.other_form
    lines = [
        f"slates of the best pointwise ranker ({ranker.name}): predicted utility {pointwise.mean:.3g} per request",
        f"slates of evaluators that learned from half the log ({form.name}): predicted gain {_both(gain)}, by feedback "
        "that they did not learn from",
        f"the same by the evaluators that chose them: {gain.own:+.3g} (exploitation {gain.own - gain.mean:+.3g}; no "
        "figure to believe)",
        f"by a judge of another form ({name}): {_both(other)}",
    ]
    for one in found.proposed:
        told = f"slates of {one.name}: predicted gain {_both(one.judged)} by the judges, at most, for they learned from"
        told += " the same log"
        if one.own is not None:
            told += f"; its own evaluator: {one.own:+.3g}, exploitation {one.own - one.judged.mean:+.3g}"
        lines.append(told)
    return ["## What would it win?", bullets(lines)]


def _both(prediction: Prediction) -> str:
    return f"{prediction.mean:+.3g} ± {prediction.error:.2g} (standard error)"


def _shown(found: Diagnosis) -> list[str]:
    support = found.support
    if support is None:
        return []
    kind = "repeat" if support.fixed else "vary"
    lines = [
        f"candidate sets {kind}: {support.distinct_sets:.1%} of the requests have one of their own",
        f"different slates, as a share of the requests: {support.distinct_slates:.1%}",
    ]
    if support.upstream is not None:
        lines.append(f"logged slates that are the head of the upstream order: {support.upstream:.1%}")
    if support.positions is not None:
        pairs = "" if support.neighbours is None else f", their pairs of neighbours: {support.neighbours:.1%}"
        lines.append(
            f"proposed items at their positions that the log shows at least five times: {support.positions:.1%}{pairs}"
        )
    lines.append(f"logged positions of the test requests that hold the proposed item: {support.matches:.1%}")
    lines.append(f"logged slates of the test requests that equal the proposed one: {support.equal}")
    for one in found.estimates:
        kind = " (propensities estimated)" if one.estimated else ""
        told = one.refusal or f"{one.value:.3g} per request, 95 % interval {one.low:.3g} to {one.high:.3g}"
        size = f"effective sample size {one.effective_sample_size:.0f}, largest weight {one.largest_weight:.3g}"
        lines.append(f"chosen slates by {one.name}{kind}: {told} ({size})")
    return ["## What the log shows", bullets(lines)]


def _draw(found: Diagnosis) -> Figure:
    """Losses with intervals, and the learning curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [(loss.name, loss.better) for loss in reversed(found.losses) if loss.better is not None]
    means = [better.mean for _, better in rows]
    widths = [better.mean - better.low for _, better in rows]
    left.errorbar(means, range(len(rows)), xerr=widths, fmt="o", markersize=4, capsize=2.5)
    left.axvline(0, color="#c2522d", linestyle="--", linewidth=1)
    left.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
    left.set_title("better than pointwise, nats per request", fontsize=9, loc="left")
    left.set_xscale("symlog", linthresh=0.01)
    left.tick_params(axis="x", labelsize=7)
    places = [point.requests for point in found.curve]
    right.plot(places, [point.better for point in found.curve], marker="o", markersize=4)
    right.axhline(0, color="#c2522d", linestyle="--", linewidth=1)
    right.set_title("listwise over pointwise by requests, the last one extrapolated", fontsize=9, loc="left")
    right.tick_params(labelsize=7)
    return figure
