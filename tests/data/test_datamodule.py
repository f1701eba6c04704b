from __future__ import annotations

import decimal
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerankzoo.data.datamodule import RerankingDataModule, SimulatorDataModule, open_splits
from rerankzoo.data.folder import read_metadata
from rerankzoo.data.simulator import ChoiceUser, Simulator
from rerankzoo.errors import RerankingDataError, UnreadableFileError
from rerankzoo.features import FeatureSchema, FieldSpec


def test_splits_and_extractor(data_folder: Path) -> None:
    data = RerankingDataModule(str(data_folder), batch_size=5, eval_batch_size=3)
    data.setup()
    assert [len(data.split(name)) for name in ("train", "validation", "test")] == [24, 24, 8]
    assert sum(len(batch["slates"]) for batch in data.train_dataloader()) == 24
    assert [len(batch["slates"]) for batch in data.test_dataloader()] == [3, 3, 2]
    assert data.slate_lengths().max() == 4
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


#: What PyArrow does not write to Parquet yet.
UNWRITTEN = () if int(pa.__version__.split(".")[0]) >= 25 else ("list_view", "decimal")
UNNAMED = {
    "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    "uuid": pa.array([b"0123456789abcdef"], pa.uuid()),
    "list_view": pa.array([[1, 2]], pa.list_view(pa.int64())),
    "decimal": pa.array([decimal.Decimal(1)], pa.decimal32(5, 1)),
    "struct": pa.array([{"a": [1]}]),
}
STORED: dict[str, Callable[[pa.ChunkedArray], pa.Array]] = {
    "list_view": lambda lists: pa.array(lists.to_pylist(), pa.list_view(pa.int64())),
    "fixed_size": lambda lists: pa.array([row[:2] for row in lists.to_pylist()], pa.list_(pa.int32(), 2)),
    "dictionary": lambda lists: pa.ListArray.from_arrays(
        lists.combine_chunks().offsets, lists.combine_chunks().values.dictionary_encode()
    ),
}


def test_columns_of_any_type(tmp_path: Path) -> None:
    """The schema does not name a column: it is not read. It does: every way to store numbers and strings is."""
    schema = FeatureSchema(
        name="s", item_id="item_id", fields=(FieldSpec(name="user", group="request", kind="categorical"),)
    )
    rows = pa.table({"item_id": [[3, 1], [2, 3, 1]], "user": ["ann", None]})
    schema.to_yaml(tmp_path / "schema.yaml")
    for name, value in UNNAMED.items():
        if name in UNWRITTEN:
            continue
        rows = rows.append_column(name, pa.chunked_array([value] * len(rows)))
    stored = [convert for name, convert in STORED.items() if name not in UNWRITTEN]
    for convert in (lambda lists: lists, *stored):
        pq.write_table(rows.set_column(0, "item_id", convert(rows["item_id"])), tmp_path / "train.parquet")
        data = RerankingDataModule(str(tmp_path), eval_batch_size=2)
        data.setup()
        assert data.split("train").column_names == ["item_id", "user"]
        [batch] = data.loader("train")
        assert batch["request_categorical"].tolist() == [[2], [0]]
    pq.write_table(rows.set_column(1, "user", rows["uuid"]), tmp_path / "train.parquet")
    with pytest.raises(RerankingDataError, match="field 'user': numbers or strings are required"):
        open_splits(tmp_path)


def test_part_files_of_different_types(data_folder: Path, tmp_path: Path) -> None:
    shutil.copy(data_folder / "schema.yaml", tmp_path)
    part = pq.read_table(data_folder / "test.parquet")
    (tmp_path / "train").mkdir()
    pq.write_table(part, tmp_path / "train/part.0.parquet")
    narrow = part.set_column(0, "user_id", part["user_id"].cast(pa.int8()))
    pq.write_table(narrow, tmp_path / "train/part.1.parquet")
    assert len(open_splits(tmp_path)["train"]) == 16
    pq.write_table(part.set_column(0, "user_id", pa.array(["a"] * len(part))), tmp_path / "train/part.2.parquet")
    with pytest.raises(UnreadableFileError, match="the files of a split hold different types"):
        open_splits(tmp_path)
    pq.write_table(part.drop_columns("price"), tmp_path / "train/part.2.parquet")
    with pytest.raises(
        UnreadableFileError, match=r"part\.2\.parquet has other columns than part\.0\.parquet: \['price'\]"
    ):
        open_splits(tmp_path)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_without_rows(split: str, data_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(data_folder, tmp_path / "data")
    path = tmp_path / "data" / f"{split}.parquet"
    pd.DataFrame(pq.read_table(path).to_pandas().iloc[:0]).to_parquet(path)
    data = RerankingDataModule(str(tmp_path / "data"))
    with pytest.raises(ValueError, match=f"the split '{split}' of .* has no rows"):  # noqa: PT012
        data.setup()
        data.loader(split)


def test_a_copy_is_made_once_for_the_same_files(data_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(data_folder, tmp_path / "data")
    first = open_splits(tmp_path / "data")["test"].cache_files
    assert open_splits(tmp_path / "data")["test"].cache_files == first
    pq.write_table(pq.read_table(tmp_path / "data/test.parquet").slice(1), tmp_path / "data/test.parquet")
    assert len(open_splits(tmp_path / "data")["test"]) == 7


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


def test_a_named_world_with_other_constants_of_its_users_and_logger(tmp_path: Path) -> None:
    constants = {"rivalry": 0.7, "click_rate": 0.02, "exploration": 0.1}
    sizes = {"num_train": 40, "num_validation": 10, "num_test": 10}
    data = SimulatorDataModule(setting="choice", constants=constants, root=str(tmp_path), **sizes)
    data.prepare_data()
    assert Path(data.path).name == "simulator-choice-click_rate=0.02-exploration=0.1-rivalry=0.7-40-10-10-seed0"
    rebuilt = Simulator.from_metadata(read_metadata(data.path))
    assert rebuilt.settings == data.settings
    assert rebuilt.user_model == ChoiceUser(rivalry=0.7)
