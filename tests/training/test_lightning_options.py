"""Options of Lightning's do what they say, or are refused in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, ModelPruning, StochasticWeightAveraging
from torch.utils.data import DataLoader

from rerankzoo.cli.main import main
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.data.folder import write_data_folder
from rerankzoo.errors import SchemaMismatchError
from rerankzoo.features import FeatureSchema, TargetSpec
from rerankzoo.models.auto import AutoModelForReranking
from rerankzoo.training import ExactResume, PretrainedExport, RerankingModule, SlateWriter
from rerankzoo.training.resuming import best_checkpoint
from tests.training.common import POINTWISE, TINY, make_trainer


def make_module(**options: Any) -> RerankingModule:
    L.seed_everything(0, verbose=False)
    return RerankingModule("PointwiseForReranking", POINTWISE, warmup_steps=0, **options)


class Batches(L.Callback):
    """The rows of every training batch."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, ...]] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self.rows.append(tuple(sorted(batch["request_index"].tolist())))


class Losses(L.Callback):
    """The validation losses."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.values.append(float(trainer.callback_metrics["val/loss"]))


# --- the best is the best -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [1, 3, -1])
def test_exports_the_best_of_several_checkpoints(data_folder: Path, tmp_path: Path, top: int) -> None:
    losses = Losses()
    folder = tmp_path / "checkpoints"
    mine = ModelCheckpoint(tmp_path / "others", every_n_train_steps=1, save_top_k=-1)  # a callback of the user's own
    chosen = ModelCheckpoint(folder, "{epoch}", monitor="val/loss", save_top_k=top, save_last="link")
    callbacks = [losses, mine, PretrainedExport(), chosen, ExactResume()]
    trainer = make_trainer(tmp_path, max_epochs=4, enable_checkpointing=True, callbacks=callbacks)
    trainer.fit(make_module(learning_rate=1.0), datamodule=RerankingDataModule(str(data_folder), batch_size=8))
    assert losses.values.index(min(losses.values)) < 3  # the last is not the best
    assert json.loads((tmp_path / "best/metrics.json").read_text())["value"] == pytest.approx(min(losses.values))
    best = best_checkpoint(folder)
    assert best is not None
    assert torch.load(best, weights_only=True)["epoch"] == losses.values.index(min(losses.values))
    last = folder / "last.ckpt"
    assert not last.is_symlink()
    assert torch.load(last, weights_only=True)["epoch"] == 3
    state, model = (
        torch.load(best, weights_only=True)["state_dict"],
        AutoModelForReranking.from_pretrained(tmp_path / "best"),
    )
    assert all(torch.equal(value, state[f"model.{name}"]) for name, value in model.state_dict().items())


def test_several_checkpoints_in_one_file_are_refused(data_folder: Path, tmp_path: Path) -> None:
    one = ModelCheckpoint(tmp_path, "best", monitor="val/loss", save_top_k=3, enable_version_counter=False)
    trainer = make_trainer(tmp_path, enable_checkpointing=True, callbacks=[one, PretrainedExport()])
    with pytest.raises(ValueError, match=r"save_top_k 3 writes all checkpoints to best\.ckpt"):
        trainer.fit(make_module(), datamodule=RerankingDataModule(str(data_folder)))


@pytest.mark.parametrize("options", [{"limit_val_batches": 0}, {"max_steps": 2}, {"max_time": "00:00:00:00"}], ids=str)
def test_runs_without_validation_end_well(data_folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    stop = EarlyStopping("val/loss", check_on_train_epoch_end=False)
    chosen = ModelCheckpoint(tmp_path / "checkpoints", "best", monitor="val/loss")
    callbacks = [stop, PretrainedExport(), chosen, ExactResume()]
    trainer = make_trainer(tmp_path, enable_checkpointing=True, callbacks=callbacks, **options)
    if "max_steps" in options:  # an epoch that ends before its validation
        trainer.fit(make_module(), datamodule=RerankingDataModule(str(data_folder), batch_size=8))
        return
    with pytest.warns(UserWarning, match="no best checkpoint to export: val/loss was never measured"):
        trainer.fit(make_module(), datamodule=RerankingDataModule(str(data_folder), batch_size=8))
    assert not (tmp_path / "best").exists()


def test_the_command_line_keeps_several_and_finds_the_best(
    data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--model=rerankzoo.RerankingModule", "--model.architecture=PointwiseForReranking",
        "--model.config.hidden_size=16", "--model.learning_rate=0.5", "--model.warmup_steps=0",
        "--data=rerankzoo.RerankingDataModule", f"--data.path={data_folder}", "--data.batch_size=8",
        "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu", "--checkpoint.save_top_k=3",
    ]  # fmt: skip
    root = f"--trainer.default_root_dir={tmp_path / 'run'}"
    assert main(["predict", root, *options, "--ckpt_path=best"]) == 2
    assert "has no best checkpoint to predict with" in capsys.readouterr().err
    assert main(["fit", root, *options, "--trainer.max_epochs=4"]) == 0
    folder = tmp_path / "run/checkpoints"
    losses = {}
    for path in folder.glob("best-*.ckpt"):
        losses[path] = torch.load(path, weights_only=True)["validation"]["val/loss"]
    assert len(losses) == 3
    assert best_checkpoint(folder) == min(losses, key=lambda path: losses[path])
    assert json.loads((tmp_path / "run/best/metrics.json").read_text())["value"] == min(losses.values())
    assert main(["predict", root, *options, "--ckpt_path=best"]) == 0
    assert (tmp_path / "run/predictions.parquet").is_file()
    root = f"--trainer.default_root_dir={tmp_path / 'blind'}"
    assert main(["fit", root, *options, "--trainer.max_epochs=1", "--trainer.limit_val_batches=0"]) == 0
    assert sorted(path.name for path in (tmp_path / "blind").iterdir()) == ["checkpoints", "logs"]


# --- callbacks that want the model early ----------------------------------------------------------------------------


def test_callbacks_find_the_parameters_in_setup(data_folder: Path, tmp_path: Path) -> None:
    averaging = StochasticWeightAveraging(1e-2, swa_epoch_start=1, annealing_epochs=1)
    pruning = ModelPruning("l1_unstructured", amount=0.3)
    for callback in (averaging, pruning):
        module = make_module()
        trainer = make_trainer(tmp_path, max_epochs=3, callbacks=[callback])
        trainer.fit(module, datamodule=RerankingDataModule(str(data_folder), batch_size=8))
    assert len(list(averaging._average_model.parameters())) == len(list(module.parameters())) > 3
    assert any((value == 0).float().mean() > 0.2 for value in module.parameters() if value.dim() > 1)


# --- data, whichever way they come ----------------------------------------------------------------------------------


def test_loaders_take_the_place_of_a_data_module(data_folder: Path, tmp_path: Path) -> None:
    data = RerankingDataModule(str(data_folder), batch_size=8)
    data.setup()
    loaders = data.train_dataloader(), data.val_dataloader()
    modules = [RerankingModule("NAR4RecForReranking", TINY | {"utility_quantile": 0.8}) for _ in range(2)]
    for module, given in zip(modules, (loaders, ()), strict=True):
        L.seed_everything(0, verbose=False)
        chosen = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/loss")
        callbacks = [PretrainedExport(), chosen, SlateWriter()]
        trainer = make_trainer(tmp_path, enable_checkpointing=True, callbacks=callbacks)
        trainer.fit(module, *given, datamodule=None if given else RerankingDataModule(str(data_folder), batch_size=8))
        trainer.predict(module, data.test_dataloader(), return_predictions=False)
        assert (tmp_path / "predictions.parquet").is_file()
        AutoModelForReranking.from_pretrained(tmp_path / "best").check_schema(data.extractor.schema)
    one, other = (module.model for module in modules)
    assert one.config.to_dict() == other.config.to_dict()  # type: ignore[union-attr]
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="expected a data module, or loaders that one has made"):
        make_trainer(tmp_path).fit(make_module(), DataLoader([1, 2, 3]))
    with pytest.raises(ValueError, match="expected one training loader, got 2"):
        make_trainer(tmp_path).fit(make_module(), [data.train_dataloader(), data.train_dataloader()])
    with pytest.raises(ValueError, match=r"expected one RequestLoader to predict from, got \['RequestLoader', 'Req"):
        trainer.predict(module, [data.test_dataloader(), data.test_dataloader()])


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_another_vocabulary_is_refused(
    data_folder: Path, make_rows: Any, schema: Any, tmp_path: Path, stage: str
) -> None:
    folder = tmp_path / "other"
    tables = {
        split: pa.Table.from_pylist(make_rows(seed)) for split, seed in (("train", 5), ("validation", 6), ("test", 7))
    }
    write_data_folder(folder, tables, schema, {"source": "test", "protocol": "random rows"})
    data, other = RerankingDataModule(str(data_folder)), RerankingDataModule(str(folder))
    data.setup()
    other.setup()
    module = make_module()
    make_trainer(tmp_path).fit(module, datamodule=data)
    run = getattr(make_trainer(tmp_path), stage)
    with pytest.raises(SchemaMismatchError, match="give the run's own as the data's extractor"):
        run(module, datamodule=RerankingDataModule(str(folder)))
    loaders = {"fit": (data.train_dataloader(), other.val_dataloader())}.get(stage, (other.test_dataloader(),))
    with pytest.raises(SchemaMismatchError, match="give the run's own as the data's extractor"):
        run(module, *loaders)
    right = {"fit": (data.train_dataloader(), data.val_dataloader())}.get(stage, (data.test_dataloader(),))
    run(module, *right)  # though the trainer remembers the data module that was refused
    run(module, datamodule=RerankingDataModule(str(data_folder)))


@pytest.mark.parametrize("batches", [1, 2])
def test_overfits_the_same_batches(data_folder: Path, tmp_path: Path, batches: int) -> None:
    seen = Batches()
    trainer = make_trainer(tmp_path, max_epochs=4, overfit_batches=batches, callbacks=[seen])
    trainer.fit(make_module(), datamodule=RerankingDataModule(str(data_folder), batch_size=8))
    assert len(seen.rows) == 4 * batches
    assert seen.rows == seen.rows[:batches] * 4


class SeveralLoaders(RerankingDataModule):
    def val_dataloader(self) -> Any:
        return [self.loader("validation"), self.loader("test")]

    def test_dataloader(self) -> Any:
        return [self.loader("test"), self.loader("validation")]


def test_several_loaders_are_measured_apart(data_folder: Path, tmp_path: Path) -> None:
    module, chosen = make_module(), ModelCheckpoint(tmp_path, monitor="val/loss")
    trainer = make_trainer(tmp_path, enable_checkpointing=True, callbacks=[chosen])
    trainer.fit(module, datamodule=SeveralLoaders(str(data_folder), eval_batch_size=5))
    together = dict(trainer.callback_metrics)
    assert chosen.best_model_score == together["val/loss"]
    data = RerankingDataModule(str(data_folder), eval_batch_size=5)
    trainer.validate(module, datamodule=data, verbose=False)
    alone = dict(trainer.callback_metrics)
    trainer.test(module, datamodule=data, verbose=False)
    alone_on_test = dict(trainer.callback_metrics)
    for name in ("loss", "feedback_loss", "ndcg@4", "hit@4"):
        assert together[f"val/{name}"] == pytest.approx(float(alone[f"val/{name}"]))
        assert together[f"val/{name}/dataloader_idx_1"] == pytest.approx(float(alone_on_test[f"test/{name}"]))
    trainer = make_trainer(tmp_path)
    trainer.test(module, datamodule=SeveralLoaders(str(data_folder)), verbose=False)
    assert trainer.callback_metrics["test/loss"] == pytest.approx(float(alone_on_test["test/loss"]))


# --- labels of candidates -------------------------------------------------------------------------------------------


def test_ranks_by_the_target_that_has_labels(schema: FeatureSchema, make_rows: Any, tmp_path: Path) -> None:
    """The labels belong to the second target; a model that finds them all has NDCG 1."""
    click, order = schema.targets
    targets = (
        TargetSpec(**{**vars(click), "candidate_feedback": None}),
        TargetSpec(**{**vars(order), "candidate_feedback": "candidate_order"}),
    )
    other = FeatureSchema(**{**vars(schema), "targets": targets})
    rows = [{**row, "candidate_order": [float(k == 1) for k in range(len(row["item_id"]))]} for row in make_rows()]
    for row in rows:
        row.pop("candidate_click")
    table = pa.Table.from_pylist(rows)
    write_data_folder(
        tmp_path / "data",
        dict.fromkeys(("train", "validation", "test"), table),
        other,
        {"source": "test", "protocol": "planted"},
    )
    module, trainer = make_module(), make_trainer(tmp_path)
    data = RerankingDataModule(str(tmp_path / "data"))
    trainer.fit(module, datamodule=data)
    best = torch.tensor([[1, 0, -100, -100]] * 8)
    module.model.generate = lambda **batch: best  # type: ignore[union-attr, method-assign, assignment]
    trainer.validate(module, datamodule=data, verbose=False)
    assert trainer.callback_metrics["val/ndcg@4"] == 1.0
    assert trainer.callback_metrics["val/hit@4"] == 1.0


# --- what cannot be waited for --------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_loss_that_is_no_number_leaves_the_weights_alone_where_nobody_waits(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulated: int
) -> None:
    """As on an accelerator: the optimiser skips the step, and the loss is looked at one step later."""
    from rerankzoo.errors import NonFiniteLossError
    from rerankzoo.training import nonfinite_losses

    monkeypatch.setattr(nonfinite_losses, "_must_wait", lambda value: True)

    class Poison(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 1 and batch_idx == accumulated:
                batch["request_numeric"][0] = torch.nan
                self.rows = batch["request_index"].tolist()

        def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
            assert all(torch.isfinite(value).all() for value in module.parameters())

    poison = Poison()
    trainer = make_trainer(tmp_path, max_epochs=3, accumulate_grad_batches=accumulated, callbacks=[poison])
    module = make_module()
    with pytest.raises(NonFiniteLossError, match="at step 1 of epoch 0"):
        trainer.fit(module, datamodule=RerankingDataModule(str(data_folder), batch_size=4))
    assert all(torch.isfinite(value).all() for value in module.parameters())
    record = json.loads((tmp_path / "nonfinite/step-1-rank-0.json").read_text())
    assert record["request_index"] == poison.rows
    assert record["nonfinite_parameters"] == []
