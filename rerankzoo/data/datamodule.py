"""Lightning data modules: any exposure log with a schema, and the simulator."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets.config
import lightning as L
import numpy as np
from datasets import Dataset, DatasetDict
from filelock import FileLock

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.data.folder import (
    METADATA_FILE,
    SCHEMA_FILE,
    SETTINGS_FILE,
    SPLITS,
    UTILITY_QUANTILES,
    local_folder,
    read_metadata,
    read_origin,
    split_files,
    write_arrow,
)
from rerankzoo.data.loader import RequestLoader, slate_lengths
from rerankzoo.data.simulator import TRUTH_COLUMNS, SimulatorSettings, write_simulator_folder
from rerankzoo.errors import SchemaMismatchError
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.features.schema import SLATE_WEIGHTS, FeatureSchema
from rerankzoo.hub_errors import one_line_errors

#: Of the copies in Arrow's format: those of another version are not read.
_COPY_VERSION = 1

#: A pass over a log of any size should have about so many steps, with batches that are neither too noisy to learn
#: from nor too large to learn often.
_STEPS_PER_PASS = 40
_SMALLEST_BATCH, _LARGEST_BATCH = 16, 1024


def fitting_batch_size(num_requests: int) -> int:
    """A batch size that follows the log's: the power of two nearest to a fortieth of it, between 16 and 1,024."""
    wanted = 2 ** round(math.log2(max(1, num_requests / _STEPS_PER_PASS)))
    return min(max(wanted, _SMALLEST_BATCH), _LARGEST_BATCH)


