"""`rerankzoo quickstart`: the whole story in minutes, on simulated logs whose truth is known.

Trains NAR4Rec's evaluator and generator, compares every way of decoding with the upstream order and the truth, saves
both checkpoints, loads them back and reranks one raw request.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from rerankzoo.cli.benchmark import Jury
from rerankzoo.cli.runs import Trained, prepare_run, train
from rerankzoo.data.simulator import Simulator
from rerankzoo.evaluation import print_table, write_report
from rerankzoo.pipeline import RerankedItem, RerankingPipeline

console = Console()

#: Recipe and what to say while it trains, by the name of the checkpoint.
STAGES = {
    "nar4rec-evaluator": ("nar4rec/evaluator-simulator.yaml", "the evaluator learns what people click in a slate"),
    "nar4rec": ("nar4rec/simulator.yaml", "the generator learns to propose slates"),
}


def main(arguments: Sequence[str]) -> None:
    """Runs the command.

    Args:
        arguments: Such as `["quickstart", "--seed", "1"]`.
    """
    parser = argparse.ArgumentParser(prog="rerankzoo quickstart", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the simulated world and of the training (default: 0)")
    parser.add_argument("--num-train", type=int, default=40_000, help="logged requests to train on (default: 40000)")
    parser.add_argument("--max-epochs", type=int, help="passes over them (default: the recipes')")
    parser.add_argument("--out", type=Path, default=Path("outputs/quickstart"), help="default: outputs/quickstart")
    options = parser.parse_args(list(arguments[1:]))
    torch.set_num_threads(1)  # matrices this small gain nothing from a second one, and lose much on a busy machine
    trained = {name: _train(name, options) for name in STAGES}
    console.rule("evaluating on test requests")
    jury = Jury(trained["nar4rec"].data, 4, trained["nar4rec-evaluator"])
    found = jury.judge("nar4rec", trained["nar4rec"], options.seed, hr_requests=100)
    write_report([found], options.out)
    print_table([found], console)
    _show_one(options.out, trained["nar4rec"])
    console.print(f"\nCheckpoints, table, plot and results.json are in [bold]{options.out}[/bold].", highlight=False)


def _train(name: str, options: argparse.Namespace) -> Trained:
    """Trains one recipe; what `from_pretrained` reads goes to `out/name`."""
    recipe, story = STAGES[name]
    console.rule(f"{name}: {story}")
    folder = options.out / name
    run = prepare_run(
        recipe,
        options.out / "runs" / name,
        options.seed,
        [
            f"--data.init_args.world_seed={options.seed}",
            f"--data.init_args.num_train={options.num_train}",
            f"--data.init_args.root={options.out / 'data'}",
            f"--export.dirpath={folder}",
            *([f"--trainer.max_epochs={options.max_epochs}"] if options.max_epochs else []),
            "--trainer.enable_model_summary=false",
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
        ],
    )
    return train(run, folder)


def _show_one(out: Path, trained: Trained) -> None:
    """Reranks one raw test request with the checkpoints as they were saved."""
    console.rule("one request")
    row = trained.data.split("test")[0]
    schema = trained.data.extractor.schema
    request = {field.name: row[field.name] for field in schema.fields}
    pipeline = RerankingPipeline.from_pretrained(str(out / "nar4rec"), evaluator=str(out / "nar4rec-evaluator"))
    [after] = pipeline([request], slate_size=4, num_beams=16, num_return_sequences=16)
    order = np.argsort(row["upstream_score"])[::-1][: len(after)].tolist()
    before = [{"item_id": row["item_id"][i], "index": i, "score": row["upstream_score"][i]} for i in order]
    console.print(_side_by_side(row, before, after))
    console.print(_truth(row, before, after, Simulator.from_metadata(trained.data.metadata or {})), highlight=False)


def _side_by_side(row: dict[str, Any], before: list[RerankedItem], after: list[RerankedItem]) -> Table:
    table = Table("", title=f"user {row['user_id']}, {len(row['item_id'])} candidates", title_justify="left")
    for side in ("upstream", "NAR4Rec"):
        for column in (f"{side} item", "category", "score"):
            table.add_column(column, justify="right")
    for position, pair in enumerate(zip(before, after, strict=True), start=1):
        cells = [
            cell
            for item in pair
            for cell in (str(item["item_id"]), str(row["category"][item["index"]]), f"{item['score']:.2f}")
        ]
        table.add_row(str(position), *cells)
    return table


def _truth(row: dict[str, Any], before: list[RerankedItem], after: list[RerankedItem], simulator: Simulator) -> str:
    users, items = np.array([row["user_id"]]), np.array([row["item_id"]])
    slates = np.array([[[item["index"] for item in slate] for slate in (before, after)]])
    upstream, reranked = simulator.expected_utility(users, items, slates)[0]
    best = simulator.all_utilities(users, items, slates.shape[-1]).max()
    return f"true expected utility: upstream {upstream:.2f}, NAR4Rec {reranked:.2f}, best possible {best:.2f}"
