"""Data folders: `train.parquet`, `validation.parquet`, `test.parquet`, `schema.yaml` and `dataset.json`.

A folder is made beside its place and takes it in one step, so it is whole or not there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import snapshot_download

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.errors import HubError, UnreadableFileError, in_one_line, shown
from rerankzoo.features.arrow_tables import ArrowTable
from rerankzoo.features.schema import FeatureSchema
from rerankzoo.hub_errors import one_line_errors
from rerankzoo.text_files import read_json

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
SCHEMA_FILE = "schema.yaml"
METADATA_FILE = "dataset.json"
#: Settings of a mined folder, there from its first shard on: a run that continues must have the same.
SETTINGS_FILE = "mining.json"
#: "source" of a folder that was mined from another one, whose metadata stands under "origin".
MINED_SOURCE = "mined"
#: Of a mined folder: the quantiles 0, 0.01... 1 of the utility of the logged slates that its slates replace, or null.
UTILITY_QUANTILES = "utility_quantiles"

#: Rows of a Parquet file that are written together, at most, and bytes, about.
ROW_GROUP, ROW_GROUP_BYTES = 32_000, 1 << 28
#: Requests of a record batch of the memory-mapped tables.
RECORD_BATCH = 16_000

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
#: What is read of a dataset repository: the data, and the extractor of a mined folder.
_HUB_FILES = ["*.parquet", SCHEMA_FILE, METADATA_FILE, "preprocessor_config.json", "vocabularies.safetensors"]


def write_data_folder(
    directory: str | Path,
    tables: Mapping[str, pa.Table] | Iterable[tuple[str, pa.Table]],
    schema: FeatureSchema,
    metadata: Mapping[str, Any],
) -> None:
    """Writes the tables of a data set with their schema and where they come from.

    The folder takes its place in one step and replaces an earlier data set; its other files are kept.

    Args:
        directory: The folder, made if it is missing.
        tables: Exposure logs by split ("train", "validation", "test"), at least one; or, of logs too large for memory,
            pairs of a split and some of its rows.
        schema: The schema of all tables.
        metadata: What `dataset.json` says, JSON-able: at least "source" and "protocol"; "rows" is added.

    Raises:
        ValueError: If there is no table, a split is unknown, or a key of the metadata is missing or "rows".
        OutputError: If the folder cannot be written; it is as it was.
    """
    if missing := [key for key in ("source", "protocol") if key not in metadata]:
        raise ValueError(f"metadata lacks {missing}, got keys {sorted(metadata)}")
    if "rows" in metadata:
        raise ValueError(f"metadata must not hold 'rows', which is counted here, got {metadata['rows']!r}")
    json.dumps(metadata)  # before any file: it may not be JSON-able
    parts = tables.items() if isinstance(tables, Mapping) else tables
    directory = Path(directory)

    def write(folder: Path) -> None:
        folder.mkdir()
        rows = _write_parts(folder, parts)
        schema.to_yaml(folder / SCHEMA_FILE)
        text = json.dumps({**metadata, "rows": rows}, indent=2) + "\n"
        (folder / METADATA_FILE).write_text(text, encoding="utf-8")
        if directory.is_dir():
            keep_others(directory, folder)

    write_atomically(directory, write)


def _write_parts(folder: Path, parts: Iterable[tuple[str, pa.Table]]) -> dict[str, int]:
    """Writes tables to a Parquet file per split; of each about one row group, or one table, is held."""
    writers: dict[str, pq.ParquetWriter] = {}
    waiting: dict[str, list[pa.Table]] = {}
    rows: dict[str, int] = {}
    with ExitStack() as stack:
        for split, table in parts:
            if split not in writers:
                writer = pq.ParquetWriter(folder / f"{split}.parquet", table.schema, write_page_checksum=True)
                writers[split] = stack.enter_context(writer)
            waiting.setdefault(split, []).append(table)
            rows[split] = rows.get(split, 0) + table.num_rows
            rows_waiting = sum(part.num_rows for part in waiting[split])
            if rows_waiting >= ROW_GROUP or sum(part.nbytes for part in waiting[split]) >= ROW_GROUP_BYTES:
                writers[split].write_table(pa.concat_tables(waiting.pop(split)), row_group_size=ROW_GROUP)
        for split, tables in waiting.items():
            writers[split].write_table(pa.concat_tables(tables), row_group_size=ROW_GROUP)
    if not rows or set(rows) - set(SPLITS):
        raise ValueError(f"tables must be named among {SPLITS}, got {sorted(rows)}")
    return {split: rows[split] for split in SPLITS if split in rows}


def keep_others(old: Path, new: Path, replaced: Collection[str] = ()) -> None:
    """Takes what is no part of a data set, nor `replaced`, from an old folder into the one that takes its place."""
    for path in old.iterdir():
        if path.name in (SCHEMA_FILE, METADATA_FILE, *replaced) or any(_form(path, split) for split in SPLITS):
            continue
        if path.is_dir():
            shutil.copytree(path, new / path.name, copy_function=link_or_copy, symlinks=True)
        else:
            link_or_copy(path, new / path.name)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A hard link, or a copy where the file system allows none."""
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes a Parquet file with a checksum of every page."""
    pq.write_table(table, path, write_page_checksum=True)


def read_parquet(path: Path) -> pa.Table:
    """Reads a Parquet file whole and checks it, as far as it has checksums.

    Raises:
        UnreadableFileError: If it is damaged.
    """
    with _naming_damage(path):
        return pq.read_table(path, page_checksum_verification=True)


def first_rows(folder: Path, split: str, count: int) -> pa.Table:
    """The first rows of a split; a `FileNotFoundError` if there is none."""
    files = split_files(folder, split)
    if not files:
        raise FileNotFoundError(f"{folder} has no {split} split")
    with pq.ParquetFile(files[0]) as file:
        return pa.Table.from_batches([next(file.iter_batches(count))])


def split_files(folder: Path, split: str) -> list[Path]:
    """The Parquet files of a split, in the order of the numbers in their names; empty if there is none.

    They are `train.parquet`, or numbered files such as `train-00000.parquet`, or the part files in a folder
    `train.parquet` or `train`, as Spark, Dask and DuckDB write them. Other files that begin with the name are named in
    a warning.

    Raises:
        ValueError: If there are several of these, or fewer or more files than their names (`train-00000-of-00002`) say.
    """
    forms: dict[str, list[Path]] = {}
    others = []
    for path in sorted(folder.iterdir() if folder.is_dir() else ()):
        if form := _form(path, split):
            forms.setdefault(form, []).extend(_part_files(path))
        elif path.name.startswith(split) and path.suffix == ".parquet":
            others.append(path.name)
    if len(forms) > 1:
        raise ValueError(f"{folder} has {' and '.join(forms)}; expected one of them for the split {split!r}")
    if others:
        logger.warning("%s: not read, since no part of the split %r: %s", folder, split, ", ".join(others))
    for form, paths in forms.items():
        if (total := form.partition("-of-")[2].removesuffix(".parquet")) and int(total) != len(paths):
            raise ValueError(f"{folder}: expected {int(total)} files {form}, got {len(paths)}")
    # By numbers: `part.10` comes after `part.9`.
    return sorted(
        chain(*forms.values()),
        key=lambda path: [int(text) if text.isdecimal() else text for text in re.split(r"(\d+)", str(path))],
    )


def _form(path: Path, split: str) -> str | None:
    """How a split is stored that the file or folder is (a part of); `None` if it is none."""
    if numbered := re.fullmatch(rf"{split}[-_.]\d+(-of-\d+)?(-[0-9a-f]{{8,}})?\.parquet", path.name):
        return f"{split}-*{numbered[1] or ''}.parquet"
    named = path.name == f"{split}.parquet" or (path.name == split and path.is_dir())
    return path.name if named and _part_files(path) else None


def _part_files(path: Path) -> list[Path]:
    """The file itself, or the Parquet files of a folder; Spark's markers and checksums are no data."""
    if path.is_file():
        return [path]
    return [part for part in path.rglob("*.parquet") if part.is_file() and not part.name.startswith(("_", "."))]


