"""`rerankzoo mine`: an evaluator searches the requests of a log for slates better than those shown."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from rerankzoo.cli.lightning import quiet
from rerankzoo.cli.options import choose_device, takes, workers_of
from rerankzoo.cli.prepare import rows_of
from rerankzoo.engines import Workers
from rerankzoo.errors import RecipeError, in_one_line
from rerankzoo.mining import MiningSettings, mine_folder


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed or 0.0
        return Text(f"{speed:,.0f} requests/s")


@takes(mine_folder, MiningSettings, Workers)
def mine(
    *,
    evaluator: list[str],
    data: str,
    out: Path,
    device: str | None = None,
    accelerator: str = "auto",
    devices: str = "auto",
    num_nodes: PositiveInt = 1,
    strategy: str = "auto",
    **settings: Any,
) -> None:
    """Mines slates for the requests of a log by beam search with an evaluator.

    What it finds is a data folder that a generator trains on. A run that was stopped continues when it is started
    again.

    Args:
        evaluator: Folder or Hub id of an evaluator with its feature extractor, or of a generator with an evaluator
            beside it; several are an ensemble.
        data: Data folder, or a dataset on the Hub.
        out: Data folder to make or to complete.
        device: One device, such as cpu or cuda:1, in one process (default: as --accelerator and --devices say).
        accelerator: As of Lightning's Trainer.
        devices: Processes of a machine.
        num_nodes: Machines.
        strategy: As of Lightning's Trainer.
        **settings: Of `mine_folder`, `MiningSettings` and, for the engine ray, `Workers`.
    """
    names = {entry.name for entry in fields(MiningSettings)} - {"slate_size"}
    MiningSettings(slate_size=1, **{name: settings[name] for name in names & set(settings)})  # before anything is read
    workers = workers_of(settings)
    quiet()
    fabric = _fabric(device, accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy)
    fabric.launch()
    columns = (BarColumn(), MofNCompleteColumn(), _RateColumn(), TimeRemainingColumn())
    bar = (TextColumn("{task.description}"), *columns)
    with Progress(*bar, console=Console(stderr=True), disable=not fabric.is_global_zero) as progress:
        share = "" if fabric.world_size == 1 else f", one of {fabric.world_size} processes"
        task = progress.add_task(f"mining{share}", total=None)

        def watch(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        mined = mine_folder(evaluator, data, out, fabric=fabric, workers=workers, on_progress=watch, **settings)
    if fabric.is_global_zero:
        print(rows_of(mined))


def _fabric(device: str | None, **options: Any) -> Fabric:
    if device is not None:
        chosen = choose_device(device)
        options |= {"accelerator": chosen.type, "devices": 1 if chosen.index is None else [chosen.index]}
    try:
        return Fabric(**options)
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise RecipeError(in_one_line(error)) from error
