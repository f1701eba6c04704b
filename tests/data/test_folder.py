from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rerankzoo.data.folder import list_array, local_folder, read_metadata, read_origin, split_files, write_data_folder
from rerankzoo.errors import OutputError
from rerankzoo.features.schema import FeatureSchema, FieldSpec

SCHEMA = FeatureSchema(
    name="tiny", item_id="item_id", fields=(FieldSpec(name="item_id", group="candidate", kind="categorical"),)
)
METADATA = {"source": "test", "protocol": "by hand", "settings": {"seed": 3}}


def table(rows: int) -> pa.Table:
    return pa.table({"item_id": list_array(np.arange(2 * rows).reshape(rows, 2))})


def test_writes_every_file_and_counts_rows(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    write_data_folder(folder, {"train": table(3), "test": table(2)}, SCHEMA, METADATA)
    assert sorted(path.name for path in folder.iterdir()) == [
        "dataset.json",
        "schema.yaml",
        "test.parquet",
        "train.parquet",
    ]
    assert read_metadata(folder) == {**METADATA, "rows": {"train": 3, "test": 2}}
    assert FeatureSchema.from_yaml(folder / "schema.yaml") == SCHEMA
    assert pq.read_table(folder / "train.parquet").to_pydict() == {"item_id": [[0, 1], [2, 3], [4, 5]]}


def test_origin_of_a_mined_folder_is_its_source(tmp_path: Path) -> None:
    write_data_folder(tmp_path / "log", {"train": table(1)}, SCHEMA, METADATA)
    log = read_metadata(tmp_path / "log")
    assert read_origin(tmp_path / "log") == log
    assert read_origin(tmp_path) is None
    mined = {"source": "mined", "protocol": "mined", "origin": {"source": "mined", "origin": log}}
    write_data_folder(tmp_path / "mined", {"train": table(1)}, SCHEMA, mined)
    assert read_origin(tmp_path / "mined") == log
    write_data_folder(tmp_path / "mined", {"train": table(1)}, SCHEMA, {**mined, "origin": None})
    assert read_origin(tmp_path / "mined") is None


def test_parts_of_splits_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerankzoo.data.folder.ROW_GROUP", 4)
    parts = [("test", table(2)), ("train", table(3)), ("train", table(2)), ("test", table(0)), ("train", table(1))]
    write_data_folder(tmp_path / "out", iter(parts), SCHEMA, METADATA)
    assert list(read_metadata(tmp_path / "out")["rows"].items()) == [("train", 6), ("test", 2)]
    expected = pa.concat_tables([table(3), table(2), table(1)])
    with pq.ParquetFile(tmp_path / "out" / "train.parquet") as file:
        assert file.read() == expected
        assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [4, 1, 1]
    with pytest.raises(ValueError, match=r"tables must be named among .* got \['day'\]"):
        write_data_folder(tmp_path / "other", iter([("day", table(1))]), SCHEMA, METADATA)
    assert not (tmp_path / "other").exists()


def test_rewriting_leaves_no_split_of_the_earlier_data_set(tmp_path: Path) -> None:
    write_data_folder(tmp_path, {"train": table(3), "validation": table(2)}, SCHEMA, METADATA)
    write_data_folder(tmp_path, {"train": table(1)}, SCHEMA, METADATA)
    assert not (tmp_path / "validation.parquet").exists()
    assert read_metadata(tmp_path)["rows"] == {"train": 1}


PARTS: dict[str, list[str]] = {
    "one file": ["train.parquet"],
    "numbered": [f"train-{number:05d}.parquet" for number in range(3)],
    "of so many": [f"train-{number:05d}-of-00003.parquet" for number in range(3)],
    "without zeros": [f"train_{number}.parquet" for number in (1, 2, 10)],
    "spark": [f"train.parquet/part-0000{number}-c1.snappy.parquet" for number in range(3)],
    "dask": [f"train/part.{number}.parquet" for number in (8, 9, 10)],
}
NO_PART = ["train-backup.parquet", "train_old.parquet", "training_notes.parquet", "test-1.parquet", "train.csv"]


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


@pytest.mark.parametrize("form", PARTS)
@pytest.mark.parametrize("name", ["data", "shop [2]", "run?", "log[1]*"])
def test_a_split_is_its_files_and_no_others(
    form: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = touch(tmp_path / name, *PARTS[form])
    touch(tmp_path / "datax", "train.parquet")
    touch(tmp_path / name, *NO_PART, "train.parquet/_SUCCESS" if form == "spark" else "_SUCCESS")
    if form == "spark":
        touch(tmp_path / name, "train.parquet/_metadata.parquet", "train.parquet/.part-00000.parquet")
    assert split_files(tmp_path / name, "train") == files
    assert "train-backup.parquet, train_old.parquet, training_notes.parquet" in caplog.text
    assert split_files(tmp_path / name, "validation") == []


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train.parquet", "train-00000.parquet"], r"train-\*.parquet and train.parquet; expected one"),
        (["train.parquet", "train/part.0.parquet"], "train and train.parquet; expected one"),
        (["train-00000-of-00002.parquet"], r"expected 2 files train-\*-of-00002.parquet, got 1"),
        (["train-00000-of-00001.parquet", "train-00000-of-00002.parquet"], "expected one of them"),
    ],
)
def test_leftovers_and_gaps_are_refused(names: list[str], words: str, tmp_path: Path) -> None:
    touch(tmp_path, *names)
    with pytest.raises(ValueError, match=words):
        split_files(tmp_path, "train")


