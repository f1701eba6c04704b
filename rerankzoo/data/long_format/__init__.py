"""Logs in long format, one row per shown item, become data folders."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rerankzoo.data.long_format.spec import HistorySpec, LogSpec, LogTables, SplitSpec

if TYPE_CHECKING:
    from rerankzoo.data.long_format.inferring import infer_schema
    from rerankzoo.data.long_format.writing import write_long_log

__all__ = ["HistorySpec", "LogSpec", "LogTables", "SplitSpec", "infer_schema", "write_long_log"]

#: What needs DuckDB, which telling what a log is does not.
_HOME = {"infer_schema": "inferring", "write_long_log": "writing"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
