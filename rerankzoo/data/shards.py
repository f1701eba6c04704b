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
    """Whether a shard is there and whole; a damaged one is named in a warning.

    Args:
        path: Its Parquet file.
        num_rows: Rows that it must have; default: any number.
    """
    if not path.is_file():
        return False
    try:
        rows = read_parquet(path).num_rows
    except UnreadableFileError as error:
        logger.warning("%s; it is made again", error)
        return False
    if num_rows is not None and rows != num_rows:
        logger.warning("%s has %d rows, expected %d; it is made again", path, rows, num_rows)
        return False
    return True


def write_shard(path: Path, tables: Iterable[pa.Table]) -> None:
    """Writes tables as one shard, which appears whole or not at all.

    Raises:
        OutputError: If it cannot be written.
    """
    write_atomically(path, partial(write_parquet, pa.concat_tables(tables)))


def join_shards(paths: Iterable[Path], target: Path, order: str) -> None:
    """Writes shards as one Parquet file.

    Args:
        paths: The shards.
        target: The file.
        order: Column to sort by.

    Raises:
        UnreadableFileError: If a shard is damaged.
        OutputError: If the file cannot be written.
    """
    table = pa.concat_tables([read_parquet(path) for path in paths])
    write_atomically(target, partial(write_parquet, table.sort_by(order)))
