"""Predictions as a table: a callback that writes what `predict` returns, and goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pyarrow as pa
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils._pytree import tree_leaves

from rerankzoo.data.loader import RequestLoader
from rerankzoo.data.shards import has_shard, join_shards, write_shard
from rerankzoo.models.digest import weights_digest

#: Batches of predictions that are kept together; what a stopped prediction does again is less.
PART_BATCHES = 16


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
        self._outputs: list[dict[str, Tensor]] = []
        self._number = 0

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Goes behind the parts that are there.

        Raises:
            ValueError: If the requests do not come from one loader of a data module of ours.
            OSError: If the folder of the parts cannot be made.
        """
        loaders = tree_leaves(trainer.predict_dataloaders)
        if len(loaders) != 1 or not isinstance(loaders[0], RequestLoader):
            kinds = [type(loader).__name__ for loader in loaders]
            raise ValueError(f"SlateWriter: expected one RequestLoader to predict from, got {kinds}")
        self._loader: RequestLoader = loaders[0]
        self._outputs, self._number = [], 0
        self._begun = torch.get_rng_state().numpy().tobytes()
        self._target = Path(self.path or os.path.join(trainer.default_root_dir, "predictions.parquet"))
        folder = f".{self._target.name}.parts-"
        self._parts = self._target.with_name(folder + _digest(trainer, pl_module.model, self._loader))
        if trainer.is_global_zero:
            for other in self._target.parent.glob(f"{folder}*"):
                if other != self._parts:
                    shutil.rmtree(other, ignore_errors=True)
        self._parts.mkdir(parents=True, exist_ok=True)
        if trainer.limit_predict_batches == 1.0:  # Lightning counts batches from here on
            while has_shard(self._part(trainer.global_rank, self._number)):
                self._number += 1
        if self._number:  # before its first batch is read
            self._loader.load_state_dict({"epoch": self._loader.epoch, "batches": self._number * PART_BATCHES})
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
        self._outputs.append({key: value[real].cpu() for key, value in outputs.items()})
        if len(self._outputs) == PART_BATCHES:
            self._write_part(trainer.global_rank)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the table.

        Raises:
            OutputError: If it cannot be written; the parts stay.
        """
        if self._outputs:
            self._write_part(trainer.global_rank)
        trainer.strategy.barrier()
        if trainer.is_global_zero:  # all processes have as many batches
            parts = [self._part(rank, number) for rank in range(trainer.world_size) for number in range(self._number)]
            join_shards(parts, self._target, "request_index")
            shutil.rmtree(self._parts, ignore_errors=True)
        trainer.strategy.barrier()

    def _part(self, rank: int, number: int) -> Path:
        return self._parts / f"{rank:05d}-{number:08d}.parquet"

    def _write_part(self, rank: int) -> None:
        columns = {key: torch.cat([outputs[key] for outputs in self._outputs]) for key in self._outputs[0]}
        index, slates = columns["request_index"], columns["slates"]
        items = self._loader.extractor.decode(slates, self._loader.dataset[index.tolist()])
        shown = [[position for position in slate if position >= 0] for slate in slates.tolist()]
        scores = columns["scores"].float().numpy()
        table = pa.table({"request_index": index.numpy(), "slate": shown, "item_ids": items, "score": scores})
        write_shard(self._part(rank, self._number), [table])
        self._outputs, self._number = [], self._number + 1
        self._seed(rank)

    def _seed(self, rank: int) -> None:
        """Seeds decoding that draws at random anew for each part, so that a part does not depend on those before."""
        digest = hashlib.sha256(self._begun + f"{rank}-{self._number}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little"))


def _digest(trainer: L.Trainer, model: Any, loader: RequestLoader) -> str:
    """Tells predictions apart: weights, decoding, extractor, data, and how the rows are cut into parts."""
    files = [(file["filename"], os.stat(file["filename"]).st_mtime_ns) for file in loader.dataset.cache_files]
    parameters = model.generation_config.to_dict() if model.can_generate() else None
    model_and_data = [weights_digest(model), parameters, loader.extractor.schema.fingerprint, files]
    cut = [len(loader.dataset), loader.batch_size, trainer.world_size, PART_BATCHES, trainer.limit_predict_batches]
    return hashlib.sha256(json.dumps([model_and_data, cut], sort_keys=True, default=str).encode()).hexdigest()[:16]
