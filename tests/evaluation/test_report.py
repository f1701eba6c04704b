from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rerankzoo.evaluation import (
    Comparison,
    Decoding,
    Evaluation,
    Point,
    default_decodings,
    differences,
    evaluate,
    print_table,
    write_curve,
    write_report,
)
from rerankzoo.evaluation.plots import draw, draw_curve
from rerankzoo.evaluation.report import comparison_text, counterfactual_text, markdown_table
from rerankzoo.evaluation.results import Summary, is_by_evaluator
from rerankzoo.metrics import Spread


@pytest.fixture(scope="module")
def evaluations(simulated: Any) -> list[Evaluation]:
    return [
        evaluate(
            simulated.model(seed),
            simulated.data,
            simulated.extractor,
            simulated.metadata,
            name="nar4rec",
            decodings=default_decodings(has_evaluator=True),
            evaluator=simulated.evaluator(),
            seed=seed,
            num_requests=20,
            counterfactual=True,
        )
        for seed in range(2)
    ]


def printed(evaluations: list[Evaluation], width: int) -> str:
    stream = io.StringIO()
    print_table(evaluations, Console(file=stream, width=width))
    return stream.getvalue()


def summary(model: str, **metrics: float) -> Summary:
    return Summary(
        model, "sort", {name.replace("_at_", "@"): Spread(value, None, 1) for name, value in metrics.items()}
    )


def test_results_json_has_the_agreed_form(evaluations: list[Evaluation], tmp_path: Path) -> None:
    paths = write_report(evaluations, tmp_path / "new" / "folder")
    results = json.loads(paths["json"].read_text())
    assert set(results) == {"rows", "protocol", "differences", "counterfactual"}
    assert len(results["rows"]) == 2 * (4 + 7)
    for row in results["rows"]:
        assert set(row) == {"model", "decoding", "seed", "metrics", "slates"}
        assert {"utility", "regret", "true_hr@1%", "true_hr@10%", "hr@1%", "hr@10%", "gap"} <= set(row["metrics"])
    assert {row["seed"] for row in results["rows"]} == {0, 1}
    assert results["protocol"]["primary_metric"] == "utility"
    assert [one["a"]["decoding"] for one in results["differences"]][:2] == ["greedy", "beam 4"]
    assert results["differences"][0]["num_requests"] == 20
    names = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert names == ["results.json", "results.md", "results.png"]  # and nothing temporary


def test_the_picture_is_a_png(evaluations: list[Evaluation], tmp_path: Path) -> None:
    picture = write_report(evaluations[:1], tmp_path)["picture"].read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 10_000


def test_bars_show_the_metric_in_percent() -> None:
    figure = draw([summary("upstream", utility=0.5), summary("model", utility=0.625)], "utility", "here")
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [50.0, 62.5]
    assert [text.get_text() for text in axes.texts] == ["50.0", "62.5", "here"]
    assert axes.lines[0].get_xdata()[0] == 50.0


def test_a_report_without_a_primary_metric_has_no_picture(tmp_path: Path, simulated: Any) -> None:
    options = {"name": "nar4rec", "decodings": default_decodings()}
    found = evaluate(simulated.model(), simulated.data, simulated.extractor, **options)
    assert found.primary is None
    assert set(write_report([found], tmp_path)) == {"json", "markdown"}
    assert json.loads((tmp_path / "results.json").read_text())["differences"] == []


def test_markdown_marks_the_best_of_each_column() -> None:
    rows = [
        summary("upstream", utility=0.5, regret=0.5, ndcg_at_4=0.3, value=9.0),
        summary("model", utility=0.75, regret=0.25, ndcg_at_4=0.2996, value=1.0),
    ]
    assert markdown_table(rows) == (
        "| model | decoding | utility | regret | ndcg@4 | predicted value |\n"
        "|---|---|---:|---:|---:|---:|\n"
        "| upstream | sort | 50.0 | 50.0 | **30.0** | 9.000 |\n"
        "| model | sort | **75.0** | **25.0** | **30.0** | 1.000 |\n"
    )


