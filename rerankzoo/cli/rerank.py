"""`rerankzoo rerank`: orders the items of all requests of Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from rerankzoo.backends import Backend
from rerankzoo.cli.options import choose_device, takes
from rerankzoo.engines import Workers
from rerankzoo.errors import RecipeError, in_one_line
from rerankzoo.generation import Constraint
from rerankzoo.pipeline import OnError
from rerankzoo.reranking import rerank_folder
from rerankzoo.text_files import read_json


@takes(Workers)
def rerank(
    model: str,
    *,
    requests: str,
    out: str,
    evaluator: str | None = None,
    backend: Backend = "eager",
    device: str = "cpu",
    constraints: Path | None = None,
    keep: list[str] | None = None,
    on_error: OnError = "raise",
    batch_size: PositiveInt = 1024,
    seed: int = 0,
    slate_size: PositiveInt | None = None,
    num_beams: PositiveInt | None = None,
    penalty_alpha: float | None = None,
    **workers: Any,
) -> None:
    """Reranks all requests of Parquet files into Parquet files of ordered items.

    Files that are there are not made again: a job that was stopped goes on when it is started again. What is written
    does not depend on the engine.

    Args:
        model: Folder or Hub id of a generator with its extractor, or folder of an exported graph.
        requests: A Parquet file, a pattern of such between quotes, or a folder; here or on any file system that fsspec
            knows, such as s3://.
        out: Folder to make or to complete; each file becomes one of the same name.
        evaluator: Folder or Hub id of an evaluator that chooses; beside: the one beside the model.
        backend: Of eager, onnx, aoti.
        device: Where the models go, such as cuda.
        constraints: JSON file with what all slates must keep, as a call of `rerankzoo serve` tells it, such as
            [{"type": "AtMost", "limit": 2, "categories": "category"}].
        keep: Columns of the requests that are written, too, such as request_id.
        on_error: What becomes of a request that cannot be used: raise, report (in a column `error`) or skip.
        batch_size: Rows that are read and reranked together.
        seed: Of decoding that draws at random.
        slate_size: Positions (default: the model's).
        num_beams: Beams (default: the model's).
        penalty_alpha: Of contrastive decoding (default: the model's).
        **workers: Of `Workers`.
    """
    asked: dict[str, Any] = {"slate_size": slate_size, "num_beams": num_beams, "penalty_alpha": penalty_alpha}
    columns = (TextColumn("{task.description}"), TextColumn("{task.completed:,} requests"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("reranking", total=None)
        done = rerank_folder(
            model,
            requests,
            out,
            evaluator=True if evaluator == "beside" else evaluator,
            backend=backend,
            device=str(choose_device(device)),
            constraints=_read_constraints(constraints) if constraints else (),
            keep=keep or (),
            on_error=on_error,
            batch_size=batch_size,
            seed=seed,
            workers=Workers(**workers),
            on_progress=lambda count: progress.advance(task, count),
            **{name: value for name, value in asked.items() if value is not None},
        )
    print(f"{done:,} requests; written: {out}")


def _read_constraints(path: Path) -> list[Constraint]:
    try:
        from pydantic import TypeAdapter

        from rerankzoo.serving.calls import AnyConstraint
    except ImportError as error:
        raise RecipeError(f"--constraints needs {error.name}: pip install 'rerankzoo[serve]'") from error
    try:
        return [entry.build() for entry in TypeAdapter(list[AnyConstraint]).validate_python(read_json(path))]
    except ValueError as error:
        raise RecipeError(f"{path}: {in_one_line(error)}") from error
