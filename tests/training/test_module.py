from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from rerankzoo.batch import pad
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.metrics import ndcg_at_k
from rerankzoo.training import RerankingModule, SlateWriter
from rerankzoo.training.optimizer import make_optimizer, make_scheduler

TINY = {"hidden_size": 16, "embedding_size": 4, "num_attention_heads": 2, "intermediate_size": 16}


def trainer(folder: Path, **arguments: Any) -> L.Trainer:
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "max_epochs": 2,
        "default_root_dir": folder,
    }
    return L.Trainer(**{**options, **arguments})


def test_refuses_typing_errors_before_any_data_is_read() -> None:
    with pytest.raises(ValueError, match=r"no fields \['hiden_size'\]"):
        RerankingModule("NAR4RecForReranking", {"hiden_size": 16})
    with pytest.raises(ValueError, match="architecture 'NAR4Rek' is not one of"):
        RerankingModule("NAR4Rek")


def test_completes_the_config_from_the_data(data_folder: Path, tmp_path: Path) -> None:
    module = RerankingModule("NAR4RecForReranking", {**TINY, "utility_quantile": 0.8}, generation={"num_beams": 2})
    data = RerankingDataModule(str(data_folder), batch_size=8)
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=data)
    assert module.model is not None
    config = module.model.config
    assert config.schema == data.extractor.schema
    assert config.slate_size == 4
    assert config.utility_threshold == data.utility_quantile(0.8)
    assert module.model.generation_config.num_beams == 2


def test_keeps_what_the_recipe_says(data_folder: Path, tmp_path: Path) -> None:
    module = RerankingModule("NAR4RecForReranking", {**TINY, "utility_threshold": 1.5, "slate_size": 5})
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=RerankingDataModule(str(data_folder)))
    assert module.model is not None
    assert (module.model.config.utility_threshold, module.model.config.slate_size) == (1.5, 5)


def with_longer_slates(data_folder: Path, folder: Path) -> Path:
    """The data, with a slate of 6 positions among the last training rows and one of 7 among those of validation."""
    shutil.copytree(data_folder, folder)
    for split, length in {"train": 6, "validation": 7}.items():
        rows = pq.read_table(folder / f"{split}.parquet").to_pylist()
        at = max(index for index, row in enumerate(rows) if len(row["item_id"]) == length)
        rows[at] |= {"slate": list(range(length)), "click": [1.0] * length, "order": [0.0] * length}
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    return folder


def test_the_longest_slate_of_the_whole_log_counts(data_folder: Path, tmp_path: Path) -> None:
    data = RerankingDataModule(str(with_longer_slates(data_folder, tmp_path / "data")), batch_size=8)
    module = RerankingModule("InteractionEvaluator", {"hidden_size": 8, "embedding_size": 4})
    trainer(tmp_path, max_epochs=1).fit(module, datamodule=data)
    assert module.model is not None
    assert module.model.config.slate_size == 7


@pytest.mark.parametrize(("architecture", "cuts"), [("InteractionEvaluator", True), ("PointwiseForReranking", False)])
def test_longer_slates_are_cut_with_a_word(
    architecture: str, cuts: bool, data_folder: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    data = RerankingDataModule(str(with_longer_slates(data_folder, tmp_path / "data")), batch_size=8)
    module = RerankingModule(architecture, {"hidden_size": 8, "embedding_size": 4, "slate_size": 4})
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, datamodule=data)
    said = [str(warning.message) for warning in recwarn if "are cut" in str(warning.message)]
    told = "2 of 56 slates have more positions (up to 7) than slate_size 4 and are cut to the first 4"
    assert all(told in text for text in said), said
    assert len(said) == cuts
    assert module.model is not None
    batch = next(iter(data.val_dataloader()))
    read = pad(batch, M=4) if cuts else batch
    with torch.no_grad():
        assert run.callback_metrics["val/loss"].item() == pytest.approx(
            module.model.eval()(**read).loss.item(), rel=1e-5
        )


def test_logs_loss_terms_and_ranking(data_folder: Path, tmp_path: Path) -> None:
    module = RerankingModule("NAR4RecForReranking", {**TINY, "slate_size": 4})
    data = RerankingDataModule(str(data_folder), eval_batch_size=5)
    run = trainer(tmp_path)
    run.fit(module, datamodule=data)
    logged = {name for name in run.callback_metrics if name.startswith("val/")}
    names = ("likelihood_loss", "unlikelihood_loss", "contrastive_loss", "position_contrastive_loss")
    terms = {f"val/{name}" for name in ("loss", *names)}
    assert logged == terms | {"val/ndcg@4", "val/hit@4"}
    assert module.model is not None
    found = []
    for batch in data.val_dataloader():
        labels = batch["candidate_feedback"][..., 0]
        found.append(ndcg_at_k(module.model.generate(**batch), labels, batch["candidate_feedback_mask"], k=4))
    assert run.callback_metrics["val/ndcg@4"].item() == pytest.approx(torch.cat(found).mean().item(), rel=1e-5)


