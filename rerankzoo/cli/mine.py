"""`rerankzoo mine`: an evaluator searches the requests of a log for slates better than those shown."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from rerankzoo.cli.lightning import quiet
from rerankzoo.data.folder import read_metadata
from rerankzoo.errors import in_one_line
from rerankzoo.mining import MiningSettings, SoftLabel, mine_folder


class RateColumn(ProgressColumn):
    """Requests per second."""

    def render(self, task: Task) -> Text:
        """See `ProgressColumn.render`."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} requests/s")


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="rerankzoo mine",
        description="Mines slates for the requests of a log by beam search with an evaluator, into a data folder that "
        "a generator trains on. A run that was stopped continues when it is started again.",
    )
    parser.add_argument(
        "--evaluator",
        action="append",
        required=True,
        metavar="DIR",
        help="folder or Hub id of an evaluator with its feature extractor, or of a generator with an evaluator beside "
        "it; several are an ensemble",
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="data folder, or a dataset on the Hub")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="data folder to make or to complete")
    parser.add_argument("--split", default="train", help="split to mine for training (default: train)")
    parser.add_argument(
        "--num-requests", type=_positive, metavar="N", help="of that split, evenly spaced (default: all)"
    )
    parser.add_argument(
        "--num-validation",
        type=_not_negative,
        default=1_000,
        metavar="N",
        help="requests of the validation split to mine for the generator's validation loss (default: 1000)",
    )
    _add_search(parser)
    _add_machine(parser)
    return parser


def _add_search(parser: argparse.ArgumentParser) -> None:
    search = parser.add_argument_group("search")
    search.add_argument(
        "--spread-penalty",
        type=float,
        default=0.0,
        metavar="K",
        help="of an ensemble: values are the mean minus K standard deviations (default: 0)",
    )
    search.add_argument("--slate-size", type=_positive, metavar="M", help="positions (default: the evaluator's)")
    search.add_argument("--num-beams", type=_positive, default=MiningSettings.num_beams, metavar="W", help="default: 8")
    search.add_argument(
        "--keep", type=_positive, default=MiningSettings.keep, metavar="S", help="slates of each request (default: 4)"
    )
    search.add_argument(
        "--soft-label",
        choices=get_args(SoftLabel),
        default=MiningSettings.soft_label,
        help="what each candidate's label is the softmax of: the best completed value found below it (default), the "
        "value of the prefix with it (the paper's), or no labels",
    )
    search.add_argument(
        "--weight-temperature", type=float, default=MiningSettings.weight_temperature, metavar="T", help="of the slates"
    )
    search.add_argument(
        "--label-temperature", type=float, default=MiningSettings.label_temperature, metavar="T", help="of soft labels"
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    machine = parser.add_argument_group("machine")
    machine.add_argument("--batch-size", type=_positive, metavar="R", help="requests per call (default: by the device)")
    machine.add_argument(
        "--shard-size", type=_positive, default=500, metavar="N", help="requests per file (default: 500)"
    )
    machine.add_argument("--accelerator", default="auto", help="as of Lightning's Trainer (default: auto)")
    machine.add_argument("--devices", default="auto", help="processes of a machine (default: auto)")
    machine.add_argument("--num-nodes", type=_positive, default=1, metavar="N", help="machines (default: 1)")
    machine.add_argument("--strategy", default="auto", help="as of Lightning's Trainer (default: auto)")


def main(arguments: Sequence[str]) -> None:
    """Runs the command.

    Args:
        arguments: Its name and options.

    Raises:
        SystemExit: With status 2, if an option is wrong.
        FileNotFoundError: If the data folder or a split is missing.
        HubError: If a repository is missing or cannot be reached.
        RerankingDataError: If the output folder was begun with other settings.
        SchemaMismatchError: If the evaluators were made for different schemas.
    """
    parser = make_parser()
    options = parser.parse_args(list(arguments[1:]))
    names = ("num_beams", "keep", "soft_label", "weight_temperature", "label_temperature")
    settings = {name: getattr(options, name) for name in names}
    try:
        MiningSettings(slate_size=1, **settings)
    except ValueError as error:
        parser.error(str(error))
    quiet()
    try:
        fabric = Fabric(
            accelerator=options.accelerator,
            strategy=options.strategy,
            devices=options.devices,
            num_nodes=options.num_nodes,
        )
    except (ValueError, TypeError, MisconfigurationException) as error:
        parser.error(in_one_line(error))
    fabric.launch()
    with _progress(fabric) as progress:
        task = progress.add_task(_label(fabric), total=None)
        out = mine_folder(
            options.evaluator,
            options.data,
            options.out,
            split=options.split,
            num_requests=options.num_requests,
            num_validation=options.num_validation,
            slate_size=options.slate_size,
            spread_penalty=options.spread_penalty,
            shard_size=options.shard_size,
            batch_size=options.batch_size,
            fabric=fabric,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            **settings,
        )
    if fabric.is_global_zero:
        rows = ", ".join(f"{count:,} {split}" for split, count in read_metadata(out)["rows"].items())
        print(f"{out}: {rows} requests")


def _label(fabric: Fabric) -> str:
    return "mining" if fabric.world_size == 1 else f"mining, one of {fabric.world_size} processes"


def _progress(fabric: Fabric) -> Progress:
    """The bar of the first process's share."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True), disable=not fabric.is_global_zero)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is negative")
    return value
