"""`rerankzoo card`: the model card of a checkpoint folder, from the data in it."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rerankzoo.atomic_writing import write_atomically
from rerankzoo.hub.card import RESULTS_FILE, CardDetails, write_card


def main(arguments: Sequence[str]) -> None:
    """Runs the command.

    Args:
        arguments: Such as `["card", "outputs/nar4rec-simulator/best", "--results", "outputs/evaluation/results.json"]`.

    Raises:
        SystemExit: With status 2, if an option is wrong.
        FileNotFoundError: If the folder is no checkpoint, or the results are missing.
        RerankingDataError: If the results are not of this model.
    """
    parser = argparse.ArgumentParser(
        prog="rerankzoo card",
        description="Writes README.md of a checkpoint folder from what is in it: config, schema, metrics.json, "
        "results.json, bench.json, config.yaml, evaluator/. What is not known is left out; licence, datasets and name "
        "are kept from the card that is there.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a checkpoint folder, such as a run's best/")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="results.json of `rerankzoo evaluate`, copied here"
    )
    parser.add_argument(
        "--results-name",
        metavar="NAME",
        help="the model's name in it (default: the model type; of an evaluator: the generator whose slates it values)",
    )
    parser.add_argument("--repo-id", metavar="ORG/NAME", help="where the checkpoint will be")
    parser.add_argument("--name", help="what the card calls the model")
    parser.add_argument("--license", metavar="ID", help="of the Hub's list, such as apache-2.0")
    parser.add_argument("--datasets", nargs="+", metavar="ORG/NAME", help="datasets on the Hub it was trained on")
    options = vars(parser.parse_args(list(arguments[1:])))
    folder, results = options.pop("folder"), options.pop("results")
    if results is not None:
        if not results.is_file():
            raise FileNotFoundError(f"{results} is missing; `rerankzoo evaluate` writes it")
        write_atomically(folder / RESULTS_FILE, partial(shutil.copyfile, results))
    print(write_card(folder, CardDetails(**options)))
