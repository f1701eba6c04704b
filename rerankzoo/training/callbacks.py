"""Lightning callbacks: the best checkpoint as a Hugging Face folder and on the Hub, and predictions as a table."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

import lightning as L
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from huggingface_hub import get_token
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from rerankzoo.faults import redact
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.files import write_atomically, write_folder_atomically
from rerankzoo.hub.card import CardDetails, write_card
from rerankzoo.hub.push import METRICS_FILE, RECIPE_FILE, Push, push_folder
from rerankzoo.models.base import RerankingPreTrainedModel

#: Of the folder of Lightning checkpoints: the feature extractor of their run.
EXTRACTOR_FOLDER = "extractor"
_WRITE_ROWS = 8_192


class PretrainedExport(Callback):
    """Writes the best checkpoint as a folder that `from_pretrained` reads and `rerankzoo push` publishes.

    The folder holds weights, config, generation config and feature extractor, `metrics.json` (what the checkpoint was
    chosen by, its validation metrics, the data's origin), `config.yaml` (the recipe; of runs of the command line) and
    `README.md` (the model card). It is written anew whenever `ModelCheckpoint` has found a better checkpoint (at the
    latest when the next epoch starts) and when training ends, from the checkpoint file itself, so that it holds the
    best weights and not the last ones.

    Args:
        dirpath: The folder; default: `best` in the trainer's root directory.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath
        self._exported: tuple[str, float | None] | None = None
        self._validated: dict[int, dict[str, float]] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses a trainer without the checkpoints to export."""
        if stage == "fit" and not isinstance(trainer.checkpoint_callback, ModelCheckpoint):
            raise ValueError("PretrainedExport needs a ModelCheckpoint callback beside it")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the extractor beside the Lightning checkpoints, for runs that start from one of them."""
        checkpoint = trainer.checkpoint_callback
        if trainer.is_global_zero and isinstance(checkpoint, ModelCheckpoint) and checkpoint.dirpath is not None:
            directory = Path(checkpoint.dirpath) / EXTRACTOR_FOLDER
            write_folder_atomically(directory, trainer.datamodule.extractor.save_pretrained)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the metrics of this step: its checkpoint may turn out to be the best."""
        if not trainer.sanity_checking:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self._validated[trainer.global_step] = {
                name: value for name, value in metrics.items() if name.startswith("val/") and math.isfinite(value)
            }

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exports what the last validation found."""
        self.export(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exports the final best checkpoint."""
        self.export(trainer, pl_module)

    def export(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Path | None:
        """Brings the folder up to date.

        Returns:
            The folder; `None` where there is no checkpoint yet, and in processes other than the first.
        """
        checkpoint = trainer.checkpoint_callback
        if not trainer.is_global_zero or not isinstance(checkpoint, ModelCheckpoint) or not checkpoint.best_model_path:
            return None
        score = checkpoint.best_model_score
        best = (checkpoint.best_model_path, None if score is None else float(score))
        directory = Path(self.dirpath or os.path.join(trainer.default_root_dir, "best"))
        if best != self._exported:
            model = load_weights(pl_module.model, checkpoint.best_model_path)
            texts = {METRICS_FILE: json.dumps(self._metrics(trainer, checkpoint), indent=2) + "\n", **_recipe(trainer)}
            save_checkpoint_folder(directory, model, trainer.datamodule.extractor, texts, _repository(trainer))
            self._exported = best
        return directory

    def _metrics(self, trainer: L.Trainer, checkpoint: ModelCheckpoint) -> dict[str, Any]:
        """What is known of the best checkpoint; nothing is `None`."""
        saved = torch.load(checkpoint.best_model_path, map_location="cpu", weights_only=True, mmap=True)
        score, step = checkpoint.best_model_score, saved["global_step"]
        known = {
            "monitor": checkpoint.monitor,
            "mode": checkpoint.mode if checkpoint.monitor else None,
            "value": None if score is None or not math.isfinite(score) else float(score),
            "epoch": saved["epoch"],
            "step": step,
            "metrics": self._validated.get(step),
            "data": getattr(trainer.datamodule, "metadata", None),
        }
        return {name: value for name, value in known.items() if value is not None}


def _recipe(trainer: L.Trainer) -> dict[str, str]:
    """The full recipe of a run of the command line, without where it was pushed."""
    for callback in trainer.callbacks:
        if isinstance(callback, SaveConfigCallback):
            values = yaml.safe_load(callback.parser.dump(callback.config, skip_none=True))
            values.pop("hub", None)
            return {RECIPE_FILE: redact(yaml.safe_dump(values, sort_keys=False))}
    return {}


def _repository(trainer: L.Trainer) -> str | None:
    """Where the checkpoint will be pushed, which its card tells."""
    found = [callback.repo_id for callback in trainer.callbacks if isinstance(callback, HubCheckpoint)]
    return found[0] if found else None


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
        """Pushes the final best checkpoint and waits until it is there."""
        self._wait()
        self._start(trainer, pl_module)
        self._wait()

    def _is_pushing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.repo_id is None or not trainer.is_global_zero:
            return
        folder = _find_export(trainer).export(trainer, pl_module)
        if folder is None:
            return
        metrics = (folder / METRICS_FILE).read_bytes()
        if metrics == self._pushed:
            return
        push = Push(folder, self.repo_id, evaluator=self.evaluator, **self.options)
        # The folder may be written anew while it is read; links to its files stay what they are.
        snapshot = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        shutil.copytree(folder, snapshot, copy_function=_link, dirs_exist_ok=True)
        self._thread = Thread(target=self._push, args=(push, snapshot, metrics), daemon=True)
        self._thread.start()

    def _push(self, push: Push, snapshot: Path, metrics: bytes) -> None:
        try:
            pushed = push_folder(push, snapshot=snapshot)
            self._pushed = metrics
            print(f"{push.folder} is on the Hub: {pushed.url}", flush=True)
        except (OSError, ValueError) as error:
            rank_zero_warn(redact(str(error)))
        finally:
            shutil.rmtree(snapshot, ignore_errors=True)


def _find_export(trainer: L.Trainer) -> PretrainedExport:
    for callback in trainer.callbacks:
        if isinstance(callback, PretrainedExport):
            return callback
    raise ValueError("HubCheckpoint needs a PretrainedExport callback beside it")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def load_weights(model: RerankingPreTrainedModel, checkpoint: str) -> RerankingPreTrainedModel:
    """A copy of a model with the weights of a Lightning checkpoint."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    copy = type(model)(model.config)
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

    write_folder_atomically(directory, write)


class SlateWriter(Callback):
    """Writes what `predict` returns as one Parquet table, in the order of the requests.

    Columns: `request_index` (row number in the split), `slate` (positions into the row's candidates), `item_ids` and
    `score`. With several processes each writes its share beside the result, and the first one joins them.

    Args:
        path: The Parquet file; default: `predictions.parquet` in the trainer's root directory.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self._rows: list[dict[str, Tensor]] = []

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forgets the rows of an earlier run."""
        self._rows = []

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps a batch's slates."""
        self._rows.append({key: value.cpu() for key, value in outputs.items()})

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the table."""
        target = Path(self.path or os.path.join(trainer.default_root_dir, "predictions.parquet"))
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(self._table(trainer), _part(target, trainer.global_rank))
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            self._join(target, trainer.world_size)
        trainer.strategy.barrier()

    def _table(self, trainer: L.Trainer) -> pa.Table:
        index = torch.cat([row["request_index"] for row in self._rows])
        slates = torch.cat([row["slates"] for row in self._rows])
        scores = torch.cat([row["scores"] for row in self._rows])
        data = trainer.datamodule
        split = data.split("test").with_format("arrow")
        item_ids: list[list[Any]] = []
        for start in range(0, len(index), _WRITE_ROWS):
            rows = split[index[start : start + _WRITE_ROWS].tolist()]
            item_ids += data.extractor.decode(slates[start : start + _WRITE_ROWS], rows)
        shown = [[position for position in slate if position >= 0] for slate in slates.tolist()]
        return pa.table({"request_index": index.numpy(), "slate": shown, "item_ids": item_ids, "score": scores.numpy()})

    def _join(self, target: Path, world_size: int) -> None:
        parts = [_part(target, rank) for rank in range(world_size)]
        whole = pa.concat_tables([pq.read_table(part) for part in parts]).sort_by("request_index")
        write_atomically(target, lambda path: pq.write_table(whole, path))
        for part in parts:
            part.unlink()


def _part(target: Path, rank: int) -> Path:
    return target.with_name(f".{target.name}.part-{rank}")