def test_the_evaluators_quality_is_a_line_or_a_column(evaluations: list[Evaluation], tmp_path: Path) -> None:
    one = [run.with_metrics("nar4rec", {"spearman": 0.875, "cpu_seconds": 12.4}) for run in evaluations]
    assert "evaluator: spearman 0.875" in printed(one, 200)
    page = write_report(one, tmp_path)["markdown"].read_text()
    assert "evaluator: spearman 0.875" in page
    assert "| spearman |" not in page
    assert "12 ± 0 |" in page
    rows = [summary("one", spearman=0.875), summary("other", spearman=0.5)]
    assert "| one | sort | 0.875 |\n| other | sort | 0.500 |" in markdown_table(rows)


def test_a_curve_has_a_line_per_series_and_a_panel_per_metric(evaluations: list[Evaluation], tmp_path: Path) -> None:
    rows = [summary(name, utility=value, spearman=value) for name, value in [("b", 0.5), ("a", 0.25), ("c", 0.75)]]
    points = [Point("b", "line", 20.0), Point("a", "line", 10.0), Point("c", "other", 10.0)]
    figure = draw_curve(rows, points, "logs", ["utility", "spearman"], log=True)
    first, second = figure.axes
    assert [text.get_text() for text in first.get_legend().get_texts()] == ["line", "other"]
    lines = [container.lines[0] for container in first.containers]
    assert [list(line.get_xdata()) for line in lines] == [[10, 20], [10]]
    assert [list(line.get_ydata()) for line in lines] == [[25, 50], [75]]
    assert list(second.containers[0].lines[0].get_ydata()) == [0.25, 0.5]  # no share
    with pytest.raises(ValueError, match=r"missing: \[\('d', 'utility'\)\]"):
        draw_curve(rows, [Point("d", "", 1.0)], "logs", ["utility"])
    path = write_curve(evaluations, tmp_path, [Point("nar4rec", "", 1.0)], "logs", ["utility"])
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_oracle_does_not_compete() -> None:
    oracle = Summary("oracle", "pointwise", {"utility": Spread(0.9, None, 1)})
    table = markdown_table([oracle, summary("model", utility=0.75)])
    assert "| oracle | pointwise | 90.0 |" in table
    assert "| model | sort | **75.0** |" in table


def test_several_runs_are_shown_with_their_spread(evaluations: list[Evaluation]) -> None:
    assert "±" in printed(evaluations, 200)
    assert "±" not in printed(evaluations[:1], 200)


def test_a_narrow_console_leaves_out_the_least_important_columns(evaluations: list[Evaluation]) -> None:
    wide, narrow = printed(evaluations[:1], 200), printed(evaluations[:1], 80)
    assert "ild@3" in wide
    assert "not shown" not in wide
    assert "not shown, for want of width" in narrow
    assert "utility" in narrow
    table = narrow[: narrow.index("not shown")]
    assert max(map(len, table.splitlines())) <= 80
    assert "…" not in narrow


def test_the_same_seed_prints_the_same_table_twice(evaluations: list[Evaluation]) -> None:
    assert printed(evaluations, 100) == printed(evaluations, 100)
    assert "nar4rec greedy - upstream: " in printed(evaluations, 100)


def test_what_the_evaluator_says_is_not_called_quality(simulated: Any, tmp_path: Path) -> None:
    """Nothing but the evaluator is known: rows are compared by it, without intervals, and no row is the best."""
    options = {"name": "nar4rec", "decodings": [Decoding("greedy", {"num_beams": 1})], "num_requests": 20}
    found = evaluate(simulated.model(), simulated.data, simulated.extractor, evaluator=simulated.evaluator(), **options)
    assert found.primary == "value"
    page = write_report([found], tmp_path)["markdown"].read_text()
    for text in (page, printed([found], 400)):
        assert "predicted value, HR@1%, HR@10%: by the evaluator, which may have chosen slates or taught" in text
        assert " of predicted value, by the evaluator, hence without an interval (20 requests)" in text
        assert "95 %" not in text
        assert "**" not in text
        assert "significant" not in text
    written = (tmp_path / "results.json").read_text()
    assert "significant" not in written
    assert [set(one) for one in json.loads(written)["differences"]] == [{"metric", "a", "b", "mean", "num_requests"}]


