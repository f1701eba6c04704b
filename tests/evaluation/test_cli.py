from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from rerankzoo.cli.evaluate import EvaluationRun
from rerankzoo.cli.main import main
from rerankzoo.data.datamodule import open_splits
from rerankzoo.data.simulator.ceiling import fit_ceiling
from rerankzoo.engines import Workers
from rerankzoo.errors import RecipeError
from rerankzoo.evaluation import Decoding
from rerankzoo.generation import EvaluatorEnsemble


@pytest.fixture(scope="module")
def checkpoints(simulated: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    models = {
        "a": simulated.model(0),
        "b": simulated.model(1),
        "evaluator": simulated.evaluator(),
        "judge": simulated.evaluator(1),
    }
    for name, model in {**models, "ensemble": EvaluatorEnsemble([models["evaluator"]])}.items():
        model.save_pretrained(folder / name)
        simulated.extractor.save_pretrained(folder / name)
    shutil.copytree(folder / "b", folder / "whole")
    shutil.copytree(folder / "evaluator", folder / "whole/evaluator")
    return folder


def test_evaluates_runs_and_writes_everything(
    simulated: Any, checkpoints: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(checkpoints / "a"), str(checkpoints / "b"), "--data", str(simulated.folder)]
    arguments += ["--evaluator", str(checkpoints / "whole"), "--tune-alpha", "--num-requests", "20"]
    arguments += ["--judge", str(checkpoints / "judge")]
    arguments += ["--device", "cpu", "--hr-requests", "10", "--seed", "3", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {row["seed"] for row in results["rows"]} == {3, 4}
    assert {row["model"] for row in results["rows"]} == {"upstream", "random", "logged", "oracle", "nar4rec"}
    for row in results["rows"]:
        assert 0 <= row["metrics"]["judge_hr@10%"] <= 1
        assert ({"spearman", "calibration"} <= set(row["metrics"])) == (row["model"] == "nar4rec")
    protocol = results["protocol"]
    assert protocol["model"] == [str(checkpoints / "a"), str(checkpoints / "b")]
    assert protocol["hr_requests"] == 10
    tuned = protocol["penalty_alpha"][0]
    assert tuned["chosen"] in (0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
    assert (tmp_path / "out" / "results.png").read_bytes().startswith(b"\x89PNG")
    output = capsys.readouterr().out
    assert "16 samples + evaluator" in output
    assert str(tmp_path / "out" / "results.json") in output


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"model": "evaluator"}, "generates no slates"),
        ({"model": "nowhere"}, "is neither a folder here"),
        ({"evaluator": "a"}, "is no evaluator"),
        ({"split": "holdout"}, "no split 'holdout'"),
        ({"judge": "ensemble"}, "judge: expected another one than the evaluator, got the same weights"),
        ({"alpha": "1.5"}, "--penalty-alpha: expected ClosedUnitInterval, got '1.5'"),
    ],
)
def test_wrong_input_is_told_with_status_2(
    simulated: Any,
    checkpoints: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    replaced: dict[str, str],
    message: str,
) -> None:
    given = {"model": "a", "evaluator": "evaluator", "judge": "judge", "split": "test", "alpha": "0.1", **replaced}
    arguments = ["evaluate", str(checkpoints / given["model"]), "--data", str(simulated.folder)]
    arguments += ["--evaluator", str(checkpoints / given["evaluator"]), "--split", given["split"]]
    arguments += ["--judge", str(checkpoints / given["judge"])]
    assert main([*arguments, "--penalty-alpha", given["alpha"], "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_workers_find_the_same(
    simulated: Any, checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything that is fitted and handed to them; Ray itself is tried in tests/test_reranking.py."""
    arguments = ["evaluate", str(checkpoints / "a"), str(checkpoints / "b"), "--data", str(simulated.folder)]
    arguments += ["--evaluator", str(checkpoints / "evaluator"), "--judge", str(checkpoints / "judge")]
    arguments += ["--hr-requests", "10", "--ceiling", "--out"]
    assert main([*arguments, str(tmp_path / "here")]) == 0
    monkeypatch.setattr("rerankzoo.cli.evaluate.workers_of", lambda options: Workers())
    monkeypatch.setattr("rerankzoo.cli.evaluate.ray_cluster", lambda *_: nullcontext())
    assert main([*arguments, str(tmp_path / "there")]) == 0
    assert (tmp_path / "there/results.json").read_bytes() == (tmp_path / "here/results.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"]


def test_on_ray_workers_say_where_models_run(
    simulated: Any, checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(checkpoints / "a"), "--data", str(simulated.folder), "--engine", "ray"]
    assert main([*arguments, "--device", "cpu"]) == 2
    assert "device is of the engine 'local', got 'cpu' with 'ray': give gpus_per_worker" in capsys.readouterr().err


def test_the_correctly_specified_model_is_a_baseline(simulated: Any) -> None:
    splits = open_splits(simulated.folder)
    run = EvaluationRun(splits, simulated.extractor.schema, simulated.metadata, ceiling=True)
    asked = [Decoding("greedy", {"num_beams": 1})]
    found = run.evaluate("m", simulated.model(), simulated.extractor, 0, asked)
    fitted = fit_ceiling(splits["train"].with_format("arrow")[:], simulated.simulator.settings)
    chosen = fitted.best_slates(splits["test"].with_format("arrow")[:], 3)
    expected = simulated.utility(chosen).mean()
    assert found.row("correctly specified", "best").metrics["utility"] == pytest.approx(expected)
    assert "correctly specified" in found.protocol["baselines"]
    with pytest.raises(RecipeError, match="only of simulated data"):
        EvaluationRun(splits, run.schema, {"source": "ml-100k"}, ceiling=True)
    with pytest.raises(RecipeError, match="no split 'train'"):
        EvaluationRun({"test": splits["test"]}, run.schema, simulated.metadata, ceiling=True)


def test_what_evaluators_had_too_few_positives_to_learn_is_left_out(simulated: Any) -> None:
    """Twenty requests have fewer than five hundred clicks; beside the truth nothing is left out."""
    few = simulated.data.select(range(20))
    run = EvaluationRun({"train": few, "test": few}, simulated.extractor.schema, None, simulated.evaluator())
    asked = [Decoding("greedy", {"num_beams": 1})]
    found = run.evaluate("m", simulated.model(), simulated.extractor, 0, asked, hr_requests=0)
    clicks = sum(sum(row) for row in few["click"])
    assert found.protocol["not_shown"] == {
        "what evaluators predict": f"for the log has {clicks:.0f} positives to learn from, and at least 500 are needed"
    }
    assert found.primary is None
    assert "value" not in found.row("m", "greedy").metrics
    known = EvaluationRun({"train": few, "test": few}, run.schema, simulated.metadata, simulated.evaluator())
    found = known.evaluate("m", simulated.model(), simulated.extractor, 0, asked, hr_requests=0)
    assert "not_shown" not in found.protocol
    assert {"utility", "value", "gap"} <= set(found.row("m", "greedy").metrics)  # the truth tells how they err


def test_of_few_labelled_requests_there_are_words(labelled: Any, scripted: Any) -> None:
    """Two of four requests have labels of both kinds: no mean of two is shown."""
    run = EvaluationRun({"test": labelled.data}, labelled.extractor.schema, None)
    slates = torch.tensor([[0, 1, -100]] * 4)
    found = run.evaluate("m", scripted(slates), labelled.extractor, 0, [Decoding("greedy", {"num_beams": 1})])
    why = "for 2 requests have labels of both kinds, and at least 20 are needed"
    assert found.protocol["not_shown"] == {"ranking metrics by labels": why}
    assert (found.primary, found.protocol["primary_metric"]) == (None, None)
    assert not any(name.startswith("ndcg") for row in found.rows for name in row.metrics)


def test_without_truth_and_labels_the_default_judge_is_cross_fitted(
    simulated: Any,
    checkpoints: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rerankzoo.diagnosis.diagnosis.BEHAVIOURS", ("independent",))
    monkeypatch.setattr("rerankzoo.evaluation.MIN_POSITIVES", 100)
    data = shutil.copytree(simulated.folder, tmp_path / "data")
    (data / "dataset.json").unlink()  # nobody knows the truth
    arguments = ["evaluate", str(checkpoints / "a"), "--data", str(data), "--evaluator", str(checkpoints / "evaluator")]
    arguments += ["--device", "cpu", "--num-requests", "30", "--hr-requests", "0", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "of value predicted by cross-fitted judges, at most, for they learned from the halves" in output
    assert "; predicted by the evaluator: " in output
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["protocol"]["primary_metric"] == "crossfit_value"
    assert all({"value", "crossfit_value"} <= set(row["metrics"]) for row in results["rows"])
    assert not any({"low", "high", "significant"} & set(one) for one in results["differences"])
    assert main([*arguments, "--judge", "none"]) == 0
    assert "cross-fitted" not in capsys.readouterr().out
