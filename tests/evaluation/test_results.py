from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rerankzoo.evaluation import Comparison, Evaluation, Row, aggregate, compare, differences
from rerankzoo.evaluation.results import merged_protocol, unique_rows

UPSTREAM, MODEL = ("upstream", "sort"), ("model", "greedy")


def evaluation(
    values: list[float], seed: int = 0, name: str = "model", requests: str = "r", upstream: float = 0.5, **protocol: Any
) -> Evaluation:
    per_request = {UPSTREAM: torch.full((len(values),), upstream), (name, "greedy"): torch.tensor(values)}
    rows = [Row(*key, seed, {"utility": column.mean().item()}) for key, column in per_request.items()]
    return Evaluation(rows, {"num_requests": len(values), **protocol}, "utility", per_request, requests)


def test_aggregate_gives_mean_and_sample_deviation() -> None:
    summaries = aggregate([evaluation([mean, mean], seed) for seed, mean in enumerate((0.25, 0.5, 0.75))])
    assert [row.key for row in summaries] == [UPSTREAM, MODEL]
    spread = summaries[1].metrics["utility"]
    assert (spread.mean, spread.sd, spread.num_runs) == (0.5, 0.25, 3)
    assert summaries[0].metrics["utility"].sd == 0.0
    with pytest.raises(ValueError, match="at least one"):
        aggregate([])


def test_models_share_their_baselines() -> None:
    rows = unique_rows([evaluation([0.5]), evaluation([0.75], name="other")])
    assert [row.key for row in rows] == [UPSTREAM, MODEL, ("other", "greedy")]


def test_models_of_different_evaluators_share_what_is_true_of_the_baselines() -> None:
    def valued(name: str, opinion: float) -> Evaluation:
        found = evaluation([0.5], name=name)
        rows = [replace(row, metrics={**row.metrics, "hr@1%": opinion, "gap": opinion}) for row in found.rows]
        return replace(found, rows=rows)

    with pytest.raises(ValueError, match="was measured twice"):
        unique_rows([valued("a", 0.1), valued("b", 0.2)])
    for order in ((0, 1), (1, 0)):
        both = [valued("a", 0.1), valued("b", 0.2).with_own_evaluator()]
        rows = {row.key: row.metrics for row in unique_rows([both[index] for index in order])}
        assert rows[UPSTREAM] == {"utility": 0.5, "hr@1%": 0.1, "gap": 0.1}
        assert rows["b", "greedy"] == {"utility": 0.5, "hr@1%": 0.2, "gap": 0.2}
    assert differences([one.with_own_evaluator() for one in both])[0].b == UPSTREAM


def test_with_metrics_adds_to_one_model() -> None:
    found = (
        evaluation([0.5]).with_metrics("model", {"cpu_seconds": 6.0}, "greedy").with_metrics("model", {"gap": 1.0}, "x")
    )
    assert [row.metrics for row in found.rows] == [{"utility": 0.5}, {"utility": 0.5, "cpu_seconds": 6.0}]


def test_rows_measured_in_two_ways_are_refused() -> None:
    with pytest.raises(ValueError, match="one seed per run"):
        unique_rows([evaluation([0.5]), evaluation([0.5])])
    with pytest.raises(ValueError, match=r"\('upstream', 'sort'\) of seed 0 was measured twice"):
        unique_rows([evaluation([0.5]), evaluation([0.5], name="other", upstream=0.75)])


def test_runs_on_the_same_requests_are_averaged_before_the_bootstrap() -> None:
    runs = [evaluation([0.5, 1.0], seed=0), evaluation([1.0, 0.5], seed=1)]
    found = compare(runs, MODEL, UPSTREAM)
    assert (found.mean, found.low, found.high, found.num_requests) == (0.25, None, None, 2)  # too few for an interval


def test_runs_on_other_requests_add_theirs() -> None:
    runs = [evaluation([0.5, 1.0] * 5, requests="r"), evaluation([1.0, 0.5] * 5, seed=1, requests="s")]
    found = compare(runs, MODEL, UPSTREAM)
    assert found.num_requests == 20
    assert found.mean == 0.25
    assert found.low < 0.25 < found.high


def test_two_models_are_compared_across_their_evaluations() -> None:
    runs = [evaluation([0.5] * 20), evaluation([0.75] * 20, name="other")]
    found = compare(runs, ("other", "greedy"), MODEL)
    assert found.to_dict() == {
        "metric": "utility",
        "a": {"model": "other", "decoding": "greedy"},
        "b": {"model": "model", "decoding": "greedy"},
        "mean": 0.25,
        "low": 0.25,
        "high": 0.25,
        "num_requests": 20,
        "significant": True,
    }


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="has the row"):
        compare(evaluation([0.5]), ("nobody", "greedy"), UPSTREAM)
    blind = Evaluation([Row(*MODEL, 0, {})], {}, None, {}, "r")
    with pytest.raises(ValueError, match="one primary metric"):
        compare([evaluation([0.5]), blind], MODEL, UPSTREAM)
    assert differences([blind]) == []


def test_differences_are_against_the_upstream_order() -> None:
    found = differences([evaluation([0.5, 0.75])])
    assert [(one.a, one.b) for one in found] == [(MODEL, UPSTREAM)]
    assert "significant" not in found[0].to_dict()
    assert Comparison.from_dict(found[0].to_dict()) == found[0]


def test_protocol_lists_what_differs_between_runs() -> None:
    runs = [evaluation([0.5], seed=seed, alpha=alpha) for seed, alpha in enumerate((0.1, 0.2))]
    assert merged_protocol(runs) == {"num_requests": 1, "alpha": [0.1, 0.2]}
    assert runs[0].with_protocol(split="test").protocol == {"num_requests": 1, "alpha": 0.1, "split": "test"}


def test_a_missing_row_is_named() -> None:
    with pytest.raises(KeyError, match="nobody"):
        evaluation([0.5]).row("nobody", "greedy")