def test_validation_loss_is_the_mean_over_requests(data_folder: Path, tmp_path: Path) -> None:
    """24 rows in batches of 5: the last batch of 4 must not count as much as the others."""
    module = RerankingModule("NAR4RecEvaluator", TINY)
    data = RerankingDataModule(str(data_folder), eval_batch_size=5)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, datamodule=data)
    assert module.model is not None
    with torch.no_grad():
        whole = module.model(**next(iter(RerankingDataModule.loader(_all_at_once(data), "validation")))).loss
    assert run.callback_metrics["val/loss"].item() == pytest.approx(whole.item(), rel=1e-5)


def test_half_precision_trains_and_predicts(data_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "slates.parquet"
    module, data = RerankingModule("NAR4RecForReranking", TINY), RerankingDataModule(str(data_folder), batch_size=8)
    run = trainer(tmp_path, precision="bf16-mixed", max_epochs=1, callbacks=[SlateWriter(str(path))])
    run.fit(module, datamodule=data)
    assert module.model is not None
    assert {parameter.dtype for parameter in module.model.parameters()} == {torch.float32}
    assert run.callback_metrics["train/loss"].isfinite()
    run.predict(module, datamodule=data, return_predictions=False)
    table = pq.read_table(path)
    assert table.schema.field("score").type == pa.float32()
    assert table.num_rows == 8


def test_gradient_checkpointing_trains_the_same(data_folder: Path, tmp_path: Path) -> None:
    class Enable(L.Callback):
        def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
            pl_module.model.gradient_checkpointing_enable()  # type: ignore[union-attr, operator]

    found = []
    for callbacks in ([], [Enable()]):
        L.seed_everything(0, verbose=False)
        module = RerankingModule("PRMForReranking", TINY, warmup_steps=0)
        data = RerankingDataModule(str(data_folder), batch_size=8)
        trainer(tmp_path, max_epochs=1, callbacks=callbacks).fit(module, datamodule=data)
        found.append(module.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, msg=name)


def _all_at_once(data: RerankingDataModule) -> RerankingDataModule:
    data.eval_batch_size = 24
    return data


def test_resumed_run_equals_an_undisturbed_one(data_folder: Path, tmp_path: Path) -> None:
    def fit(epochs: int, checkpoint: str | None = None) -> RerankingModule:
        L.seed_everything(0, verbose=False)
        module = RerankingModule("NAR4RecForReranking", TINY, warmup_steps=3)
        keep = ModelCheckpoint(tmp_path, filename="kept", save_last=False, enable_version_counter=False)
        run = trainer(tmp_path, max_epochs=epochs, enable_checkpointing=True, callbacks=[keep])
        run.fit(module, datamodule=RerankingDataModule(str(data_folder), batch_size=8), ckpt_path=checkpoint)
        return module

    whole = fit(4).model
    fit(2)
    resumed = fit(4, str(tmp_path / "kept.ckpt")).model
    assert whole is not None
    assert resumed is not None
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_checkpoint_loads_without_its_data(data_folder: Path, tmp_path: Path) -> None:
    module = RerankingModule("NAR4RecEvaluator", TINY)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, datamodule=RerankingDataModule(str(data_folder)))
    run.save_checkpoint(tmp_path / "run.ckpt")
    torch.load(tmp_path / "run.ckpt", weights_only=True)
    loaded = RerankingModule.load_from_checkpoint(tmp_path / "run.ckpt", map_location="cpu", weights_only=True)
    assert module.model is not None
    assert loaded.model is not None
    assert loaded.model.config.to_dict() == module.model.config.to_dict()
    for name, value in module.model.state_dict().items():
        assert torch.equal(value, loaded.model.state_dict()[name]), name


def test_decay_spares_biases_norms_and_embeddings() -> None:
    model = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    optimizer = make_optimizer(model, learning_rate=0.1, weight_decay=0.5)
    decayed, spared = optimizer.param_groups
    assert [id(p) for p in decayed["params"]] == [id(model[1].weight)]
    assert decayed["weight_decay"] == 0.5
    assert spared["weight_decay"] == 0.0
    expected = {id(model[0].weight), id(model[1].bias), id(model[2].weight), id(model[2].bias)}
    assert {id(p) for p in spared["params"]} == expected


def test_learning_rate_warms_up_linearly() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), learning_rate=0.4, weight_decay=0.0)
    scheduler = make_scheduler(optimizer, "constant_with_warmup", warmup_steps=4, total_steps=8)
    np.testing.assert_allclose(learning_rates(optimizer, scheduler, 6), [0.0, 0.1, 0.2, 0.3, 0.4, 0.4], atol=1e-9)


def learning_rates(optimizer: Any, scheduler: Any, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_learning_rate_falls_linearly_over_the_second_half() -> None:
    """A warm-up of 50 steps would take all of these ten: it takes a fifth."""
    optimizer = make_optimizer(nn.Linear(2, 2), learning_rate=0.5, weight_decay=0.0)
    scheduler = make_scheduler(optimizer, "warmup_stable_decay", warmup_steps=50, total_steps=10)
    expected = [0.0, 0.25, 0.5, 0.5, 0.5, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    np.testing.assert_allclose(learning_rates(optimizer, scheduler, 11), expected, atol=1e-9)
