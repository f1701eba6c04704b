"""Lightning callbacks: the best checkpoint as a Hugging Face folder, and predictions as a table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.files import write_atomically, write_folder_atomically
from rerankzoo.models.base import RerankingPreTrainedModel

_WRITE_ROWS = 8_192


class PretrainedExport(Callback):
    """Writes the best checkpoint as a folder that `from_pretrained` reads.

    The folder holds weights, config, generation config and feature extractor. It is written anew whenever
    `ModelCheckpoint` has found a better checkpoint (at the latest when the next epoch starts) and when training ends,
    from the checkpoint file itself, so that it holds the best weights and not the last ones.

    Args:
        dirpath: The folder; default: `best` in the trainer's root directory.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath
        self._exported: tuple[str, float | None] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses a trainer without the checkpoints to export."""
        if stage == "fit" and not isinstance(trainer.checkpoint_callback, ModelCheckpoint):
            raise ValueError("PretrainedExport needs a ModelCheckpoint callback beside it")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exports what the last validation found."""
        self._export(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exports the final best checkpoint."""
        self._export(trainer, pl_module)

    def _export(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        checkpoint = trainer.checkpoint_callback
        if not trainer.is_global_zero or not isinstance(checkpoint, ModelCheckpoint) or not checkpoint.best_model_path:
            return
        score = checkpoint.best_model_score
        best = (checkpoint.best_model_path, None if score is None else float(score))
        if best == self._exported:
            return
        directory = Path(self.dirpath or os.path.join(trainer.default_root_dir, "best"))
        model = load_weights(pl_module.model, checkpoint.best_model_path)
        save_checkpoint_folder(directory, model, trainer.datamodule.extractor)
        self._exported = best


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
    directory: Path, model: RerankingPreTrainedModel, extractor: RerankingFeatureExtractor
) -> None:
    """Writes a model with its feature extractor; the folder appears whole or stays as it was."""

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)

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
