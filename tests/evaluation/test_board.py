"""A board's rows are kept, merged, ranked and shown as they were measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rerankzoo.cli.main import main
from rerankzoo.errors import UnreadableFileError
from rerankzoo.evaluation import Decoding
from rerankzoo.evaluation.board import (
    BoardRow,
    append_rows,
    board_page,
    difference,
    gains,
    overview,
    ranks,
    read_board,
    serving_costs,
    summaries,
)
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.generation import ExhaustiveSearch, GeneratorPool
from rerankzoo.models.pointwise import PointwiseConfig, PointwiseForReranking
from rerankzoo.models.yolor import YOLORConfig, YOLOREvaluator


def row(model: str, utilities: list[int], seed: int = 0, decoding: str = "greedy", **values: Any) -> BoardRow:
    metrics = {"utility": sum(utilities) / len(utilities) / 10_000, "ild@4": 0.5}
    return BoardRow("file.yaml", "strong", seed, model, decoding, metrics, utilities=utilities, **values)


def spread(mean: int, seed: int = 0) -> list[int]:
    noise = torch.randn(200, generator=torch.Generator().manual_seed(seed)) * 100
    return (mean + noise).round().int().tolist()


ROWS = [
    row("upstream", spread(5000), decoding="sort"),
    row("pointwise", spread(6000)),
    row("correctly specified", spread(9000), decoding="best"),
    row("one", spread(8001, 1), costs={"serving_ms_1": 1.0}),
    row("other", spread(7995, 1)[::-1], costs={"serving_ms_1": 2.0}),
]


def test_costs_are_of_one_machine() -> None:
    """Utilities of all seeds count, whoever measured them."""
    rows = [
        row("one", [8000], seed, machine=machine, costs={"serving_ms_1": cost})
        for seed, (machine, cost) in enumerate([("slow", 4.0), ("fast", 1.0), ("fast", 3.0)])
    ]
    (line,) = summaries(rows, [])
    assert line.metrics["serving_ms_1"].mean == pytest.approx(2.0)
    assert line.metrics["utility"].mean == pytest.approx(0.8)


def test_rows_are_added_once_and_merged(tmp_path: Path) -> None:
    one, other = tmp_path / "one.jsonl", tmp_path / "other.jsonl"
    append_rows(one, ROWS[:3])
    append_rows(one, ROWS[1:4])
    append_rows(other, ROWS[2:])
    assert read_board([one]) == ROWS[:4]
    assert read_board([one, other]) == ROWS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is no row of a board"),
        ('{"world": "strong"}', "line 2 is no row of a board"),
        (json.dumps({**vars(ROWS[0]), "protocol": 0}), "line 2: protocol 0, expected 1"),
        (json.dumps({**vars(ROWS[0]), "utilities": [1] * 200}), "line 2: .* is there already, with other figures"),
    ],
)
def test_lines_that_are_no_rows(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "board.jsonl"
    append_rows(path, ROWS[:1])
    path.write_text(f"{path.read_text(encoding='utf-8')}{line}\n", encoding="utf-8")
    with pytest.raises(UnreadableFileError, match=message):
        read_board([path])


def test_ranks_only_where_intervals_tell() -> None:
    found = ranks(ROWS)
    assert found == {
        ("upstream", "sort"): 4,
        ("pointwise", "greedy"): 3,
        ("one", "greedy"): 1,
        ("other", "greedy"): 1,
    }
    assert ranks([*ROWS, row("one", spread(7000, 3), seed=1)])[("one", "greedy")] == 1  # no other has that seed


def test_gains_over_the_pointwise_ranker() -> None:
    found = gains(ROWS, ["pointwise"])
    assert ("pointwise", "greedy") not in found
    assert found["one", "greedy"].mean == pytest.approx(0.2001, abs=1e-3)
    assert found["one", "greedy"].low < 0.2001 < found["one", "greedy"].high
    assert found["upstream", "sort"].high < 0
    assert gains(ROWS, []) == {}
    assert ("one", "greedy") not in gains([*ROWS[:3], replace(ROWS[3], seed=1)], ["pointwise"])


def test_share_of_the_gap() -> None:
    rows = [
        replace(row, metrics={"utility": value}) for row, value in zip(ROWS, (0.5, 0.6, 0.9, 0.8, 0.7), strict=True)
    ]
    lines = {
        line.model: line.metrics["share"].mean for line in summaries(rows, ["pointwise"]) if "share" in line.metrics
    }
    assert lines == pytest.approx({"upstream": -1 / 3, "pointwise": 0.0, "one": 2 / 3, "other": 1 / 3})


def test_page() -> None:
    page = board_page([*ROWS, *(replace(row, world="weak") for row in ROWS[:4])], ["pointwise"])
    assert "not run: other in weak" in page
    assert "## strong\n\nSeeds 0, 200 test requests each." in page
    lines = [line for line in page.splitlines() if line.startswith("| 1 | one")]
    assert len(lines) == 2
    assert "**80." in lines[0]
    assert "0.500" in lines[0]
    assert "**1.00**" in lines[0]


def test_one_table_of_all_worlds() -> None:
    rows = [*ROWS, *(replace(row, world="weak") for row in ROWS[:4])]
    lines = overview(rows).splitlines()
    assert lines[0] == "| model | decoding | strong | weak |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| correctly specified",
        "| one",
        "| pointwise",
        "| upstream",
        "| other",
    ]
    assert lines[3].count("**") == 4
    some = overview(rows, [("upstream", "sort"), ("other", "greedy")]).splitlines()[2:]
    assert some[0].startswith("| upstream | sort | 50.")
    assert some[1].endswith(" |  |")
    with pytest.raises(ValueError, match=r"no rows of two, greedy; there are .*one, greedy"):
        overview(rows, [("two", "greedy")])


def test_difference() -> None:
    one, other = row("one", [5000, 6000]), row("one", [5000, 6100])
    assert difference(one, one) == 0
    assert difference(one, other) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="rows of different requests"):
        difference(one, replace(other, requests="x"))


FILE = {
    "arguments": [
        "--data.init_args.world_seed={seed}",
        "--data.init_args.num_train=48",
        "--data.init_args.num_validation=16",
        "--data.init_args.num_test=12",
        "--trainer.max_epochs=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ],
    "evaluator": "degre/evaluator-simulator.yaml",
    "ceiling": True,
    "pointwise": ["pointwise"],
    "worlds": {"strong": {"arguments": ["--data.init_args.setting=strong"]}, "weak": {}},
    "models": {
        "pointwise": {
            "recipe": "pointwise/simulator.yaml",
            "decodings": {
                "greedy": {"num_beams": 1},
                "2 beams + evaluator": {"num_beams": 2, "num_return_sequences": 2, "evaluator": True},
            },
        },
        "evaluator": {"decodings": {"beam 3": {"num_beams": 3}}},
    },
}


def test_benchmark_fills_a_board(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, board, page = tmp_path / "file.yaml", tmp_path / "board.jsonl", tmp_path / "board.md"
    file.write_text(yaml.safe_dump(FILE), encoding="utf-8")
    run = ["benchmark", str(file), "--seeds=1", f"--out={tmp_path / 'out'}", f"--board={board}"]
    assert main([*run, "--models", "pointwise", "--shard=0/2"]) == 0
    rows = read_board([board])
    assert {row.world for row in rows} == {"strong"}  # the other world is another shard's
    assert main([*run, "--worlds", "strong"]) == 0
    assert read_board([board])[: len(rows)] == rows
    rows = read_board([board])
    costs = {(row.model, row.decoding): row.costs for row in rows}
    assert costs["pointwise", "greedy"]["evaluator_slates"] == 0
    assert costs["pointwise", "2 beams + evaluator"]["evaluator_slates"] == 2
    assert costs["evaluator", "beam 3"]["evaluator_slates"] == 10 + 3 * 9 + 3 * 8 + 3 * 7
    assert costs["pointwise", "greedy"]["serving_ms_32"] > 0
    assert all(len(row.utilities) == 12 for row in rows)
    page.write_text("# Board\n<!-- board -->\nold\n<!-- /board -->\nend\n", encoding="utf-8")
    pictures = [tmp_path / "p.png", tmp_path / "b.png"]
    draw = [f"--picture={pictures[0]}", f"--bars={pictures[1]}"]
    assert main(["board", "render", f"--results={board}", f"--page={page}", *draw]) == 0
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    text = page.read_text(encoding="utf-8")
    assert "old" not in text
    short = tmp_path / "short.md"
    short.write_text("<!-- board -->\n<!-- /board -->\n", encoding="utf-8")
    few = ["board", "render", f"--results={board}", f"--page={short}", "--rows", "upstream/sort", "evaluator/beam 3"]
    assert main(few) == 0
    assert len(short.read_text(encoding="utf-8").splitlines()) == 6
    assert main([*few, "beam 3"]) == 2
    assert text.endswith("<!-- /board -->\nend\n")
    assert "| evaluator | beam 3 |" in text
    check = ["board", "check", f"--results={board}", "--world=strong", "--seed=0", "--model=pointwise"]
    capsys.readouterr()
    assert main(check) == 0
    assert capsys.readouterr().out.count("the same (in % of the optimum)") == 2
    assert main([*run, "--shard=2/2"]) == 2
    assert main([*run, "--trainer.max_epochs=2"]) == 2
    errors = capsys.readouterr().err
    assert "shard: expected i/k with 0 <= i < k, such as 0/4, got '2/2'" in errors
    assert "board: its rows are of the benchmark file as it is" in errors


def test_what_an_evaluator_values_for_a_request(
    extractor: RerankingFeatureExtractor, batch: dict[str, torch.Tensor]
) -> None:
    config = {"feature_schema": extractor.schema.to_dict(), "slate_size": 3}
    members = [PointwiseForReranking(PointwiseConfig(**config, hidden_size=8)).eval() for _ in range(3)]
    evaluator = YOLOREvaluator(YOLORConfig(**config, hidden_size=8)).eval()
    drawn = Decoding("drawn", {"do_sample": True, "num_return_sequences": 5}, use_evaluator=True)
    size = batch["candidate_mask"].shape[1]

    def valued(model: Any, decoding: Decoding) -> float:
        return serving_costs(model, batch, decoding, 3, evaluator)["evaluator_slates"]

    assert valued(members[0], Decoding("greedy", {})) == 0
    assert valued(members[0], drawn) == 5
    assert valued(GeneratorPool(members), drawn) == 15
    assert valued(ExhaustiveSearch([evaluator]), Decoding("all slates", {})) == size * (size - 1) * (size - 2)


ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "board"
WHOLE = {"board.md": "results.jsonl", "board-large.md": "large.jsonl"}  # pages that show all rows of a file
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "\n<!-- board -->\n" in page.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_pages_are_rendered_from_the_results(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    shown = text[text.index("<!-- board -->") : text.index("<!-- /board -->")].splitlines()
    rows = ["/".join(cell.strip() for cell in line.split("|")[1:3]) for line in shown if line.startswith("| ")][1:]
    copy = tmp_path / page.name
    copy.write_text(text, encoding="utf-8")
    some = [] if page.name in WHOLE else ["--rows", *rows]
    results = RESULTS / WHOLE.get(page.name, "results.jsonl")
    assert main(["board", "render", "--results", str(results), "--page", str(copy), *some]) == 0
    assert copy.read_text(encoding="utf-8") == text