def write_arrow(path: Path, files: Sequence[Path], columns: Collection[str]) -> None:
    """Copies the given columns of Parquet files, as far as they are there, into one file in Arrow's format.

    Memory does not grow with the files. Where their types differ, the widest is taken.

    Raises:
        UnreadableFileError: If a file is damaged, or has other columns than the first.
        RerankingDataError: If a column holds anything but numbers and strings.
    """
    schemas = []
    for file in files:
        with _naming_damage(file):
            table = pq.read_schema(file).empty_table()
        schemas.append(_stored(table, columns).schema)
        if schemas[-1].names != schemas[0].names:
            different = shown(sorted(set(schemas[-1].names) ^ set(schemas[0].names)))
            raise UnreadableFileError(f"{file} has other columns than {files[0].name}: {different}")
    try:
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        message = f"{files[0].parent}: the files of a split hold different types: {in_one_line(error)}"
        raise UnreadableFileError(message) from error
    with pa.ipc.new_stream(path, schema) as writer:
        for file in files:
            for table in _read_tables(file, schema.names):
                writer.write_table(_stored(table, columns).cast(schema))


def _read_tables(path: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    # Without `pre_buffer`, of which all that was read is kept until the end of the file.
    with _naming_damage(path), pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as file:
        groups = max(1, file.metadata.num_row_groups)
        for batch in file.iter_batches(min(RECORD_BATCH, -(-file.metadata.num_rows // groups) or 1), columns=columns):
            yield pa.Table.from_batches([batch])


def _stored(table: pa.Table, columns: Collection[str]) -> pa.Table:
    return pa.table({name: ArrowTable(table).array(name) for name in sorted(set(table.column_names) & set(columns))})


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnreadableFileError(f"{path} is damaged ({reason})") from error


def local_folder(path: str | Path, revision: str | None = None) -> Path:
    """A data folder on this machine: the given one or, where there is none, a dataset repository's copy of one.

    Args:
        path: A folder, or the name of a dataset repository on the Hub, such as `"org/log"`. What is neither, or missing
            where its parent folder is here, is returned as it is.
        revision: Branch, tag or commit of the repository.

    Raises:
        HubError: If the repository or the revision is missing or cannot be reached.
    """
    name = str(path)
    # A folder that is missing where others are is a typing error, not a stranger's repository.
    if Path(path).is_dir() or Path(path).parent.is_dir() or not _REPOSITORY.fullmatch(name):
        return Path(path)
    try:
        with one_line_errors(name, revision):
            return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=_HUB_FILES))
    except HubError as error:
        raise HubError(f"no folder {name} is here, and as a dataset of the Hub: {error}") from error


def read_metadata(directory: str | Path) -> dict[str, Any]:
    """Reads `dataset.json` of a data folder.

    Raises:
        FileNotFoundError: If the folder has none (it is no data folder, or its writing was interrupted).
        ValueError: If the file is not a JSON object.
    """
    path = Path(directory) / METADATA_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {directory} is no complete data folder")
    metadata = read_json(path)
    if not isinstance(metadata, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(metadata).__name__}")
    return metadata


def read_origin(directory: str | Path) -> dict[str, Any] | None:
    """See `read_metadata`; of a mined folder, its source's metadata, and `None` where there is none."""
    if not (Path(directory) / METADATA_FILE).is_file():
        return None
    metadata: dict[str, Any] | None = read_metadata(directory)
    while metadata is not None and metadata.get("source") == MINED_SOURCE:
        metadata = metadata.get("origin")
        if not isinstance(metadata, dict | None):
            raise ValueError(f"{Path(directory) / METADATA_FILE}: origin must be a mapping, got {shown(metadata)}")
    return metadata


def list_array(values: np.ndarray) -> pa.Array:
    """Turns an array (R, K, ...) into an Arrow column of R (nested) lists without a Python loop over rows."""
    column: pa.Array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for axis in range(values.ndim - 1, 0, -1):
        count = int(np.prod(values.shape[:axis]))
        offsets = np.arange(count + 1, dtype=np.int32) * np.int32(values.shape[axis])
        column = pa.ListArray.from_arrays(pa.array(offsets), column)
    return column


def list_table(columns: Mapping[str, np.ndarray]) -> pa.Table:
    """A table of arrays (R, K, ...) as `list_array` makes its columns, 64-bit floats as 32-bit ones."""
    return pa.table(
        {
            name: list_array(values.astype(np.float32) if values.dtype == np.float64 else values)
            for name, values in columns.items()
        }
    )
