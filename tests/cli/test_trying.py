from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rerankzoo.cli.main import main
from rerankzoo.cli.trying import _compare, log_likelihoods
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.metrics import within_one_error
from rerankzoo.models.auto import load_checkpoint

KEY = "model.init_args.config.evaluator_is_causal"


def arguments(data: Path, root: Path) -> list[str]:
    return [
        "--model=rerankzoo.RerankingModule",
        "--model.architecture=NAR4RecEvaluator",
        "--model.config.hidden_size=8",
        "--model.config.num_attention_heads=2",
        "--data=rerankzoo.RerankingDataModule",
        f"--data.path={data}",
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        f"--trainer.default_root_dir={root}",
    ]


def test_keeps_the_value_that_held_out_feedback_prefers(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerankzoo.cli.trying.MIN_OBSERVED", 1)  # eight requests tell
    assert main(["fit", *arguments(data_folder, tmp_path), "--try", f"{KEY}=true,false"]) == 0
    report = json.loads((tmp_path / "tried.json").read_text())
    data = RerankingDataModule(str(data_folder), extractor=str(tmp_path / "best"))
    data.setup()
    own = {
        value: log_likelihoods(tmp_path / "tried" / value / "best", data.val_dataloader()) for value in report["values"]
    }
    best, other = sorted(own, key=lambda value: -own[value].mean())
    kept = within_one_error({value: own[value] for value in ("true", "false")})
    assert (report["key"], report["chosen"], report["requests"]) == (KEY, kept, len(own[best]))
    for value, entry in report["values"].items():
        assert entry["log_likelihood"] == pytest.approx(own[value].mean().item(), abs=1e-5)
    told = report["values"][other]
    assert told["difference"] == pytest.approx((own[other] - own[best]).mean().item(), abs=1e-5)
    assert told["low"] <= told["difference"] <= told["high"]
    assert load_checkpoint(tmp_path / "best").model.config.evaluator_is_causal == (kept == "true")
    printed = capsys.readouterr().out.split("validation requests:")[1].split()
    assert printed.index(best) < printed.index(other)


def test_of_two_that_cannot_be_told_apart_the_first_named_is_kept() -> None:
    logged = {"simple": torch.tensor([0.0, 1.0] * 20), "rich": torch.tensor([1.1, 0.0] * 20)}  # behind by 0.05 +- 0.17
    trials = {name: {"logged": one, "cpu_seconds": 1.0, "positives": 100} for name, one in logged.items()}
    report = _compare("key", trials)
    assert report["chosen"] == "simple"
    assert report["values"]["simple"]["difference"] == pytest.approx(-0.05)  # from the best, which is not kept
    assert "difference" not in report["values"]["rich"]
    trials["simple"]["logged"] = logged["simple"] - 1
    assert _compare("key", trials)["chosen"] == "rich"


def test_a_value_trains_as_it_does_alone_and_few_positives_tell_nothing_of_it(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rerankzoo.cli.trying.MIN_OBSERVED", 1_000)
    common = arguments(data_folder, tmp_path)
    assert main(["fit", *common, f"--try={KEY}=true,false", "--seed_everything=3"]) == 0
    told = capsys.readouterr().out
    assert "positives, at least 1000 are needed" in told
    assert "95 % interval" not in told
    alone = [*common, f"--{KEY}=false", "--seed_everything=3", f"--trainer.default_root_dir={tmp_path / 'alone'}"]
    assert main(["fit", *alone]) == 0
    tried, trained = (
        load_checkpoint(folder / "best").model.state_dict()
        for folder in (tmp_path / "tried" / "false", tmp_path / "alone")
    )
    assert all(torch.equal(value, trained[name]) for name, value in tried.items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--try"], "expected KEY=A,B with several values"),
        (["--try", f"{KEY}=true"], "expected KEY=A,B with several values"),
        (["--try", f"{KEY}=true,true"], "expected KEY=A,B with several values"),
        (["--try", f"{KEY}=true,[1"], "expected KEY=A,B with several values"),
        (["--try", f"{KEY}=true,7"], "evaluator_is_causal"),
        (["--try", "model.architecture=NAR4RecEvaluator,NAR4RecForReranking"], "NAR4RecForReranking does not tell"),
    ],
)
def test_wrong_options_are_told_in_one_line(
    data_folder: Path, tmp_path: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *arguments(data_folder, tmp_path), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "best").exists()


def test_recipes_do_not_try(data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(f"try: {KEY}=true,false\n")
    assert main(["fit", "--config", str(tmp_path / "recipe.yaml"), *arguments(data_folder, tmp_path)]) == 2
    assert "try: expected an option of `rerankzoo fit`" in capsys.readouterr().err
