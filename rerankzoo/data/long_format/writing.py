"""From a log in long format to a data folder: grouped, joined, split and written in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerankzoo.data.long_format.spec import LogSpec, LogTables

if TYPE_CHECKING:
    import duckdb


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
    raise NotImplementedError