class RerankingDataModule(L.LightningDataModule):
    """The train, validation and test splits of a data folder, as batches.

    Args:
        path: A folder with `train.parquet`, `validation.parquet`, `test.parquet` (or several files per split, such as
            `train-00000.parquet`) and `schema.yaml`; or the name of a dataset repository on the Hub with these files.
        batch_size: Requests per training batch and process; `None`: all processes together take as many as suit the
            number of training requests (see `fitting_batch_size`).
        eval_batch_size: Requests per batch and process in validation, test and prediction.
        seed: Of the shuffling.
        extractor: A folder or Hub id with a fitted extractor, as of a checkpoint that is fine-tuned or applied; the
            path itself, where the data was mined; default: one is fitted on the training split.
        revision: Branch, tag or commit of a dataset repository.
        extend_extractor: Whether the extractor learns the new ids of the training split, after those it knows
            (`RerankingFeatureExtractor.extend`).
        update_statistics: With `extend_extractor`: whether numbers are standardised by the training split's own mean
            and deviation.

    Raises:
        ValueError: If an extractor is to be extended and none is given.
        SchemaMismatchError: If the data's schema is not that of the extractor to extend; lists the fields.
        FileNotFoundError: If the folder, its schema or a split that is asked for is missing.
        HubError: If a repository is missing or cannot be reached.
    """

    def __init__(
        self,
        path: str,
        batch_size: int | None = None,
        eval_batch_size: int = 512,
        seed: int = 0,
        extractor: str | None = None,
        revision: str | None = None,
        extend_extractor: bool = False,
        update_statistics: bool = False,
    ) -> None:
        super().__init__()
        if extend_extractor and extractor is None:
            raise ValueError("extend_extractor needs an extractor; without one it is fitted on the training split")
        if update_statistics and not extend_extractor:
            raise ValueError("update_statistics needs extend_extractor: what is not extended stays as it is")
        self.path = path
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.extractor_path = extractor
        self.revision = revision
        self.extend_extractor = extend_extractor
        self.update_statistics = update_statistics
        self.splits = DatasetDict()
        self._extractor: RerankingFeatureExtractor | None = None

    def prepare_data(self) -> None:
        """Downloads a dataset repository; called by Lightning in one process."""
        _ = self.folder

    @cached_property
    def folder(self) -> Path:
        """The data folder on this machine; a repository is asked for its newest commit once."""
        return local_folder(self.path, self.revision)

    def setup(self, stage: str | None = None) -> None:
        """Opens the splits and fits (or loads) the extractor; called by Lightning in every process."""
        if self.splits:
            return
        folder = self.folder
        if (folder / SETTINGS_FILE).is_file() and not (folder / METADATA_FILE).is_file():
            raise FileNotFoundError(
                f"{folder / METADATA_FILE} is missing: mining has not ended; give the same `rerankzoo mine` again"
            )
        extractor = None
        if self.extractor_path is not None:
            source = str(folder) if self.extractor_path == self.path else self.extractor_path
            with one_line_errors(source):
                extractor = RerankingFeatureExtractor.from_pretrained(source)
        self.splits = open_splits(folder, extractor.schema.columns() if extractor else ())
        schema = FeatureSchema.from_yaml(folder / SCHEMA_FILE)
        if extractor is None:
            extractor = RerankingFeatureExtractor(schema).fit(self.split("train"))
        elif self.extend_extractor:
            try:
                schema.check_same(extractor.schema)
            except SchemaMismatchError as error:
                raise SchemaMismatchError(f"{self.path} does not fit {self.extractor_path}: {error}") from error
            extractor = extractor.extend(self.split("train"), self.update_statistics)
        self._extractor = extractor

    @property
    def extractor(self) -> RerankingFeatureExtractor:
        """The fitted extractor; there after `setup`."""
        if self._extractor is None:
            raise RuntimeError("call setup() before using the extractor")
        return self._extractor

    @property
    def metadata(self) -> dict | None:
        """What `dataset.json` says of the data's origin (see `read_origin`); `None` for a log without one."""
        return read_origin(self.folder)

    def split(self, name: str) -> Dataset:
        """One split's table.

        Raises:
            FileNotFoundError: If the folder has no such split.
            ValueError: If it has no rows.
        """
        if name not in self.splits:
            raise FileNotFoundError(f"{self.path} has no {name}*.parquet; it has {sorted(self.splits)}")
        if not len(self.splits[name]):
            raise ValueError(f"the split {name!r} of {self.path} has no rows")
        return self.splits[name]

    def loader(self, name: str, shuffle: bool = False) -> RequestLoader:
        """Batches of one split, for this process's share of it."""
        trainer, table = self.trainer, self.split(name)
        processes = trainer.world_size if trainer else 1
        own = fitting_batch_size(len(table)) // processes if self.batch_size is None else self.batch_size
        return RequestLoader(
            table,
            self.extractor,
            own if shuffle else self.eval_batch_size,
            shuffle=shuffle,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=processes,
        )

    def train_dataloader(self) -> RequestLoader:
        """Shuffled batches of the training split."""
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> RequestLoader:
        """Batches of the validation split."""
        return self.loader("validation")

    def test_dataloader(self) -> RequestLoader:
        """Batches of the test split."""
        return self.loader("test")

    predict_dataloader = test_dataloader

    def slate_lengths(self) -> np.ndarray:
        """How many positions each slate of all splits has (see `slate_lengths`)."""
        return np.concatenate([slate_lengths(split, self.extractor.schema.slate) for split in self.splits.values()])

    def labels(self) -> frozenset[str]:
        """What the training split tells models to learn (see `RequestLoader.labels`)."""
        return self.loader("train").labels()

    def feedback_rates(self) -> list[float] | None:
        """How often each target happens in the training split (see `RequestLoader.feedback_rates`)."""
        return self.loader("train").feedback_rates()

    def num_positions(self) -> int:
        """How many positions the slates of the training split show, about."""
        return self.loader("train").num_positions()

    def item_fields(self) -> list[str]:
        """The fields of candidates that belong to the item and not to the request (see `constant_fields`)."""
        return self.loader("train").item_fields()

    def utility_quantile(self, quantile: float) -> float | None:
        """A quantile of the utility of the logged slates of the training split (see `logged_utilities`).

        Of a mined split: that of the log it was mined from; `None` if that had no feedback.
        """
        if SLATE_WEIGHTS not in self.split("train").column_names:
            return self.loader("train").utility_quantile(quantile)
        described = (self.folder / METADATA_FILE).is_file()
        known = read_metadata(self.folder).get(UTILITY_QUANTILES) if described else None
        return None if known is None else float(np.interp(quantile, np.linspace(0, 1, len(known)), known))


