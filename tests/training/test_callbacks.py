from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.features import RerankingFeatureExtractor
from rerankzoo.models.auto import AutoModelForReranking
from rerankzoo.training import PretrainedExport, RerankingModule, SlateWriter

TINY = {"hidden_size": 16, "embedding_size": 4, "num_attention_heads": 2, "intermediate_size": 16, "slate_size": 4}


class Spoil(L.Callback):
    """Ruins the weights after the second epoch, so that the last checkpoint is not the best."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 1:
            with torch.no_grad():
                for parameter in pl_module.parameters():
                    parameter.mul_(30.0)


def fit(data_folder: Path, root: Path, *callbacks: Any, epochs: int = 3) -> tuple[L.Trainer, RerankingModule]:
    L.seed_everything(0, verbose=False)
    module = RerankingModule("NAR4RecForReranking", TINY, warmup_steps=0, generation={"penalty_alpha": 0.2})
    checkpoint = ModelCheckpoint(root / "checkpoints", "best", monitor="val/loss", enable_version_counter=False)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
        callbacks=[*callbacks, checkpoint, PretrainedExport(), SlateWriter()],
    )
    trainer.fit(module, datamodule=RerankingDataModule(str(data_folder), batch_size=8))
    return trainer, module


def test_exports_the_best_weights_not_the_last(data_folder: Path, tmp_path: Path) -> None:
    trainer, module = fit(data_folder, tmp_path, Spoil())
    best = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)["state_dict"]  # type: ignore[union-attr]
    model = AutoModelForReranking.from_pretrained(tmp_path / "best")
    for name, value in model.state_dict().items():
        assert torch.equal(value, best[f"model.{name}"]), name
    assert module.model is not None
    last = module.model.state_dict()
    assert not torch.equal(model.pointer.query.weight, last["pointer.query.weight"])
    assert model.generation_config.penalty_alpha == 0.2
    extractor = RerankingFeatureExtractor.from_pretrained(tmp_path / "best")
    model.check_schema(extractor.schema)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "checkpoints"]  # nothing temporary is left


def test_export_tells_of_the_best_checkpoint(data_folder: Path, tmp_path: Path) -> None:
    trainer, _ = fit(data_folder, tmp_path, Spoil())
    checkpoint = trainer.checkpoint_callback
    found = json.loads((tmp_path / "best/metrics.json").read_text(encoding="utf-8"))
    saved = torch.load(checkpoint.best_model_path, weights_only=True)  # type: ignore[union-attr]
    assert (found["monitor"], found["mode"]) == ("val/loss", "min")
    assert (found["epoch"], found["step"]) == (saved["epoch"], saved["global_step"])
    # Of the best validation, and not of the last one, which was spoilt.
    assert found["value"] == pytest.approx(found["metrics"]["val/loss"])
    assert found["value"] == pytest.approx(float(checkpoint.best_model_score))  # type: ignore[union-attr]
    assert found["metrics"]["val/loss"] < float(trainer.callback_metrics["val/loss"])
    assert found["data"]["source"] == "test"
    assert "in step" in (tmp_path / "best/README.md").read_text(encoding="utf-8")
    assert not (tmp_path / "best/config.yaml").exists()  # no command line, no recipe


def test_exported_files_are_readable_like_any_new_file(data_folder: Path, tmp_path: Path) -> None:
    fit(data_folder, tmp_path, epochs=1)
    plain = tmp_path / "plain"
    plain.touch()
    for path in (tmp_path / "best").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode), path.name


def test_exports_averaged_weights(data_folder: Path, tmp_path: Path) -> None:
    trainer, _ = fit(data_folder, tmp_path, EMAWeightAveraging(decay=0.5), epochs=1)
    checkpoint = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)  # type: ignore[union-attr]
    model = AutoModelForReranking.from_pretrained(tmp_path / "best")
    raw = checkpoint["current_model_state"]
    name = "pointer.query.weight"
    assert torch.equal(model.get_parameter(name), checkpoint["state_dict"][f"model.{name}"])
    assert not torch.equal(model.get_parameter(name), raw[f"model.{name}"])


def test_export_needs_checkpoints(data_folder: Path, tmp_path: Path) -> None:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[PretrainedExport()])
    with pytest.raises(ValueError, match="needs a ModelCheckpoint"):
        trainer.fit(RerankingModule("NAR4RecForReranking", TINY), datamodule=RerankingDataModule(str(data_folder)))


def test_predictions_are_in_the_order_of_the_requests(data_folder: Path, tmp_path: Path) -> None:
    trainer, module = fit(data_folder, tmp_path, epochs=1)
    data = RerankingDataModule(str(data_folder), eval_batch_size=3)
    trainer.predict(module, datamodule=data)
    table = pq.read_table(tmp_path / "predictions.parquet").to_pydict()
    rows = data.split("test").to_list()
    assert table["request_index"] == list(range(len(rows)))
    assert module.model is not None
    expected = module.model.generate(**data.extractor(rows)).tolist()
    for row, slate, items, wanted in zip(rows, table["slate"], table["item_ids"], expected, strict=True):
        assert slate == [index for index in wanted if index >= 0]
        assert items == [row["item_id"][index] for index in slate]
    assert not [name for name in os.listdir(tmp_path) if "part" in name or name.endswith(".new")]
