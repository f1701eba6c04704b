"""`rerankzoo quickstart`: the whole story in minutes, on simulated logs whose truth is known."""

from __future__ import annotations

import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console
from rich.table import Table

from rerankzoo.cli.benchmark import Benchmark, Entry, EvaluatorSpec
from rerankzoo.cli.recipes import find_recipe
from rerankzoo.cli.runs import Trained, mine_once, train
from rerankzoo.data.simulator import Simulator
from rerankzoo.evaluation import print_table, write_report
from rerankzoo.features.extractor import RerankingFeatureExtractor
from rerankzoo.mining import SETTINGS_FILE
from rerankzoo.pipeline import RerankingPipeline

console = Console()

#: What is trained, what is said of it, and how it decodes.
STORY = "quickstart.yaml"


def quickstart(
    *,
    seed: NonNegativeInt = 0,
    num_train: int = 20_000,
    num_mined: int = 5_000,
    max_epochs: PositiveInt | None = None,
    out: Path = Path("outputs/quickstart"),
) -> None:
    """The whole story in minutes, on simulated logs whose truth is known.

    An evaluator learns what people click in a slate, searches the logged requests for better slates than were shown,
    and a generator (DeGRe's) learns what it found. Beside it: the upstream order, a pointwise ranker, PRM and NAR4Rec,
    with and without the evaluator. All checkpoints are saved, and the generator's is loaded back and reranks one raw
    request.

    Args:
        seed: Of the simulated world and of the training.
        num_train: Logged requests to train on.
        num_mined: Of them the evaluator searches.
        max_epochs: Passes over the data (default: the recipes').
        out: Folder for checkpoints, table, plot and results.json.
    """
    torch.set_num_threads(1)  # matrices this small gain nothing from a second one, and lose much on a busy machine
    story = Benchmark.from_yaml(find_recipe(STORY))
    simulated = {"world_seed": seed, "num_train": num_train, "root": out / "data"}
    common = ["--trainer.enable_model_summary=false", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    common += [f"--trainer.max_epochs={max_epochs}"] if max_epochs else []

    def teach(name: str, spec: Entry | EvaluatorSpec, data: dict[str, Any]) -> Trained:
        console.rule(f"{name}: {spec.story}")
        options = [f"--data.init_args.{key}={value}" for key, value in data.items()]
        return train(str(spec.recipe), out / "runs" / name, seed, [*options, *common], anew_to=out / name)

    if story.evaluator is None:
        raise ValueError(f"{STORY} names no evaluator")
    evaluator = teach(f"{Path(story.evaluator.recipe).parent.name}-evaluator", story.evaluator, simulated)
    trained: dict[str, Trained] = {}
    mined = out / "mined"
    for name, entry in story.models.items():
        if entry.mine is not None:
            if (mined / SETTINGS_FILE).is_file():
                shutil.rmtree(mined)  # of an earlier quickstart, whose evaluator was another
            console.rule("mining: the evaluator searches logged requests for better slates")
            mine_once(evaluator, mined, num_requests=num_mined)
        trained[name] = teach(name, entry, simulated if entry.mine is None else {"path": mined, "extractor": mined})
    console.rule("evaluating on test requests")
    run = evaluator.evaluation(evaluator.load("cpu"))
    evaluations = []
    for name, entry in story.models.items():
        extractor = RerankingFeatureExtractor.from_pretrained(trained[name].folder)
        model = trained[name].load("cpu")
        evaluations.append(run.evaluate(name, model, extractor, seed, entry.named_decodings(), hr_requests=100))
    write_report(evaluations, out)
    print_table(evaluations, console)
    _show_one(evaluator, trained[name])
    console.print(f"\nCheckpoints, table, plot and results.json are in [bold]{out}[/bold].", highlight=False)


def _show_one(evaluator: Trained, generator: Trained) -> None:
    """Reranks one raw test request with the checkpoint as it was saved."""
    console.rule("one request")
    row = evaluator.data.split("test")[0]
    schema = evaluator.data.extractor.schema
    request = {field.name: row[field.name] for field in schema.fields}
    [after] = RerankingPipeline.from_pretrained(str(generator.folder))([request], slate_size=4)
    order = np.argsort(row["upstream_score"])[::-1][: len(after)].tolist()
    before = [{"item_id": row["item_id"][i], "index": i, "score": row["upstream_score"][i]} for i in order]
    table = Table("", title=f"user {row['user_id']}, {len(row['item_id'])} candidates", title_justify="left")
    for side in ("upstream", "DeGRe"):
        for column in (f"{side} item", "category", "score"):
            table.add_column(column, justify="right")
    for position, pair in enumerate(zip(before, after, strict=True), start=1):
        items = ((str(item["item_id"]), str(row["category"][item["index"]]), f"{item['score']:.2f}") for item in pair)
        table.add_row(str(position), *chain.from_iterable(items))
    console.print(table)
    simulator = Simulator.from_metadata(evaluator.data.metadata or {})
    users, ids = np.array([row["user_id"]]), np.array([row["item_id"]])
    slates = np.array([[[item["index"] for item in slate] for slate in (before, after)]])
    upstream, reranked = simulator.expected_utility(users, ids, slates)[0]
    best = simulator.all_utilities(users, ids, slates.shape[-1]).max()
    text = f"true expected utility: upstream {upstream:.2f}, DeGRe {reranked:.2f}, best possible {best:.2f}"
    console.print(text, highlight=False)
