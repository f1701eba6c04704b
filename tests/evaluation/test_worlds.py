from __future__ import annotations

import json
from pathlib import Path

import pytest

from rerankzoo.evaluation import Evaluation, Row, write_worlds
from rerankzoo.evaluation.results import CEILING, UPSTREAM
from rerankzoo.evaluation.worlds import summarise


def evaluation(seed: int, **utilities: float) -> Evaluation:
    keys = {"upstream": UPSTREAM, "ceiling": CEILING}
    rows = [
        Row(*keys.get(name, (name, "greedy")), seed, {"utility": value, "true_hr@1%": value / 2})
        for name, value in utilities.items()
    ]
    return Evaluation(rows, {}, "utility", {}, "requests")


def test_share_of_the_gap_by_hand() -> None:
    rows = summarise(
        [
            evaluation(0, upstream=0.5, ceiling=0.9, sorter=0.6),
            evaluation(0, upstream=0.5, ceiling=0.9, ours=0.825),
            evaluation(1, upstream=0.7, ceiling=0.9, sorter=0.6),
            evaluation(1, upstream=0.7, ceiling=0.9, ours=0.65),
        ],
        ["sorter"],
    )
    table = {row.key: row.metrics for row in rows}
    ours = table["ours", "greedy"]
    assert ours["utility"].mean == pytest.approx((0.825 + 0.65) / 2)
    assert ours["share"].mean == pytest.approx(((0.825 - 0.6) / 0.3 + (0.65 - 0.7) / 0.2) / 2)
    assert table["sorter", "greedy"]["share"].mean == pytest.approx((0.0 - 0.5) / 2)
    assert "share" not in table[CEILING]


def test_without_a_gap_there_is_no_share(tmp_path: Path) -> None:
    evaluations = [evaluation(0, upstream=0.9, ceiling=0.905, sorter=0.9, ours=0.7)]
    assert not any("share" in row.metrics for row in summarise(evaluations, ["sorter"]))
    paths = write_worlds({"flat": evaluations}, ["sorter"], {"flat": {"chosen, seed 0": "cascade"}}, tmp_path)
    text = paths["worlds"].read_text(encoding="utf-8")
    assert "| ours | greedy | 70.0 | 35.0 |  |" in text
    assert "chosen, seed 0: cascade" in text
    rows = json.loads(paths["worlds.json"].read_text(encoding="utf-8"))["rows"]
    assert rows[-1]["utility"] == {"mean": 0.7, "sd": None, "num_runs": 1}


def test_worlds_measured_before_stay(tmp_path: Path) -> None:
    first = {"flat": [evaluation(0, upstream=0.9, ours=0.7)], "steep": [evaluation(0, upstream=0.1, ours=0.2)]}
    write_worlds(first, [], {"flat": {"chosen, seed 0": "cascade"}}, tmp_path)
    paths = write_worlds({"steep": [evaluation(0, upstream=0.1, ours=0.3)]}, [], {}, tmp_path)
    text = paths["worlds"].read_text(encoding="utf-8")
    assert "chosen, seed 0: cascade" in text
    assert "| ours | greedy | 70.0 | 35.0 |  |" in text
    assert "| ours | greedy | 30.0 | 15.0 |  |" in text
    assert "20.0" not in text


def test_logs_without_truth_are_told_by_their_primary_metric(tmp_path: Path) -> None:
    rows = [Row(*key, 0, {"ndcg@4": value, "recall@4": 0.1}) for key, value in [(UPSTREAM, 0.5), (("a", "b"), 0.625)]]
    real = Evaluation(rows, {}, "ndcg@4", {}, "requests")
    worlds = {"log": [real], "flat": [evaluation(0, upstream=0.9, ours=0.7)]}
    text = write_worlds(worlds, [], {}, tmp_path)["worlds"].read_text(encoding="utf-8")
    lines = [
        "## log",
        "",
        "| model | decoding | ndcg@4 |",
        "|---|---|---:|",
        "| upstream | sort | 50.0 |",
        "| a | b | 62.5 |",
    ]
    assert "\n".join(lines) in text
    assert "| ours | greedy | 70.0 | 35.0 |  |" in text
