from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from rerankzoo.data.datamodule import RerankingDataModule, SimulatorDataModule
from rerankzoo.data.folder import read_metadata
from rerankzoo.features import FeatureSchema


def test_splits_and_extractor(data_folder: Path) -> None:
    data = RerankingDataModule(str(data_folder), batch_size=5, eval_batch_size=3)
    data.setup()
    assert [len(data.split(name)) for name in ("train", "validation", "test")] == [24, 24, 8]
    assert sum(len(batch["slates"]) for batch in data.train_dataloader()) == 24
    assert [len(batch["slates"]) for batch in data.test_dataloader()] == [3, 3, 2]
    assert data.slate_size() == 4
    assert data.metadata is not None
    assert data.metadata["source"] == "test"


def test_utility_quantile_is_that_of_all_logged_slates(data_folder: Path) -> None:
    data = RerankingDataModule(str(data_folder))
    data.setup()
    utilities = []
    for row in data.split("train"):
        prices = np.array(row["price"])[row["slate"]]
        utilities.append(np.sum(row["click"]) + 0.5 * np.sum(prices * np.array(row["order"])))
    for quantile in (0.0, 0.3, 0.8, 1.0):
        assert data.utility_quantile(quantile) == pytest.approx(np.quantile(utilities, quantile), rel=1e-5)


def test_uses_the_extractor_of_a_checkpoint(data_folder: Path, tmp_path: Path) -> None:
    fitted = RerankingDataModule(str(data_folder))
    fitted.setup()
    fitted.extractor.save_pretrained(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(data_folder, other)
    shutil.copy(data_folder / "test.parquet", other / "train.parquet")  # fitting here would give other vocabularies
    data = RerankingDataModule(str(other), extractor=str(tmp_path))
    data.setup()
    assert data.extractor.schema == fitted.extractor.schema


def test_several_files_per_split(data_folder: Path, tmp_path: Path) -> None:
    shutil.copy(data_folder / "schema.yaml", tmp_path)
    for number in range(2):
        shutil.copy(data_folder / "test.parquet", tmp_path / f"train-{number:05d}.parquet")
    data = RerankingDataModule(str(tmp_path))
    data.setup()
    assert len(data.split("train")) == 16
    assert data.metadata is None
    with pytest.raises(FileNotFoundError, match=r"no validation\*\.parquet; it has \['train'\]"):
        data.val_dataloader()


def test_names_what_is_missing(data_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"schema\.yaml is missing"):
        RerankingDataModule(str(tmp_path)).setup()
    FeatureSchema.from_yaml(data_folder / "schema.yaml").to_yaml(tmp_path / "schema.yaml")
    with pytest.raises(FileNotFoundError, match=r"holds no train\*\.parquet"):
        RerankingDataModule(str(tmp_path)).setup()
    with pytest.raises(RuntimeError, match="call setup"):
        _ = RerankingDataModule(str(data_folder)).extractor


def test_simulator_is_made_once(tmp_path: Path) -> None:
    data = SimulatorDataModule(num_train=40, num_validation=10, num_test=10, root=str(tmp_path), world_seed=3)
    data.prepare_data()
    made = (Path(data.path) / "train.parquet").stat().st_mtime_ns
    data.prepare_data()
    assert (Path(data.path) / "train.parquet").stat().st_mtime_ns == made
    data.setup()
    assert read_metadata(data.path)["settings"]["seed"] == 3
    assert len(data.split("train")) == 40
    other = SimulatorDataModule(num_train=40, num_validation=10, num_test=10, root=str(tmp_path), world_seed=4)
    assert other.path != data.path
