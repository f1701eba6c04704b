"""Runs on a mined folder: distilled in training and validation, the log's likelihood in the test."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pyarrow.parquet as pq
import pytest
import torch

from rerankzoo.cli.main import main
from rerankzoo.cli.recipes import recipes_folder
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.data.simulator import SimulatorSettings, write_simulator_folder
from rerankzoo.errors import RerankingDataError
from rerankzoo.features.utility import slate_utility
from rerankzoo.losses import hard_label_loss
from rerankzoo.mining import mine_folder
from rerankzoo.models.degre import DeGReConfig, DeGReEvaluator, DeGReGenerator
from rerankzoo.training import RerankingModule
from rerankzoo.training.callbacks import save_checkpoint_folder
from tests.training.test_module import TINY, trainer


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A simulated log, and what an untrained evaluator mines from it."""
    folder = tmp_path_factory.mktemp("mined")
    write_simulator_folder(folder / "log", SimulatorSettings(), num_train=64, num_validation=16, num_test=16)
    data = RerankingDataModule(str(folder / "log"))
    data.setup()
    torch.manual_seed(0)
    evaluator = DeGReEvaluator(DeGReConfig(feature_schema=data.extractor.schema.to_dict(), **TINY))
    save_checkpoint_folder(folder / "evaluator", evaluator, data.extractor)
    settings = {"num_beams": 2, "keep": 2, "num_requests": 32, "num_validation": 8}
    return folder / "log", mine_folder([str(folder / "evaluator")], folder / "log", folder / "mined", **settings)


def test_every_subcommand_runs(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, mined = folders
    common = [
        f"--config={recipes_folder() / 'degre/generator-simulator.yaml'}",
        f"--config={recipes_folder() / 'trainer/cpu.yaml'}",
        f"--data.init_args.path={mined}",
        f"--data.init_args.extractor={mined}",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.max_epochs=1",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    assert main(["fit", *common]) == 0
    checkpoint = f"--ckpt_path={tmp_path / 'checkpoints' / 'best.ckpt'}"
    shown = {}
    for command in ("validate", "test", "predict"):
        assert main([command, *common, checkpoint]) == 0
        shown[command] = capsys.readouterr().out
    assert "val/soft_label_loss" in shown["validate"]
    assert "test/likelihood_loss" in shown["test"]
    assert pq.read_table(tmp_path / "predictions.parquet").num_rows == 16
    data = RerankingDataModule(str(log))
    data.setup()
    model = DeGReGenerator.from_pretrained(tmp_path / "best")
    assert model.config.utility_threshold == pytest.approx(data.utility_quantile(0.8))


def test_test_loss_is_the_likelihood_of_the_better_logged_slates(folders: tuple[Path, Path], tmp_path: Path) -> None:
    log, mined = folders
    L.seed_everything(0, verbose=False)
    module = RerankingModule("DeGReGenerator", {**TINY, "utility_quantile": 0.5})
    data = RerankingDataModule(str(mined), batch_size=8, eval_batch_size=5, extractor=str(mined))
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, datamodule=data)
    assert "val/hard_label_loss" in run.callback_metrics
    (found,) = run.test(module, datamodule=data, verbose=False)
    source = RerankingDataModule(str(log), eval_batch_size=64)
    source.setup()
    (batch,) = source.test_dataloader()
    model = module.model
    assert model is not None
    earned = slate_utility(batch["feedback"], batch["slates"], batch["candidate_value"], model.schema)
    threshold = source.utility_quantile(0.5)
    assert threshold is not None
    with torch.no_grad():
        losses = hard_label_loss(model.eval()(**batch).logits.log_softmax(-1), batch["slates"])
    expected = torch.where(earned >= threshold, losses, 0.0).mean().item()
    assert 0 < expected < losses.mean().item()  # some slates reach it, some do not
    assert found["test/loss"] == found["test/likelihood_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("architecture", ["NAR4RecForReranking", "PRMForReranking", "DeGReEvaluator"])
def test_models_of_logs_say_that_mined_slates_have_no_feedback(
    folders: tuple[Path, Path], tmp_path: Path, architecture: str
) -> None:
    module = RerankingModule(architecture, TINY)
    data = RerankingDataModule(str(folders[1]), extractor=str(folders[1]))
    with pytest.raises(RerankingDataError, match=f"'feedback': {architecture} learns from it.*'soft_labels'.*mined"):
        trainer(tmp_path, max_epochs=1).fit(module, datamodule=data)
