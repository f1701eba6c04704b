"""A public data set as data: raw files, published numbers, licence, and how it is seen as a log in long format.

What groups, joins, builds histories, splits and writes is `rerankzoo.data.long_format`; docs/sources.md has a section
on each data set.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import pyarrow as pa

from rerankzoo.data.long_format import LogSpec, LogTables
from rerankzoo.errors import RerankingDataError, in_one_line
from rerankzoo.features.schema import FieldSpec, Group, Transform

if TYPE_CHECKING:
    import duckdb

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RawFile:
    """A raw file, read into a table of the work database.

    Args:
        name: Its path in the raw folder.
        table: The table; `write_long_log` has impressions, requests, candidates, items, users and events of its own.
        columns: The columns that are read, each with DuckDB's type, such as "user BIGINT, time BIGINT"; where there is
            no header, all of them in order.
        delimiter: Between columns.
        header: Whether the first line names the columns; without one, quotes mean nothing.
        read: Reads what is no table of text: from the raw folder to tables with the columns.
    """

    name: str
    table: str
    columns: str
    delimiter: str = ","
    header: bool = True
    read: Callable[[Path], Iterator[pa.Table]] | None = None

    @property
    def types(self) -> dict[str, str]:
        """The type of each column."""
        return dict(column.split() for column in self.columns.split(","))


@dataclass(frozen=True, kw_only=True)
class PublicLog:
    """A public data set.

    Args:
        name: What `dataset.json` and the command call it.
        title: What it is, for people.
        size: How much it is, for people.
        licence: Under what terms its publisher gives it.
        url: Where its publisher gives it.
        files: Its raw files.
        published: What is published of the complete files: words -> (a query that counts, the number). Files that do
            not give the first number are an excerpt; files that do must give the others.
        protocol: How its log becomes requests and splits, and what it cannot support.
        spec: Which columns are which.
        tables: Its rows, as queries of the tables. The impressions are read into a table `pages`, which the candidates
            may use, without an item that was on the page before. If they lack the schema's propensity it is not known.
        prepare: Makes further tables of those of the files.
    """

    name: str
    title: str
    size: str
    licence: str
    url: str
    files: tuple[RawFile, ...]
    published: Mapping[str, tuple[str, int]]
    protocol: str
    spec: LogSpec
    tables: LogTables
    prepare: Callable[[duckdb.DuckDBPyConnection], None] = field(default=lambda connection: None)


def convert_public_log(log: PublicLog, raw: str | Path, out: str | Path, *, memory_limit: str = "2GB") -> None:
    """Converts the raw files of a public data set to a data folder, in bounded memory.

    Args:
        log: The data set.
        raw: The folder with its unpacked files.
        out: The data folder to write; work files of about the size of the raw files stand beside it meanwhile.
        memory_limit: Of DuckDB, such as "2GB"; beyond it, work files are used.

    Raises:
        ValueError: If the files are as many rows as published, but do not give another published number.
        RerankingDataError: If a file or a column is missing, or a value is unusable; names the file.
        OutputError: If the folder or the work files cannot be written.
    """
    from rerankzoo.data.long_format import write_long_log  # needs the extra "data"
    from rerankzoo.data.work_database import read_header, work_database

    raw = Path(raw)
    for file in log.files:  # all of them before the first long read
        if not (raw / file.name).is_file():
            raise RerankingDataError(f"{raw / file.name} not found", field=file.name)
        if file.header and file.read is None:
            read_header(raw / file.name, list(file.types), file.delimiter)
    stats = {file.name: (raw / file.name).stat() for file in log.files}
    files = {str((raw / name).resolve()): [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    settings = {"source": log.name, "protocol": log.protocol, "files": files}
    with work_database(out, memory_limit, settings) as connection:
        rows = {file.name: _load(connection, raw, file) for file in log.files}
        log.prepare(connection)
        metadata = {
            "source": log.name,
            "protocol": log.protocol,
            "complete": _is_complete(connection, log),
            "raw": {name: {"rows": count, "bytes": stats[name].st_size} for name, count in rows.items()},
            "license": log.licence,
            "url": log.url,
        }
        tables = replace(log.tables, impressions=_pages(connection, log))
        write_long_log(out, log.spec, tables, metadata=metadata, connection=connection)


def _load(connection: duckdb.DuckDBPyConnection, raw: Path, file: RawFile) -> int:
    from rerankzoo.data.work_database import has_table, load_csv

    if file.read is None:
        path, types = raw / file.name, file.types
        return load_csv(connection, path, types, table=file.table, delimiter=file.delimiter, header=file.header)
    if not has_table(connection, file.table):
        columns = ", ".join(f'"{name}" {kind}' for name, kind in file.types.items())
        connection.begin()
        connection.execute(f"CREATE TABLE {file.table} ({columns})")
        try:
            for part in file.read(raw):
                connection.register("part", part)
                connection.execute(f"INSERT INTO {file.table} BY NAME FROM part")
        except (BadZipFile, KeyError, ValueError) as error:
            if isinstance(error, RerankingDataError):
                raise
            raise RerankingDataError(f"{raw / file.name} is damaged: {in_one_line(error)}", field=file.name) from error
        connection.commit()
    return _count(connection, f"SELECT count(*) FROM {file.table}")


def _pages(connection: duckdb.DuckDBPyConnection, log: PublicLog) -> str:
    """Makes the table `pages`; returns the query of the impressions."""
    import duckdb

    from rerankzoo.data.work_database import unreadable

    spec, target = log.spec, log.spec.schema.targets[0].name
    first = ", ".join(filter(None, [spec.position, f"{target} DESC"]))
    query = f"""
        CREATE TABLE IF NOT EXISTS pages AS FROM ({log.tables.impressions})
        QUALIFY row_number() OVER (PARTITION BY {spec.request}, {spec.schema.item_id} ORDER BY {first}) = 1
        ORDER BY {spec.time}, {spec.request}"""
    try:
        connection.execute(query)
    except (duckdb.ConversionException, duckdb.InvalidInputException, duckdb.OutOfRangeException) as error:
        raise unreadable(Path(log.files[0].name), error) from error
    columns = connection.table("pages").columns
    missing = spec.schema.propensity not in (None, *columns)
    return f"SELECT *, NULL AS {spec.schema.propensity} FROM pages" if missing else "FROM pages"


def _count(connection: duckdb.DuckDBPyConnection, query: str) -> int:
    return int(connection.execute(query).fetchall()[0][0])


def _is_complete(connection: duckdb.DuckDBPyConnection, log: PublicLog) -> bool:
    """Whether the files are the complete data set: they give the first published number, and then all others."""
    for number, (words, (query, expected)) in enumerate(log.published.items()):
        found = _count(connection, query)
        if found != expected and number == 0:
            logger.warning("%s has %d %s, got %d: an excerpt", log.title, expected, words, found)
            return False
        if found != expected:
            raise ValueError(f"the complete data of {log.name} must give {expected} {words}, got {found}")
    return bool(log.published)


def typed(kind: str, *names: str) -> str:
    """Columns of one of DuckDB's types, as `RawFile` takes them."""
    return ", ".join(f"{name} {kind}" for name in names)


def categorical(group: Group, *names: str, min_count: int = 1) -> tuple[FieldSpec, ...]:
    """Categorical fields of one group."""
    return tuple(FieldSpec(name=name, group=group, kind="categorical", min_count=min_count) for name in names)


def numeric(group: Group, name: str, *transforms: Transform) -> FieldSpec:
    """A numeric field, standardised after the transforms."""
    return FieldSpec(name=name, group=group, kind="numeric", transforms=(*transforms, "standardize"))


def history(name: str, shares: str) -> FieldSpec:
    """A history field with the vocabulary of another field."""
    return FieldSpec(name=name, group="history", kind="categorical", shares=shares)


def history_time() -> FieldSpec:
    """The field with the hours from past items to the request."""
    return FieldSpec(name="history_time", group="history", kind="time")
