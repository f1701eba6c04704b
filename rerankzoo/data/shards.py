"""Tables that take long to make, in pieces: a run that was stopped goes on behind those that are whole."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pyarrow as pa

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.data.folder import read_parquet, write_parquet
from rerankzoo.errors import UnreadableFileError

logger = logging.getLogger(__name__)


def has_shard(path: Path, num_rows: int | None = None) -> bool:
    """Whether a shard is there and whole, with so many rows if they are given; a bad one is named in a warning."""
    if not path.is_file():
        return False
    try:
        rows = read_parquet(path).num_rows
        if num_rows is not None and rows != num_rows:
            raise UnreadableFileError(f"{path} has {rows} rows, expected {num_rows}")
    except UnreadableFileError as error:
        logger.warning("%s; it is made again", error)
        return False
    return True


def write_shard(path: Path, tables: Iterable[pa.Table]) -> None:
    """Writes tables as one shard, which appears whole or not at all.

    Raises:
        OutputError: If it cannot be written.
    """
    write_atomically(path, partial(write_parquet, pa.concat_tables(tables)))


def join_shards(paths: Iterable[Path], target: Path, order: str) -> None:
    """Writes shards as one Parquet file, sorted by the column `order`.

    Raises:
        UnreadableFileError: If a shard is damaged.
        OutputError: If the file cannot be written.
    """
    table = pa.concat_tables([read_parquet(path) for path in paths])
    write_atomically(target, partial(write_parquet, table.sort_by(order)))
