"""Lightning callbacks: the best checkpoint as a Hugging Face folder and on the Hub, and predictions as a table."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import lightning as L
import pyarrow as pa
import torch
import yaml
from huggingface_hub import get_token
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from rerankzoo.atomic_writing import (
    make_folder,
    remove_leftovers,
    temporary_name,
    write_atomically,
    write_folder_atomically,
)
from rerankzoo.data.folder import link_or_copy, read_parquet, write_parquet
from rerankzoo.data.loader import RequestLoader
from rerankzoo.errors import UnreadableFileError
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.hub.card import CardDetails, write_card
from rerankzoo.hub.push import METRICS_FILE, RECIPE_FILE, Push, push_folder
from rerankzoo.hub_errors import redact
from rerankzoo.mining import weights_digest
from rerankzoo.models.base import RerankingPreTrainedModel

#: Of the folder of Lightning checkpoints: the feature extractor of their run.
EXTRACTOR_FOLDER = "extractor"
_WRITE_ROWS = 8_192
#: Batches of predictions that are kept together; what a stopped prediction does again is less.
PART_BATCHES = 16


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

    def state_dict(self) -> dict[str, Any]:
        """The metrics of all validations so far: that of the best checkpoint may be an earlier process's."""
        return {"validated": self._validated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the metrics that an earlier process has seen."""
        self._validated = dict(state_dict["validated"])

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
        remove_leftovers(folder, "push")
        snapshot = temporary_name(folder, "push")
        shutil.copytree(folder, snapshot, copy_function=link_or_copy)
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


def load_weights(model: RerankingPreTrainedModel, checkpoint: str) -> RerankingPreTrainedModel:
    """A copy of a model with the weights of a Lightning checkpoint."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
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

    write_folder_atomically(directory, write)


class SlateWriter(Callback):
    """Writes what `predict` returns as one Parquet table, in the order of the requests.

    Columns: `request_index` (row number in the split), `slate` (positions into the row's candidates), `item_ids` and
    `score`. Every process writes its share in parts of `PART_BATCHES` batches into a hidden folder beside the result,
    and the first process joins them. A prediction that was stopped goes on behind its last part when it is started
    again with the same weights, decoding, extractor and data; parts of another one are removed.

    Args:
        path: The Parquet file; default: `predictions.parquet` in the trainer's root directory.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self._rows: list[dict[str, Tensor]] = []
        self._parts = Path()
        self._number = 0
        self._begun = b""

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Goes behind the parts that are there.

        Raises:
            OutputError: If the folder of the parts cannot be made.
        """
        self._rows, self._number = [], 0
        self._begun = torch.get_rng_state().numpy().tobytes()
        target = self._target(trainer)
        self._parts = target.with_name(f".{target.name}.parts-{_prediction_digest(trainer, pl_module)}")
        if trainer.is_global_zero:
            for other in target.parent.glob(f".{target.name}.parts-*"):
                if other != self._parts:
                    shutil.rmtree(other, ignore_errors=True)
        make_folder(self._parts)
        loader = trainer.predict_dataloaders
        if isinstance(loader, RequestLoader) and (last := self._last_part(trainer.global_rank)) is not None:
            self._number = int(last.stem.split("-")[-1]) + 1
            # Before its first batch is read.
            loader.load_state_dict({"epoch": loader.epoch, "batches": self._number * PART_BATCHES})
        self._seed(trainer.global_rank)

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps a batch's slates, without those of blank requests."""
        real = outputs["request_index"] >= 0
        self._rows.append({key: value[real].cpu() for key, value in outputs.items()})
        if len(self._rows) == PART_BATCHES:
            self._write_part(trainer)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the table.

        Raises:
            OutputError: If it cannot be written; the parts stay.
        """
        if self._rows:
            self._write_part(trainer)
        trainer.strategy.barrier()
        if trainer.is_global_zero:
            parts = sorted(self._parts.glob("*.parquet"))
            whole = pa.concat_tables([read_parquet(part) for part in parts])
            write_atomically(self._target(trainer), partial(write_parquet, whole.sort_by("request_index")))
            shutil.rmtree(self._parts, ignore_errors=True)
        trainer.strategy.barrier()

    def _target(self, trainer: L.Trainer) -> Path:
        return Path(self.path or os.path.join(trainer.default_root_dir, "predictions.parquet"))

    def _last_part(self, rank: int) -> Path | None:
        """The last part of a process such that all before it are there and whole; those behind it are removed."""
        last, whole = None, True
        for number, path in enumerate(sorted(self._parts.glob(f"{rank:05d}-*.parquet"))):
            try:
                whole = whole and path.name == _part_name(rank, number) and read_parquet(path).num_rows > 0
            except UnreadableFileError as error:
                rank_zero_warn(f"{error}; its requests are predicted again")
                whole = False
            if whole:
                last = path
            else:
                path.unlink()
        return last

    def _write_part(self, trainer: L.Trainer) -> None:
        path = self._parts / _part_name(trainer.global_rank, self._number)
        write_atomically(path, partial(write_parquet, self._table(trainer)))
        self._rows, self._number = [], self._number + 1
        self._seed(trainer.global_rank)

    def _seed(self, rank: int) -> None:
        """Seeds decoding that draws at random anew for each part, so that a part does not depend on those before."""
        digest = hashlib.sha256(self._begun + f"{rank}-{self._number}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little"))

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
        return pa.table(
            {"request_index": index.numpy(), "slate": shown, "item_ids": item_ids, "score": scores.float().numpy()}
        )


def _part_name(rank: int, number: int) -> str:
    return f"{rank:05d}-{number:08d}.parquet"


def _prediction_digest(trainer: L.Trainer, module: Any) -> str:
    """Tells predictions apart: weights, decoding, extractor, data, and how the rows are cut into batches."""
    data, model = trainer.datamodule, module.model
    split = data.split("test")
    files = [(file["filename"], os.stat(file["filename"]).st_mtime_ns) for file in split.cache_files]
    decoding = model.generation_config.to_dict() if model.can_generate() else None
    known = [weights_digest(model), decoding, data.extractor.schema.fingerprint, files, len(split)]
    cut = [getattr(trainer.predict_dataloaders, "batch_size", None), trainer.world_size, PART_BATCHES]
    return hashlib.sha256(json.dumps([known, cut], sort_keys=True, default=str).encode()).hexdigest()[:16]
