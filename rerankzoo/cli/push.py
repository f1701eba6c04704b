"""`rerankzoo push`: a checkpoint or data folder goes to the Hub, in one commit."""

from __future__ import annotations

from pathlib import Path

from rerankzoo.errors import RecipeError
from rerankzoo.hub.push import Push, push_folder


def push(
    folder: Path,
    repo_id: str,
    *,
    evaluator: Path | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    dataset: bool = False,
) -> None:
    """Publishes a folder on the Hub in one commit.

    The token is that of `hf auth login` or HF_TOKEN. Passing faults of the Hub are waited out, and nothing is published
    twice.

    Args:
        folder: A checkpoint folder, such as a run's best/.
        repo_id: The repository ORG/NAME, made if there is none.
        evaluator: Checkpoint folder for the subfolder evaluator/.
        private: Make the repository private.
        revision: Branch, made if there is none (default: main).
        create_pr: Open a pull request instead.
        message: Title of the commit (default: the model and the metric it was chosen by).
        dataset: Push a data folder, as a dataset repository.

    Raises:
        RecipeError: If the options contradict one another.
        FileNotFoundError: If the folder is missing or is no checkpoint or data folder.
        HubError: If the Hub refuses or stays unreachable.
    """
    if create_pr and revision:
        raise RecipeError("a pull request goes to main: give --create-pr or --revision")
    if dataset and evaluator:
        raise RecipeError("a data folder has no --evaluator")
    pushed = push_folder(
        Push(
            folder,
            repo_id,
            evaluator=evaluator,
            private=private or None,
            revision=revision,
            create_pr=create_pr,
            message=message,
            repo_type="dataset" if dataset else "model",
        )
    )
    print(pushed.url if pushed.changed else f"{pushed.url} is up to date")
