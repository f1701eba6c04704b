"""From a log in long format to a data folder: grouped, joined, split and written in bounded memory."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.data.folder import METADATA_FILE, SCHEMA_FILE, SPLITS, keep_others, link_or_copy, read_metadata
from rerankzoo.data.long_format.checks import Finding, check_log
from rerankzoo.data.long_format.loading import Plan, files_of, load_log
from rerankzoo.data.long_format.report import REPORT_FILES, write_report
from rerankzoo.data.long_format.requests import request_tables
from rerankzoo.data.long_format.spec import LogSpec, LogTables
from rerankzoo.data.shards import has_shard, write_shard
from rerankzoo.data.work_database import has_table, work_database
from rerankzoo.errors import RerankingDataError

if TYPE_CHECKING:
    import duckdb

logger = logging.getLogger(__name__)

SOURCE = "log"


def write_long_log(
    out: str | Path,
    spec: LogSpec,
    tables: LogTables,
    *,
    memory_limit: str = "1GB",
    metadata: Mapping[str, Any] | None = None,
    connection: duckdb.DuckDBPyConnection | None = None,
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

    Returns:
        The number of requests of each split that were written.

    Raises:
        RerankingDataError: If a column is missing or the rows contradict one another; names field, row (of the table,
            counted from 0) and values. The folder is as it was.
        OutputError: If the folder or the work files cannot be written.
    """
    out = Path(out)
    files = files_of(tables.impressions, "impressions") or []
    known = _known_files(out, spec) if files and connection is None else {}
    earlier, new = _new_files(files, known, needs_all=spec.history is not None)
    if known and not new:
        logger.warning("%s has all %d files already", out, len(known))
        return dict.fromkeys(SPLITS, 0)
    settings = {"spec": _described(spec), "tables": _states(tables), "new": list(map(str, new))}
    database = work_database(out, memory_limit, settings) if connection is None else nullcontext(connection)
    with database as work:
        plan = load_log(work, spec, tables, earlier, new)
        findings = [*_splits(work, begun=bool(known)), *check_log(work, plan)]
        if known:
            _refuse_known_requests(work, plan, earlier)
        told = dict(metadata or {"source": SOURCE, "protocol": "requests of a log in long format"})
        told["protocol"] = f"{told['protocol']}; {_protocol(work, plan, tables)}"
        told |= {"log": _described(spec), "files": known | {str(path): _state(path) for path in new}}
        parts = _write_parts(work, plan, 1 + _last_number(out) if known else 0)
        rows = dict.fromkeys(SPLITS, 0)
        for path, count in parts.items():
            rows[path.name.rpartition("-")[0]] += count
        kept = [path for split in SPLITS for path in out.glob(f"{split}-*.parquet")] if known else []
        total = {split: rows[split] + (read_metadata(out)["rows"].get(split, 0) if known else 0) for split in SPLITS}
        told["rows"] = {split: count for split, count in total.items() if count}

        def write(folder: Path) -> None:
            folder.mkdir()
            for path in (*kept, *parts):
                link_or_copy(path, folder / path.name)
            spec.schema.to_yaml(folder / SCHEMA_FILE)
            (folder / METADATA_FILE).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
            write_report(folder, work, plan, findings, told["protocol"])
            if out.is_dir():
                keep_others(out, folder, REPORT_FILES)

        write_atomically(out, write)
    return rows


def _described(spec: LogSpec) -> dict[str, Any]:
    return {"schema": spec.schema.to_dict(), **spec.to_dict()}


def _state(path: Path) -> int:
    return path.stat().st_size


def _states(tables: LogTables) -> dict[str, Any]:
    """What tells whether the files of a run that was killed are still the same."""
    states: dict[str, Any] = {}
    for name, table in vars(tables).items():
        files = None if table is None else files_of(table, name)
        states[name] = table if files is None else [(str(p), _state(p), p.stat().st_mtime_ns) for p in files]
    return states


def _known_files(out: Path, spec: LogSpec) -> dict[str, int]:
    """The files that a folder was made from, with their sizes; empty if it is to be made anew.

    Raises:
        RerankingDataError: If it was made by another schema file.
    """
    if not (out / METADATA_FILE).is_file():
        return {}
    metadata = read_metadata(out)
    known: dict[str, int] = metadata.get("files") or {}
    if known and metadata.get("log") != json.loads(json.dumps(_described(spec))):
        message = f"{out} was made from {len(known)} files by another schema file; choose another folder, or remove it"
        raise RerankingDataError(message, field="log")
    return known


