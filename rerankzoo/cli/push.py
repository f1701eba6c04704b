"""`rerankzoo push`: a checkpoint or data folder goes to the Hub, in one commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rerankzoo.cli.options import takes
from rerankzoo.errors import RecipeError
from rerankzoo.hub.push import Push, push_folder


@takes(Push)
def push(folder: Path, repo_id: str, *, evaluator: Path | None = None, dataset: bool = False, **options: Any) -> None:
    """Publishes a folder on the Hub in one commit.

    The token is that of `hf auth login` or HF_TOKEN. Passing faults of the Hub are waited out, and nothing is published
    twice.

    Args:
        folder: A checkpoint folder, such as a run's best/.
        repo_id: The repository ORG/NAME, made if there is none.
        evaluator: Checkpoint for the subfolder evaluator/.
        dataset: Push a data folder, as a dataset repository.
        **options: Of `Push`.
    """
    if "create_pr" in options and "revision" in options:
        raise RecipeError("a pull request goes to main: give --create-pr or --revision")
    if dataset and evaluator:
        raise RecipeError("a data folder has no --evaluator")
    options |= {"repo_type": "dataset"} if dataset else {}
    pushed = push_folder(Push(folder, repo_id, evaluator=evaluator, **options))
    print(pushed.url if pushed.changed else f"{pushed.url} is up to date")
