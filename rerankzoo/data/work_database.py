"""A DuckDB database for work that is larger than memory, and raw CSV files read into it with every value checked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from rerankzoo.atomic_writing import kept_folder, temporary_folder
from rerankzoo.errors import OutputError, RerankingDataError, in_one_line

try:
    import duckdb
except ImportError as error:
    raise ImportError("logs are read with DuckDB: pip install 'rerankzoo[data]'") from error

_NULLS = ("", "NULL", "null")


@contextmanager
def work_database(
    out: str | Path, memory_limit: str, settings: Mapping[str, Any] | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database whose files stand beside an output meanwhile.

    Args:
        out: The output.
        memory_limit: Of DuckDB, such as "2GB"; beyond it, files beside `out` are used.
        settings: JSON-able: where they are given, what a process that was killed, or whose disk was full, has left is
            taken up again by the next one that has the same settings (tables that are there need not be made again),
            and thrown away by one that has others.

    Raises:
        OutputError: If the work files cannot be written, or another process is using them.
    """
    out = Path(os.path.realpath(out))
    folder = temporary_folder(out) if settings is None else kept_folder(out, settings)
    try:
        with folder as work, _connected(work, memory_limit) as connection:
            yield connection
    except (duckdb.IOException, duckdb.TransactionException, duckdb.OutOfMemoryException) as error:
        raise OutputError(f"cannot write the work files for {out}: {in_one_line(error)}") from error


def database_file(connection: duckdb.DuckDBPyConnection) -> Path:
    """Where a work database is."""
    query = "SELECT path FROM duckdb_databases() WHERE path IS NOT NULL"
    return Path(connection.execute(query).fetchall()[0][0])


def open_to_read(file: Path, memory_limit: str, threads: int) -> duckdb.DuckDBPyConnection:
    """Opens a work database that any number of processes read and nobody writes.

    Its own work files stand beside it, in a folder of their own.
    """
    folder = tempfile.mkdtemp(prefix="reader-", dir=file.parent)
    config = {"memory_limit": memory_limit, "temp_directory": folder, "threads": threads}
    return _in_utc(duckdb.connect(str(file), read_only=True, config=config))


@contextmanager
def _connected(work: Path, memory_limit: str) -> Iterator[duckdb.DuckDBPyConnection]:
    config = {"memory_limit": memory_limit, "temp_directory": str(work)}
    with closing(duckdb.connect(str(work / "work.duckdb"), config=config)) as connection:
        yield _in_utc(connection)


def _in_utc(connection: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    with suppress(duckdb.Error):  # without its extension for time zones there is but this one
        connection.execute("SET TimeZone = 'UTC'")
    return connection


def read_header(path: Path, columns: Sequence[str], delimiter: str = ",") -> list[str]:
    """The names of a CSV file's columns, without blanks around them.

    Raises:
        RerankingDataError: If there is no such file, or it lacks one of `columns`.
    """
    if not path.is_file():
        raise RerankingDataError(f"{path} not found", field=path.name)
    # Padded, so that a line too short is refused when the rows are read, with its number.
    options = "header = true, delim = ?, quote = '\"', escape = '\"', all_varchar = true, null_padding = true"
    try:
        described = duckdb.execute(f"DESCRIBE SELECT * FROM read_csv(?, {options})", [str(path), delimiter]).fetchall()
    except duckdb.Error as error:
        raise unreadable(path, error) from error
    header = [str(row[0]).strip() for row in described]
    for column in columns:
        if column not in header:
            raise RerankingDataError(f"{path} has no column {column!r}, it has {header}", field=path.name)
    return header


def load_csv(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    types: Mapping[str, str],
    *,
    table: str | None = None,
    delimiter: str = ",",
    header: bool = True,
) -> int:
    """Reads columns of a CSV file into a table, unless a run before has done so.

    Args:
        connection: The database.
        path: The file. Empty fields, `NULL` and `null` are missing values.
        types: The columns to read, with DuckDB's types; others are ignored. Without a header, all columns in order.
        table: Name of the table; default: the file's, without what is behind the point.
        delimiter: Between columns.
        header: Whether the first line names the columns; without one, quotes are letters like others.

    Returns:
        The number of rows.

    Raises:
        RerankingDataError: If the file or a column is missing, a value is of another type, or there is no row.
    """
    table = table or path.stem
    if not has_table(connection, table):
        columns, names = list(types), ", ".join(f'"{name}"' for name in types)
        if header:
            columns = read_header(path, columns, delimiter)
        query = f"""
            CREATE TABLE "{table}" AS SELECT {names} FROM read_csv(
                ?, columns = ?, auto_detect = false, header = ?, delim = ?, quote = ?, escape = ?,
                nullstr = {list(_NULLS)})"""
        try:
            wanted, quote = {name: types.get(name, "VARCHAR") for name in columns}, '"' if header else ""
            connection.execute(query, [str(path), wanted, header, delimiter, quote, quote])
        except (duckdb.ConversionException, duckdb.InvalidInputException) as error:
            raise unreadable(path, error) from error
    [(count,)] = connection.sql(f'SELECT count(*) FROM "{table}"').fetchall()
    if not count:
        raise RerankingDataError(f"{path} has no rows", field=path.name)
    return int(count)


def has_table(connection: duckdb.DuckDBPyConnection, table: str) -> bool:
    """Whether a table is there; what was being made when its process ended is not."""
    query = "SELECT count(*) FROM duckdb_tables() WHERE table_name = ?"
    return bool(connection.execute(query, [table]).fetchall()[0][0])


def unreadable(path: Path, error: duckdb.Error) -> RerankingDataError:
    """DuckDB's message names line, column and value; what follows, the reader's settings, helps nobody."""
    reason = str(error).split("\n\n")[0].split("Possible")[0]
    return RerankingDataError(f"{path}: {' '.join(reason.split())}", field=path.name)


def refuse_rows(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    column: str,
    condition: str,
    reason: str,
    table: str | None = None,
) -> None:
    """Raises a `RerankingDataError` for the first row of a loaded file that meets a condition, with line and value."""
    query = f'SELECT rowid + 2, "{column}" FROM "{table or path.stem}" WHERE {condition} ORDER BY rowid LIMIT 1'
    for line, value in connection.sql(query).fetchall():
        raise RerankingDataError(f"{path}, line {line}: {column} {value!r} {reason}", field=path.name)