def _new_files(files: list[Path], known: dict[str, int], needs_all: bool) -> tuple[list[Path], list[Path]]:
    """Those that a folder has, and those that it does not have; refuses changed and, for histories, missing ones."""
    for path in files:
        if known.get(str(path), _state(path)) != _state(path):
            message = f"{path} has changed since it was converted: {_state(path)} bytes, expected {known[str(path)]}"
            raise RerankingDataError(message, field="impressions")
    listed = list(map(str, files))
    if needs_all and (missing := [path for path in known if path not in listed]):
        message = f"{missing[0]} was converted, but is not among the files: histories need it"
        raise RerankingDataError(message, field="impressions")
    return [path for path in files if str(path) in known], [path for path in files if str(path) not in known]


def _splits(connection: duckdb.DuckDBPyConnection, begun: bool) -> list[Finding]:
    """Refuses a new folder without requests to train on; reports other empty splits."""
    query = "SELECT __split, count(*) FROM requests WHERE __shown > 0 GROUP BY __split"
    counts = dict(connection.execute(query).fetchall())
    if not begun and not counts.get("train"):
        first, last = connection.execute("SELECT min(__time), max(__time) FROM requests").fetchall()[0]
        raise RerankingDataError(f"no requests in the train split; the times are {first} to {last}", field="split")
    empty = [split for split in SPLITS[1:] if not counts.get(split)]
    return [] if begun else [Finding("splits without requests", len(empty), ", ".join(empty))]


def _refuse_known_requests(connection: duckdb.DuckDBPyConnection, plan: Plan, earlier: Sequence[Path]) -> None:
    """Refuses new rows of requests that the folder has already, as far as the earlier files are given."""
    from rerankzoo.data.long_format.loading import LogTypes, Source

    if not earlier:
        return
    source = Source.open(connection, "impressions", earlier)
    request = LogTypes(connection).key(source, plan.spec.request)
    query = f"""
        SELECT __row, __request FROM requests SEMI JOIN (SELECT {request} AS __request FROM {source.sql})
        USING (__request) ORDER BY __row LIMIT 1"""
    for row, found in connection.execute(query).fetchall():
        raise RerankingDataError(f"request {found!r} was in an earlier file, too", field=plan.spec.request, row=row)


def _protocol(connection: duckdb.DuckDBPyConnection, plan: Plan, tables: LogTables) -> str:
    spec = plan.spec
    parts = ["candidates as logged"]
    if (
        not plan.has_candidates
        and not connection.execute("SELECT sum(__rows - __shown) FROM requests").fetchall()[0][0]
    ):
        parts = ["the shown items are the candidates, for no others are logged"]
    parts.append("order not known: no slates" if spec.position is None else "slates in the order of the position")
    if plan.made and spec.history is not None:
        what = "events" if tables.events else f"items with {spec.history.feedback}"
        parts.append(
            f"histories of the last {spec.history.length} {what} until {spec.history.gap:g} s before the request"
        )
    split = spec.split
    ends = f"by time, validation from {split.validation}, test from {split.test}"
    parts.append(f"split {f'by the column {split.column}' if split.column else ends}")
    return "; ".join(parts)


def _last_number(out: Path) -> int:
    numbers = [path.stem.rpartition("-")[2] for split in SPLITS for path in out.glob(f"{split}-*.parquet")]
    return max(map(int, numbers), default=-1)


def _write_parts(connection: duckdb.DuckDBPyConnection, plan: Plan, first: int) -> dict[Path, int]:
    """Writes a file per bucket and split beside the database, but for those that a run before has finished."""
    query = "SELECT path FROM duckdb_databases() WHERE path IS NOT NULL"
    folder = Path(connection.execute(query).fetchall()[0][0]).parent / "parts"
    if not has_table(connection, "parts"):
        connection.execute("CREATE TABLE parts (bucket INTEGER, name VARCHAR, num_rows INTEGER)")
    parts: dict[Path, int] = {}
    for bucket in range(plan.buckets):
        query = "SELECT name, num_rows FROM parts WHERE bucket = ?"
        done = {folder / name: count for name, count in connection.execute(query, [bucket]).fetchall()}
        if not done or not all(has_shard(path, count) for path, count in done.items()):
            connection.execute("DELETE FROM parts WHERE bucket = ?", [bucket])
            done = {}
            for split, table in request_tables(connection, plan, bucket):
                done[folder / f"{split}-{first + bucket:05d}.parquet"] = table.num_rows
                write_shard(folder / f"{split}-{first + bucket:05d}.parquet", [table])
            rows = [(bucket, path.name, count) for path, count in done.items()]
            if rows:
                connection.executemany("INSERT INTO parts VALUES (?, ?, ?)", rows)
        parts |= done
    return parts
