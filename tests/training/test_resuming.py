"""Runs that were stopped go on as if nothing had happened, from checkpoints that are whole."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from rerankzoo.cli.main import main
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.errors import OutputError, RerankingDataError, UnreadableFileError
from rerankzoo.training import (
    ExactResume,
    PretrainedExport,
    RerankingModule,
    SlateWriter,
    WholeCheckpointIO,
    predictions,
)
from rerankzoo.training.resuming import check_checkpoint, newest_checkpoint, random_state, set_random_state
from tests.training.common import (
    TINY,
    Crash,
    Stop,
    assert_same_checkpoint,
    crash,
    make_trainer,
    tensors_of_checkpoint,
)

STEPS = 3  # of an epoch: 24 rows in batches of 8


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True)
def _keep_handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def fit(
    data: Path,
    root: Path,
    *more: Any,
    patience: int = 9,
    every: int | None = None,
    rate: float = 1e-2,
    begun: Path | None = None,
    epochs: int = 3,
    **options: Any,
) -> L.Trainer:
    """Begins a run, or goes on with it, as the command line does."""
    L.seed_everything(0, verbose=False)
    config = {**TINY, "hidden_dropout_prob": 0.5}
    module = RerankingModule("NAR4RecForReranking", config, warmup_steps=2, learning_rate=rate)
    trainer = make_trainer(
        root,
        plugins=[WholeCheckpointIO()],
        enable_checkpointing=True,
        num_sanity_val_steps=2,
        max_epochs=epochs,
        callbacks=[
            *more,
            EMAWeightAveraging(decay=0.5),
            EarlyStopping("val/loss", patience=patience),
            PretrainedExport(),
            ModelCheckpoint(root / "checkpoints", "best", monitor="val/loss", enable_version_counter=False),
            ExactResume(every_n_train_steps=every),
        ],
        **options,
    )
    begun = begun or newest_checkpoint(root / "checkpoints")
    trainer.fit(module, datamodule=RerankingDataModule(str(data), batch_size=8), ckpt_path=begun)
    return trainer


def assert_same(one: Path, other: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        assert_same_checkpoint(one / "checkpoints" / name, other / "checkpoints" / name)
        assert len(tensors_of_checkpoint(one / "checkpoints" / name)) > 50
    for name in ("model.safetensors", "metrics.json"):
        assert (one / "best" / name).read_bytes() == (other / "best" / name).read_bytes()


@pytest.fixture(scope="module")
def undisturbed(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    fit(data_folder, root)
    return root


@pytest.mark.parametrize("step", [1, STEPS + 1, 2 * STEPS], ids=["first epoch", "second epoch", "between epochs"])
def test_a_run_that_died_goes_on_exactly(undisturbed: Path, data_folder: Path, tmp_path: Path, step: int) -> None:
    with pytest.raises(Crash):
        fit(data_folder, tmp_path, Stop(step, crash))
    fit(data_folder, tmp_path)
    assert_same(undisturbed, tmp_path)


@pytest.mark.parametrize("step", [0, STEPS - 1, STEPS + 1], ids=["first step", "end of an epoch", "within an epoch"])
def test_sigterm_leaves_a_checkpoint_to_go_on_from(
    undisturbed: Path, data_folder: Path, tmp_path: Path, step: int
) -> None:
    with pytest.raises(SIGTERMException):
        fit(data_folder, tmp_path, Stop(step, terminate))
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == step + 1
    fit(data_folder, tmp_path)
    assert_same(undisturbed, tmp_path)


def test_checkpoints_within_an_epoch(undisturbed: Path, data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        fit(data_folder, tmp_path, Stop(STEPS + 2, crash), every=1)
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == STEPS + 2
    seen: list[int] = []
    fit(data_folder, tmp_path, Stop(STEPS, lambda: seen.append(1)), every=1)
    assert not seen  # what was done was not done again
    assert_same(undisturbed, tmp_path)


def test_a_run_of_so_many_steps_goes_on_exactly(data_folder: Path, tmp_path: Path) -> None:
    steps = {"max_steps": 2 * STEPS + 1}
    fit(data_folder, tmp_path / "undisturbed", **steps)
    for step in (STEPS, 2 * STEPS):
        with pytest.raises(Crash):
            fit(data_folder, tmp_path / "stopped", Stop(step, crash), **steps)
    fit(data_folder, tmp_path / "stopped", **steps)
    assert_same(tmp_path / "undisturbed", tmp_path / "stopped")


def test_a_run_that_stopped_early_is_over(data_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 9, "patience": 1, "rate": 3.0}
    ended = fit(data_folder, tmp_path, **options)
    assert ended.current_epoch < 9
    last = (tmp_path / "checkpoints/last.ckpt").read_bytes()
    shutil.rmtree(tmp_path / "best")  # killed before it was written
    again = fit(data_folder, tmp_path, **options)
    assert again.global_step == ended.global_step
    assert (tmp_path / "checkpoints/last.ckpt").read_bytes() == last
    assert (tmp_path / "best/model.safetensors").is_file()


def test_goes_on_in_a_folder_that_was_moved(undisturbed: Path, data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Crash):
        fit(data_folder, tmp_path / "here", Stop(STEPS + 1, crash))
    (tmp_path / "here").rename(tmp_path / "there")
    trainer = fit(data_folder, tmp_path / "there")
    assert_same(undisturbed, tmp_path / "there")
    assert not (tmp_path / "here").exists()
    assert trainer.checkpoint_callback.best_model_path.startswith(str(tmp_path / "there"))  # type: ignore[union-attr]


def test_a_network_of_other_sizes_is_refused(undisturbed: Path, data_folder: Path) -> None:
    checkpoint = torch.load(undisturbed / "checkpoints/last.ckpt", weights_only=True)
    module = RerankingModule("NAR4RecForReranking", {**TINY, "hidden_size": 32})
    module._build(module.model_class.config_class(**{**checkpoint["model_config"], "hidden_size": 32}))
    with pytest.raises(
        RerankingDataError, match=r"the recipe gives model\.\S+ the shape \[.*32.*\], the checkpoint \["
    ):
        module.on_load_checkpoint(checkpoint)


def test_random_state_is_kept() -> None:
    state = random_state()
    expected = torch.rand(2), torch.randperm(5)
    set_random_state(state)
    assert all(torch.equal(a, b) for a, b in zip(expected, (torch.rand(2), torch.randperm(5)), strict=True))


# --- damaged files --------------------------------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut off":
        del content[len(content) // 2 :]
    elif how == "one bit" and path.suffix == ".parquet":  # of the data: the end of the file has no checksum
        column = pq.read_metadata(path).row_group(0).column(0)
        first_page = column.dictionary_page_offset or column.data_page_offset
        content[first_page + column.total_compressed_size - 2] ^= 1
    elif how == "one bit":
        content[len(content) // 2] ^= 1
    else:
        content.clear()
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut off", "one bit", "empty"])
def test_damaged_checkpoints_are_named_and_the_newest_good_one_is_offered(
    undisturbed: Path, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(undisturbed / "checkpoints", tmp_path / "checkpoints")
    last, best = folder / "last.ckpt", folder / "best.ckpt"
    assert newest_checkpoint(folder) == last
    damage(last, how)
    with pytest.raises(UnreadableFileError, match=rf"^{last} is damaged \(.+\); the newest good one is {best}: --ckpt"):
        check_checkpoint(last)
    with pytest.warns(UserWarning, match=f"{last} is damaged"):
        assert newest_checkpoint(folder) == best
    options = ["--model=rerankzoo.RerankingModule", "--model.architecture=PRMForReranking", "--data.path=nowhere"]
    assert main(["fit", f"--ckpt_path={last}", *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"rerankzoo fit: {last} is damaged")
    assert str(best) in error
    damage(best, how)
    with pytest.warns(UserWarning, match="is damaged"):
        assert newest_checkpoint(folder) is None


def test_an_earlier_run_is_not_gone_on_with(undisturbed: Path, data_folder: Path, tmp_path: Path) -> None:
    """A run that begins in its folder is killed before it has written anything."""
    folder = shutil.copytree(undisturbed / "checkpoints", tmp_path / "checkpoints")
    elsewhere = shutil.copy(folder / "last.ckpt", tmp_path / "last.ckpt")
    with pytest.raises(Crash):
        fit(data_folder, tmp_path, Stop(3 * STEPS, crash), begun=elsewhere, epochs=4)
    assert newest_checkpoint(folder) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None
    shutil.copy(elsewhere, folder)
    with pytest.raises(Crash):
        fit(data_folder, tmp_path, Stop(3 * STEPS, crash), begun=folder / "best.ckpt", epochs=4)
    assert newest_checkpoint(folder) == folder / "last.ckpt"  # of the same run


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder" / "last.ckpt"
    WholeCheckpointIO().save_checkpoint({"step": 1}, path)

    def fail(checkpoint: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OutputError, match=f"cannot write {path}: No space left on device"):
        WholeCheckpointIO().save_checkpoint({"step": 2}, path)
    assert WholeCheckpointIO().load_checkpoint(path)["step"] == 1
    assert [entry.name for entry in path.parent.iterdir()] == ["last.ckpt"]


# --- prediction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["whole", "cut off", "one bit"])
def test_a_prediction_that_died_goes_on_exactly(
    undisturbed: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(predictions, "PART_BATCHES", 2)
    checkpoint = undisturbed / "checkpoints/best.ckpt"
    calls: list[int] = []

    class Fragile(RerankingModule):
        def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
            calls.append(int(batch["request_index"][0]))
            if calls[-1] == self.dies_at:
                raise Crash
            return super().predict_step(batch, batch_idx)

        dies_at = -1

    def predict(root: Path, dies_at: int = -1) -> bytes:
        L.seed_everything(0, verbose=False)
        module = Fragile.load_from_checkpoint(checkpoint)
        module.dies_at = dies_at
        module.model.generation_config.do_sample = True
        trainer = L.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=root, callbacks=[SlateWriter()]
        )
        data = RerankingDataModule(
            str(data_folder), eval_batch_size=1, extractor=str(undisturbed / "checkpoints/extractor")
        )
        trainer.predict(module, datamodule=data, return_predictions=False)
        return (root / "predictions.parquet").read_bytes()

    expected = predict(tmp_path / "undisturbed")
    assert calls == list(range(8))
    root = tmp_path / "stopped"
    with pytest.raises(Crash):
        predict(root, dies_at=5)
    assert not (root / "predictions.parquet").exists()
    if how != "whole":
        [*_, part] = sorted(root.glob(".predictions.parquet.parts-*/*.parquet"))
        damage(part, how)
    calls.clear()
    assert predict(root) == expected
    assert calls == list(range(4 if how == "whole" else 2, 8))  # two batches in every part
    assert [path.name for path in root.iterdir()] == ["predictions.parquet"]
