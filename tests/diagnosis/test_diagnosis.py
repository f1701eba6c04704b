from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from rerankzoo.cli.main import main
from rerankzoo.diagnosis import Log, Proposal, cross_fitted_judge, diagnose, write_page
from rerankzoo.diagnosis.fitting import Form, choose, fit, log_likelihoods, rank, worth
from rerankzoo.errors import RerankingDataError
from rerankzoo.models.auto import Checkpoint


def test_halves_are_disjoint_and_complete(log: Log) -> None:
    first, second = (set(map(str, half["candidate_numeric"].tolist())) for half in log.halves)
    assert (len(first), len(second), len(first | second), log.used) == (80, 80, 160, 160)
    assert log.counts["train"]["requests"] == 160
    assert log.counts["train"]["positives"] == sum(int(half["feedback"].sum()) for half in log.halves)


def test_a_large_log_is_drawn_from(folder: Path) -> None:
    drawn = Log.read(folder, max_requests=50)
    assert drawn.used == 50
    assert drawn.counts["train"]["requests"] == 160


def test_pages_of_several_lengths_are_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most pages show one item, one shows three: in whichever half that is, the other can be asked about it."""
    monkeypatch.setattr("rerankzoo.diagnosis.diagnosis.BEHAVIOURS", ("independent", "cascade"))
    (tmp_path / "schema.yaml").write_bytes((folder / "schema.yaml").read_bytes())
    for name in ("train", "validation", "test"):
        table = pd.read_parquet(folder / f"{name}.parquet")
        for column in ("slate", "click", "propensity"):
            first = table[column].iloc[0]
            table[column] = [first if name == "train" and not row else one[:1] for row, one in enumerate(table[column])]
        table["click"] = [[1.0] * len(row) if number % 3 else row for number, row in enumerate(table["click"])]
        table.to_parquet(tmp_path / f"{name}.parquet")
    found = Log.read(tmp_path)
    assert (found.slate_size, found.longest) == (1, 3)
    diagnosed = diagnose(found)
    assert diagnosed.figures.gain == pytest.approx(0, abs=0.05)  # one item has no company
    assert diagnosed.chosen[0][0].shape == (20, 1)


def test_a_log_without_validation_gives_a_tenth(folder: Path, tmp_path: Path) -> None:
    for name in ("schema.yaml", "train.parquet"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    found = Log.read(tmp_path)
    assert (found.used, len(found.validation["slates"]), len(found.test["slates"])) == (144, 16, 16)


def test_a_log_without_feedback_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.yaml").write_bytes((folder / "schema.yaml").read_bytes())
    pd.read_parquet(folder / "train.parquet").drop(columns="click").to_parquet(tmp_path / "train.parquet")
    with pytest.raises(RerankingDataError, match=r"click.*a log without slates and feedback says nothing"):
        Log.read(tmp_path)


def test_fitting_learns_and_pairs_start_from_what_items_are_worth_alone(log: Log) -> None:
    alone = fit(Form("cascade"), log.extractor, log.halves[0], log.validation)
    pairs = fit(Form("cascade", pairs=True), log.extractor, log.halves[0], log.validation, alone)
    assert pairs.pairs is not None
    slates = rank(alone, log.test, 3)
    assert slates.shape == (20, 3)
    own, between = worth(pairs, log.test, slates.unsqueeze(1))
    whole = pairs.score_slates(slates.unsqueeze(1), **log.test)
    torch.testing.assert_close((own + between).float(), whole)
    assert between.abs().max() > 0
    assert worth(alone, log.test, slates.unsqueeze(1))[1].abs().max() == 0
    assert choose(pairs, log.test, 2).shape == (20, 2)
    again = fit(Form("cascade"), log.extractor, log.halves[0], log.validation)
    assert torch.equal(log_likelihoods(again, log.test), log_likelihoods(alone, log.test))


def test_a_diagnosis_is_one_page(log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerankzoo.diagnosis.diagnosis.BEHAVIOURS", ("cascade", "choice"))
    trained = Checkpoint(
        fit(Form("independent", pairs=True), log.extractor, log.halves[0], log.validation), log.extractor
    )
    found = diagnose(log, {"the generator x": Proposal(trained, trained)})
    [proposed] = found.proposed
    assert proposed.name == "the generator x"
    assert proposed.own is not None
    assert [loss.name for loss in found.losses][:2] == ["constant", "item and position"]
    assert sum(loss.better is None for loss in found.losses) == 1
    assert [point.requests for point in found.curve] == [40, 80, 160]
    assert found.gain is not None
    assert found.gain.error > 0
    paths = write_page(found, "Diagnosis of <a log>", tmp_path / "new")
    page = paths["md"].read_text()
    assert f"**Verdict: {found.verdict.text}.**" in page
    for heading in ("What the log holds", "listwise to win?", "What would it win?", "What the log shows"):
        assert heading in page
    assert "| train | 160 |" in page
    assert "slates of the generator x: predicted gain" in page
    assert "; its own evaluator: " in page
    html = paths["html"].read_text()
    assert "Diagnosis of &lt;a log&gt;" in html
    assert "<svg" in html
    values = json.loads(paths["json"].read_text())
    assert values["verdict"]["kind"] == found.verdict.kind
    assert values["figures"]["requests"] == 160


def test_the_cross_fitted_judge_values_slates(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerankzoo.diagnosis.diagnosis.BEHAVIOURS", ("independent",))
    judge = cross_fitted_judge(log)
    values = judge.score_slates(log.test["slates"], **log.test)
    assert values.shape == (20, 1)
    assert values.isfinite().all()


def test_too_little_feedback_is_told_on_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty requests: nothing is fitted."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "schema.yaml").write_bytes((folder / "schema.yaml").read_bytes())
    pd.read_parquet(folder / "train.parquet").head(20).to_parquet(data / "train.parquet")
    assert main(["diagnose", str(data), "--out", str(tmp_path / "out")]) == 0
    assert "not enough feedback" in capsys.readouterr().out
    page = (tmp_path / "out/diagnosis.md").read_text()
    assert "positives to learn from, and at least 500 are needed" in page
    assert "What would it win?" not in page
    assert main(["diagnose", str(data), "--worth", "3", "--out", str(tmp_path / "no")]) == 2
    assert "worth: expected a share between 0 and 1, got 3" in capsys.readouterr().err
