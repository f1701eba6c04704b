"""Lightning callbacks: the best checkpoint as a Hugging Face folder, and on the Hub."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from threading import Thread
from typing import Any

import lightning as L
import torch
import yaml
from huggingface_hub import get_token
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from rerankzoo.atomic_writing import temporary_folder, write_atomically
from rerankzoo.data.folder import link_or_copy
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.hub.card import CardDetails, write_card
from rerankzoo.hub.push import METRICS_FILE, RECIPE_FILE, Push, push_folder
from rerankzoo.hub_errors import redact
from rerankzoo.models.base import RerankingPreTrainedModel
from rerankzoo.training.resuming import checkpoint_callback
from rerankzoo.training.run_data import data_of_run

#: Of the folder of Lightning checkpoints: the feature extractor of their run.
EXTRACTOR_FOLDER = "extractor"
#: What a checkpoint says of the validation that it was chosen by.
_VALIDATION = "validation"


class PretrainedExport(Callback):
    """Writes the best checkpoint as a folder that `from_pretrained` reads and `rerankzoo push` publishes.

    The folder holds weights, config, generation config and feature extractor, `metrics.json` (what the checkpoint was
    chosen by, its validation metrics, the data's origin), `config.yaml` (the recipe; of runs of the command line) and
    `README.md` (the model card). It is written anew whenever `ModelCheckpoint` has found a better checkpoint (at the
    latest when the next epoch starts) and when training ends, from the checkpoint file itself, so that it holds the
    best weights and not the last ones. Where nothing was measured to choose by, there is no best one and no folder.

    Args:
        dirpath: The folder; default: `best` in the trainer's root directory.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath
        self._exported: tuple[str, float | None] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses a trainer without the checkpoints to export.

        Raises:
            ValueError: If there is no `ModelCheckpoint`, or it keeps several checkpoints under one name.
        """
        if stage == "fit":
            chosen = checkpoint_callback(trainer)
            if chosen is None:
                raise ValueError("PretrainedExport needs a ModelCheckpoint callback beside it")
            one_name = chosen.filename is not None and "{" not in chosen.filename
            if chosen.save_top_k not in (0, 1) and one_name and not chosen._enable_version_counter:
                raise ValueError(
                    f"save_top_k {chosen.save_top_k} writes all checkpoints to {chosen.filename}.ckpt, the last over "
                    "the best: expected a filename with {epoch} or {step}"
                )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the extractor beside the Lightning checkpoints, for runs that start from one of them."""
        chosen, data = checkpoint_callback(trainer), data_of_run(trainer)
        if trainer.is_global_zero and chosen is not None and chosen.dirpath is not None and data is not None:
            write_atomically(Path(chosen.dirpath) / EXTRACTOR_FOLDER, data.extractor.save_pretrained)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keeps the metrics of the last validation in the checkpoint, which may turn out to be the best."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        checkpoint[_VALIDATION] = {name: value for name, value in metrics.items() if math.isfinite(value)}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exports what the last validation found."""
        self.export(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exports the final best checkpoint."""
        chosen = checkpoint_callback(trainer)
        if self.export(trainer, pl_module) is None and chosen is not None and not trainer.fast_dev_run:
            rank_zero_warn(f"no best checkpoint to export: {chosen.monitor} was never measured")

    def export(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Path | None:
        """Brings the folder up to date.

        Returns:
            The folder; `None` where there is no checkpoint yet, and in processes other than the first.
        """
        chosen = checkpoint_callback(trainer)
        if not trainer.is_global_zero or chosen is None or not chosen.best_model_path:
            return None
        score = None if chosen.best_model_score is None else float(chosen.best_model_score)
        best = (chosen.best_model_path, score)
        directory = Path(self.dirpath or os.path.join(trainer.default_root_dir, "best"))
        if best != self._exported:
            saved = torch.load(chosen.best_model_path, map_location="cpu", weights_only=True, mmap=True)
            metrics = {
                "monitor": chosen.monitor,
                "mode": chosen.mode if chosen.monitor else None,
                "value": score if score is not None and math.isfinite(score) else None,
                "epoch": saved["epoch"],
                "step": saved["global_step"],
                "metrics": saved.get(_VALIDATION),
                "data": getattr(trainer.datamodule, "metadata", None),
            }
            known = {name: value for name, value in metrics.items() if value is not None}
            texts = {METRICS_FILE: json.dumps(known, indent=2) + "\n", **_recipe(trainer)}
            model, extractor = copy_with_weights(pl_module.model, saved["state_dict"]), data_of_run(trainer).extractor
            save_checkpoint_folder(directory, model, extractor, texts, _repository(trainer))
            self._exported = best
        return directory


def _recipe(trainer: L.Trainer) -> dict[str, str]:
    """The full recipe of a run of the command line, without where it was pushed or gone on from."""
    for callback in trainer.callbacks:
        if isinstance(callback, SaveConfigCallback):
            values = yaml.safe_load(callback.parser.dump(callback.config, skip_none=True))
            for name in ("hub", "ckpt_path"):
                values.pop(name, None)
            return {RECIPE_FILE: redact(yaml.safe_dump(values, sort_keys=False))}
    return {}


def _repository(trainer: L.Trainer) -> str | None:
    """Where the checkpoint will be pushed, which its card tells."""
    return next((callback.repo_id for callback in trainer.callbacks if isinstance(callback, HubCheckpoint)), None)


class HubCheckpoint(Callback):
    """Pushes what `PretrainedExport` writes to the Hub: the best checkpoint, when training ends.

    Pushes run in a thread of the first process, so training does not wait for them; its end does. What fails for good
    is a warning with the command that pushes the folder later, and training goes on. The token is that of `hf auth
    login` or HF_TOKEN: it is no argument, so that no recipe or checkpoint holds it.

    Args:
        repo_id: The repository, such as `"org/name"`; `None`: nothing is pushed.
        every_n_validations: Push the best checkpoint so far after every so many validations as well.
        private: Whether to make the repository private; `None`: as the owner's default says.
        revision: The branch, made if there is none; default: main.
        create_pr: Open a pull request instead; not together with `every_n_validations`.
        evaluator: Folder of an evaluator, or of a generator with one beside it; becomes the subfolder `evaluator`.

    Raises:
        ValueError: If `every_n_validations` is not positive, or pull requests are asked for again and again.
    """

    def __init__(
        self,
        repo_id: str | None = None,
        every_n_validations: int | None = None,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        evaluator: str | None = None,
    ) -> None:
        if every_n_validations is not None and (every_n_validations < 1 or create_pr):
            raise ValueError(
                f"every_n_validations must be positive, and without create_pr, got {every_n_validations}, {create_pr}"
            )
        self.repo_id = repo_id
        self.every_n_validations = every_n_validations
        self.options: dict[str, Any] = {"private": private, "revision": revision, "create_pr": create_pr}
        self.evaluator = None if evaluator is None else Path(evaluator)
        self._validations = 0
        self._due = False
        self._thread: Thread | None = None
        self._pushed: bytes | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses a trainer that exports nothing, and says at once if there is no token to push with."""
        if stage == "fit" and self.repo_id is not None:
            _find_export(trainer)
            if trainer.is_global_zero and get_token() is None:
                rank_zero_warn(f"no token to push to {self.repo_id} with: run `hf auth login` before training ends")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Counts; the checkpoint is not written yet."""
        if self.every_n_validations is not None and not trainer.sanity_checking:
            self._validations += 1
            self._due = self._due or self._validations % self.every_n_validations == 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Starts a push that is due, unless the last one still runs: then it stays due."""
        if self._due and not self._is_pushing():
            self._due = False
            self._start(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pushes the final best checkpoint, after the push that runs, and waits until it is there."""
        self._join()
        self._start(trainer, pl_module)
        self._join()

    def _is_pushing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.repo_id is None or not trainer.is_global_zero:
            return
        folder = _find_export(trainer).export(trainer, pl_module)
        if folder is None or (metrics := (folder / METRICS_FILE).read_bytes()) == self._pushed:
            return
        push = Push(folder, self.repo_id, evaluator=self.evaluator, **self.options)
        # The folder may be written anew while it is read; links to its files stay what they are.
        with ExitStack() as stack:
            snapshot = stack.enter_context(temporary_folder(folder)) / folder.name
            shutil.copytree(folder, snapshot, copy_function=link_or_copy)
            used = stack.pop_all()
        self._thread = Thread(target=self._push, args=(push, snapshot, metrics, used), daemon=True)
        self._thread.start()

    def _push(self, push: Push, snapshot: Path, metrics: bytes, used: ExitStack) -> None:
        with used:
            try:
                pushed = push_folder(push, snapshot=snapshot)
                self._pushed = metrics
                print(f"{push.folder} is on the Hub: {pushed.url}", flush=True)
            except (OSError, ValueError) as error:
                rank_zero_warn(redact(str(error)))


def _find_export(trainer: L.Trainer) -> PretrainedExport:
    for callback in trainer.callbacks:
        if isinstance(callback, PretrainedExport):
            return callback
    raise ValueError("HubCheckpoint needs a PretrainedExport callback beside it")


def copy_with_weights(model: RerankingPreTrainedModel, state: Mapping[str, Tensor]) -> RerankingPreTrainedModel:
    """A copy of a module's model with the weights of a Lightning checkpoint's `state_dict`."""
    # What is trained and saved next must not depend on what was exported: random numbers, and what saving writes into a
    # config.
    with isolate_rng():
        copy = type(model)(deepcopy(model.config))
    copy.load_state_dict(
        {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
    )
    if model.can_generate():
        copy.generation_config = model.generation_config
    return copy.eval()


def save_checkpoint_folder(
    directory: Path,
    model: RerankingPreTrainedModel,
    extractor: RerankingFeatureExtractor,
    texts: Mapping[str, str] | None = None,
    repo_id: str | None = None,
) -> None:
    """Writes a model with feature extractor, text files and card; the folder appears whole or stays as it was."""

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)
        for name, text in (texts or {}).items():
            (folder / name).write_text(text, encoding="utf-8")
        write_card(folder, CardDetails(repo_id))

    write_atomically(directory, write)
