"""Logs in long format, one row per shown item, become data folders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rerankzoo.data.long_format.spec import HistorySpec, LogSpec, LogTables, SplitSpec

if TYPE_CHECKING:
    from rerankzoo.data.long_format.inferring import infer_schema
    from rerankzoo.data.long_format.writing import write_long_log

__all__ = ["HistorySpec", "LogSpec", "LogTables", "SplitSpec", "infer_schema", "write_long_log"]


def __getattr__(name: str) -> Any:
    # They need DuckDB, which telling what a log is does not.
    if name == "infer_schema":
        from rerankzoo.data.long_format.inferring import infer_schema

        return infer_schema
    if name == "write_long_log":
        from rerankzoo.data.long_format.writing import write_long_log

        return write_long_log
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
