"""One page of a diagnosis: as Markdown (also for the terminal), as HTML with pictures, and as JSON for programs."""

from __future__ import annotations

import html
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerankzoo.atomic_writing import write_text
from rerankzoo.diagnosis.crossfit import Prediction
from rerankzoo.diagnosis.diagnosis import Diagnosis
from rerankzoo.diagnosis.log import base_rates
from rerankzoo.diagnosis.support import unknown_share

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NO_WARNING = (
    "Calibration on the log, rank correlation over random slates, and HR@p% by one's own evaluator do not warn: all "
    "are good where an evaluator is blind to what decides. Nor does a judge of the same form: it shares the blindness."
)
_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#24292f}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;border-bottom:1px solid #d0d7de}"
    ".verdict{font-size:1.2rem;border-left:4px solid #c2522d;padding-left:.8rem}"
)


@dataclass(frozen=True)
class _Section:
    title: str
    lines: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()  # its first row is the heading


def write_page(found: Diagnosis, title: str, out_dir: Path) -> dict[str, Path]:
    """Writes `diagnosis.md`, `diagnosis.html` and `diagnosis.json` into a folder; returns their paths."""
    texts = {"md": markdown(found, title), "html": as_html(found, title), "json": as_json(found)}
    out_dir.mkdir(parents=True, exist_ok=True)
    paths = {kind: out_dir / f"diagnosis.{kind}" for kind in texts}
    for kind, text in texts.items():
        write_text(paths[kind], text)
    return paths


def markdown(found: Diagnosis, title: str) -> str:
    """The page as Markdown."""
    parts = [f"# {title}", f"**Verdict: {found.verdict.text}.**", _bullets(found.verdict.reasons)]
    for section in _sections(found):
        parts.append(f"## {section.title}")
        if section.table:
            heading, *rows = section.table
            lines = [heading, tuple("---" for _ in heading), *rows]
            parts.append("\n".join("| " + " | ".join(row) + " |" for row in lines))
        parts += [_bullets(section.lines)] if section.lines else []
    return "\n\n".join(parts) + "\n"


def as_html(found: Diagnosis, title: str) -> str:
    """The page as HTML that needs no other file."""
    named = html.escape(title)
    parts = [f"<title>{named}</title><style>{_STYLE}</style><h1>{named}</h1>"]
    parts += [f'<p class="verdict">Verdict: {html.escape(found.verdict.text)}.</p>', _list(found.verdict.reasons)]
    for section in _sections(found):
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        if section.table:
            cells = [[html.escape(text) for text in row] for row in section.table]
            rows = ["<tr>" + "".join(f"<td>{text}</td>" for text in row) + "</tr>" for row in cells]
            parts.append(f"<table>{''.join(rows)}</table>")
        parts += [_list(section.lines)] if section.lines else []
    if found.losses:
        parts += ["<h2>Pictures</h2>", _svg(_draw(found))]
    return '<!doctype html><meta charset="utf-8">' + "\n".join(parts) + "\n"


def as_json(found: Diagnosis) -> str:
    """What was found, without the log itself, as JSON."""
    left_out = ("log", "form", "ranker", "chosen", "figures")
    told: dict[str, Any] = {name: _plain(value) for name, value in vars(found).items() if name not in left_out}
    figures = {name: value for name, value in asdict(found.figures).items() if value is None or math.isfinite(value)}
    forms = {"form": found.form and found.form.name, "ranker": found.ranker and found.ranker.name}
    return json.dumps({**told, **forms, "figures": figures, "counts": _plain(found.log.counts)}, indent=2) + "\n"


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(part) for name, part in vars(value).items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return {key: _plain(part) for key, part in value.items()} if isinstance(value, dict) else value


def _sections(found: Diagnosis) -> list[_Section]:
    sections = [_counts(found)]
    if found.losses:
        sections += [_reading(found), _winning(found)]
        sections += [_shown(found)] if found.support is not None else []
    return [*sections, _Section("What does not warn", (_NO_WARNING,))]


def _counts(found: Diagnosis) -> _Section:
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
    return _Section("What the log holds", tuple(lines), (("split", "requests", "positives"), *rows))


def _reading(found: Diagnosis) -> _Section:
    table = [("reading", "loss, nats per request", "better than pointwise", "95 % interval")]
    for loss in found.losses:
        better = loss.better
        ends = ("", "") if better is None else (f"{better.mean:+.4f}", f"{better.low:+.4f} to {better.high:+.4f}")
        table.append((loss.name, f"{loss.nats:.4f}", *ends))
    lines = []
    if found.later is not None:
        lines.append(
            f"reading later items, too, adds {found.later.mean:+.4f} nats per request (95 % interval "
            f"{found.later.low:+.4f} to {found.later.high:+.4f})"
        )
    for point in found.curve:
        gain = "extrapolated" if point.gain is None else f"predicted gain {point.gain.mean:+.3g}"
        lines.append(f"{point.requests:,} requests teach {point.better:+.4f} nats per request over pointwise, {gain}")
    return _Section("Is there anything listwise to win?", tuple(lines), tuple(table))


def _winning(found: Diagnosis) -> _Section:
    gain, pointwise = found.gain, found.pointwise
    if gain is None or pointwise is None:
        return _Section("What would it win?")
    lines = [
        f"slates of the best pointwise ranker ({found.ranker.name if found.ranker else ''}): predicted utility "
        f"{pointwise.mean:.3g} per request",
        f"slates of evaluators that learned from half the log ({found.form.name if found.form else ''}): predicted "
        f"gain {_both(gain)}, by feedback that they did not learn from",
        f"the same by the evaluators that chose them: {gain.own:+.3g} (exploitation {gain.own - gain.mean:+.3g}; no "
        "figure to believe)",
    ]
    if found.other_form is not None:
        name, other = found.other_form
        lines.append(f"by a judge of another form ({name}): {_both(other)}")
    for one in found.proposed:
        own = (
            ""
            if one.own is None
            else f"; its own evaluator: {one.own:+.3g}, exploitation {one.own - one.judged.mean:+.3g}"
        )
        lines.append(
            f"slates of {one.name}: predicted gain {_both(one.judged)} by the judges, at most, for they learned from "
            f"the same log{own}"
        )
    return _Section("What would it win?", tuple(lines))


def _both(prediction: Prediction) -> str:
    return f"{prediction.mean:+.3g} ± {prediction.error:.2g} (standard error)"


def _shown(found: Diagnosis) -> _Section:
    support = found.support
    if support is None:
        return _Section("What the log shows")
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
    return _Section("What the log shows", tuple(lines))


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


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


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    return stream.getvalue()[stream.getvalue().index("<svg") :]
