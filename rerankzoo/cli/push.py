"""`rerankzoo push`: a checkpoint or data folder goes to the Hub, in one commit."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rerankzoo.hub.push import Push, push_folder


def main(arguments: Sequence[str]) -> None:
    """Runs the command.

    Args:
        arguments: Such as `["push", "outputs/nar4rec-simulator/best", "org/nar4rec"]`.

    Raises:
        SystemExit: With status 2, if an option is wrong.
        FileNotFoundError: If the folder is missing or is no checkpoint or data folder.
        HubError: If the Hub refuses or stays unreachable.
    """
    parser = argparse.ArgumentParser(
        prog="rerankzoo push",
        description="Publishes a folder on the Hub in one commit. The token is that of `hf auth login` or HF_TOKEN. "
        "Passing faults of the Hub are waited out, and nothing is published twice.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a checkpoint folder, such as a run's best/")
    parser.add_argument("repo_id", metavar="ORG/NAME", help="the repository, made if there is none")
    parser.add_argument("--evaluator", type=Path, metavar="DIR", help="checkpoint for the subfolder evaluator/")
    parser.add_argument("--private", action="store_true", default=None, help="make the repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch, made if there is none (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--message", help="title of the commit (default: the model and the metric it was chosen by)")
    parser.add_argument("--dataset", action="store_true", help="push a data folder, as a dataset repository")
    options = vars(parser.parse_args(list(arguments[1:])))
    if options["create_pr"] and options["revision"]:
        parser.error("a pull request goes to main: give --create-pr or --revision")
    if options["dataset"] and options["evaluator"]:
        parser.error("a data folder has no --evaluator")
    kind = "dataset" if options.pop("dataset") else "model"
    pushed = push_folder(Push(repo_type=kind, **options))
    print(pushed.url if pushed.changed else f"{pushed.url} is up to date")