def test_rewriting_leaves_no_part_files(tmp_path: Path) -> None:
    touch(tmp_path, "train.parquet/part-0.parquet", "test-00000.parquet", "notes/a.parquet", "test_old.parquet")
    write_data_folder(tmp_path, {"train": table(1)}, SCHEMA, METADATA)
    kept = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.parquet")}
    assert kept == {"train.parquet", "notes/a.parquet", "test_old.parquet"}


def test_interrupted_writing_leaves_the_folder_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data"
    write_data_folder(folder, {"train": table(3), "test": table(2)}, SCHEMA, METADATA)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(writer: pq.ParquetWriter, part: pa.Table, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    with pytest.raises(OutputError, match=r"cannot write .*data: No space left on device"):
        write_data_folder(folder, {"train": table(4), "test": table(4)}, SCHEMA, METADATA)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # nothing temporary beside it


def test_other_files_of_a_replaced_folder_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_data_folder(folder, {"train": table(3), "test": table(2)}, SCHEMA, METADATA)
    (folder / "README.md").write_text("mine")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("too")
    write_data_folder(folder, {"train": table(4)}, SCHEMA, METADATA)
    assert (folder / "README.md").read_text() == "mine"
    assert (folder / "notes" / "a.txt").read_text() == "too"
    assert not (folder / "test.parquet").exists()
    assert pq.read_table(folder / "train.parquet").num_rows == 4


@pytest.mark.parametrize(
    ("tables", "metadata", "message"),
    [
        ({}, METADATA, "named among"),
        ({"dev": table(1)}, METADATA, r"got \['dev'\]"),
        ({"train": table(1)}, {"source": "test"}, r"lacks \['protocol'\]"),
        ({"train": table(1)}, {**METADATA, "rows": {"train": 9}}, "must not hold 'rows'"),
    ],
)
def test_refuses_before_writing(tmp_path: Path, tables: dict, metadata: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_data_folder(tmp_path / "out", tables, SCHEMA, metadata)
    assert not (tmp_path / "out").exists()


def test_refuses_metadata_that_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_data_folder(tmp_path / "out", {"train": table(1)}, SCHEMA, {**METADATA, "path": tmp_path})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("text", "message"), [("{", "is invalid JSON"), (json.dumps([1]), "got list")])
def test_read_metadata_refuses_garbled_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_metadata(tmp_path)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4), (0, 3), (0, 3, 4)])
def test_list_array_nests_like_the_array(shape: tuple[int, ...]) -> None:
    values = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    assert list_array(values).to_pylist() == values.tolist()


def test_only_names_that_cannot_be_meant_for_a_folder_go_to_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("rerankzoo.data.folder.snapshot_download", lambda name, **_: asked.append(name) or tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("data", "data/missing", "missing", "a/b/c", "./a/b", str(tmp_path / "a")):
        assert local_folder(name) == Path(name)
    assert not asked
    assert local_folder("org/log") == tmp_path
    assert asked == ["org/log"]
