"""`rerankzoo quickstart`: the whole story in minutes, on simulated logs whose truth is known.

An evaluator learns what people click in a slate, searches the logged requests for better slates than were shown, and a
generator (DeGRe's) learns what it found. Beside it: the upstream order, a pointwise ranker, PRM and NAR4Rec, with and
without the evaluator. All checkpoints are saved, and the generator's is loaded back and reranks one raw request.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from rerankzoo.cli.benchmark import Jury
from rerankzoo.cli.runs import Trained, mine_once, prepare_run, train
from rerankzoo.data.simulator import Simulator
from rerankzoo.evaluation import Decoding, print_table, write_report
from rerankzoo.mining import SETTINGS_FILE
from rerankzoo.pipeline import RerankedItem, RerankingPipeline

console = Console()

#: Recipe and what to say while it trains, by the name of the checkpoint.
EVALUATOR = ("degre/evaluator-simulator.yaml", "the evaluator learns what people click, given the items above")
YARDSTICKS = {
    "pointwise": ("pointwise/simulator.yaml", "a ranker that values every item alone"),
    "prm": ("prm/simulator.yaml", "a ranker that sees all candidates"),
    "nar4rec": ("nar4rec/simulator.yaml", "a generator that imitates the best fifth of the log"),
}
GENERATOR = ("degre/generator-simulator.yaml", "the generator learns what the search has found")
TOLD = {"degre-evaluator": EVALUATOR, **YARDSTICKS, "degre": GENERATOR}

_GREEDY = Decoding("greedy", {"num_beams": 1})
_CHOSEN = Decoding("16 beams + evaluator", {"num_beams": 16, "num_return_sequences": 16}, use_evaluator=True)
DECODINGS = {
    "pointwise": [_GREEDY, _CHOSEN],
    "prm": [_GREEDY, _CHOSEN],
    "nar4rec": [_GREEDY, Decoding("contrastive", {"penalty_alpha": 0.1}), _CHOSEN],
    "degre": [
        _GREEDY,
        Decoding("beam 4", {"num_beams": 4}),
        Decoding("4 beams + evaluator", {"num_beams": 4, "num_return_sequences": 4}, use_evaluator=True),
    ],
}


def main(arguments: Sequence[str]) -> None:
    """Runs the command.

    Args:
        arguments: Such as `["quickstart", "--seed", "1"]`.
    """
    parser = argparse.ArgumentParser(prog="rerankzoo quickstart", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the simulated world and of the training (default: 0)")
    parser.add_argument("--num-train", type=int, default=20_000, help="logged requests to train on (default: 20000)")
    parser.add_argument("--num-mined", type=int, default=5_000, help="of them the evaluator searches (default: 5000)")
    parser.add_argument("--max-epochs", type=int, help="passes over the data (default: the recipes')")
    parser.add_argument("--out", type=Path, default=Path("outputs/quickstart"), help="default: outputs/quickstart")
    options = parser.parse_args(list(arguments[1:]))
    torch.set_num_threads(1)  # matrices this small gain nothing from a second one, and lose much on a busy machine
    evaluator = _train("degre-evaluator", options)
    trained = {name: _train(name, options) for name in YARDSTICKS}
    trained["degre"] = _distil(evaluator, options)
    console.rule("evaluating on test requests")
    jury = Jury(evaluator.data, 4, evaluator)
    found = [jury.judge(name, model, options.seed, DECODINGS[name], hr_requests=100) for name, model in trained.items()]
    write_report(found, options.out)
    print_table(found, console)
    _show_one(evaluator, trained["degre"])
    console.print(f"\nCheckpoints, table, plot and results.json are in [bold]{options.out}[/bold].", highlight=False)


def _distil(evaluator: Trained, options: argparse.Namespace) -> Trained:
    """Mines slates and trains the generator on them."""
    mined = options.out / "mined"
    if (mined / SETTINGS_FILE).is_file():
        shutil.rmtree(mined)  # of an earlier quickstart, whose evaluator was another
    console.rule("mining: the evaluator searches logged requests for better slates")
    mine_once(evaluator, mined, num_requests=options.num_mined)
    return _train("degre", options, [f"--data.init_args.path={mined}", f"--data.init_args.extractor={mined}"])


def _train(name: str, options: argparse.Namespace, data: Sequence[str] = ()) -> Trained:
    """Trains one recipe; what `from_pretrained` reads goes to `out/name`. `data`: another source than the simulator."""
    recipe, story = TOLD[name]
    console.rule(f"{name}: {story}")
    folder = options.out / name
    simulated = [
        f"--data.init_args.world_seed={options.seed}",
        f"--data.init_args.num_train={options.num_train}",
        f"--data.init_args.root={options.out / 'data'}",
    ]
    run = prepare_run(
        recipe,
        options.out / "runs" / name,
        options.seed,
        [
            *(data or simulated),
            f"--export.dirpath={folder}",
            *([f"--trainer.max_epochs={options.max_epochs}"] if options.max_epochs else []),
            "--trainer.enable_model_summary=false",
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
        ],
    )
    return train(run, folder)


def _show_one(evaluator: Trained, generator: Trained) -> None:
    """Reranks one raw test request with the checkpoint as it was saved."""
    console.rule("one request")
    row = evaluator.data.split("test")[0]
    schema = evaluator.data.extractor.schema
    request = {field.name: row[field.name] for field in schema.fields}
    [after] = RerankingPipeline.from_pretrained(str(generator.folder))([request], slate_size=4)
    order = np.argsort(row["upstream_score"])[::-1][: len(after)].tolist()
    before = [{"item_id": row["item_id"][i], "index": i, "score": row["upstream_score"][i]} for i in order]
    console.print(_side_by_side(row, before, after))
    console.print(_truth(row, before, after, Simulator.from_metadata(evaluator.data.metadata or {})), highlight=False)


def _side_by_side(row: dict[str, Any], before: list[RerankedItem], after: list[RerankedItem]) -> Table:
    table = Table("", title=f"user {row['user_id']}, {len(row['item_id'])} candidates", title_justify="left")
    for side in ("upstream", "DeGRe"):
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
    return f"true expected utility: upstream {upstream:.2f}, DeGRe {reranked:.2f}, best possible {best:.2f}"