def test_a_judges_difference_is_predicted_too_and_has_the_evaluators_beside_it(simulated: Any, tmp_path: Path) -> None:
    options = {"name": "nar4rec", "decodings": [Decoding("greedy", {"num_beams": 1})], "hr_requests": 0}
    both = {"evaluator": simulated.evaluator(), "judge": simulated.evaluator(1)}
    found = evaluate(simulated.model(), simulated.data, simulated.extractor, **both, **options)
    text = printed([found], 400)
    assert "value predicted by the judge, 95 % interval " in text
    assert " over the requests, as far as the judge is right (60 requests); predicted by the evaluator: " in text
    write_report([found], tmp_path)
    [difference] = json.loads((tmp_path / "results.json").read_text())["differences"]
    values = [found.row(*key).metrics["value"] for key in (("nar4rec", "greedy"), ("upstream", "sort"))]
    assert difference["predicted"] == pytest.approx(values[0] - values[1])
    assert {"low", "high"} < set(difference)
    assert "significant" not in difference


def test_small_rates_get_digits_and_large_ones_do_not() -> None:
    rows = [summary("a", value=0.0012, ndcg_at_4=0.00345), summary("b", value=0.00871, ndcg_at_4=0.002)]
    assert "| a | sort | 0.34 | 0.00120 |\n| b | sort | 0.20 | 0.00871 |" in markdown_table(rows).replace("**", "")
    assert "| a | sort | 0.50 | 1.200 |" in markdown_table([summary("a", value=1.2, ndcg_at_4=0.005)]).replace("**", "")
    comparison = Comparison("value", ("a", "greedy"), ("upstream", "sort"), 0.000912, None, None, 60)
    assert comparison_text(comparison).startswith("a greedy - upstream: +0.000912 of predicted value, by the evaluator")
    figure = draw([summary("upstream", value=0.0012), summary("model", value=0.00871)], "value", "")
    assert [text.get_text() for text in figure.axes[0].texts][:2] == ["0.00120", "0.00871"]


def test_decodings_that_chose_alike_are_one_row(simulated: Any) -> None:
    """Greedy and a beam of one are the same; their difference is no line either."""
    names = [
        Decoding("greedy", {"num_beams": 1}),
        Decoding("beam 1", {"num_beams": 1}),
        Decoding("beam 4", {"num_beams": 4}),
    ]
    found = evaluate(
        simulated.model(), simulated.data, simulated.extractor, simulated.metadata, name="m", decodings=names
    )
    text = printed([found], 200)
    assert "greedy = beam 1" in text
    assert len([row for row in found.rows if row.model == "m"]) == 3
    assert {row.slates for row in found.rows if row.decoding in ("greedy", "beam 1")} == {
        found.row("m", "greedy").slates
    }
    assert not any("beam 1" in one.a + one.b for one in differences([found]))


def test_what_had_too_little_feedback_is_told_in_words(simulated: Any) -> None:
    options = {"name": "m", "decodings": [Decoding("greedy", {"num_beams": 1})], "evaluator": simulated.evaluator()}
    why = {"what evaluators predict": "for the log has 3 positives"}
    found = evaluate(simulated.model(), simulated.data, simulated.extractor, **options).without(is_by_evaluator, why)
    assert not {"value", "hr@1%", "hr@10%"} & set(found.row("m", "greedy").metrics)
    assert found.primary is None
    assert "what evaluators predict: not shown, for the log has 3 positives" in printed([found], 200)


def test_the_log_is_asked_and_may_not_know(evaluations: list[Evaluation]) -> None:
    text = counterfactual_text(evaluations[0])
    assert "cannot be told from this log: " in text
    assert "What to log: " in text
    assert "independent, estimated propensities" in text
    empty = replace(evaluations[0], counterfactual={}, logged="no logged slates with feedback, one per request")
    assert counterfactual_text(empty) == (
        "Nothing can be told from this log: no logged slates with feedback, one per request."
    )