def open_splits(folder: Path, columns: Collection[str] = ()) -> DatasetDict:
    """Memory-maps the splits of a data folder, by way of a copy in Arrow's format.

    The copy is made once and kept where `datasets` keeps its files (HF_DATASETS_CACHE). It has the columns that the
    schema names, those that the truth of simulated requests depends on, and those given.

    Raises:
        FileNotFoundError: If there is no schema or no split.
        ValueError: If it is not clear which files are a split.
        UnreadableFileError: If a file is damaged.
        OutputError: If the copy cannot be written.
    """
    if not (folder / SCHEMA_FILE).is_file():
        raise FileNotFoundError(f"{folder / SCHEMA_FILE} is missing: a data folder holds a schema and Parquet files")
    files = {name: split_files(folder, name) for name in SPLITS}
    if not any(files.values()):
        raise FileNotFoundError(f"{folder} holds no {', '.join(f'{name}*.parquet' for name in SPLITS)}")
    named = FeatureSchema.from_yaml(folder / SCHEMA_FILE).columns() | set(columns)
    if (read_origin(folder) or {}).get("source") == "simulator":
        named |= TRUTH_COLUMNS
    # One by one: a mined folder's splits have different columns.
    return DatasetDict({name: _map_files(paths, sorted(named)) for name, paths in files.items() if paths})


def _map_files(paths: list[Path], columns: list[str]) -> Dataset:
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    key = hashlib.sha256(json.dumps([_COPY_VERSION, states, columns]).encode()).hexdigest()
    copy = Path(datasets.config.HF_DATASETS_CACHE, "rerankzoo", f"{key[:32]}.arrow")
    if not copy.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(copy.with_suffix(".lock")):  # of several processes one copies
            if not copy.is_file():
                write_atomically(copy, lambda target: write_arrow(target, paths, columns))
    return Dataset.from_file(str(copy))


class SimulatorDataModule(RerankingDataModule):
    """Simulated exposure logs, whose truth is known. Made when first used, then kept.

    Args:
        setting: One of the named worlds, `rerankzoo.data.simulator.SETTINGS`.
        num_train: Requests of the training split.
        num_validation: Requests of the validation split.
        num_test: Requests of the test split.
        world_seed: Of the simulated world and its log.
        constants: Fields of `SimulatorSettings` or of its user model that differ from the setting's, such as
            `{"num_candidates": 50, "click_rate": 0.02}`.
        root: The folder that holds the made data sets.
        log: The stream of the training split: `"train"`, or `"judge"` for an independent log of the same world, of
            which to train an evaluator that judges models trained on the first.
        **options: See `RerankingDataModule`.
    """

    def __init__(
        self,
        setting: str = "strong",
        num_train: int = 40_000,
        num_validation: int = 2_000,
        num_test: int = 500,
        world_seed: int = 0,
        root: str = "outputs/data",
        log: str = "train",
        constants: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        changed = "".join(f"-{key}={value}" for key, value in sorted((constants or {}).items()))
        name = f"simulator-{setting}{changed}-{num_train}-{num_validation}-{num_test}-seed{world_seed}"
        path = Path(root) / (name if log == "train" else f"{name}-{log}")
        super().__init__(str(path), revision=None, **options)
        self.settings = SimulatorSettings.named(setting, **(constants or {}), seed=world_seed)
        self.sizes = {"num_train": num_train, "num_validation": num_validation, "num_test": num_test}
        self.log = log

    def prepare_data(self) -> None:
        """Simulates the log, unless it is there; called by Lightning in one process."""
        if not (Path(self.path) / METADATA_FILE).is_file():
            write_simulator_folder(self.path, self.settings, **self.sizes, log=self.log)
