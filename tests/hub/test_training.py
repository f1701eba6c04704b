"""`HubCheckpoint`: training ends with its result on disk, whatever the Hub does."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint

from rerankzoo.data.datamodule import RerankingDataModule
from rerankzoo.errors import HubError
from rerankzoo.hub.push import Push, Pushed
from rerankzoo.models.auto import AutoModelForReranking
from rerankzoo.training import HubCheckpoint, PretrainedExport, RerankingModule, callbacks
from tests.hub.server import WRITER, Fault, LoopbackHub

TINY = {"hidden_size": 16, "embedding_size": 4, "num_attention_heads": 2, "intermediate_size": 16, "slate_size": 4}


def fit(data_folder: Path, root: Path, *further: Any, epochs: int = 3) -> L.Trainer:
    L.seed_everything(0, verbose=False)
    checkpoint = ModelCheckpoint(root / "checkpoints", "best", monitor="val/loss", enable_version_counter=False)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
        callbacks=[*further, checkpoint, PretrainedExport()],
    )
    module = RerankingModule("NAR4RecForReranking", TINY, warmup_steps=0)
    trainer.fit(module, datamodule=RerankingDataModule(str(data_folder), batch_size=8))
    return trainer


FIT = """
import rerankzoo.hub.push as push
from rerankzoo.cli.main import main

push.DELAYS = (0.01,) * 4
arguments = ["fit", "--config", "recipe.yaml", "--data.init_args.path", DATA, "--hub.every_n_validations", "1"]
for repo in ("org/shaky", "org/down"):
    assert main([*arguments, "--hub.repo_id", repo, "--trainer.default_root_dir", repo]) == 0
"""

RECIPE = """
model:
  class_path: rerankzoo.RerankingModule
  init_args:
    architecture: NAR4RecForReranking
    warmup_steps: 0
    config: {hidden_size: 16, embedding_size: 4, num_attention_heads: 2, intermediate_size: 16, slate_size: 4}
data:
  class_path: rerankzoo.RerankingDataModule
  init_args: {path: data, batch_size: 8}
trainer: {max_epochs: 3, accelerator: cpu, devices: 1, enable_progress_bar: false, enable_model_summary: false}
"""


@pytest.mark.slow
def test_pushes_the_best_checkpoint_whatever_happens(
    hub: LoopbackHub, client: Callable[..., subprocess.CompletedProcess[str]], data_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    hub.faults = [
        Fault("create", "503", 2, "org/shaky"),
        Fault("commit", "drop", 1, "org/shaky"),
        Fault("*", "503", 1000, "org/down"),
    ]
    found = client(FIT.replace("DATA", repr(str(data_folder))))
    said = found.stdout + found.stderr
    titles = hub.titles("org/shaky")
    assert 1 <= len(titles) <= 3
    assert len(set(titles)) == len(titles)  # each once
    best = {path.name: path.read_bytes() for path in (tmp_path / "org/shaky/best").iterdir()}
    assert hub.files("org/shaky") == best
    assert b'from_pretrained("org/shaky")' in best["README.md"]
    chosen = json.loads(best["metrics.json"])
    assert titles[0] == f"Upload NAR4RecForReranking: val/loss {chosen['value']:.4g}"
    assert ("models", "org/down") not in hub.repositories
    assert "rerankzoo push org/down/best org/down" in said
    assert AutoModelForReranking.from_pretrained(tmp_path / "org/down/best")
    for repo in ("shaky", "down"):
        assert sorted(path.name for path in (tmp_path / "org" / repo).iterdir()) == ["best", "checkpoints", "logs"]
    assert WRITER not in said
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert not [path for path in written if WRITER.encode() in path.read_bytes()]
    recipe = yaml.safe_load(best["config.yaml"])
    assert "hub" not in recipe  # who trains by it does not push to org/shaky
    assert recipe["data"]["init_args"]["batch_size"] == 8


class Release(L.Callback):
    """Lets a push end when training has come to its last epoch."""

    def __init__(self, event: threading.Event) -> None:
        self.event = event

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 2:
            self.event.set()


def test_training_does_not_wait_for_a_push(data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    event, pushed = threading.Event(), []

    def slow_push(push: Push, snapshot: Path) -> Pushed:
        assert event.wait(60), "training waited for the push"
        pushed.append(json.loads((snapshot / "metrics.json").read_text(encoding="utf-8"))["step"])
        return Pushed("somewhere", "abc", changed=True)

    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr(callbacks, "push_folder", slow_push)
    fit(data_folder, tmp_path, Release(event), HubCheckpoint("org/a", every_n_validations=1))
    first, last = pushed  # what the folder was when the push began, though it was written anew; and the end's
    assert first == 3
    assert last > 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "checkpoints"]


def test_failure_is_a_warning_and_tried_again(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def failing_push(push: Push, snapshot: Path) -> Pushed:
        calls.append(push)
        raise HubError(f"{WRITER} was refused; push it later with: {push.command}")

    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setattr(callbacks, "push_folder", failing_push)
    judge = str(tmp_path / "judge")
    with pytest.warns(UserWarning, match="push it later") as warned:
        fit(data_folder, tmp_path, HubCheckpoint("org/a", 2, private=True, evaluator=judge, revision="b"))
    assert len(calls) == 2  # after the second validation, and at the end
    assert calls[0] == Push(tmp_path / "best", "org/a", private=True, evaluator=Path(judge), revision="b")
    assert not [warning for warning in warned if WRITER in str(warning.message)]


def test_needs_an_export_and_a_sound_plan(data_folder: Path, tmp_path: Path) -> None:
    data = RerankingDataModule(str(data_folder))
    trainer = L.Trainer(accelerator="cpu", logger=False, max_epochs=1, callbacks=[HubCheckpoint("org/a")])
    with pytest.raises(ValueError, match="needs a PretrainedExport"):
        trainer.fit(RerankingModule("NAR4RecForReranking", TINY), datamodule=data)
    with pytest.raises(ValueError, match="every_n_validations"):
        HubCheckpoint("org/a", every_n_validations=0)
    with pytest.raises(ValueError, match="create_pr"):
        HubCheckpoint("org/a", every_n_validations=1, create_pr=True)


def test_says_at_the_start_that_there_is_no_token(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "get_token", lambda: None)
    monkeypatch.setattr(callbacks, "push_folder", lambda push, snapshot: Pushed("x", "y", changed=True))
    with pytest.warns(UserWarning, match="no token to push to org/a"):
        fit(data_folder, tmp_path, HubCheckpoint("org/a"), epochs=1)
