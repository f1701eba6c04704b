"""Reranking as a batch job: Parquet files of requests in, Parquet files of ordered items out.

The folders may lie on any file system that fsspec knows (`s3://`, `gs://`, `memory://`...). Each file is read in
batches of rows, so that memory does not grow with it, and written whole or not at all; a job that was stopped goes on
with the files that are missing.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.backends import Backend
from rerankzoo.engines import Workers, run_units
from rerankzoo.errors import RerankingDataError, refuse_other_settings
from rerankzoo.generation import Constraint
from rerankzoo.models.auto import AutoModelForReranking, load_checkpoint
from rerankzoo.models.digest import weights_digest
from rerankzoo.pipeline import OnError, RerankingPipeline

#: In the folder that is written: with what it was begun.
RECORD_FILE = "reranking.json"
#: The columns that are written beside those that are kept; the last one only where errors are reported.
SLATE_COLUMNS = ("slate", "item_ids", "scores", "error")
_HERE = Workers()


@dataclass(frozen=True)
class RerankFile:
    """Reranks one Parquet file of requests with a pipeline.

    Attributes:
        pipeline: What reranks.
        constraints: What slates must keep.
        keep: Columns of the requests that are written, too.
        on_error: As of the pipeline.
        batch_size: Rows that are read and reranked together.
        parameters: Decoding parameters.
    """

    pipeline: RerankingPipeline
    constraints: Sequence[Constraint] = ()
    keep: Sequence[str] = ()
    on_error: OnError = "raise"
    batch_size: int = 1024
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, unit: tuple[str, str, str]) -> int:
        """Reads the first path, writes the second; returns the number of requests.

        The third text seeds decoding that draws at random, which each batch begins anew.

        Raises:
            RerankingDataError: If a request cannot be used and `on_error` is "raise"; it names the file.
        """
        source, target, seed = unit
        files, path = fsspec.core.url_to_fs(target)
        with fsspec.open(source, "rb") as stream:
            file = pq.ParquetFile(stream)
            schema = self.schema(file.schema_arrow, source)

            def write(place: Any) -> None:
                first = 0
                with pq.ParquetWriter(place, schema) as writer:
                    for batch in file.iter_batches(self.batch_size):
                        torch.manual_seed(_number(f"{seed}-{first}"))
                        writer.write_table(self.rerank(pa.table(batch), schema, source, first))
                        first += batch.num_rows

            if isinstance(files, LocalFileSystem):
                write_atomically(Path(path), write)
            else:
                with files.transaction, files.open(path, "wb") as target_stream:
                    write(target_stream)
            return int(file.metadata.num_rows)

    def schema(self, requests: pa.Schema, source: str) -> pa.Schema:
        """The columns that are written, with their types."""
        if missing := [name for name in self.keep if name not in requests.names]:
            raise RerankingDataError(f"{source} has no column {missing[0]!r}; it has {requests.names}", field="keep")
        if taken := sorted({*self.keep} & {*SLATE_COLUMNS}):
            raise RerankingDataError(f"{taken[0]!r} is the name of a column that is written", field="keep")
        item_id = self.pipeline.extractor.schema.item_id
        if item_id not in requests.names:
            raise RerankingDataError(f"{source} has no column {item_id!r}; it has {requests.names}", field=item_id)
        slates = (pa.list_(pa.int32()), requests.field(item_id).type, pa.list_(pa.float32()), pa.string())
        fields = list(zip(SLATE_COLUMNS, slates, strict=True))
        return pa.schema(
            [*(requests.field(name) for name in self.keep), *fields[: 4 if self.on_error == "report" else 3]]
        )

    def rerank(self, requests: pa.Table, schema: pa.Schema, source: str, first: int) -> pa.Table:
        """The rows of some requests, the first of which is number `first` of its file."""
        on_error: OnError = "raise" if self.on_error == "raise" else "report"
        try:
            answers = self.pipeline(requests, self.constraints, on_error=on_error, **self.parameters)
        except RerankingDataError as error:
            row = None if error.row is None else first + error.row
            raise RerankingDataError(f"{source}: {error.message}", field=error.field, row=row) from error
        failed = [str(answer) if isinstance(answer, Exception) else None for answer in answers]
        slates = [None if isinstance(answer, Exception) else answer for answer in answers]
        columns = {
            name: [None if slate is None else [item[key] for item in slate] for slate in slates]
            for name, key in zip(SLATE_COLUMNS[:3], ("index", "item_id", "score"), strict=True)
        }
        kept = {name: requests.column(name) for name in self.keep}
        table = pa.table({name: {**kept, **columns, "error": failed}[name] for name in schema.names}, schema=schema)
        return table.filter(pa.array([error is None for error in failed])) if self.on_error == "skip" else table


def rerank_folder(
    model: str,
    requests: str,
    out: str,
    *,
    evaluator: str | bool | None = None,
    backend: Backend = "eager",
    device: str = "cpu",
    constraints: Sequence[Constraint] = (),
    keep: Sequence[str] = (),
    on_error: OnError = "raise",
    batch_size: int = 1024,
    seed: int = 0,
    workers: Workers = _HERE,
    on_progress: Callable[[int], None] | None = None,
    **parameters: Any,
) -> int:
    """Reranks all requests of Parquet files.

    Every file becomes one of the same name in `out`, with its rows in their order. A file that is there is not made
    again: a job that was stopped goes on when it is started again with the same settings.

    Args:
        model: Folder or Hub id of a generator, or folder of an exported graph.
        requests: A Parquet file, a pattern of such (`logs/*.parquet`), or a folder with such, in it or below it; with
            the columns of the model's schema. Files whose names begin with `.` or `_` are left out.
        out: Folder to make or to complete.
        evaluator: As of `RerankingPipeline.from_pretrained`.
        backend: `"eager"`, or what the graph runs on.
        device: Where the models go, such as `"cuda"`.
        constraints: What slates must keep, of all requests.
        keep: Columns of the requests that are written beside `slate` (positions among the request's candidates),
            `item_ids` and `scores`.
        on_error: What becomes of a request that cannot be used: `"raise"` ends the job, `"report"` writes no slate and
            says why in a column `error`, `"skip"` leaves the row out.
        batch_size: Rows that are read and reranked together.
        seed: Of decoding that draws at random.
        workers: Who reranks the files; default: this process.
        on_progress: Called with the number of requests of each file when it is written.
        **parameters: Decoding parameters, such as `slate_size=4, num_beams=4`.

    Returns:
        The number of requests that were reranked now.

    Raises:
        FileNotFoundError: If there are no such files.
        RerankingDataError: If a request cannot be used, a column is missing, or the folder was begun with other
            settings or weights.
        OutputError: If a file cannot be written; those that are finished stay.
        ValueError: If a setting is invalid.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    names = request_files(requests)
    root = posixpath.commonpath([posixpath.dirname(name) for name in names])
    options = {"evaluator": evaluator, "backend": backend, "device": device}
    work = {
        "constraints": tuple(constraints),
        "keep": tuple(keep),
        "on_error": on_error,
        "batch_size": batch_size,
        "parameters": parameters,
    }
    asked = {**work, "constraints": list(map(repr, constraints)), "seed": seed, "model": model, "requests": requests}
    if backend == "eager":
        asked["weights"] = weights_digest(load_checkpoint(model, AutoModelForReranking).model)
    files, folder = fsspec.core.url_to_fs(out)
    _begin(files, folder, {**asked, **options, "threads_per_worker": workers.threads_per_worker})
    places = {name: posixpath.relpath(name, root) for name in names}
    missing = [
        (name, files.unstrip_protocol(posixpath.join(folder, place)), f"{seed}-{place}")
        for name, place in places.items()
        if not files.exists(posixpath.join(folder, place))
    ]
    return run_units(
        partial(_worker, model, options, work),
        missing,
        workers,
        on_progress,
    )


def request_files(requests: str) -> list[str]:
    """The Parquet files of a file, pattern or folder, sorted, as fsspec addresses.

    Raises:
        FileNotFoundError: If there are none.
    """
    files, path = fsspec.core.url_to_fs(requests)
    pattern = posixpath.join(path, "**", "*.parquet") if files.isdir(path) else path
    found = files.glob(pattern) if fsspec.core.has_magic(pattern) else [path] if files.isfile(path) else []
    names = sorted(name for name in found if not _is_hidden(posixpath.relpath(name, path)))
    if not names:
        raise FileNotFoundError(f"{requests}: no Parquet files there")
    return [files.unstrip_protocol(name) for name in names]


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/") if part not in (".", ".."))


def _worker(model: str, options: Mapping[str, Any], work: Mapping[str, Any]) -> RerankFile:
    return RerankFile(RerankingPipeline.from_pretrained(model, **options), **work)


def _number(seed: str) -> int:
    return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little")


def _begin(files: Any, folder: str, record: dict[str, Any]) -> None:
    """Writes down with what the folder is made, or refuses one that was begun with other settings."""
    path = posixpath.join(folder, RECORD_FILE)
    if files.exists(path):
        refuse_other_settings(folder, json.loads(files.cat_file(path)), record)
        return
    files.makedirs(folder, exist_ok=True)
    files.pipe_file(path, json.dumps(record, indent=2).encode())
