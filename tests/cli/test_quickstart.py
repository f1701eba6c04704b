from __future__ import annotations

import json
from pathlib import Path

import pytest

from rerankzoo.cli.main import main
from rerankzoo.models.auto import AutoModelForReranking

pytestmark = pytest.mark.slow


def quickstart(out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What the command prints, without the name of its folder."""
    assert main(["quickstart", "--num-train", "300", "--num-mined", "64", "--max-epochs", "1", "--out", str(out)]) == 0
    return capsys.readouterr().out.replace(str(out), "OUT").replace("\n", " ")


def test_tells_the_same_story_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for name in ("a", "b"):
        text = quickstart(tmp_path / name, capsys)
        told.append(text[text.index("evaluating on test requests") : text.index("Checkpoints, table")])
    assert told[0] == told[1]
    rows = [json.loads((tmp_path / name / "results.json").read_text())["rows"] for name in ("a", "b")]
    assert rows[0] == rows[1]


def test_leaves_checkpoints_and_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = quickstart(tmp_path, capsys)
    for name in ("pointwise", "prm", "nar4rec", "degre"):
        AutoModelForReranking.from_pretrained(tmp_path / name)
    for name in ("degre", "degre-evaluator", "nar4rec", "prm", "pointwise"):
        assert (tmp_path / name / "model.safetensors").is_file()
        assert (tmp_path / name / "preprocessor_config.json").is_file()
    results = json.loads((tmp_path / "results.json").read_text())
    rows = {(row["model"], row["decoding"]): row["metrics"] for row in results["rows"]}
    assert ("upstream", "sort") in rows
    assert ("nar4rec", "greedy") in rows
    assert ("nar4rec", "16 beams + evaluator") in rows
    assert ("degre", "4 beams + evaluator") in rows
    for metrics in rows.values():
        assert 0 <= metrics["true_hr@1%"] <= metrics["true_hr@10%"] <= 1
        assert metrics["utility"] + metrics["regret"] == pytest.approx(1)
    assert "true expected utility: upstream" in text
