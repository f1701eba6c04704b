"""Logs in long format, one row per shown item, become data folders."""

from __future__ import annotations

from rerankzoo.data.long_format.inferring import infer_schema
from rerankzoo.data.long_format.spec import HistorySpec, LogSpec, LogTables, SplitSpec
from rerankzoo.data.long_format.writing import write_long_log

__all__ = ["HistorySpec", "LogSpec", "LogTables", "SplitSpec", "infer_schema", "write_long_log"]
