"""From a log in long format to a data folder: grouped, joined, split and written in bounded memory."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from rerankzoo.atomic_writing import write_atomically, write_json
from rerankzoo.data.folder import METADATA_FILE, SCHEMA_FILE, SPLITS, keep_others, link_or_copy, read_metadata
from rerankzoo.data.long_format.checks import Finding, check_log
from rerankzoo.data.long_format.loading import Plan, Source, files_of, load_log
from rerankzoo.data.long_format.report import REPORT_FILES, write_report
from rerankzoo.data.long_format.requests import request_tables
from rerankzoo.data.long_format.spec import LogSpec, LogTables
from rerankzoo.data.shards import has_shard, write_shard
from rerankzoo.data.work_database import database_file, open_to_read, unreadable, work_database
from rerankzoo.engines import Workers, run_units
from rerankzoo.errors import RerankingDataError
from rerankzoo.text_files import read_json

logger = logging.getLogger(__name__)


def write_long_log(
    out: str | Path,
    spec: LogSpec,
    tables: LogTables,
    *,
    memory_limit: str = "1GB",
    metadata: Mapping[str, Any] | None = None,
    connection: duckdb.DuckDBPyConnection | None = None,
    workers: Workers | None = None,
) -> dict[str, int]:
    """Writes the data folder of a log, `report.md` and `report.html`.

    Rows are grouped to requests; candidates come in an order that tells nothing, a pseudo-random one by the ids, and so
    do requests within a file. A converter of a public data set reads the raw files into tables, and views them as a
    log:

    ```python
    with work_database(out, memory_limit, {"source": "kuairand", "seed": seed}) as connection:
        rows = load_csv(connection, raw / "log.csv", {"user_id": "BIGINT", "video_id": "BIGINT", ...})
        tables = LogTables(impressions="SELECT *, ... AS request FROM log", items=f"{raw}/videos.csv")
        metadata = {"source": "kuairand", "protocol": "...", "license": "...", "raw": {"log.csv": {"rows": rows}}}
        write_long_log(out, SPEC, tables, metadata=metadata, connection=connection)
    ```

    Args:
        out: The folder. If it was made from earlier files of the same log by the same spec, files that are new are
            added as further part files, and no other part file changes. Their histories know the earlier files.
        spec: What the columns are.
        tables: The rows.
        memory_limit: Of DuckDB, such as "1GB"; beyond it, work files beside `out` are used. One bucket of requests,
            some hundred MB, comes on top. Not used with `connection`.
        metadata: What `dataset.json` says, at least "source" and "protocol"; to the protocol is added where candidates
            and histories come from.
        connection: A database (`work_database`) that the queries in `tables` use; default: one of its own, which a run
            that was killed is continued from.
        workers: Who makes requests of the sorted rows, bucket by bucket; default: this process. They see the folder
            that `out` is in, and each has the memory limit for itself. What is written is the same.

    Returns:
        The number of requests of each split that were written.

    Raises:
        RerankingDataError: If a column is missing or the rows contradict one another; names field, row (of the table,
            counted from 0) and values. The folder is as it was.
        OutputError: If the folder or the work files cannot be written.
        ValueError: If workers are to use the database of a connection.
    """
    if workers is not None and connection is not None:
        raise ValueError("workers cannot read the database of a connection: expected one of the two, got both")
    out, described = Path(out), spec.to_dict()
    files = _named_files(tables.impressions)
    old = _old_metadata(out, described, spec.history is not None, files) if files and connection is None else {}
    known: dict[str, int] = old.get("files", {})
    earlier = [path for name, path in files.items() if name in known]
    new = {name: path for name, path in files.items() if name not in known}
    if known and not new:
        logger.warning("%s has all %d files already", out, len(known))
        return dict.fromkeys(SPLITS, 0)
    given = {name: files_of(table, name) or table for name, table in vars(tables).items() if table is not None}
    settings = {"log": described, "known": known, **{name: _states(table) for name, table in given.items()}}
    database = work_database(out, memory_limit, settings) if connection is None else nullcontext(connection)
    with ExitStack() as stack:
        work = stack.enter_context(database)
        stack.enter_context(_told())
        plan = load_log(work, spec, tables, earlier, list(new.values()))
        findings = [*_check_splits(work, plan, bool(known), earlier), *check_log(work, plan)]
        first = 1 + max(map(_number, _part_files(out)), default=-1) if known else 0
        file = database_file(work)
        folder = file.parent / "parts"
        missing = [bucket for bucket in range(plan.buckets) if not _is_done(folder, bucket)]
        if workers is None:
            for bucket in missing:
                _BucketWriter(work, plan, folder, first)(bucket)
        else:
            work.close()  # while a process may write, no other one reads
            opened = (file.absolute(), memory_limit, workers.threads_per_worker)
            run_units(partial(_BucketWriter.open, *opened, plan, folder.absolute(), first), missing, workers)
            work = stack.enter_context(closing(open_to_read(*opened)))
        parts = {path: rows for bucket in range(plan.buckets) for path, rows in _bucket_parts(folder, bucket).items()}
        rows = dict.fromkeys(SPLITS, 0)
        for path, count in parts.items():
            rows[path.name.rpartition("-")[0]] += count
        told = dict(metadata or {"source": "log", "protocol": "requests of a log in long format"})
        told["protocol"] = "; ".join([told["protocol"], *_protocol(work, plan, tables)])
        told |= {"log": described, "files": known | {name: path.stat().st_size for name, path in new.items()}}
        total = {split: count + old.get("rows", {}).get(split, 0) for split, count in rows.items()}
        told["rows"] = {split: count for split, count in total.items() if count}

        def write(folder: Path) -> None:
            folder.mkdir()
            for path in (*(_part_files(out) if known else ()), *parts):
                link_or_copy(path, folder / path.name)
            spec.schema.to_yaml(folder / SCHEMA_FILE)
            (folder / METADATA_FILE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
            write_report(folder, work, plan, findings, told["protocol"])
            if out.is_dir():
                keep_others(out, folder, REPORT_FILES)

        write_atomically(out, write)
    return rows


@contextmanager
def _told() -> Iterator[None]:
    """What DuckDB says of values that it cannot convert or compare."""
    try:
        yield
    except (duckdb.DataError, duckdb.BinderException, duckdb.InvalidInputException) as error:
        raise unreadable(Path("log"), error) from error


def _part_files(out: Path) -> list[Path]:
    return [path for split in SPLITS for path in out.glob(f"{split}-*.parquet")]


def _number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _named_files(table: str) -> dict[str, Path]:
    """The files of a table by their names below the folder that its pattern begins with; none of a query."""
    folder = re.split(r"[*?\[]", table)[0].rpartition("/")[0]
    return {os.path.relpath(path, folder or "."): path for path in files_of(table, "impressions")}


def _states(table: str | Sequence[Path]) -> Any:
    """What tells whether the files of a run that was killed are still the same."""
    if isinstance(table, str):
        return table
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in table]


def _old_metadata(out: Path, described: dict[str, Any], needs_all: bool, files: Mapping[str, Path]) -> dict[str, Any]:
    """What `dataset.json` says of a folder to which files are added; empty if it is to be made anew.

    Raises:
        RerankingDataError: If it was made by another schema file, or of files that have changed or are missing.
    """
    metadata = read_metadata(out) if (out / METADATA_FILE).is_file() else {}
    if not metadata.get("files"):
        return {}
    if metadata.get("log") != json.loads(json.dumps(described)):
        raise RerankingDataError(
            f"{out} was made by another schema file; choose another folder, or remove it", field="log"
        )
    sizes = {name: path.stat().st_size for name, path in files.items()}
    for name, size in metadata["files"].items():
        if name not in sizes and needs_all:
            message = f"{name} was converted, but is not among the files: histories need it"
            raise RerankingDataError(message, field="impressions")
        if sizes.get(name, size) != size:
            message = f"{name} has changed since it was converted: {sizes[name]} bytes, expected {size}"
            raise RerankingDataError(message, field="impressions")
    return metadata


def _check_splits(
    connection: duckdb.DuckDBPyConnection, plan: Plan, begun: bool, earlier: Sequence[Path]
) -> list[Finding]:
    """Refuses a new folder without requests to train on, and requests that a folder has already."""
    query = "SELECT __split, count(*) FROM requests WHERE __shown > 0 GROUP BY __split"
    counts = dict(connection.execute(query).fetchall())
    if earlier:
        keys = Source.open(connection, "impressions", earlier).select({"__request": (plan.spec.request, "key")})
        query = f"SELECT __row, __request FROM requests SEMI JOIN ({keys}) USING (__request) ORDER BY __row LIMIT 1"
        for row, found in connection.execute(query).fetchall():
            raise RerankingDataError(f"request {found!r} was in an earlier file, too", field=plan.spec.request, row=row)
    elif not begun and not counts.get("train"):
        first, last = connection.execute("SELECT min(__time), max(__time) FROM requests").fetchall()[0]
        raise RerankingDataError(f"no requests in the train split; the times are {first} to {last}", field="split")
    empty = [split for split in SPLITS[1:] if not counts.get(split) and not begun]
    return [Finding("splits without requests", len(empty), ", ".join(empty))]


def _protocol(connection: duckdb.DuckDBPyConnection, plan: Plan, tables: LogTables) -> Iterator[str]:
    """Where candidates, slates, histories and the split come from."""
    spec, history, split = plan.spec, plan.spec.history, plan.spec.split
    [(unshown,)] = connection.execute("SELECT sum(__rows - __shown) FROM requests").fetchall()
    is_logged = plan.has_candidates or unshown
    yield "candidates as logged" if is_logged else "the shown items are the candidates, for no others are logged"
    order = "slates in the order of the position" + (
        ", open where nothing is logged" if spec.first_position is not None else ""
    )
    yield order if spec.position else "order not known: no slates"
    if plan.made and history is not None:
        what = "events" if tables.events else f"items with {history.feedback}"
        yield f"histories of the last {history.length} {what} until {history.gap:g} s before the request"
    for field in plan.told:
        yield f"{field.name}: {'hours' if field.kind == 'time' else 'pages'} from a past item to the request"
    ends = f"time, validation from {split.validation}, test from {split.test}"
    yield f"split by {f'the column {split.column}' if split.column else ends}"


def _bucket_parts(folder: Path, bucket: int) -> dict[Path, int]:
    """The files that were written of a bucket, with their rows."""
    record = folder / f"{bucket}.json"
    return {folder / name: count for name, count in (read_json(record) if record.is_file() else {}).items()}


def _is_done(folder: Path, bucket: int) -> bool:
    parts = _bucket_parts(folder, bucket)
    return bool(parts) and all(has_shard(path, count) for path, count in parts.items())


@dataclass(frozen=True)
class _BucketWriter:
    """Writes the requests of a bucket, a file for each split, numbered from `first` on; and what it has written."""

    connection: duckdb.DuckDBPyConnection
    plan: Plan
    folder: Path
    first: int

    @classmethod
    def open(cls, file: Path, memory_limit: str, threads: int, plan: Plan, folder: Path, first: int) -> _BucketWriter:
        """In another process than the one that made the database."""
        return cls(open_to_read(file, memory_limit, threads), plan, folder, first)

    def __call__(self, bucket: int) -> int:
        done = {}
        for split, table in request_tables(self.connection, self.plan, bucket):
            path = self.folder / f"{split}-{self.first + bucket:05d}.parquet"
            write_shard(path, [table])
            done[path.name] = table.num_rows
        write_json(self.folder / f"{bucket}.json", done)
        return sum(done.values())
