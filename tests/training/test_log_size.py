from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.utils.data import DataLoader

from rerankzoo.cli.lightning import command_line
from rerankzoo.data.datamodule import RerankingDataModule, fitting_batch_size
from rerankzoo.training import EpochsByLog, RerankingModule, WarmWeightAveraging
from rerankzoo.training.log_size import fitting_epochs
from tests.training.common import TINY, make_trainer


@pytest.mark.parametrize(
    ("requests", "batch", "epochs"),
    [(1, 16, 40), (171, 16, 40), (2_000, 64, 27), (5_000, 128, 20), (40_000, 1024, 10), (10**7, 1024, 4)],
)
def test_batch_size_and_epochs_follow_the_number_of_requests(requests: int, batch: int, epochs: int) -> None:
    assert (fitting_batch_size(requests), fitting_epochs(requests)) == (batch, epochs)


def test_a_run_takes_and_tells_them(data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = make_trainer(tmp_path, callbacks=[EpochsByLog()], limit_train_batches=1, limit_val_batches=0)
    data = RerankingDataModule(str(data_folder))
    trainer.fit(RerankingModule("PointwiseForReranking", {"hidden_size": 8}), datamodule=data)
    rows = len(data.split("train"))
    assert trainer.current_epoch == trainer.max_epochs == 40
    assert trainer.train_dataloader.batch_size == fitting_batch_size(rows)
    assert f"{rows} training requests: batches of 16, 40 epochs at most" in capsys.readouterr().out


def test_other_loaders_do_not_tell_it(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, callbacks=[EpochsByLog()])
    with pytest.raises(ValueError, match="does not tell how many requests"):
        trainer.fit(BoringModel(), DataLoader([0]))


@pytest.mark.parametrize(
    ("options", "added"), [([], 1), (["--trainer.max_epochs=3"], 0), (["--trainer.max_steps=3"], 0)]
)
def test_the_command_line_does_where_nothing_is_given(
    data_folder: Path, tmp_path: Path, options: list[str], added: int
) -> None:
    model = ["--model=rerankzoo.RerankingModule", "--model.architecture=PointwiseForReranking"]
    data = ["--data=rerankzoo.RerankingDataModule", f"--data.path={data_folder}"]
    run = command_line([*model, *data, f"--trainer.default_root_dir={tmp_path}", *options], run=False)
    assert sum(isinstance(callback, EpochsByLog) for callback in run.trainer.callbacks) == (not options)


# --- averaged weights -----------------------------------------------------------------------------------------------


def test_average_by_hand() -> None:
    """After the first step, whose weights are taken as they are: decays 2/11, then 3/12, then at most 0.26."""
    average = WarmWeightAveraging(decay=0.26)
    kept = [torch.tensor([1.0]), torch.tensor([10.0])]
    for count, value in ((1, 2.0), (2, 4.0), (3, 8.0)):
        average._average(kept, [torch.tensor([value]), torch.tensor([0.0])], torch.tensor(count))
    expected = [((1 * 2 / 11 + 2 * 9 / 11) * 3 / 12 + 4 * 9 / 12) * 0.26 + 8 * 0.74, 10 * 2 / 11 * 3 / 12 * 0.26]
    torch.testing.assert_close(torch.cat(kept), torch.tensor(expected))


def test_buffers_that_count_are_copied() -> None:
    kept = [torch.tensor([3])]
    WarmWeightAveraging()._average(kept, [torch.tensor([8])], 5)
    assert kept[0].item() == 8


def test_decay_is_checked() -> None:
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got 1.0"):
        WarmWeightAveraging(1.0)


def test_checkpoints_hold_the_average_and_the_number_of_steps(data_folder: Path, tmp_path: Path) -> None:
    callbacks = [WarmWeightAveraging(), ModelCheckpoint(tmp_path, "only")]
    trainer = make_trainer(tmp_path, callbacks=callbacks, enable_checkpointing=True, max_epochs=2)
    trainer.fit(RerankingModule("NAR4RecForReranking", dict(TINY)), datamodule=RerankingDataModule(str(data_folder)))
    saved = torch.load(tmp_path / "only.ckpt", weights_only=True)
    assert saved["averaging_state"]["n_averaged"] == trainer.global_step
    averaged, current = (
        saved[part]["model.features.embedding.table.weight"] for part in ("state_dict", "current_model_state")
    )
    assert not torch.equal(averaged, current)


# --- feedback heads -------------------------------------------------------------------------------------------------


def test_untrained_models_predict_the_rates_of_the_log(data_folder: Path, tmp_path: Path) -> None:
    data = RerankingDataModule(str(data_folder))
    module = RerankingModule("NAR4RecEvaluator", dict(TINY))
    make_trainer(tmp_path, max_steps=0).fit(module, datamodule=data)
    batches = list(data.loader("train"))
    shown = torch.cat([batch["slates"] >= 0 for batch in batches]).sum()
    happened = torch.cat([batch["feedback"].masked_fill(batch["slates"].unsqueeze(-1) < 0, 0) for batch in batches])
    rates = (happened.sum((0, 1, 2)) + 0.5) / (shown + 1)
    torch.testing.assert_close(torch.tensor(data.feedback_rates()), rates)
    torch.testing.assert_close(module.model.heads.bias.sigmoid(), rates)
