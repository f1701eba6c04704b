from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from rerankzoo.cli.main import main
from rerankzoo.cli.recipes import recipes_folder
from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.errors import NonFiniteLossError
from rerankzoo.training import RerankingModule

TINY = {"hidden_size": 16, "embedding_size": 4, "num_attention_heads": 2, "intermediate_size": 16}


class Poison(L.Callback):
    """From step 2 on, one of the requests has a feature that is no number; keeps the batch and the weights."""

    def __init__(self, weight: bool = False) -> None:
        self.weight = weight

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, number: int) -> None:
        if trainer.global_step == 2:
            if self.weight:
                pl_module.get_parameter("model.heads.bias").data[0] = torch.inf
            else:
                batch["request_numeric"][3] = torch.nan
            self.batch = batch
            self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}


def fit(data_folder: Path, root: Path, poison: Poison) -> tuple[str, RerankingModule]:
    L.seed_everything(0, verbose=False)
    module = RerankingModule("NAR4RecEvaluator", TINY)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=root,
        callbacks=[poison],
    )
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.fit(module, datamodule=RerankingDataModule(str(data_folder), batch_size=8))
    return str(caught.value), module


def test_batch_is_saved_and_training_stops(data_folder: Path, tmp_path: Path) -> None:
    poison = Poison()
    message, module = fit(data_folder, tmp_path, poison)
    file = tmp_path / "nonfinite/step-2-rank-0.safetensors"
    assert sorted(path.name for path in file.parent.iterdir()) == [file.with_suffix(".json").name, file.name]
    assert message.startswith(f"the loss is nan at step 2 of epoch 0; its batch is {file}")
    assert "\n" not in message
    # The weights are those that saw the batch, and the batch is all there.
    for name, value in module.state_dict().items():
        assert torch.equal(value, poison.weights[name]), name
    batch = load_file(file)
    assert batch.keys() == poison.batch.keys()
    for key, value in batch.items():
        torch.testing.assert_close(value, poison.batch[key], rtol=0, atol=0, equal_nan=True)
    assert module.model is not None
    assert math.isnan(module.model(**batch).loss)
    record = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    rows = batch["request_index"].tolist()
    assert record.pop("largest_inputs")["request_numeric"] == "nan"
    assert record == {
        "step": 2,
        "epoch": 0,
        "rank": 0,
        "processes": 1,
        "precision": "32-true",
        "loss": "nan",
        "feedback_loss": "nan",
        "log_likelihood": "nan",
        "request_index": rows,
        "nonfinite_requests": [rows[3]],
        "nonfinite_parameters": [],
    }


def test_tells_weights_that_were_lost_before(data_folder: Path, tmp_path: Path) -> None:
    fit(data_folder, tmp_path, Poison(weight=True))
    record = json.loads((tmp_path / "nonfinite/step-2-rank-0.json").read_text(encoding="utf-8"))
    assert record["nonfinite_parameters"] == ["heads.bias"]
    assert record["nonfinite_requests"] == record["request_index"]


def test_command_says_it_in_one_line(data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A learning rate that no training survives."""
    command = [
        "fit",
        f"--config={recipes_folder() / 'nar4rec/evaluator-ml-100k.yaml'}",
        f"--config={recipes_folder() / 'trainer/cpu.yaml'}",
        f"--data.init_args.path={data_folder}",
        "--data.init_args.batch_size=8",
        "--model.init_args.learning_rate=1e38",
        "--model.init_args.warmup_steps=0",
        "--trainer.gradient_clip_val=null",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    assert main(command) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rerankzoo fit: ")]
    [file] = (tmp_path / "nonfinite").glob("*.safetensors")
    assert str(file) in line
